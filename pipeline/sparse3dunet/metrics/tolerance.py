"""Tolerance of the surface Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError

AUTO = "auto"
VOXELS = 2
"""The tolerance without a setting, in edges of the voxels where they are finest: as 3 mm on voxels of 1.5 mm
(Wasserthal et al. 2023). A value in mm would be meaningless in microscopy."""


def surface_tolerances(setting: Any, class_names: Sequence[str], spacings: Sequence[Sequence[float]]) -> list[float]:
    """Return the tolerance in mm of each class; one for all volumes, so that their scores can be compared.

    Args:
        setting: mm, for all classes; mm by class name, where classes that are not named have "auto"; or "auto": twice
            the shortest edge of a voxel, the median over the volumes.
        class_names: names of the classes, or of the regions, background first.
        spacings: voxel size of each volume in mm.

    Raises:
        DataError: when the setting is none of these, or names an unknown class.
    """
    auto = VOXELS * float(np.median([min(spacing) for spacing in spacings if len(spacing)] or [1.0]))
    by_name = setting if isinstance(setting, Mapping) else {}
    unknown = [str(name) for name in by_name if name not in class_names[1:]]
    if unknown:
        raise DataError(
            f"surface_tolerance names {unknown[0]!r}, which is not scored; expected {', '.join(class_names[1:])}."
        )
    given = [by_name.get(name, AUTO) if isinstance(setting, Mapping) else setting for name in class_names]
    return [auto if value == AUTO or value is None else _checked(value) for value in given]


def check_tolerances(tolerances: Sequence[float] | None, count: int) -> None:
    """Raise ValueError unless tolerances are one number of at least 0 for each class, or None."""
    sizes = np.zeros(count) if tolerances is None else np.asarray(tolerances, float)
    if sizes.shape != (count,) or not (np.isfinite(sizes) & (sizes >= 0)).all():
        raise ValueError(f"tolerances must be {count} numbers of at least 0, one for each class; got {tolerances!r}.")


def describe(tolerances: Sequence[float], class_names: Sequence[str]) -> str:
    """Return tolerances in words, as in "2 mm" or "liver 3 mm, tumor 1 mm"."""
    by_name = dict(zip(class_names, tolerances))
    if len(set(by_name.values())) == 1:
        return f"{next(iter(by_name.values())):.4g} mm"
    return ", ".join(f"{name} {value:.4g} mm" for name, value in by_name.items())


def _checked(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < np.inf:
        raise DataError(
            f'surface_tolerance is {value!r}; expected mm (2, or by class name {{"liver": 3, "tumor": 1}}), or auto.'
        )
    return float(value)
