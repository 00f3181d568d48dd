"""Checks of transforms' arguments, with errors that state what was expected."""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError


def entry(data: Mapping[Any, Any], key: Hashable, transform: object) -> Any:
    """Return a transform's entry of a dictionary; raise KeyError as MONAI's transforms do if it is missing."""
    if key not in data:
        raise KeyError(f"Key `{key}` of transform `{type(transform).__name__}` was missing in the data.")
    return data[key]


def axis_or_none(name: str, value: Any) -> int | None:
    """Return an axis, 0, 1 or 2, or None; raise DataError for anything else."""
    if value is not None and (isinstance(value, bool) or value not in (0, 1, 2)):
        raise DataError(f"{name} must be an axis, 0, 1 or 2, or None; got {value!r}.")
    return value


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return the value if it is one of the choices."""
    if value not in choices:
        raise DataError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    return value


def of_each(
    name: str,
    keys: Sequence[Hashable],
    given: Sequence[str] | str | None,
    own: Mapping[Any, str],
    choices: Sequence[str],
) -> list[str]:
    """Return the choice for each key: from a list; else the key's own, else the given one, by default the first."""
    if given is None or isinstance(given, str):
        rest = choices[0] if given is None else one_of(name, given, choices)
        return [own.get(key, rest) for key in keys]
    if len(given) != len(keys):
        raise DataError(
            f"{name} must be one of {', '.join(choices)}, or a list with one for each of {keys}; got {given}."
        )
    return [one_of(name, choice, choices) for choice in given]


def size_in_voxels(value: Any) -> Any:
    """Return the value if it is None, or one or three whole numbers above 0, or -1 for the volume's size."""
    values = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * 3
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n != 0 for n in values)
    if value is not None and (len(values) != 3 or not whole):
        raise DataError(
            "spatial_size must be one or three whole numbers of voxels, above 0, or -1 for the volume's size; "
            f"got {value!r}."
        )
    return value


def number(name: str, value: Any, least: float, most: float = math.inf, whole: bool = False) -> Any:
    """Return the value if it is a finite number in a range, and a whole one if `whole` is set."""
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or not least <= float(value) <= most or not math.isfinite(value):
        limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise DataError(f"{name} must be a {'whole ' if whole else ''}number {limits}; got {value!r}.")
    return value


def per_axis(name: str, value: Any, most: float = math.inf, positive: bool = False) -> np.ndarray:
    """Return (3,) from a number for all axes or one for each, none negative."""
    try:
        values = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if values.shape not in ((), (3,)) or not ((values >= 0) & (values <= most) & np.isfinite(values)).all():
        limit = "" if most == math.inf else f", at most {most}"
        raise DataError(f"{name} must be one or three numbers, none negative{limit}; got {value!r}.")
    if positive and not values.all():
        raise DataError(f"{name} must be above 0; got {value!r}.")
    return np.broadcast_to(values, 3)


def pixel_sizes(name: str, value: Any) -> np.ndarray:
    """Return (3,) from a size in mm for all axes or one for each; 0 or less stands for the image's own."""
    try:
        values = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    if values.shape not in ((), (1,), (3,)) or not np.isfinite(values).all():
        raise DataError(f"{name} must be one or three sizes in mm, 0 or less to keep an axis; got {value!r}.")
    return np.broadcast_to(values, 3)


def ranges(name: str, value: Any, count: int = 3) -> np.ndarray:
    """Return (count, 2) from a number a, for (-a, a), or `count` such numbers or pairs (least, largest)."""
    entries = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * count
    try:
        pairs = np.array([(-entry, entry) if np.ndim(entry) == 0 else entry for entry in entries], dtype=float)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape != (count, 2) or not np.isfinite(pairs).all() or (pairs[:, 0] > pairs[:, 1]).any():
        raise DataError(
            f"{name} must be a number a, for the range from -a to a, or {count} such numbers or pairs "
            f"[least, largest]; got {value!r}."
        )
    return pairs
