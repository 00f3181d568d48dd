"""Units and voxel sizes of NRRD and MetaImage, which ITK takes for mm, and for 1 where they are missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import IN_MM, default_voxel_size

NO_UNITS = ("", "?", "???", "none", "unknown")
"""How files say that they state no unit; it is mm, then."""
KNOWN = tuple({size: name for name, size in reversed(IN_MM.items())}.values())[::-1]
"""A name of each unit of length."""
PIXELS = ("pixel", "pixels", "px", "voxel", "voxels")
"""Units that are no lengths: the voxel size is not known."""
SPATIAL_KINDS = ("domain", "space", "time", "none", "???")
"""Kinds of axes of an NRRD file that are no components of a voxel."""


def nrrd_in_mm(path: Path, fields: Mapping[str, str], affine: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the affine (4, 4) of an NRRD file in mm, and whether its voxel size is known.

    Args:
        path: for messages.
        fields: fields of the header.
        affine: as by ITK.

    Raises:
        DataError: when a unit is not known.
    """
    kinds = fields.get("kinds", "").lower().split()
    axes = [i for i in range(int(fields["dimension"])) if i >= len(kinds) or kinds[i] in SPATIAL_KINDS]
    if "spacedirections" in fields:
        if fields["spacedirections"].count("(") < len(axes):  # "none" along an axis, which ITK takes for 1 mm
            return _scaled(affine, None)
    else:
        sizes = fields.get("spacings", "").lower().split()
        if any(i >= len(sizes) or "nan" in sizes[i] for i in axes):
            return _scaled(affine, None)
    if "spaceunits" in fields:
        return _scaled(affine, _scales(path, "space units", _texts(fields["spaceunits"])))
    units = _texts(fields.get("units", ""))
    return _scaled(affine, _scales(path, "units", [units[i] for i in axes if i < len(units)]))


def meta_in_mm(path: Path, fields: Mapping[str, str], affine: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the affine (4, 4) of a MetaImage in mm, and whether its voxel size is known; see :func:`nrrd_in_mm`."""
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return _scaled(affine, None)
    return _scaled(affine, _scales(path, "DistanceUnits", [fields.get("DistanceUnits", "")] * 3))


def _texts(field: str) -> list[str]:
    """Return the texts of a field, which are in quotes; UTF-8 was read as Latin-1."""
    found = re.findall(r'"([^"]*)"', field)
    try:
        return [text.encode("latin-1").decode() for text in found]
    except UnicodeDecodeError:
        return found


def _scales(path: Path, name: str, units: Sequence[str]) -> list[float] | None:
    """Return the units of three axes in mm; None if they are pixels."""
    scales = []
    for unit in (*units, *[""] * 3)[:3]:
        key = unit.strip().lower()
        if key in PIXELS:
            return None
        if key not in IN_MM and key not in NO_UNITS:
            raise DataError(
                f"{path}: {name} has an unknown unit; expected one of length: {', '.join(KNOWN)}. Correct the header, "
                "or export the image again."
            )
        scales.append(IN_MM.get(key, 1.0))
    return scales


def _scaled(affine: np.ndarray, scales: Sequence[float] | None) -> tuple[np.ndarray, bool]:
    """Return an affine with its three rows scaled; without scales, with the voxel size of files that state none."""
    if scales is not None:
        return affine * np.array([*scales, 1.0])[:, None] + 0.0, True
    size = default_voxel_size()
    affine = affine.copy()
    affine[:3, :3] *= np.array(size or (1.0, 1.0, 1.0)) / np.linalg.norm(affine[:3, :3], axis=0)
    return affine, size is not None
