"""Voxels in other files than the image's own: a change of these is a change of the image."""

import os
from functools import partial

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import largest_first
from sparse3dunet.inference.inputs import ImageCase, find_images
from sparse3dunet.inference.records import CaseRecord
from sparse3dunet.io import read_image
from sparse3dunet.io.suffixes import state_of
from sparse3dunet.io.voxel_files import voxel_files
from tests.inference.test_records import do
from tests.io.microscopy import voxels

NRRD = "NRRD0005\ntype: uint8\ndimension: 3\nsizes: 7 6 5\nspacings: 1 1 1\nencoding: raw\ndata file: "
ARRAY = voxels()


def write_itk(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path))
    return path.with_suffix(".raw")


def write_slices(lines):
    def write(path, array):
        path.write_text(NRRD + lines + "\n")
        for k in range(5):
            (path.parent / f"s{k}.raw").write_bytes(array[:, :, k].tobytes("F"))
        return path.parent / "s3.raw"

    return write


def write_ome(path, array):
    """As Bio-Formats writes several files: the first one holds the OME-XML of all."""
    tifffile.imwrite(path, array.T, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    xml = tifffile.TiffFile(path).ome_metadata
    data = "".join(
        f'<TiffData IFD="0" FirstZ="{k}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{k}</UUID></TiffData>'
        for k, name in enumerate([path.name, *(f"z&amp;{k}.ome.tif" for k in range(1, 5))])
    )
    xml = xml[: xml.index("<TiffData")] + data + xml[xml.index("</Pixels>") :]
    for k in range(5):
        name = path if not k else path.with_name(f"z&{k}.ome.tif")
        tifffile.imwrite(name, array.T[k], description=xml, metadata=None, photometric="minisblack")
    return path.with_name("z&3.ome.tif")


def write_planes(path, planes, files, array=ARRAY):
    """An OME-TIFF whose planes are those of other files, each by its name and number there."""
    tifffile.imwrite(path, 0 * array.T, ome=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    xml = tifffile.TiffFile(path).ome_metadata
    data = "".join(
        f'<TiffData IFD="{ifd}" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
        for z, (name, ifd) in enumerate(planes)
    )
    xml = xml[: xml.index("<TiffData")] + data + xml[xml.index("</Pixels>") :]
    tifffile.tiffcomment(path, xml.encode())
    for name, content in files.items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(path.parent / name, content.T, metadata=None, photometric="minisblack")


def write_virtual(path, array, pattern=False):
    layout = h5py.VirtualLayout((5, 6, 7), np.uint8)
    for k in range(5):
        with h5py.File(path.with_name(f"p{k}.h5"), "w") as file:
            file["raw"] = array.T[k]
        layout[k] = h5py.VirtualSource(f"p{k}.h5", "raw", (6, 7))
    with h5py.File(path, "w") as file:
        if not pattern:
            file.create_virtual_dataset("raw", layout)
            return path.with_name("p3.h5")
        many, plane = h5py.h5s.UNLIMITED, h5py.h5s.create_simple((6, 7))
        space = h5py.h5s.create_simple((5, 6, 7), (many, 6, 7))
        space.select_hyperslab((0, 0, 0), (many, 1, 1), block=(1, 6, 7))
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_virtual(space, b"p%b.h5", b"raw", plane)
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, options)
    return path.with_name("p3.h5")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        *(("a.mhd", write_itk), ("a.nhdr", write_itk), ("a.ome.tif", write_ome)),
        *(("b.nhdr", write_slices("LIST\n" + "\n".join(f"s{k}.raw" for k in range(5)))), ("a.hdf5", write_virtual)),
        ("b.h5", partial(write_virtual, pattern=True)),
        *(("c.nhdr", write_slices("s%d.raw 0 4 1")), ("d.nhdr", write_slices("s%d.raw 4 0 -1 2"))),
    ],
)
def test_a_change_of_the_voxels_is_seen(tmp_path, name, write):
    other = write(tmp_path / name, ARRAY)
    expected = ARRAY[:, :, ::-1] if name == "d.nhdr" else ARRAY
    np.testing.assert_array_equal(read_image(tmp_path / name).data, expected)
    (case,) = find_images([tmp_path / name])
    before = state_of(tmp_path / name)
    do(tmp_path / "out", case)
    assert CaseRecord(tmp_path / "out", case, {"model": "one"}).is_done()
    assert state_of(tmp_path / name) == before
    os.utime(other, ns=(1, 1))  # an older file in its place, of the same size
    assert state_of(tmp_path / name) != before
    assert not CaseRecord(tmp_path / "out", case, {"model": "one"}).is_done()


