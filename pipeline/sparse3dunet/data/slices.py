"""Annotated slices: written down by people, or found in a mask."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.errors import DataError

PLANES = ("sagittal", "coronal", "axial")
"""The anatomical planes, by the axis (left-right, posterior-anterior, inferior-superior) that they lie across."""

ALL = "all"
NONEMPTY = "nonempty"
SPECIFICATION = (
    'annotated slices are written {"axial": [3, 20], "coronal": [14]} (planes, or array axes "0", "1", "2"; indices '
    'count from 0), or as one word to find the slices that are not empty: "axial", "coronal", "sagittal" or "all"'
)
ALONE = 0.25
"""Of the foreground on crossing lines, the share that may have none beside it: sections of real slices show up to 0.13
on the hippocampus, scribbles in orthogonal slices mostly over one half."""
Slices = list[list[int]]
"""For each array axis the sorted indices of the annotated slices across it."""


def plane_names(affine: Any) -> list[str]:
    """The anatomical plane across each array axis, by the affine (voxel to RAS+ world)."""
    return [PLANES[int(axis)] for axis in nib.io_orientation(np.asarray(affine))[:, 0]]


def slices_mask(shape: Sequence[int], slices: Slices) -> np.ndarray:
    """Boolean (X, Y, Z), true on the given slices."""
    mask = np.zeros(tuple(shape), bool)
    for axis, indices in enumerate(slices):
        mask[(slice(None),) * axis + (indices,)] = True
    return mask


def find_slices(mask: np.ndarray) -> Slices | None:
    """The slices of which a mask is made, whatever their directions; None where that cannot be told.

    A slice that merely crosses annotated ones shows lines, as many voxels wide as annotated slices are adjacent. A
    slice that shows a square wider than that is annotated. The answer is given only where the slices so found are all
    that the mask shows: scribbles, a solid block, or a section of a voxel or two give None.

    Args:
        mask: (X, Y, Z) boolean: the annotated voxels, or the foreground of a label map that is empty elsewhere.
    """
    full = [np.flatnonzero(mask.all(axis=_others(axis))).tolist() for axis in range(3)]
    if np.array_equal(slices_mask(mask.shape, full), mask):
        return full
    box = _box(mask)
    inside = mask[box]
    width = _least_width(inside)
    found = [(np.flatnonzero(_has_square(inside, a, width)) + box[a].start).tolist() for a in range(3)]
    return found if any(found) and _explains(found, mask, width) else None


def _least_width(mask: np.ndarray) -> int:
    """The least number, from 2 on, of which fewer adjacent slices show squares so wide; the wider, the fewer."""

    def is_wide_enough(width: int) -> bool:
        return all(_longest_run(np.flatnonzero(_has_square(mask, axis, width))) < width for axis in range(3))

    least, width = 2, 2
    while not is_wide_enough(width):
        least, width = width + 1, 2 * width
    return bisect_left(range(width), True, lo=least, key=is_wide_enough)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Around all voxels of a mask."""
    shown = [_nonempty(mask, axis) for axis in range(3)]
    return tuple(slice(found[0], found[-1] + 1) if found else slice(0, 0) for found in shown)


def _explains(found: Slices, mask: np.ndarray, width: int) -> bool:
    """Whether the slices are all that the mask shows and, where some are adjacent, each shows a square of its own.

    Without the latter a small solid block would pass for adjacent slices in all directions.
    """
    alone = [slices_mask(mask.shape, [s if a == axis else [] for a, s in enumerate(found)]) for axis in range(3)]
    if (mask & ~np.logical_or.reduce(alone)).any():
        return False
    if width == 2:
        return True
    own = [mask & ~alone[(axis + 1) % 3] & ~alone[(axis + 2) % 3] for axis in range(3)]
    return all(_has_square(own[axis], axis, width)[found[axis]].all() for axis in range(3))


def _others(axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(3) if a != axis)


def _has_square(mask: np.ndarray, axis: int, width: int) -> np.ndarray:
    """For each slice across `axis`, whether it shows a square of `width` voxels."""
    for other in _others(axis):
        covered = 1
        while covered < width:
            step = min(covered, width - covered)
            length = mask.shape[other] - step
            if length <= 0:
                return np.zeros(mask.shape[axis], bool)
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[other], behind[other] = slice(step, None), slice(None, length)
            mask = mask[tuple(ahead)] & mask[tuple(behind)]
            covered += step
    return crossed(mask, axis)


