"""How files are read, as set by options: ``--voxel-size``, ``--axes``, ``--series``, ``--volume-memory`` and others.

The voxel size and axes are those of files that state neither. All are kept in environment variables, so that every
process of a run reads files alike: workers that load data, whether forked or started anew, and the processes of
torchrun.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sparse3dunet.errors import DataError

VOXEL_SIZE, AXES = "SPARSE3DUNET_VOXEL_SIZE", "SPARSE3DUNET_AXES"
SERIES, SEGMENTS = "SPARSE3DUNET_SERIES", "SPARSE3DUNET_SEGMENTS"
VOLUME_MEMORY = "SPARSE3DUNET_VOLUME_MEMORY"
BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
IN_MM = {
    **dict.fromkeys(("nm", "nanometer", "nanometers"), 1e-6),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimeters"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), 10.0),
    **dict.fromkeys(("inch", "inches", "in"), 25.4),
    **dict.fromkeys(("m", "meter", "meters"), 1e3),
    **dict.fromkeys(("angstrom", "angstroms", "å"), 1e-7),
}
"""Names of units of length, in lower case, in mm."""


def set_defaults(
    voxel_size: str | None = None,
    axes: str | None = None,
    series: str | None = None,
    segments: str | None = None,
    volume_memory: str | None = None,
) -> None:
    """Set how files are read, for this process and those that it starts.

    Args:
        voxel_size: sizes along x, y and z with a unit, such as "0.5,0.5,2um"; None to leave it as it is.
        axes: a letter for each dimension of the stored array, slowest first, such as "zyx" or "czyx"; None likewise.
        series: UID or number of the series to read in folders of several DICOM series; None likewise.
        segments: names of the segments to use of a DICOM annotation, separated by commas; in double quotes those with
            a comma, as in CSV; None likewise.
        volume_memory: memory that one volume may take, such as "8GiB"; None likewise.

    Raises:
        DataError: when one of them is not of this form.
    """
    if voxel_size is not None:
        parse_voxel_size(voxel_size)
        os.environ[VOXEL_SIZE] = voxel_size
    if axes is not None:
        parse_axes(axes)
        os.environ[AXES] = axes
    if series is not None:
        os.environ[SERIES] = series.strip()
    if segments is not None:
        if len(set(_names(segments))) < max(len(_names(segments)), 1):
            raise DataError(f"--segments is {segments!r}; expected different names, such as liver,tumor.")
        os.environ[SEGMENTS] = segments
    if volume_memory is not None:
        parse_bytes(volume_memory)
        os.environ[VOLUME_MEMORY] = volume_memory


def default_voxel_size() -> tuple[float, float, float] | None:
    """Return the voxel size along x, y and z, in mm, of files that state none; None if it is not set."""
    text = os.environ.get(VOXEL_SIZE)
    return parse_voxel_size(text) if text else None


def default_axes() -> str | None:
    """Return the axes of files that state none, slowest first; None if they are not set."""
    text = os.environ.get(AXES)
    return parse_axes(text) if text else None


def default_series() -> str:
    """Return the UID or number of the DICOM series to read in folders of several; "" if it is not set."""
    return os.environ.get(SERIES, "")


def default_segments() -> list[str]:
    """Return the names, in lower case, of the segments to use of a DICOM or 3D Slicer annotation; empty for all."""
    return _names(os.environ.get(SEGMENTS, ""))


@contextmanager
def all_segments() -> Iterator[None]:
    """Leave ``--segments`` aside for a while."""
    before = os.environ.pop(SEGMENTS, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[SEGMENTS] = before


def default_volume_memory() -> int | None:
    """Return the bytes of memory that one volume may take; None if that is not set."""
    text = os.environ.get(VOLUME_MEMORY)
    return None if text is None else parse_bytes(text)


def _names(text: str) -> list[str]:
    row = next(csv.reader([re.sub(r"[\r\n]", " ", text)], skipinitialspace=True), [])
    return [name.strip().lower() for name in row if name.strip()]


def as_key() -> dict[str, str]:
    """Return what is set, for keys of results that depend on it; empty if nothing is."""
    return {name: os.environ[name] for name in (VOXEL_SIZE, AXES, SERIES, SEGMENTS) if os.environ.get(name)}


def parse_voxel_size(text: str) -> tuple[float, float, float]:
    """Return sizes in mm from a text such as "0.5,0.5,2um" or "1, 1, 2.5 mm".

    Raises:
        DataError: unless these are three positive numbers and a unit.
    """
    found = re.fullmatch(r"\s*\[?([\d.,eE+\-\s]+?)\]?\s*([^\W\d]+)\s*", text)
    scale = IN_MM.get(found[2].lower()) if found else None
    try:
        sizes = [float(part) for part in found[1].split(",")] if found else []
    except ValueError:
        sizes = []
    if scale is None or len(sizes) != 3 or not all(0 < size < float("inf") for size in sizes):
        raise DataError(
            f"--voxel-size is {text!r}; expected the sizes along x, y and z and their unit, nm, um or mm, such as "
            "0.5,0.5,2um."
        )
    x, y, z = (size * scale for size in sizes)
    return x, y, z


def parse_bytes(text: str) -> int:
    """Return a number of bytes from a text such as "8GiB", "500 MB" or "0".

    Raises:
        DataError: when it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in BYTES:
        raise DataError(f"--volume-memory is {text!r}; expected a size such as 8GiB or 500MB, or 0.")
    return int(min(float(found[1]) * BYTES[found[2].lower()], 2.0**80))  # more than any machine has: no limit


def parse_axes(text: str) -> str:
    """Return axes in lower case.

    Raises:
        DataError: unless they are x, y and z and at most c and t, each once.
    """
    axes = text.strip().lower()
    if len(set(axes)) != len(axes) or not set("xyz") <= set(axes) <= set("xyzct"):
        raise DataError(
            f"--axes is {text!r}; expected a letter for each dimension of the stored array, slowest first: z, y and x, "
            "and c for channels or t for time if there are any, such as zyx or czyx."
        )
    return axes
