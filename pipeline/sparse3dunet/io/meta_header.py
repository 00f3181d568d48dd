"""Header of a MetaImage, checked before ITK reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.text_header import (
    MOST_VOXELS,
    decimals,
    header_lines,
    shown,
    unreadable,
    whole_number,
    whole_numbers,
)

LAST = "ElementDataFile"
"""Key of the last line."""
MATRICES, ORIGINS = ("TransformMatrix", "Rotation", "Orientation"), ("Offset", "Position", "Origin")
LONG_KEYS = (LAST, "DimSize", "ElementSpacing", "ElementSize", *MATRICES, *ORIGINS)
"""Keys of numbers, checked one by one, and of names of files, which may be longer than LONGEST_TEXT."""
OWN_KEYS = re.compile(
    "ObjectType|ObjectSubType|Name|Comment|TransformType|AcquisitionDate|AnatomicalOrientation|DistanceUnits|Color|ID|"
    "ParentID|Modality|SequenceID|CenterOfRotation|Binary.*|Compress.*|Element.*|Header.*|NDims|" + "|".join(LONG_KEYS)
)
"""Keys of MetaIO itself."""
BLANK = " \t\n\r\v\f"
LONGEST_KEY, LONGEST_TEXT = 200, 250
"""MetaIO copies keys, and the values of its own ones, to arrays of 255 characters, without a check."""
ELEMENT_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},  # long: 32 bits in MetaIO
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
"""Types of numbers, as of NumPy, by ElementType."""
DEFAULTS = {"BinaryData": "True", "CompressedData": "False"}
"""What MetaIO takes a flag for that the header does not have."""


@dataclass(frozen=True)
class MetaHeader:
    """MetaIO's own fields of a header by key, the offset of its end, and how many numbers of which type follow."""

    fields: dict[str, str]
    end: int
    num_numbers: int
    dtype: np.dtype

    def is_true(self, key: str) -> bool:
        return self.fields.get(key, DEFAULTS[key]).lower() in ("true", "t", "1")


def read_meta_header(path: Path) -> MetaHeader:
    """Read and check a header: MetaIO crashes, hangs or reads something else for the values that are refused here.

    Raises:
        DataError: when a field that matters is missing, doubled or has no sensible value.
    """
    lines, end = header_lines(path, rf"\s*{LAST}\s*[=:]")
    fields: dict[str, str] = {}
    for number, key, value in _entries(path, lines):
        if key in fields and key != "Comment":
            raise unreadable(path, f"line {number} of its header repeats a key")
        if len(value) > LONGEST_TEXT and key not in LONG_KEYS:
            raise unreadable(
                path, f"line {number} of its header has {len(value)} characters, expected {LONGEST_TEXT} at most"
            )
        fields[key] = value
    if LAST not in fields:
        raise unreadable(path, f"its header has no {LAST}")
    if fields.get("ObjectType", "Image") != "Image":
        raise unreadable(path, f"ObjectType is {shown(fields['ObjectType'])}, expected Image")
    return MetaHeader(fields, end, *_check_numbers(path, fields))


def _entries(path: Path, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and value of MetaIO's own keys, as MetaIO understands the lines.

    Other keys are those of other formats, such as ``dim[0]`` and ``0008|0060``, and their values any text, which may
    have several lines. MetaIO takes one without a separator for a key, and what follows the next separator for its
    value.

    Raises:
        DataError: when it would not see one of its own keys so.
    """
    is_open = False
    for number, line in enumerate(lines, 1):
        separator = re.search("[=:]", line)
        head = line[: separator.start() if separator else None].strip(BLANK)
        key = head.split("\r")[0].strip(BLANK)
        is_own = OWN_KEYS.fullmatch(key) is not None
        if len(key) > LONGEST_KEY or (is_own and (is_open or not separator or key != head)):
            raise unreadable(path, f"line {number} of its header is not KEY = VALUE")
        if is_own and separator:
            yield number, key, line.partition(separator[0])[2].lstrip("=:" + BLANK).rstrip(BLANK)
        is_open = separator is None and (is_open or bool(head))


def _check_numbers(path: Path, fields: dict[str, str]) -> tuple[int, np.dtype]:
    """Check size and geometry, and return how many numbers the voxels are, and their type."""
    missing = [key for key in ("NDims", "DimSize", "ElementType") if key not in fields]
    if missing:
        raise unreadable(path, f"its header has no {', '.join(missing)}")
    if list(fields).index("NDims") > min(i for i, key in enumerate(fields) if key in _BY_AXIS):
        raise unreadable(path, "NDims comes after fields that depend on it")
    dims = whole_number(path, "NDims", fields["NDims"], 1, 10)
    size = whole_numbers(path, "DimSize", fields["DimSize"], 1, MOST_VOXELS)
    if len(size) != dims:
        raise unreadable(path, f"DimSize is {shown(fields['DimSize'])}, expected {dims} numbers as NDims says")
    for key, count in [*((key, dims * dims) for key in MATRICES), *((key, dims) for key in ORIGINS)]:
        if key in fields:
            decimals(path, key, fields[key], count)
    for key in ("ElementSpacing", "ElementSize"):
        if key in fields and min(decimals(path, key, fields[key], dims)) <= 0:
            raise DataError(
                f"{path}: {key} is {fields[key]}; expected positive numbers, in mm. Set the voxel size in the header, "
                "or export the image again."
            )
    for key in ("BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData"):
        if fields.get(key, "true").lower() not in ("true", "false", "t", "f", "1", "0"):
            raise unreadable(path, f"{key} is {shown(fields[key])}, expected True or False")
    for key in ("HeaderSize", "CompressedDataSize"):
        whole_number(path, key, fields.get(key, "0"), -1, 2**62)
    channels = whole_number(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), 1, 10_000)
    kind = fields["ElementType"]
    if kind.removesuffix("_ARRAY") not in ELEMENT_TYPES:
        raise unreadable(path, f"ElementType is {shown(kind)}, expected one of {', '.join(ELEMENT_TYPES)}")
    return math.prod(size) * channels, np.dtype(ELEMENT_TYPES[kind.removesuffix("_ARRAY")])


_BY_AXIS = ("DimSize", "ElementSpacing", "ElementSize", *MATRICES, *ORIGINS)
"""Keys with a number for each axis."""
