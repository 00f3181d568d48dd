"""What is unlabeled in an annotation larger than memory, found by going through it chunk by chunk.

The conventions are those of :mod:`~sparse3dunet.data.conventions`, as far as counts of voxels by value and by slice
show them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from sparse3dunet.data.slices import Slices, listed_slices, plane_names, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.formats import opened_once
from sparse3dunet.io.suffixes import split, state_of
from sparse3dunet.io.volumes import MOST_VALUES, UNLABELED_VALUE, Volume, values_found

SPARSE = 0.5
"""Share of the slices along one axis up to which those with foreground count as annotated ones."""
MOST_COUNTED = 64
"""Number of annotations whose counts are kept."""
CURE = (
    "Pass --ignore-index 255 (the value, or values, of unlabeled voxels; 0 where background has a value of its own) or "
    "--annotated-slices axial (coronal, sagittal), or list the slices in a datalist."
)


class UndecidedError(DataError):
    """Error for a valid label map from which the unlabeled voxels cannot be inferred; others of its data set may do."""


@dataclass(frozen=True)
class LargeConvention:
    """Which voxels of an annotation are unlabeled.

    Attributes:
        ignore_index: values of unlabeled voxels.
        slices: annotated slices by array axis, outside of which all is unlabeled; None for everywhere.
    """

    ignore_index: tuple[int, ...]
    slices: Slices | None = None

    def is_unlabeled(self, values: np.ndarray) -> bool:
        """Return whether all of some voxels are unlabeled by their one value, which is soon found."""
        first = values.flat[0]
        return first in self.ignore_index and bool((values == first).all())

    def annotated(self, values: np.ndarray, box: Sequence[slice]) -> np.ndarray:
        """Return the mask of annotated voxels in a box (X, Y, Z)."""
        mask = ~np.isin(values, self.ignore_index)
        slices = self.slices_in(box)
        return mask if slices is None else mask & slices_mask(values.shape, slices)

    def slices_in(self, box: Sequence[slice]) -> Slices | None:
        """Return the annotated slices by their indices in a box; None for everywhere."""
        if self.slices is None:
            return None
        return [
            [i - along.start for i in indices if along.start <= i < along.stop]
            for indices, along in zip(self.slices, box)
        ]


@dataclass
class _Counts:
    """Number of voxels by value; of those that are neither 0 nor ignored also by slice, for each array axis."""

    shape: tuple[int, ...]
    values: dict[float, int] = field(default_factory=dict)
    foreground: list[np.ndarray] = field(default_factory=list)

    def kept(self, axis: int) -> list[int]:
        return np.flatnonzero(self.foreground[axis]).tolist()


def declared_convention(label: Volume, ignored: Sequence[int], specification: Any) -> LargeConvention:
    """Return what a data set declares.

    Args:
        label: the opened label map.
        ignored: values of unlabeled voxels.
        specification: annotated slices, see :func:`~sparse3dunet.data.slices.listed_slices`; None for none.

    Raises:
        DataError: when the slices are declared by a word, and cannot be found without the whole volume.
    """
    if specification is None:
        return LargeConvention(tuple(ignored))
    counts = _count(label, ignored)
    slices = listed_slices(specification, label.spatial_shape, label.affine, label.path)
    if slices is None:
        axes = _named_axes(specification, label)
        slices = [counts.kept(axis) if axis in axes else [] for axis in range(3)]
    return LargeConvention(tuple(ignored), slices)


def inferred_convention(
    label: Volume, declared: Sequence[int], classes: Collection[int], tell: bool = True
) -> LargeConvention:
    """Infer what is unlabeled.

    Args:
        label: the opened label map.
        declared: values that are declared as unlabeled; if a voxel has one of them, nothing is inferred.
        classes: values that are known to be classes.
        tell: whether to print what was inferred.

    Raises:
        DataError: when it cannot be inferred.
    """
    convention, reason = _inferred(label, declared, classes)
    if reason and tell:
        print(f"{label.path}: {reason}. This was inferred; if it is wrong, pass --ignore-index or --annotated-slices.")
    return convention


def marked_values(label: Volume, classes: Collection[int]) -> tuple[set[float], set[int]]:
    """Return all values of a label map, and of these 255 and negative ones that most voxels have, beside classes."""
    counts = _count(label, (UNLABELED_VALUE,)).values
    usual = _usual(counts, classes)
    most = {v for v in usual if 2 * counts[v] > np.prod(label.spatial_shape)}
    return set(counts), most if len(counts) - len(usual) >= (1 if classes else 2) else set()


def _usual(values: Collection[float], classes: Collection[int]) -> tuple[int, ...]:
    return tuple(int(v) for v in values if v not in classes and (v < 0 or v == UNLABELED_VALUE))


def _inferred(label: Volume, declared: Sequence[int], classes: Collection[int]) -> tuple[LargeConvention, str]:
    """Return the convention and what it says; no text if it is the declared one."""
    counts = _count(label, (*declared, UNLABELED_VALUE))
    values = tuple(counts.values)
    if len(values) > MOST_VALUES:
        raise DataError(f"{label.path}: found {len(values)} different values, like in a scan; expected a label map.")
    if any(value in counts.values for value in declared):
        return LargeConvention(tuple(declared)), ""
    usual = _usual(values, classes)
    if usual and len(values) - len(usual) >= (1 if classes else 2):
        return LargeConvention(usual), f"{_listed(usual)} means unlabeled, as usual"
    found = _by_slices(label, counts, classes)
    if found is None:
        shown = ", ".join(f"{value:g}" for value in sorted(values)[:10])
        raise DataError(f"{label.path}: cannot infer which voxels are unlabeled, of the values {shown}. {CURE}")
    return found


def _by_slices(label: Volume, counts: _Counts, classes: Collection[int]) -> tuple[LargeConvention, str] | None:
    """Return the convention if the voxels that are not 0 are on slices along one axis."""
    total, values = int(counts.foreground[0].sum()), tuple(counts.values)
    names, size = plane_names(label.affine), int(np.prod(label.spatial_shape))
    sparse = [axis for axis in range(3) if 0 < len(counts.kept(axis)) <= SPARSE * label.spatial_shape[axis]]
    for axis in sparse:
        whole = len(counts.kept(axis)) * (size // label.spatial_shape[axis])
        if total == whole and 0 not in classes and len(values) > 2:
            text = f"0 means unlabeled: all other voxels form {len(counts.kept(axis))} whole slice(s)"
            return LargeConvention((0,)), text
    if len(sparse) != 1:
        return None
    slices: Slices = [counts.kept(axis) if axis == sparse[0] else [] for axis in range(3)]
    text = f"0 means background on {len(slices[sparse[0]])} {names[sparse[0]]} slice(s), and unlabeled elsewhere"
    return LargeConvention((), slices), text


def _count(label: Volume, ignored: Collection[int]) -> _Counts:
    """Count an annotation's voxels; what was counted is kept until the file changes, as training asks again."""
    state = state_of(split(label.path)[0])
    return _counted(label.path, tuple(ignored), (*state, *as_key().items()))


