"""Files of results are whole, the same each time and made in little memory; files that are damaged are named."""

import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output, read_image, write_map, write_segmentation
from sparse3dunet.io.suffixes import ORIENTED_SUFFIXES
from sparse3dunet.io.volumes import Volume
from tests.io.test_formats import (
    GRIDS,
    ITK_FORMATS,
    NAMES,
    NIFTI_FORMATS,
    SHAPE,
    image_like,
    read_by_sitk,
    voxels,
    write_input,
)

# Bytes and memory


@pytest.mark.parametrize("output", ORIENTED_SUFFIXES)
def test_same_input_gives_same_bytes(tmp_path, output, monkeypatch):
    image, labels = image_like(), voxels(np.uint8)
    write_segmentation(tmp_path / f"a{output}", labels, image, NAMES)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    for n, other in enumerate((labels, np.ascontiguousarray(labels), np.asfortranarray(labels))):
        write_segmentation(tmp_path / f"b{n}{output}", other, image, NAMES)
        assert (tmp_path / f"a{output}").read_bytes() == (tmp_path / f"b{n}{output}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4
    _, *packed = (tmp_path / f"a{output}").read_bytes().split(b"\x1f\x8b\x08")  # gzip, which has room for the time
    assert all(part[1:5] == bytes(4) for part in packed[:1])


def memory(key):
    """This process' memory in bytes: "VmRSS" as it is, "VmHWM" at its peak."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of memory are measured on Linux")
@pytest.mark.parametrize("output", ORIENTED_SUFFIXES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_take_little_memory(tmp_path, output, order):
    shape = (256, 256, 256)
    labels = np.memmap(tmp_path / "labels.raw", np.uint8, "w+", shape=shape, order=order)
    labels[:] = np.arange(256)
    labels[3, 5] = 1
    image, maps = Volume("made", labels, np.eye(4)), labels.reshape(256, 256, 64, 4, order=order)
    write_segmentation(tmp_path / f"small{output}", voxels(np.uint8), image_like(), NAMES)  # what is loaded but once
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    write_segmentation(tmp_path / f"out{output}", labels, image, NAMES)
    if output != ".seg.nrrd":
        write_map(tmp_path / f"map{output}", maps, Volume("made", maps, np.eye(4)))
    # nibabel needs a channel at a time in memory, SimpleITK a copy of the whole.
    assert memory("VmHWM") - before < labels.nbytes * (0.5 if output in NIFTI_FORMATS else 2)
    np.testing.assert_array_equal(read_by_sitk(tmp_path / f"out{output}")[0], labels)
    for file in tmp_path.iterdir():
        file.unlink()


@contextmanager
def file_size_limit(num_bytes):
    """Files end after so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("dtype", "output"),
    [*((np.uint8, s) for s in ORIENTED_SUFFIXES), *((np.float32, s) for s in (*NIFTI_FORMATS, *ITK_FORMATS))],
)
@pytest.mark.parametrize("shape", [SHAPE, (64, 64, 64)])
def test_files_without_their_end_do_not_remain(tmp_path, output, shape, dtype):
    """ITK says nothing where only the last few KB are missing."""
    path, image = tmp_path / f"OUT{output.upper()}", image_like(shape=shape)

    def write():
        if dtype == np.uint8:
            write_segmentation(path, voxels(dtype, shape), image, NAMES)
        else:
            write_map(path, np.random.default_rng(0).random(shape, dtype), image, "map")

    write()
    size = path.stat().st_size
    path.write_bytes(b"old")
    for missing in (1, 5, 9, 100, 4000, 9000, size // 2, size - 300, size - 10, size):
        if missing <= size:
            with (
                file_size_limit(size - missing),
                pytest.raises(OSError, match=r"too large|cannot be written|disk full"),
            ):
                write()
            assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, b"old")], missing


@pytest.mark.parametrize("labels", [voxels(np.float32), voxels(shape=(6, 7, 5)), voxels(shape=(*SHAPE, 2))])
def test_wrong_arrays(tmp_path, labels):
    with pytest.raises(ValueError, match="expected"):
        write_segmentation(tmp_path / "out.nii", labels, image_like(), NAMES)


