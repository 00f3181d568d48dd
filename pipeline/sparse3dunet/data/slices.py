"""Annotated slices: listed by the user, or found in a mask."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.errors import DataError

PLANES = ("sagittal", "coronal", "axial")
"""Anatomical planes, by the axis (left-right, posterior-anterior, inferior-superior) they are perpendicular to."""

ALL = "all"
NONEMPTY = "nonempty"
SPECIFICATION = (
    'annotated slices are written {"axial": [3, 20], "coronal": [14]} (planes, or array axes "0", "1", "2"; indices '
    'count from 0), or as one word to find the slices that are not empty: "axial", "coronal", "sagittal" or "all"'
)
ALONE = 0.25
"""Share of the foreground on crossing lines that may have none next to it: real slices have up to 0.13 on the
hippocampus, scribbles in orthogonal slices mostly over one half."""
Slices = list[list[int]]
"""Sorted indices of the annotated slices perpendicular to each array axis."""


def plane_names(affine: Any) -> list[str]:
    """Return the anatomical plane perpendicular to each array axis, by the affine (voxel to RAS+ world)."""
    return [PLANES[int(axis)] for axis in nib.io_orientation(np.asarray(affine))[:, 0]]


def slices_mask(shape: Sequence[int], slices: Slices) -> np.ndarray:
    """Return a boolean mask (X, Y, Z) that is true on the given slices."""
    mask = np.zeros(tuple(shape), bool)
    for axis, indices in enumerate(slices):
        mask[(slice(None),) * axis + (indices,)] = True
    return mask


def checked_slices(slices: Any, shape: Sequence[int], source: str) -> Slices:
    """Return slices by axis as lists; raise DataError, naming where they are from, unless each is one of the volume."""
    plain = _plain(slices)
    is_nested = isinstance(plain, list) and len(plain) == 3 and all(isinstance(indices, list) for indices in plain)
    if not is_nested or not all(type(i) is int and 0 <= i < n for indices, n in zip(plain, shape) for i in indices):
        raise DataError(
            f"{source}: the slices are {str(slices)[:80]}; expected a list of indices for each axis, such as "
            f"[[], [], [3]], in a volume of {tuple(shape)} voxels, from 0."
        )
    return plain


def find_slices(mask: np.ndarray) -> Slices | None:
    """Return the slices that a mask consists of, in any direction; None if they cannot be determined.

    A slice that only crosses annotated ones shows lines, whose width is the number of adjacent annotated slices. A
    slice that shows a wider square is annotated. The slices are returned only if they explain the whole mask:
    scribbles, a solid block, or a section of one or two voxels give None.

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
    """Return the smallest width, from 2 on, for which fewer adjacent slices than that show squares of this width."""

    def is_wide_enough(width: int) -> bool:
        return all(_longest_run(np.flatnonzero(_has_square(mask, axis, width))) < width for axis in range(3))

    least, width = 2, 2
    while not is_wide_enough(width):
        least, width = width + 1, 2 * width
    return bisect_left(range(width), True, lo=least, key=is_wide_enough)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the bounding box of a mask."""
    shown = [_nonempty(mask, axis) for axis in range(3)]
    return tuple(slice(found[0], found[-1] + 1) if found else slice(0, 0) for found in shown)


def _explains(found: Slices, mask: np.ndarray, width: int) -> bool:
    """Return whether the slices explain the whole mask and, if some are adjacent, each shows its own square.

    Without the latter, a small solid block would pass for adjacent slices in all directions.
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
    """Return for each slice perpendicular to `axis` whether it shows a square of `width` voxels."""
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
    """Split sorted numbers into runs of consecutive ones.

    Example:
        >>> runs([3, 4, 7])
        [[3, 4], [7]]
    """
    pieces = np.split(np.asarray(indices, int), np.flatnonzero(np.diff(indices) > 1) + 1)
    return [piece.tolist() for piece in pieces if len(piece)]


def _longest_run(indices: Sequence[int] | np.ndarray) -> int:
    return max(map(len, runs(indices)), default=0)


def check_specification(specification: Any, source: str) -> None:
    """Raise DataError if a specification of annotated slices is wrong for any label map.

    Args:
        specification: see :func:`listed_slices`.
        source: name of its file in messages.
    """
    listed_slices(specification, (np.inf,) * 3, np.eye(4), source)


def listed_slices(specification: Any, shape: Sequence[float], affine: Any, source: str) -> Slices | None:
    """Return the slices that a specification lists by plane or axis; None if it is a word that says how to find them.

    Args:
        specification: ``{"axial": [3, 20]}``, ``{"2": [3, 20]}``, ``[[...], [...], [...]]`` by array axis, or a word.
        shape: (X, Y, Z) of the label map.
        affine: affine of the label map, voxel to RAS+ world.
        source: name of the label map in messages.

    Raises:
        DataError: when the specification is none of these, or an index is not a slice of the label map.
    """
    specification = _plain(specification)
    if isinstance(specification, (str, int)):
        if str(specification) not in (ALL, "finished"):  # the latter: see data.finished
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
        raise DataError(f"{source}: annotated_slices lists no slice; {SPECIFICATION}. Correct it, or omit it.")
    return slices


