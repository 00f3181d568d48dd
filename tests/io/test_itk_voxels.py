"""Voxels of NRRD and MetaImage that ITK would read as something else, without a word."""

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from tests.conftest import run_sparse3dunet, write_nifti
from tests.io.microscopy import voxels

ARRAY = voxels(dtype=np.uint8)
TYPES = {"u1": ("uint8", "MET_UCHAR"), "i2": ("int16", "MET_SHORT"), "f4": ("float", "MET_FLOAT")}


def write_text(path, words, dtype="u1"):
    """Write a file whose voxels are words."""
    nrrd, meta = TYPES[dtype]
    header = (
        f"NRRD0005\ntype: {nrrd}\ndimension: 3\nsizes: 2 3 1\nspacings: 1 1 1\nencoding: ascii\n\n"
        if path.suffix == ".nrrd"
        else f"ObjectType = Image\nNDims = 3\nDimSize = 2 3 1\nElementSpacing = 1 1 1\nElementType = {meta}\n"
        "BinaryData = False\nElementDataFile = LOCAL\n"
    )
    path.write_text(f"{header}{words}\n")
    return path


def write_meta(path, lines, kind="MET_UCHAR"):
    path.write_text(
        f"ObjectType = Image\nNDims = 3\n{lines[0]}DimSize = 7 6 5\nElementSpacing = 1 1 1\nElementType = {kind}\n"
        f"ElementDataFile = {lines[1]}\n"
    )
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("u1", "0 1 255\n+3 4 5"),
        ("u1", "0. 1.0 2.000 3 4 5"),
        ("f4", "3.4028235e+38 0 0 0 0 0"),
        ("i2", "-32768 1 2 3 4 32767"),
        ("f4", "1e2 -.5 3. 4 5 1.5E-3"),
    ],
)
def test_text(tmp_path, name, dtype, words):
    """Also as programs write it whose numbers all have a point."""
    found = read_image(write_text(tmp_path / name, words, dtype)).data
    np.testing.assert_array_equal(found.ravel("F"), np.array(words.split(), np.float64).astype(found.dtype))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        *[("u1", word) for word in ("300", "-1", "1.7", "0x10", "1,2", "1e2")],
        *[("i2", "40000"), ("f4", "1e39"), ("f4", "1,5"), ("f4", "abc"), ("f4", "1_0")],
    ],
)
def test_text_that_is_no_number_of_the_type(tmp_path, name, dtype, word):
    with pytest.raises(
        DataError, match=rf"{name}: the voxels in {name}, written as text, are not all (whole )?numbers"
    ):
        read_image(write_text(tmp_path / name, f"0 1 {word} 2 3 4", dtype))


def test_text_with_commas(tmp_path):
    """Teem skips one behind a number; MetaIO does not."""
    found = read_image(write_text(tmp_path / "a.nrrd", "0, 1, 2,\n3, 4, 5")).data
    np.testing.assert_array_equal(found.ravel("F"), range(6))
    with pytest.raises(DataError, match="are not all whole numbers"):
        read_image(write_text(tmp_path / "a.mha", "0, 1, 2,\n3, 4, 5"))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("words", ["0 1 2 3 4", "0 1 2 3 4 5 6"])
def test_text_of_another_length(tmp_path, name, words):
    with pytest.raises(DataError, match=rf"{name}: .* are {len(words.split())} numbers as text, expected 6"):
        read_image(write_text(tmp_path / name, words))


def test_meta_image_is_binary_unless_it_says_otherwise(tmp_path):
    path = write_meta(tmp_path / "a.mhd", ["", "a.raw"])
    (tmp_path / "a.raw").write_bytes(ARRAY.tobytes("F"))
    np.testing.assert_array_equal(read_image(path).data, ARRAY)
    (tmp_path / "a.raw").write_text(" ".join(str(value) for value in ARRAY.ravel("F")))
    with pytest.raises(DataError, match=r"a\.raw contains more voxels"):
        read_image(path)


@pytest.mark.parametrize("lines", ["LIST\n" + "\n".join(f"s{k}.raw" for k in range(5)), "s%d.raw 0 4 1"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_damaged_slices_of_a_meta_image_are_found(tmp_path, lines, is_packed):
    path = write_meta(tmp_path / "a.mhd", ["CompressedData = True\n" * is_packed, lines])
    for k in range(5):
        content = ARRAY[:, :, k].tobytes("F")
        (tmp_path / f"s{k}.raw").write_bytes(zlib.compress(content) if is_packed else content)
    np.testing.assert_array_equal(read_image(path).data, ARRAY)
    content = (tmp_path / "s3.raw").read_bytes()
    for damaged in (content[:-9], content + b"\0", content[:-1] + bytes([content[-1] ^ 1])):
        (tmp_path / "s3.raw").write_bytes(damaged)
        if not is_packed and len(damaged) == len(content):
            continue  # without a checksum, another voxel is as good
        if is_packed and len(damaged) > len(content):
            continue  # what follows a compressed slice is not read
        with pytest.raises(DataError, match=r"a\.mhd: .*s3\.raw"):
            read_image(path)


@pytest.mark.parametrize("step", ["", " 0"])
def test_a_pattern_without_a_step_does_not_end_the_process(tmp_path, step):
    """MetaIO divides by it."""
    write_nifti(tmp_path / "images/b.nii.gz", ARRAY)
    path = write_meta(tmp_path / "images/a.mhd", ["", "s%d.raw 0 4" + step])
    for k in range(5):
        (tmp_path / f"images/s{k}.raw").write_bytes(ARRAY[:, :, k].tobytes("F"))
    done = run_sparse3dunet("check", tmp_path)
    assert done.returncode == 1
    with pytest.raises(DataError, match=r"ElementDataFile has a % .*, expected a file, or a pattern such as"):
        read_image(path)


def test_gzip_of_nrrd_is_gzip(tmp_path):
    """Teem reads other bytes as they are, so zlib's packed ones as voxels."""
    header = "NRRD0005\ntype: uint8\ndimension: 3\nsizes: 7 6 5\nspacings: 1 1 1\nencoding: gzip\n\n"
    for pack, is_right in ((gzip.compress, True), (zlib.compress, False)):
        (tmp_path / "a.nrrd").write_bytes(header.encode() + pack(ARRAY.tobytes("F")))
        if is_right:
            np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").data, ARRAY)
        else:
            with pytest.raises(DataError, match=r"a\.nrrd are damaged or truncated \(they do not begin as gzip"):
                read_image(tmp_path / "a.nrrd")


def test_headers_ask_for_no_memory_that_a_file_cannot_fill(tmp_path):
    """60 bytes asked for 7 GB."""
    header = nib.Nifti1Header()
    header.set_data_shape((3000, 3000, 3000))
    header.set_data_dtype(np.float64)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    (tmp_path / "a.nrrd").write_text(
        "NRRD0005\ntype: double\ndimension: 3\nsizes: 3000 3000 3000\nspacings: 1 1 1\nencoding: ascii\n\n1 2 3"
    )
    for name, words in (("a.nii.gz", "compressed bytes cannot be"), ("a.nrrd", "are 3 numbers as text")):
        with pytest.raises(DataError, match=rf"{name}: .*{words}"):
            read_image(tmp_path / name)
