"""Damaged and hostile files end in a message that names them: never a crash, a wait without end, or other voxels."""

import gzip
import os
import random
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from tests.io.test_formats import GRIDS, voxels, write_input

VALUES = (
    "-1|0|99|nan|inf|%s%s%n||LIST|LIST 99|LOCAL|MET_STRING|True|(1,2|()()()|none none none|block|hex|gzip|txt|16|3 3"
)
VALUES += "|2147483647 2147483647 2147483647|4294967296|7 6 5 4|%99999d 1 5 1|/dev/zero|1e400|." + "|" + "A" * 5000
VALUES += "|" + "1 " * 4000
KEYS = {
    ".mha": [
        "ElementNumberOfChannels",
        "HeaderSize",
        "CompressedData",
        "CompressedDataSize",
        "ElementSize",
        "Comment",
        "Color",
        "ID",
        "Name",
        "CenterOfRotation",
        "AnatomicalOrientation",
        "BinaryDataByteOrderMSB",
        "ElementToIntensityFunctionSlope",
    ],
    ".nrrd": [
        "space",
        "space dimension",
        "measurement frame",
        "thicknesses",
        "spacings",
        "axis mins",
        "labels",
        "units",
        "kinds",
        "block size",
        "content",
        "line skip",
        "byte skip",
        "data file",
        "number",
        "endian",
    ],
}


def mutations(path: Path, count: int):
    """Yield the content of an image with a few lines of its header changed, added, removed or shuffled."""
    rng, separator = random.Random(0), " = " if path.suffix == ".mha" else ": "
    content = path.read_bytes()
    end = content.index(b"LOCAL\n") + 6 if path.suffix == ".mha" else content.index(b"\n\n") + 2
    head = content[:end].decode().strip().split("\n")
    for _ in range(count):
        lines = list(head)
        for _ in range(rng.choice([1, 1, 2, 3])):
            at, what = rng.randrange(len(lines)), rng.randrange(5)
            if what <= 1:
                lines[at] = lines[at].split(separator)[0] + separator + rng.choice(VALUES.split("|"))
            elif what == 2:
                between = rng.choice((separator, separator, ":=", " : ", "\n", "\r="))
                lines.insert(at, rng.choice(KEYS[path.suffix]) + between + rng.choice(VALUES.split("|")))
            elif what == 3 and len(lines) > 1:
                del lines[at]
            else:
                rng.shuffle(lines)
        yield "\n".join(lines).encode() + content[end - (1 if path.suffix == ".mha" else 2) :]


def attack(path: Path) -> None:
    """Read mutations of an image; in a process of its own, which ITK may end."""
    good = read_image(path).data
    for number, content in enumerate(mutations(path, 500)):
        changed = path.with_name(f"changed{path.suffix}")
        changed.write_bytes(content)
        with suppress(DataError):
            data = read_image(changed).data
            assert data.size != good.size or np.array_equal(data, good), number


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_no_header_ends_the_process(tmp_path, suffix):
    path = write_input(tmp_path / f"image{suffix}", voxels(), GRIDS["aligned"])
    code = f"import pathlib; from tests.io import test_hostile_files as t; t.attack(pathlib.Path({str(path)!r}))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_flipped_bit_of_compressed_voxels_is_found(tmp_path, suffix):
    """ITK looks at no checksum of NRRD: of 60 flips, it read 10 without a word."""
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(voxels(shape=(20, 30, 40), high=99)), str(path), useCompression=True)
    content, good, rng = path.read_bytes(), read_image(path).data, random.Random(0)
    for _ in range(40):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content) // 2, len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=path.name):
            read_image(path)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path).data, good)


@pytest.mark.parametrize("lines", ["LIST\n" + "\n".join(f"s{k}.gz" for k in range(5)), "s%d.gz 0 4 1 2"])
def test_damaged_slices_of_a_detached_nrrd_are_found(tmp_path, lines):
    """The checksums of several files were not looked at."""
    array, path = voxels(np.uint8), tmp_path / "a.nhdr"
    header = "NRRD0005\ntype: uint8\ndimension: 3\nsizes: 7 6 5\nspacings: 1 1 1\nencoding: gzip\ndata file: "
    path.write_text(f"{header}{lines}\n")
    for k in range(5):
        (tmp_path / f"s{k}.gz").write_bytes(gzip.compress(array[:, :, k].tobytes("F"), 0))
    np.testing.assert_array_equal(read_image(path).data, array)
    content = bytearray((tmp_path / "s3.gz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "s3.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nhdr: the voxels in s3\.gz are damaged"):
        read_image(path)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: b" ".join(b"%d" % v for v in data[::2])])