def test_wrong_outputs(tmp_path):
    with pytest.raises(DataError, match=r"out\.png: unsupported output format; expected one of \.nii\.gz"):
        check_output(tmp_path / "out.png", image_like())
    with pytest.raises(DataError, match="is for segmentations only"):
        write_map(tmp_path / "out.seg.nrrd", voxels(), image_like())


# What is wrong with files


def cut(part):
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * len(path.read_bytes()))])


def spoil_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
    path.write_bytes(content)


def compressed(function):
    def change(path):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=True)
        function(path)

    return change


def put(old, new):
    return lambda path: path.write_bytes(re.sub(old, lambda _: new, path.read_bytes(), count=1))


def lose(suffix):
    return lambda path: path.with_suffix(suffix).unlink()


@pytest.mark.parametrize(
    ("suffix", "spoil", "words"),
    [
        *((s, cut(p), ["expected a whole"]) for s in (*NIFTI_FORMATS, *ITK_FORMATS) for p in (0, 0.005)),
        *((s, lambda p: p.write_text("<html>" * 99), ["copy or export it again"]) for s in (".nii", *ITK_FORMATS)),
        *((s, lambda p: p.unlink(), ["cannot be read", "missing"]) for s in (".nii.gz", *ITK_FORMATS)),
        (".nii", cut(0.6), ["cannot be read"]),
        (".nrrd", cut(0.8), ["truncated: image.nrrd contains", "expected 30000"]),
        (".mha", cut(0.8), ["image.mha contains 23930 bytes of voxels, expected 30000"]),
        (".nrrd", compressed(cut(0.8)), ["damaged or truncated"]),
        (".mha", compressed(cut(0.8)), ["damaged or truncated"]),
        (".nrrd", compressed(spoil_middle), ["the voxels in image.nrrd are damaged"]),
        (".mha", compressed(spoil_middle), ["the voxels in image.mha are damaged or truncated (Error -3"]),
        (".mha", compressed(put(rb"DataSize = \d+", b"DataSize = 50")), ["the end is missing"]),
        (".nhdr", lose(".raw"), ["cannot be read", "image.raw"]),
        (".mhd", lose(".raw"), ["image.raw is missing"]),
        (".nhdr", lambda p: cut(0.5)(p.with_suffix(".raw")), ["image.raw contains 15000 bytes", "expected 30000"]),
        (".mhd", lambda p: cut(0.5)(p.with_suffix(".raw")), ["image.raw contains 15000 bytes", "expected 30000"]),
        (".nrrd", put(rb"directions: \(-?[\d.]+,", b"directions: (0,"), ["0"]),
        (".mha", put(rb"ElementSpacing = \S+", b"ElementSpacing = 0"), ["expected positive numbers, in mm"]),
        (".mha", put(rb"TransformMatrix = \S+", b"TransformMatrix = nan"), ["expected 9 finite number"]),
        (".nrrd", lambda p: sitk.WriteImage(sitk.Image([4, 5], sitk.sitkInt16), str(p)), ["found shape (4, 5)"]),
        (".mha", lambda p: sitk.WriteImage(sitk.Image([4, 5, 6, 7], sitk.sitkInt16), str(p)), ["over time"]),
        (".nrrd", lambda p: sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), str(p)), ["magnitude"]),
        (".nii", lambda p: nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), complex), np.eye(4)), p), ["magnitude"]),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, spoil, words, capfd):
    path = write_input(tmp_path / f"image{suffix}", voxels(shape=(30, 25, 20), high=999), GRIDS["aligned"])
    spoil(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    for word in (path.name, *words):
        assert word in message
    assert "\n" not in message
    assert not re.search(r"0x[0-9a-f]{4}|\.cxx|\.hxx|Exception", message)
    assert "WARNING" not in capfd.readouterr().err


def test_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: unknown format; expected \.nii\.gz"):
        read_image(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"none\.dcm does not exist"):
        read_image(tmp_path / "none.dcm")
    with pytest.raises(DataError, match="a folder without DICOM files"):
        read_image(tmp_path)
