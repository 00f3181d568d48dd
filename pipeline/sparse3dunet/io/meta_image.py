"""MetaImage, read and written by ITK, with checks of the header and the voxels that ITK lacks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.itk import itk_affine, itk_array, itk_header, itk_read, itk_write
from sparse3dunet.io.meta_header import LAST, MetaHeader, read_meta_header
from sparse3dunet.io.payload import check_compressed, check_length, check_regular, check_text
from sparse3dunet.io.text_geometry import meta_in_mm
from sparse3dunet.io.text_header import shown, unreadable, whole_number
from sparse3dunet.io.volumes import Volume

FUNCTION = "ElementToIntensityFunction"


def read_meta_image(path: Path) -> Volume:
    """Read a MetaImage, in one file or more, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Raises:
        DataError: when it is damaged, or has another format.
    """
    header = read_meta_header(path)
    files = voxel_files(path, header)
    reader = itk_header(path, "MetaImageIO")
    for file in files:
        _check_voxels(path, file, header, header.num_numbers // len(files))
    affine, is_sized = meta_in_mm(path, header.fields, itk_affine(reader))
    notes = _intensity_notes(path, header)
    return Volume(str(path), itk_array(itk_read(reader, path)), affine, has_voxel_size=is_sized, notes=notes)


def _intensity_notes(path: Path, header: MetaHeader) -> tuple[str, ...]:
    """Return a note on a function from stored values to intensities, which ITK and other programs ignore."""
    slope, offset = (header.fields.get(key) for key in (f"{FUNCTION}Slope", f"{FUNCTION}Offset"))
    try:
        if (float(slope or 1), float(offset or 0)) == (1, 0):
            return ()
    except ValueError:  # no number
        pass
    return (
        f"{path}: its {FUNCTION} (slope {shown(slope or '1')}, offset {shown(offset or '0')}) is not applied: "
        "values are taken as they are stored, as ITK does. If they are needed, convert the image.",
    )


def write_meta_image(path: Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) on a grid without shear.

    Raises:
        OSError: when not all could be written.
    """
    itk_write(path, "MetaImageIO", array, affine, {key: _ascii_line(text) for key, text in metadata.items()})
    if not _is_whole(path, array):
        raise OSError(f"{path} could not be written completely; is the disk full?")


def _is_whole(path: Path, array: np.ndarray) -> bool:
    """Return whether a file written by ITK is complete, which ITK does not check (see :func:`itk_write`)."""
    try:
        header = read_meta_header(path)
    except DataError:
        return False
    return path.stat().st_size == header.end + int(header.fields.get("CompressedDataSize", array.nbytes))


def _ascii_line(text: str) -> str:
    """Return text as one line in ASCII: MetaIO would lose other letters at the end, and a separator at the start."""
    line = " ".join(text.split()).encode("ascii", "backslashreplace").decode()
    return f"\\x{ord(line[0]):02x}{line[1:]}" if line.startswith(("=", ":")) else line


def voxel_files(path: Path, header: MetaHeader) -> list[Path]:
    """Return the files of the voxels: one, or one for each slice.

    Raises:
        DataError: when one is missing or no file, or the header does not say which ones: MetaIO passes a pattern to C's
            printf, which crashes for most.
    """
    name = header.fields[LAST]
    size = [int(word) for word in header.fields["DimSize"].split()]
    if name.upper() == "LOCAL":
        return [path]
    if re.match("LIST( |$)", name):
        dims = whole_number(path, f"{LAST} = LIST", name[5:] or str(len(size) - 1), 1, len(size))
        lines = path.read_bytes()[header.end :].decode("latin-1").splitlines()
        names = [line.strip() for line in lines if line.strip()]
        count = math.prod(size[dims:])
        if len(names) != count:
            raise unreadable(path, f"it lists {len(names)} files of voxels, expected {count}")
    elif "%" in name:
        names = _numbered(path, name, size[-1])
    else:
        names = [name]
    files = [path.parent / name for name in names]
    for file in files:
        if not os.path.exists(file):
            raise DataError(f"{path}: the voxel file {file} is missing. Copy it too, or export the image again.")
        check_regular(file, path)
    return files


def _numbered(path: Path, pattern: str, slices: int) -> list[str]:
    """Return the names of "scan_%03d.raw 1 20 1": a pattern, the first and the last number, the step."""
    parts = re.fullmatch(r"([^%]*%0?\d?[diu][^%]*?)\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})", pattern)
    if parts is None or int(parts[4]) == 0:  # MetaIO divides by the step
        raise unreadable(
            path, f"{LAST} has a % ({shown(pattern)}), expected a file, or a pattern such as scan_%03d.raw 1 20 1"
        )
    text, (first, last, step) = parts[1], map(int, parts.groups()[1:])
    numbers = range(first, last + 1, step)
    if len(numbers) != slices:
        raise unreadable(path, f"{LAST} names {len(numbers)} slices, expected {slices}")
    return [text % number for number in numbers]


def _check_voxels(path: Path, file: Path, header: MetaHeader, count: int) -> None:
    """Raise DataError if the `count` numbers in a file of voxels are missing, truncated or damaged.

    ITK prints at most a line for such files, and returns what it has: with the middle of a file overwritten, 7502 of
    15000 compressed voxels were wrong. For truncated files, its message is "No such file or directory".
    """
    fields, skipped = header.fields, int(header.fields.get("HeaderSize", "0"))
    start = header.end if file == path else max(skipped, 0)
    if file == path and skipped not in (-1, 0, header.end):
        raise unreadable(path, f"HeaderSize is {skipped}, but the header ends after {header.end} bytes")
    found, expected = file.stat().st_size - start, count * header.dtype.itemsize
    if header.is_true("CompressedData"):
        # Without a given size, ITK finds no voxels after a header.
        size = int(fields.get("CompressedDataSize", "0" if file == path else str(found)))
        check_compressed(path, file, start, size, expected)
    elif header.is_true("BinaryData"):
        found = min(found, expected) if skipped < 0 else found  # negative: the voxels are at the end
        check_length(path, file, found, expected)
    else:
        check_text(path, file, start, count, header.dtype)