def test_nrrd_of_other_encodings(tmp_path, pack):
    array = voxels(np.uint8).astype(np.int16)
    encoding = {gzip.compress: "gz"}.get(pack, "ascii")
    header = (
        f"NRRD0005\ntype: int16\ndimension: 3\nsizes: 7 6 5\nspacings: 1 1 1\nendian: little\nencoding: {encoding}\n\n"
    )
    (tmp_path / "image.nrrd").write_bytes(header.encode() + pack(array.tobytes("F")))
    np.testing.assert_array_equal(read_image(tmp_path / "image.nrrd").data, array)


@pytest.mark.parametrize("name", ["image.nii.gz", "image.nii", "image.nrrd", "image.mha", "image.dcm"])
def test_only_files_are_read(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{name} is a named pipe; expected a file"):
        read_image(path)
    path.unlink()
    path.symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(path)
    with pytest.raises(DataError, match=f"{name}: cannot be read .*links"):
        read_image(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"{name} is a device"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxel_files_are_files(tmp_path, suffix):
    path = write_input(tmp_path / f"image{suffix}", voxels(), GRIDS["aligned"])
    path.with_suffix(".raw").unlink()
    os.mkfifo(path.with_suffix(".raw"))
    with pytest.raises(DataError, match=rf"image{suffix}: .*image\.raw is a named pipe"):
        read_image(path)


def test_gzip_bombs_are_not_unpacked(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), tmp_path / "image.nii")
    with gzip.open(tmp_path / "image.nii.gz", "wb", 1) as file:
        file.write((tmp_path / "image.nii").read_bytes())
        file.write(bytes(2**22))
    with pytest.raises(DataError, match=r"image\.nii\.gz: cannot be read .*goes on behind its voxels"):
        read_image(tmp_path / "image.nii.gz")


def test_a_damaged_start_of_a_compressed_file_is_one_line(tmp_path):
    """zlib has an error of its own, which is no OSError."""
    content = bytearray(gzip.compress(nib.Nifti1Image(voxels(), np.eye(4)).to_bytes()))
    for at in range(10, 60):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        (tmp_path / "image.nii.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"image\.nii\.gz: (cannot be read|its header is damaged)"):
            read_image(tmp_path / "image.nii.gz")


def put(offset: int, form: str, *values):
    def change(content: bytes) -> bytes:
        size = struct.calcsize(form)
        return content[:offset] + struct.pack(form, *values) + content[offset + size :]

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (put(0, "<i", 0), "sizeof_hdr is 0"),
        (put(40, "<h", 9), "dim.0. is 9"),
        (put(42, "<h", 3), "goes on behind its voxels"),
        (put(70, "<h", 32639), "datatype is 32639"),
        (put(70, "<h", 2), "bitpix is 16, expected 8"),
        (put(72, "<h", 8), "bitpix is 8, expected 16"),
        (put(80, "<f", 0.0), "pixdim"),
        (put(80, "<f", -1.0), "pixdim"),
        (put(84, "<f", np.nan), "pixdim"),
        (put(108, "<f", np.nan), "cannot be read"),
        (put(112, "<f", np.inf), "scl_slope is inf"),
        (put(116, "<f", -np.inf), "scl_inter is -inf"),
        (put(252, "<h", 99), "qform_code is 99"),
        (put(344, "4s", b"ni1\0"), "magic is"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_mends_no_header_unnoticed(tmp_path, suffix, spoil, words):
    nib.save(nib.Nifti1Image(voxels(), np.diag([1, 2, 3, 1])), tmp_path / "good.nii")
    content = spoil((tmp_path / "good.nii").read_bytes())
    path = tmp_path / f"image{suffix}"
    path.write_bytes(content if suffix == ".nii" else gzip.compress(content))
    with pytest.raises(DataError, match=rf"image\.nii.*{words}"):
        read_image(path)
