"""Header of an NRRD file, checked before ITK reads it, and its voxels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_compressed, check_length, check_regular, check_text
from sparse3dunet.io.text_header import (
    MOST_VOXELS,
    decimals,
    header_lines,
    shown,
    unreadable,
    whole_number,
    whole_numbers,
)

_SHORT, _INT, _LONG = ("short", "short int", "int16"), ("int", "int32"), ("longlong", "long long", "int64")
TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys((*_SHORT, "signed short", "signed short int", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys((*_INT, "signed int", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys((*_LONG, "long long int", "signed long long", "signed long long int", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
"""Types of numbers, as of NumPy."""
ENCODINGS = {"raw": "raw", "gz": "gzip", "gzip": "gzip"} | dict.fromkeys(("txt", "text", "ascii"), "text")


FIELDS = {
    *("space", "spacedimension", "content", "number", "type", "blocksize", "encoding", "endian"),
    *("minmax", "min", "max", "oldmin", "oldmax", "dimension", "sizes", "spacings"),
    *("thicknesses", "axismins", "axismaxs", "centers", "centerings", "labels", "units", "spaceunits"),
    *("spaceorigin", "spacedirections", "measurementframe", "kinds", "sampleunits", "datafile", "lineskip", "byteskip"),
}
"""Names of fields, without blanks and in lower case."""
MOST_FILES = 100_000
"""Number of files that the voxels may be in."""
LONGEST_VALUE, LONGEST_WORD = 500, 100
"""Characters; Teem copies words and numbers to arrays on the stack without a check."""


@dataclass(frozen=True)
class NrrdHeader:
    """Fields of an NRRD header by lower-case name, the offset of its end, and how many numbers of which type follow.

    `listed` are the lines after ``data file: LIST``, each the name of a file.
    """

    fields: dict[str, str]
    end: int
    num_numbers: int
    dtype: np.dtype
    listed: tuple[str, ...] = ()


def read_nrrd_header(path: Path) -> NrrdHeader:
    """Read and check a header; ITK's own checks are not complete.

    Raises:
        DataError: when a field that matters is missing, doubled or has no sensible value.
    """
    lines, end = header_lines(path, "$")
    if not lines or not re.fullmatch(r"NRRD000[1-9]", lines[0].strip()):
        raise unreadable(path, "it does not begin with NRRD0004 or the like")
    fields: dict[str, str] = {}
    listed: tuple[str, ...] = ()
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("#") or not line or ":=" in line:  # a comment, the end, or a key of other programs
            continue
        name, colon, value = line.partition(": ")
        name = re.sub(r"\W", "", name).lower()
        if not colon:
            raise unreadable(path, f"line {number} of its header is not FIELD: VALUE")
        if name not in FIELDS:
            raise unreadable(path, f"line {number} of its header has a field that is none of NRRD's")
        if name in fields:
            raise unreadable(path, f"line {number} of its header repeats a field")
        if name not in ("content", "datafile") and (
            len(value) > LONGEST_VALUE or max(map(len, value.split()), default=0) > LONGEST_WORD
        ):
            raise unreadable(path, f"line {number} of its header is too long")
        fields[name] = value.strip()
        if name == "datafile" and value.strip().startswith("LIST"):
            listed = tuple(lines[number:])
            break
    return NrrdHeader(fields, end, *_check_numbers(path, fields), listed)


def _check_numbers(path: Path, fields: dict[str, str]) -> tuple[int, np.dtype]:
    """Check size and geometry, and return how many numbers the voxels are, and their type."""
    missing = [name for name in ("dimension", "type", "sizes", "encoding") if name not in fields]
    if missing:
        raise unreadable(path, f"its header has no {', '.join(missing)}")
    dims = whole_number(path, "dimension", fields["dimension"], 1, 16)
    sizes = whole_numbers(path, "sizes", fields["sizes"], 1, MOST_VOXELS)
    if len(sizes) != dims:
        raise unreadable(path, f"sizes is {shown(fields['sizes'])}, expected {dims} numbers as dimension says")
    if fields["encoding"].lower() not in ENCODINGS:
        raise unreadable(path, f"encoding is {shown(fields['encoding'])}, expected raw, gzip or text")
    kind = " ".join(fields["type"].lower().split())
    if kind not in TYPES:
        raise unreadable(path, f"type is {shown(fields['type'])}, expected one such as short, uint8 or float")
    for name in ("lineskip", "byteskip"):
        whole_number(path, name, fields.get(name, "0"), -1 if name == "byteskip" else 0, 2**40)
    if "spacedirections" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["spacedirections"])
        for vector in vectors:
            decimals(path, "space directions", vector.replace(",", " "), len(vector.split(",")))
    return math.prod(sizes), np.dtype(TYPES[kind])


def check_voxels(path: Path, header: NrrdHeader) -> None:
    """Check the length and the checksum of the voxels, in one file or in one for each of some slices.

    ITK looks at no checksum: of 60 files with one bit flipped, it read 10 without a word, with up to 13,755 of 23,040
    voxels wrong.

    Raises:
        DataError: when a file is missing, or the voxels are truncated or damaged.
    """
    files = voxel_files(path, header)
    for other in files:
        check_regular(other, path)
    sizes = [int(word) for word in header.fields["sizes"].split()]
    if len(files) not in {math.prod(sizes[i:]) for i in range(len(sizes) + 1)}:  # of which ITK tells
        return
    for file in files:
        _check_file(path, header, file, header.num_numbers // len(files))


def _check_file(path: Path, header: NrrdHeader, file: Path, count: int) -> None:
    fields, num_bytes = header.fields, count * header.dtype.itemsize
    encoding, start = ENCODINGS[fields["encoding"].lower()], 0 if fields.get("datafile") else header.end
    skip, lines = int(fields.get("byteskip", "0")), int(fields.get("lineskip", "0"))
    if lines:
        with file.open("rb") as stream:
            stream.seek(start)
            for _ in range(min(lines, file.stat().st_size)):
                stream.readline()
            start = stream.tell()
    found = file.stat().st_size - start
    if encoding == "raw":
        found = min(found, num_bytes) if skip < 0 else found - skip  # negative: the voxels are at the end
        check_length(path, file, found, num_bytes)
    elif encoding == "gzip":
        check_compressed(path, file, start, found, num_bytes + max(skip, 0), kinds=("gzip",))
    else:
        check_text(path, file, start + max(skip, 0), count, header.dtype, has_commas=True)


def voxel_files(path: Path, header: NrrdHeader) -> list[Path]:
    """Return the files of the voxels: the image's own, the one that it names, or one for each of some slices.

    Raises:
        DataError: when the names of several files are none: Teem passes a pattern to C's printf.
    """
    name = header.fields.get("datafile", "")
    if name.startswith("LIST"):
        return [path.parent / line.strip() for line in header.listed if line.strip()]
    if "%" not in name:
        return [path.parent / name if name else path]
    parts = re.fullmatch(r"([^%]*%0?\d?d[^%]*?) +(-?\d{1,9}) +(-?\d{1,9}) +(-?\d{1,9})(?: +\d)?", name)
    numbers = range(0)
    if parts and (step := int(parts[4])):
        numbers = range(int(parts[2]), int(parts[3]) + (1 if step > 0 else -1), step)
    if parts is None or not 0 < len(numbers) <= MOST_FILES:
        raise DataError(
            f"{path}: data file has a % ({shown(name)}), but is no pattern; expected a file, or a pattern such as "
            "slice_%03d.raw 1 20 1. Export the image again."
        )
    return [path.parent / (parts[1] % number) for number in numbers]
