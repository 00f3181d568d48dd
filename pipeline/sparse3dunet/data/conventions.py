"""Conventions that mark unlabeled voxels, inferred from a label map."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sparse3dunet.data.large_conventions import UndecidedError
from sparse3dunet.data.slices import ALL, Slices, crossed, nonempty_slices, runs, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import MOST_VALUES, UNLABELED_VALUE, values_found, whole_labels

UNLABELED_SHARE = 0.9
"""Share of the voxels above which a value is taken for unlabeled without other evidence: tissues of dense label maps
have less."""
MOST_CANDIDATES = 8
"""Maximum number of values examined as candidates for unlabeled; each takes a pass over all voxels."""
OPTIONS = (
    "--ignore-index 255 (the value, or values, of unlabeled voxels; 0 where the background has a value of its own) or "
    "--annotated-slices all (0 is background on the annotated slices and unlabeled elsewhere; or axial, coronal, "
    "sagittal)"
)


@dataclass(frozen=True)
class Convention:
    """Convention that marks unlabeled voxels.

    Attributes:
        ignore_index: values on disk that mean unlabeled.
        annotated_slices: "all" if 0 is background on the annotated slices and unlabeled elsewhere, otherwise None.
        reason: description of the convention and the evidence for it.
        is_guess: whether it was inferred from the number of voxels alone.
    """

    ignore_index: tuple[int, ...]
    annotated_slices: str | None
    reason: str
    is_guess: bool = False

    @property
    def is_mark(self) -> bool:
        """Whether values mark unlabeled voxels, and this is more than a guess."""
        return self.annotated_slices is None and not self.is_guess


def infer(label: np.ndarray, source: str, classes: Collection[int] = (), unlabeled: Collection[int] = ()) -> Convention:
    """Infer how a label map marks unlabeled voxels.

    Tried in this order: a value that is everywhere except on whole slices; 0, if the other values lie on slices; 255
    and negative values; the largest value, if 90 % of the voxels have it. NaN and fractions are ignored.

    Args:
        label: (X, Y, Z), values as on disk.
        source: name of the label map in messages.
        classes: values that are known to be classes.
        unlabeled: values that are known to mean unlabeled; there may be others.

    Raises:
        UndecidedError: when it cannot be inferred, as for a dense label map; the message names the options to use.
        DataError: when it is not a label map.
    """
    if label.ndim != 3:
        raise DataError(
            f"{source}: a label map must have three dimensions, found shape {label.shape}. Export it as one volume, "
            "without channels."
        )
    label = whole_labels(label).astype(np.float32) if label.dtype.kind == "f" else label
    found = values_found(label)
    counts = {int(value): number for value, number in found.items() if value == int(value)}
    odd = None if sum(counts.values()) == label.size else ~np.isfinite(label) | (label != np.round(label))
    _check_number(found, source)
    ignored = _usual(counts, classes, unlabeled)
    around = partial(_all_but_slices, label, counts, odd, classes, ignored)
    on_slices = partial(_found_slices, label, counts, odd, classes, ignored, source)
    convention = (
        (on_slices() or around() if ignored else around() or on_slices())
        or _usual_values(counts, label.size, ignored)
        or _majority(counts, label.size, classes)
    )
    if convention is None:
        _check_whole(label, odd, source)
        raise UndecidedError(_undecided(counts, source))
    return convention


def announcement(convention: Convention, file: str) -> str:
    """Return a line for the user: what was inferred from which file, and the options to change it."""
    return f"{file}: {convention.reason}. This was inferred; if it is wrong, pass --ignore-index or --annotated-slices."


def _usual(counts: Collection[int], classes: Collection[int], unlabeled: Collection[int]) -> tuple[int, ...]:
    """Return the values known or usually taken to mean unlabeled, if enough others are left for classes."""
    certain = {v for v in counts if v not in classes and (v < 0 or v in unlabeled)}
    custom = {v for v in counts if v == UNLABELED_VALUE and v not in classes}
    for ignored in (certain | custom, certain):
        if len(set(counts) - ignored) >= _fewest(classes):
            return tuple(sorted(ignored))
    return tuple(sorted(v for v in certain if v in unlabeled))


def _fewest(classes: Collection[int]) -> int:
    """Return the minimum number of values besides those for unlabeled voxels."""
    return 1 if classes else 2


def _all_but_slices(
    label: np.ndarray,
    counts: Mapping[int, int],
    odd: np.ndarray | None,
    classes: Collection[int],
    ignored: tuple[int, ...],
) -> Convention | None:
    most = max(counts.values(), default=0)
    order = sorted(counts, key=lambda v: (v not in ignored, -counts[v]))
    for value in [v for v in order if v not in classes][:MOST_CANDIDATES]:
        unlabeled = tuple(sorted({value, *ignored}))
        doubtful = bool(ignored) and value not in ignored and counts[value] < most  # a class that fills slices
        if doubtful or len(set(counts) - {*unlabeled}) < _fewest(classes):
            continue
        slices = slices_around(label, value, odd)
        if slices and (value in ignored or not _is_small_block(slices, label.shape)):
            number = sum(n - len(kept) for n, kept in zip(label.shape, slices))
            return Convention(
                unlabeled, None, f"{listed(unlabeled)} unlabeled: all other voxels form {number} whole slice(s)"
            )
    return None


def slices_around(label: np.ndarray, value: int, odd: np.ndarray | None) -> list[np.ndarray] | None:
    """Return by axis the indices of the other slices if the voxels other than `value` are whole slices; else None."""
    inside = label == value
    kept = [np.flatnonzero(crossed(inside, axis)) for axis in range(3)]
    sides = [[n for other, n in enumerate(label.shape) if other != axis] for axis in range(3)]
    whole = [axis for axis in range(3) if len(kept[axis]) < label.shape[axis]]
    if not whole or any(min(sides[axis]) < 2 for axis in whole):  # slices of a flat volume would be lines
        return None
    inside = inside if odd is None else inside | odd
    return kept if inside[np.ix_(*kept)].all() else None


def _is_small_block(kept: Sequence[np.ndarray], shape: Sequence[int]) -> bool:
    """Return whether a value forms one block of less than half of the volume, as a class of a dense label map may."""
    share = np.prod([len(indices) / n for indices, n in zip(kept, shape)])
    return bool(share < 0.5) and all(len(runs(indices.tolist())) == 1 for indices in kept)


def _found_slices(
    label: np.ndarray,
    counts: Mapping[int, int],
    odd: np.ndarray | None,
    classes: Collection[int],
    ignored: tuple[int, ...],
    source: str,
) -> Convention | None:
    zeros = counts.get(0, 0)
    if 0 in ignored or (classes and 0 not in classes) or not zeros or zeros < max(counts.values()):
        return None
    foreground = label != 0
    left_out = np.isin(label, ignored)
    foreground &= ~left_out
    if odd is not None:
        foreground &= ~odd
    try:
        slices = nonempty_slices(ALL, foreground, np.eye(4), source)
    except DataError:
        return None
    annotated = slices_mask(label.shape, slices)
    if 2 * (left_out & annotated).sum() < left_out.sum():  # most unlabeled values are not on annotated slices
        return None
    is_sparse = annotated.any() and not annotated.all() and not _looks_dense(foreground, slices)
    if not is_sparse or not (classes or (annotated & (label == 0)).any()):  # without background, nothing is learned
        return None
    more = f"; {listed(ignored)} unlabeled" if ignored else ""
    return Convention(
        ignored,
        ALL,
        "0 means background on annotated slices and unlabeled elsewhere: the other values lie on "
        f"{sum(map(len, slices))} slice(s){more}; slices that are painted only in part need another value for the rest",
    )


def _looks_dense(foreground: np.ndarray, slices: Slices) -> bool:
    """Return whether the slices may show a structure of a dense label map: one run that is long, or tapers off.

    In thick slices, all that a structure crosses show a square as wide as their number, like annotated ones.
    """
    pieces = [(axis, run) for axis in range(3) for run in runs(slices[axis])]
    if len(pieces) != 1 or len(pieces[0][1]) < 3:
        return False
    axis, run = pieces[0]
    areas = foreground.sum(axis=tuple(a for a in range(3) if a != axis))[run]
    return bool(2 * len(run) > foreground.shape[axis] or 2 * max(areas[0], areas[-1]) < areas.max())


def _usual_values(counts: Mapping[int, int], size: int, ignored: tuple[int, ...]) -> Convention | None:
    if not ignored:
        return None
    share = sum(counts[value] for value in ignored) / size
    return Convention(ignored, None, f"{listed(ignored)} unlabeled, as usual: {share:.1%} of the voxels")


def _majority(counts: Mapping[int, int], size: int, classes: Collection[int]) -> Convention | None:
    value = max(counts, default=0)
    if len(counts) < 3 or value in classes or counts[value] < UNLABELED_SHARE * size:
        return None
    text = f"{value} means unlabeled: it is the largest value, and {counts[value] / size:.1%} of the voxels have it"
    return Convention((value,), None, text, is_guess=True)


def listed(values: Sequence[int]) -> str:
    """Return the beginning of a sentence that says what values mean."""
    return f"{' and '.join(map(str, values))} mean{'s' if len(values) == 1 else ''}"


def _check_number(found: Collection[float], source: str) -> None:
    """Raise DataError if there are too many values for an annotation."""
    if len(found) > MOST_VALUES:
        raise DataError(
            f"{source}: found {len(found)} different values, like in a scan; expected a label map of 2 to "
            f"{MOST_VALUES} whole numbers. Check for a mix-up of files."
        )


def _check_whole(label: np.ndarray, odd: np.ndarray | None, source: str) -> None:
    """Raise DataError if voxels are NaN, infinite or not whole numbers."""
    if odd is not None:
        shown = ", ".join(f"{value:.9g}" for value in np.unique(label[odd])[:5])
        raise DataError(
            f"{source}: {int(odd.sum())} of {label.size} voxels are not whole numbers ({shown}); expected a label map. "
            "Round labels that were rescaled or interpolated, and replace NaN by the value of unlabeled voxels."
        )


def _undecided(counts: Mapping[int, int], source: str) -> str:
    shown = ", ".join(map(str, sorted(counts)[:10])) + (", ..." if len(counts) > 10 else "")
    if len(counts) < 2:
        return (
            f"{source}: all voxels have the value {shown}, so nothing is annotated; expected at least two classes. "
            "Annotate some slices, background and foreground."
        )
    return (
        f"{source}: cannot infer which voxels are unlabeled. Of the values {shown}, none is everywhere except on whole "
        "slices, none is 255 or negative next to two others, and the voxels that are not 0 are not recognizable slices "
        "(but a solid block, scribbles, or a few voxels). If every voxel is annotated, there is nothing to densify; "
        f"otherwise pass {OPTIONS}."
    )