def _plain(specification: Any) -> Any:
    """Return a specification with lists and numbers of Python for arrays, tensors and their numbers."""
    if isinstance(specification, Mapping):
        return {key: _plain(indices) for key, indices in specification.items()}
    if isinstance(specification, (list, tuple)):
        return [_plain(entry) for entry in specification]
    return specification.tolist() if hasattr(specification, "tolist") else specification


def nonempty_slices(specification: Any, foreground: np.ndarray, affine: Any, source: str) -> Slices:
    """Find the annotated slices as specified by a word (or ``{"axial": "nonempty"}``).

    Args:
        specification: "all": slices in any direction; "axial" (or an array axis): those perpendicular to this axis, if
            they are recognizable as slices; ``{"axial": "nonempty"}``: those that are not empty, without a check.
        foreground: (X, Y, Z) boolean: where the label map is not empty.
        affine: affine of the label map.
        source: name of the label map in messages.

    Raises:
        DataError: when the annotated slices cannot be determined; the message says what to do.
    """
    if isinstance(specification, Mapping):
        axes = {_axis_of(key, affine, source) for key in specification}
        return [_nonempty(foreground, axis) if axis in axes else [] for axis in range(3)]
    found = find_slices(foreground) if foreground.any() else [[], [], []]
    names = plane_names(affine)
    cure = (
        'List them in the datalist ("annotated_slices": {"axial": [3, 20]}); for scribbles, give unlabeled voxels '
        "their own value (ignore_index) or pass a weight image."
    )
    if str(specification) == ALL:
        if found is None or not _lines_agree(foreground, found):
            raise DataError(
                f"{source}: cannot determine which slices are annotated: the voxels that are not 0 are not slices "
                f"(but scribbles, a solid block), or only a few voxels of one. {cure}"
            )
        return found
    axis = _axis_of(specification, affine, source)
    across = _nonempty(foreground, axis)
    others = [a for a in range(3) if a != axis and found is not None and found[a]]
    if others:
        raise DataError(
            f"{source}: annotated_slices is {names[axis]!r}, but the label map shows annotated slices in other "
            f"directions too: {', '.join(f'{names[a]} {(found or [[]] * 3)[a]}' for a in others)}. The {names[axis]} "
            'slices that only cross these are not annotated: use "all" instead, or list the slices in the datalist.'
        )
    if found is None:
        raise DataError(
            f"{source}: cannot determine whether the {len(across)} {names[axis]} slices that are not empty are "
            "annotated: some show only lines or a few voxels, like scribbles or slices that only cross annotated ones, "
            f"or they form a solid block. {cure} If they are whole slices, use "
            f'"annotated_slices": {{"{names[axis]}": "nonempty"}}.'
        )
    return [across if a == axis else [] for a in range(3)]


def _lines_agree(foreground: np.ndarray, slices: Slices) -> bool:
    """Return whether crossing slices agree on the lines in which they cross.

    Foreground on the line continues next to it in both slices, except at a structure's border. A scribble in one of
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
    """Return (n,) which slices perpendicular to `axis` have a voxel of the mask."""
    return np.asarray(mask.any(axis=_others(axis)))


def _nonempty(mask: np.ndarray, axis: int) -> list[int]:
    return np.flatnonzero(crossed(mask, axis)).tolist()


def _axis_of(name: Any, affine: Any, source: str) -> int:
    """Return the array axis of a plane's name, or of an axis number."""
    planes = plane_names(affine)
    if str(name).lower() in planes:
        return planes.index(str(name).lower())
    if str(name) in ("0", "1", "2"):
        return int(name)
    raise DataError(
        f"{source}: annotated_slices contains {name!r}, which is neither a plane nor an axis; {SPECIFICATION}. "
        "Correct it."
    )


def _checked_indices(indices: Any, key: Any, count: float, source: str) -> list[int]:
    listed = indices if isinstance(indices, Sequence) and not isinstance(indices, str) else [indices]
    bad = [i for i in listed if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < count]
    if bad:
        raise DataError(
            f"{source}: annotated_slices lists {bad[0]!r} under {str(key)!r}"
            + (f", where the label map has the slices 0 ... {count - 1}" if count < np.inf else "")
            + ". Indices are whole numbers and count from 0 (from 1 in ITK-SNAP); correct it."
        )
    return [int(i) for i in listed]