def runs(indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Sorted numbers in runs of consecutive ones.

    Example:
        >>> runs([3, 4, 7])
        [[3, 4], [7]]
    """
    pieces = np.split(np.asarray(indices, int), np.flatnonzero(np.diff(indices) > 1) + 1)
    return [piece.tolist() for piece in pieces if len(piece)]


def _longest_run(indices: Sequence[int] | np.ndarray) -> int:
    return max(map(len, runs(indices)), default=0)


def check_specification(specification: Any, source: str) -> None:
    """Raise DataError where annotated slices are written in a way that is wrong for any label map.

    Args:
        specification: see :func:`listed_slices`.
        source: names in messages where it is written.
    """
    listed_slices(specification, (np.inf,) * 3, np.eye(4), source)


def listed_slices(specification: Any, shape: Sequence[float], affine: Any, source: str) -> Slices | None:
    """The slices that a specification lists by plane or axis; None where it is a word, by which to find them.

    Args:
        specification: ``{"axial": [3, 20]}``, ``{"2": [3, 20]}``, ``[[...], [...], [...]]`` by array axis, or a word.
        shape: (X, Y, Z) of the label map.
        affine: of the label map, voxel to RAS+ world.
        source: names the label map in messages.

    Raises:
        DataError: when the specification is none of these, or an index is no slice of the label map.
    """
    if isinstance(specification, (str, int)):
        if str(specification) != ALL:
            _axis_of(specification, affine, source)
        return None
    if isinstance(specification, Mapping):
        pairs = [(_axis_of(key, affine, source), key, indices) for key, indices in specification.items()]
    elif isinstance(specification, Sequence) and [isinstance(s, Sequence) for s in specification] == [True] * 3:
        pairs = [(axis, axis, indices) for axis, indices in enumerate(specification)]
    else:
        raise DataError(f"{source}: annotated_slices is {specification!r}; {SPECIFICATION}. Correct it.")
    if pairs and all(indices == NONEMPTY for _, _, indices in pairs):
        return None
    slices: Slices = [[], [], []]
    for axis, key, indices in pairs:
        slices[axis] = sorted({*slices[axis], *_checked_indices(indices, key, shape[axis], source)})
    if not any(slices):
        raise DataError(f"{source}: annotated_slices lists no slice; {SPECIFICATION}. Correct it, or leave it out.")
    return slices


def nonempty_slices(specification: Any, foreground: np.ndarray, affine: Any, source: str) -> Slices:
    """The annotated slices that a word (or ``{"axial": "nonempty"}``) asks to find.

    Args:
        specification: "all": slices in any direction; "axial" (or an array axis): those across this axis, having made
            sure that they are slices; ``{"axial": "nonempty"}``: those that are not empty, unseen.
        foreground: (X, Y, Z) boolean: where the label map is not empty.
        affine: of the label map.
        source: names the label map in messages.

    Raises:
        DataError: when it cannot be told which slices are annotated; the message says what to do.
    """
    if isinstance(specification, Mapping):
        axes = {_axis_of(key, affine, source) for key in specification}
        return [_nonempty(foreground, axis) if axis in axes else [] for axis in range(3)]
    found = find_slices(foreground) if foreground.any() else [[], [], []]
    names = plane_names(affine)
    cure = (
        'List them in the datalist ("annotated_slices": {"axial": [3, 20]}); for scribbles, give unlabeled voxels a '
        "value of their own (ignore_index) or pass a weight image."
    )
    if str(specification) == ALL:
        if found is None or not _lines_agree(foreground, found):
            raise DataError(
                f"{source}: which slices are annotated cannot be told from the voxels that are not 0: these are no "
                f"slices (scribbles, a solid block), or only a few voxels of one. {cure}"
            )
        return found
    axis = _axis_of(specification, affine, source)
    across = _nonempty(foreground, axis)
    others = [a for a in range(3) if a != axis and found is not None and found[a]]
    if others:
        raise DataError(
            f"{source}: annotated_slices says {names[axis]!r}, but the label map shows annotated slices across other "
            f"directions too: {', '.join(f'{names[a]} {(found or [[]] * 3)[a]}' for a in others)}. The {names[axis]} "
            'slices that merely cross these are not annotated: say "all" instead, or list the slices in the datalist.'
        )
    if found is None:
        raise DataError(
            f"{source}: it cannot be told whether the {len(across)} {names[axis]} slices that are not empty are "
            "annotated: some show only lines or a few voxels, like scribbles or like slices that merely cross "
            f"annotated ones, or they make a solid block. {cure} If they are whole slices, vouch for it: "
            f'"annotated_slices": {{"{names[axis]}": "nonempty"}}.'
        )
    return [across if a == axis else [] for a in range(3)]


def _lines_agree(foreground: np.ndarray, slices: Slices) -> bool:
    """Whether the lines in which slices cross look alike in both.

    What is foreground on the line goes on beside it in either slice, but for a structure's border. A scribble in one of
    them crosses the line where the other shows nothing.
    """
    padded = np.pad(foreground, 1)
    on_lines = alone = 0
    for axis, other in itertools.permutations(range(3), 2):
        across = other - (other > axis)  # the other's axis within a slice
        for section in (padded.take(i + 1, axis) for i in slices[axis]):
            for j in slices[other]:
                before, line, after = (section.take(j + k, across) for k in range(3))
                on_lines += line.sum()
                alone += (line & ~before & ~after).sum()
    return bool(alone <= ALONE * on_lines)


def crossed(mask: np.ndarray, axis: int) -> np.ndarray:
    """(n,): which slices across `axis` have a voxel of the mask."""
    return np.asarray(mask.any(axis=_others(axis)))


def _nonempty(mask: np.ndarray, axis: int) -> list[int]:
    return np.flatnonzero(crossed(mask, axis)).tolist()


def _axis_of(name: Any, affine: Any, source: str) -> int:
    """The array axis that a plane's name, or the axis's own number, stands for."""
    planes = plane_names(affine)
    if str(name).lower() in planes:
        return planes.index(str(name).lower())
    if str(name) in ("0", "1", "2"):
        return int(name)
    raise DataError(
        f"{source}: annotated_slices names {name!r}, which is no plane and no axis; {SPECIFICATION}. Correct it."
    )


def _checked_indices(indices: Any, key: Any, count: float, source: str) -> list[int]:
    listed = indices if isinstance(indices, Sequence) and not isinstance(indices, str) else [indices]
    bad = [i for i in listed if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < count]
    if bad:
        raise DataError(
            f"{source}: annotated_slices lists {bad[0]!r} under {str(key)!r}"
            + (f", where the label map has the slices 0 ... {count - 1}" if count < np.inf else "")
            + ". Indices are whole numbers and count from 0 (ITK-SNAP shows them from 1); correct it."
        )
    return [int(i) for i in listed]