@pytest.mark.parametrize("other", ["b.ome.tif", "parts/b.ome.tif"])
@pytest.mark.parametrize("reverse", [False, True])
def test_all_planes_in_another_file(tmp_path, other, reverse):
    """They are there one after the other, at an offset that is none in the file itself."""
    order = range(4, -1, -1) if reverse else range(5)
    write_planes(tmp_path / "a.ome.tif", [(other, ifd) for ifd in order], {other: ARRAY})
    found = read_image(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(found.data, ARRAY[:, :, ::-1] if reverse else ARRAY)
    assert [str(tmp_path / other)] == voxel_files(tmp_path / "a.ome.tif")
    (tmp_path / other).unlink()
    with pytest.raises(DataError, match=r"a\.ome\.tif: planes of it are in b\.ome\.tif, which is missing"):
        read_image(tmp_path / "a.ome.tif")


def test_planes_at_offsets_that_seem_to_follow(tmp_path):
    """Each is in a file of its own, but at the offset of the former one's end."""
    array = voxels((8, 6, 5))
    names = [f"p{k}.ome.tif" for k in range(5)]
    write_planes(tmp_path / "a.ome.tif", [(name, 0) for name in names], {}, array)
    offsets = []
    for k, name in enumerate(names):
        text = "-" * (100 + k * array[..., k].size)
        tifffile.imwrite(tmp_path / name, array[..., k].T, metadata=None, description=text, photometric="minisblack")
        offsets += tifffile.TiffFile(tmp_path / name).pages[0].dataoffsets
    assert set(np.diff(offsets)) == {48}
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif").data, array)


@pytest.mark.parametrize("form", ["absolute", "up", "one of them"])
def test_planes_in_a_file_elsewhere(tmp_path, form):
    """An OME-TIFF from elsewhere must not choose which files are read."""
    (tmp_path / "in").mkdir()
    other = str(tmp_path / "other/b.ome.tif") if form == "absolute" else "../other/b.ome.tif"
    planes = [(other if form != "one of them" or k == 3 else "c.ome.tif", k) for k in range(5)]
    write_planes(tmp_path / "in/a.ome.tif", planes, {other: ARRAY, "c.ome.tif": ARRAY})
    with pytest.raises(DataError, match=r"a\.ome\.tif: planes of it are in a file elsewhere, which is not read"):
        read_image(tmp_path / "in/a.ome.tif")


@pytest.mark.parametrize("lines", ["s%d.raw 0 999999999 1", "s%d.raw 0 4 0", "s%d.raw 4 0 1", "s%s.raw 0 4 1"])
def test_patterns_that_are_none(tmp_path, lines):
    write_slices(lines)(tmp_path / "a.nhdr", ARRAY)
    with pytest.raises(DataError, match=r"a\.nhdr: data file has a %"):
        read_image(tmp_path / "a.nhdr")
    assert state_of(tmp_path / "a.nhdr")[1] == 1


def test_listed_files_are_files(tmp_path):
    write_slices("LIST\n" + "\n".join(f"s{k}.raw" for k in range(5)))(tmp_path / "a.nhdr", ARRAY)
    (tmp_path / "s2.raw").unlink()
    os.mkfifo(tmp_path / "s2.raw")
    with pytest.raises(DataError, match=r"a\.nhdr: .*s2\.raw is a named pipe"):
        read_image(tmp_path / "a.nhdr")


def test_damaged_images_do_not_end_a_batch(tmp_path):
    """Neither their size nor their state is known, or they are; reading them tells what is wrong."""
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["raw"] = voxels((6, 5, 4))
        file["more/label"] = voxels((6, 5, 4))
    whole, random = (tmp_path / "whole.h5").read_bytes(), np.random.default_rng(0)
    for number in range(100):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 2500), 8):
            damaged[place] = random.integers(256)
        (tmp_path / f"images/{number}.h5").parent.mkdir(exist_ok=True)
        (tmp_path / f"images/{number}.h5").write_bytes(damaged)
    (tmp_path / "images/long.nhdr").write_text(f"NRRD0004\ntype: uchar\ndimension: 3\ndata file: {'a' * 300}.raw\n")
    cases = [ImageCase(file.name, (str(file),)) for file in (tmp_path / "images").iterdir()]
    assert len(largest_first(cases)) == 101
    for case in cases:
        state_of(case.files[0])