@lru_cache(maxsize=MOST_COUNTED)
def _counted(path: str, ignored: tuple[int, ...], state: tuple[Any, ...]) -> _Counts:
    """Go through an annotation; `state` is what else the result depends on."""
    label = opened_once(path)
    counts = _Counts(label.spatial_shape, foreground=[np.zeros(n, np.int64) for n in label.spatial_shape])
    data: Any = label.data
    for box in data.boxes():
        part = data[box]
        for value, number in values_found(part).items():
            counts.values[value] = counts.values.get(value, 0) + number
        if not part.any():
            continue
        mask = (part != 0) & ~np.isin(part, list(ignored)) & (part >= 0)
        for axis, along in enumerate(box):
            others = tuple(a for a in range(3) if a != axis)
            counts.foreground[axis][along] += mask.sum(axis=others)
    return counts


def _named_axes(specification: Any, label: Volume) -> set[int]:
    """Return the array axes of a word for annotated slices, or of ``{"axial": "nonempty"}``."""
    words = [str(word) for word in (specification if isinstance(specification, Mapping) else [specification])]
    planes = plane_names(label.affine)
    for word in words:
        if word.lower() not in (*planes, "0", "1", "2"):
            raise DataError(
                f"{label.path}: annotated_slices is {word!r}, which needs the whole volume in memory; expected one "
                f"plane, or listed slices. {CURE}"
            )
    return {planes.index(word.lower()) if word.lower() in planes else int(word) for word in words}


def _listed(values: Sequence[int]) -> str:
    return " and ".join(map(str, values))
