"""Header of a MetaImage, checked before ITK reads it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

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
TEXT_KEYS = re.compile(
    "ObjectType|ObjectSubType|Name|Comment|TransformType|AcquisitionDate|AnatomicalOrientation|DistanceUnits|Color|ID|"
    "ParentID|Modality|SequenceID|CenterOfRotation|Binary.*|Compress.*|Element.*|Header.*|NDims"
)
LONGEST_TEXT = 250
"""MetaIO copies the values of its own keys, TEXT_KEYS, to arrays of 255 characters, without a check."""
ELEMENT_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG"), 4),  # of 32 bits in MetaIO
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
"""Bytes of a number, by ElementType."""


@dataclass(frozen=True)
class MetaHeader:
    """Fields of a MetaImage's header by key, the offset of its end, and how many numbers and bytes its voxels are."""

    fields: dict[str, str]
    end: int
    num_numbers: int
    num_bytes: int

    def is_true(self, key: str) -> bool:
        return self.fields.get(key, "").lower() in ("true", "t", "1")


def read_meta_header(path: Path) -> MetaHeader:
    """Read and check a header: MetaIO crashes, hangs or reads something else for the values that are refused here.

    Raises:
        DataError: when a field that matters is missing, doubled or has no sensible value.
    """
    lines, end = header_lines(path, rf"\s*{LAST}\s*=")
    fields: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        parts = re.fullmatch(r"\s*([\w.\- ]{1,200}?)\s*=\s*(.*?)\s*", line)
        if parts is None:
            if line.strip():
                raise unreadable(path, f"line {number} of its header is not KEY = VALUE")
            continue
        key, value = parts.groups()
        if key in fields and key != "Comment":
            raise unreadable(path, f"line {number} of its header repeats a key")
        if len(value) > LONGEST_TEXT and key not in LONG_KEYS and TEXT_KEYS.fullmatch(key):
            raise unreadable(
                path, f"line {number} of its header has {len(value)} characters, expected {LONGEST_TEXT} at most"
            )
        fields[key] = value
    if LAST not in fields:
        raise unreadable(path, f"its header has no {LAST}")
    if fields.get("ObjectType", "Image") != "Image":
        raise unreadable(path, f"ObjectType is {shown(fields['ObjectType'])}, expected Image")
    count, size = _check_numbers(path, fields)
    return MetaHeader(fields, end, count, count * size)


def _check_numbers(path: Path, fields: dict[str, str]) -> tuple[int, int]:
    """Check size and geometry, and return how many numbers the voxels are, and the bytes of one."""
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
    if kind.removesuffix("_ARRAY") not in ELEMENT_BYTES:
        raise unreadable(path, f"ElementType is {shown(kind)}, expected one of {', '.join(ELEMENT_BYTES)}")
    return math.prod(size) * channels, ELEMENT_BYTES[kind.removesuffix("_ARRAY")]


_BY_AXIS = ("DimSize", "ElementSpacing", "ElementSize", *MATRICES, *ORIGINS)
"""Keys with a number for each axis."""
