"""Suggestion of slices to annotate next."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import distance_transform_edt

from sparse3dunet.console import Console, Table, box, escape
from sparse3dunet.data.conventions import infer
from sparse3dunet.data.slices import ALL, nonempty_slices, plane_names, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import marked
from sparse3dunet.io.writing import write_text

REACH = 3.0
"""Distance from the foreground, in voxels of the mean edge, at which the weight of doubt falls to 1/e."""
IN_DOUBT = 64
"""Doubt (1 - confidence, 0 to 255) from which on a voxel counts as in doubt."""
MOST_VOXELS = 2_000_000
"""Voxels of the grid on which distances are measured; larger volumes are measured in blocks of voxels."""
THICK = 2.5
"""Multiple of the median voxel size above which slices are thick: people draw only on these, not across them."""
SHOWN_CASES = 10
WIDTH = 0.6
"""Distance over which an annotated slice settles doubt, relative to the gap between equally spaced slices."""
_SLAB = 8
_ROUNDS = 10
_TIE = 1e-6
_MOST = 10_000
# Weight by doubt, 0 to 255. Squared, because the small doubt that a network has everywhere adds up over a volume
# without meaning anything. Never 0: even if the network is sure of everything, one slice is better than none.
_STAKES = np.maximum(1, np.rint((np.arange(256) / 255) ** 2 * _MOST)).astype(np.uint32)


@dataclass(frozen=True)
class Suggestion:
    """Slice that is worth annotating.

    Attributes:
        plane: axial, coronal or sagittal.
        axis: axis of the image's array that the slice is perpendicular to.
        index: index along that axis, from 0.
        position: position of the slice's middle along the plane's axis in space (RAS), in mm, as viewers show it.
        benefit: expected benefit, relative to that of the best slice; 0 to 1.
        doubt: mean of 1 - confidence over the slice's voxels that are foreground or in doubt; 0 to 1.
        distance: distance in mm to the nearest annotated slice of the same plane; None if none is annotated.
    """

    plane: str
    axis: int
    index: int
    position: float
    benefit: float
    doubt: float
    distance: float | None


@dataclass(frozen=True)
class _Profile:
    """Statistics of the slices perpendicular to one axis, each (n,).

    Attributes:
        gain: squared doubt of the unlabeled voxels, weighted by nearness to the foreground; in voxels.
        share: unlabeled share of the voxels near the foreground; 0 to 1.
        doubt: mean doubt of unlabeled voxels that are foreground or in doubt; 0 to 1.
        annotated: whether most of the slice is annotated.
        extent: whether the slice shows foreground.
    """

    gain: np.ndarray
    share: np.ndarray
    doubt: np.ndarray
    annotated: np.ndarray
    extent: np.ndarray

    def distance(self, place: int, spacing: float) -> float | None:
        """Return the distance to the nearest annotated slice, in mm; None if there is none."""
        known = np.flatnonzero(self.annotated)
        return float(np.abs(known - place).min() * spacing) if len(known) else None


def suggest_slices(
    confidence: np.ndarray, segmentation: np.ndarray, annotated: np.ndarray, affine: Any, count: int = 3
) -> list[Suggestion]:
    """Return the slices of each plane whose annotation would help most, the best first.

    An annotated slice is assumed to settle the doubt on itself, and a decreasing share of it on the slices around it,
    down to none at WIDTH of the gap that as many equally spaced slices would have. The slices are chosen that together
    settle most of the doubt left by the annotated ones: they lie where doubt is, apart from each other and from the
    annotation. Doubt is squared, so that high doubt counts more, and counts less far from the foreground, as a network
    that has learned little is often in doubt about empty space. Across planes, slices are compared by their doubtful
    area.

    Args:
        confidence: (X, Y, Z) uint8, the probability of the chosen class; 255 for 1.
        segmentation: (X, Y, Z) integers, 0 in the background.
        annotated: (X, Y, Z) boolean, in slices or not. A slice is annotated if most of its voxels are.
        affine: 4x4, voxel to RAS in mm.
        count: maximum number of slices of each plane; fewer if no others would help. None of a plane whose slices are
            lines of voxels; if slices are thick, only those of their plane.

    Returns:
        Slices that are not annotated; the same ones for any order and direction of the volume's axes.

    Raises:
        DataError: when the confidence is not uint8, or the volumes' shapes differ.
    """
    confidence, segmentation, annotated = map(np.asarray, (confidence, segmentation, annotated))
    shapes = [volume.shape for volume in (confidence, segmentation, annotated)]
    if len(shapes[0]) != 3 or len(set(shapes)) > 1:
        raise DataError(f"confidence, segmentation and annotated must have one shape (X, Y, Z), got {shapes}.")
    if confidence.dtype != np.uint8:
        raise DataError(
            f"confidence must be uint8, 255 for a probability of 1, got {confidence.dtype}; of probabilities p make it "
            "by (255 * p).round().astype(numpy.uint8)."
        )
    if count < 1:
        return []
    affine = np.asarray(affine, float)
    orientation = nib.io_orientation(affine)
    # Views in RAS order, and integer sums, so that the order of the axes changes nothing, not even ties.
    sure, found, known = (
        nib.apply_orientation(np.asarray(a), orientation) for a in (confidence, segmentation, annotated)
    )
    spacing = np.zeros(3)
    spacing[orientation[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    profiles = _profiles(sure, found, known, spacing)
    thick = spacing.max() > THICK * np.median(spacing)
    drawn = (spacing == spacing.max()) | (not thick)
    suggestions: list[Suggestion] = []
    for axis, (world, direction) in enumerate(orientation.astype(int)):
        if min(n for other, n in enumerate(confidence.shape) if other != axis) == 1 or not drawn[world]:
            continue
        for place, benefit in _choose(profiles[world], spacing[world], count):
            index = place if direction > 0 else confidence.shape[axis] - 1 - place
            position = _position(affine, confidence.shape, axis, index)
            doubt, distance = profiles[world].doubt[place], profiles[world].distance(place, spacing[world])
            plane = plane_names(affine)[axis]
            suggestions.append(Suggestion(plane, axis, index, position, benefit, float(doubt), distance))
    suggestions.sort(key=lambda s: (-s.benefit, s.plane, s.position))
    return [replace(s, benefit=s.benefit / suggestions[0].benefit) for s in suggestions]


def template(
    label: np.ndarray, segmentation: np.ndarray, suggestions: Sequence[Suggestion], annotated: np.ndarray
) -> np.ndarray:
    """Return a label map to continue the annotation with: the user's, with the prediction on the suggested slices.

    Args:
        label: (X, Y, Z) the user's label map, values as on disk.
        segmentation: (X, Y, Z) integers, the prediction, values as on disk.
        suggestions: the slices.
        annotated: (X, Y, Z) boolean; annotated voxels stay.

    Returns:
        (X, Y, Z) with the label map's values except on the suggested slices. It has the label map's type if that can
        hold the predicted values, otherwise one that holds both; whole floating-point numbers become integers.
    """
    filled = _on(suggestions, label.shape) & ~np.asarray(annotated, bool)
    result = np.asarray(label).astype(_wide_enough(label, segmentation))
    result[filled] = segmentation[filled]
    return result


def _on(suggestions: Sequence[Suggestion], shape: Sequence[int]) -> np.ndarray:
    """Return a mask (X, Y, Z) of the suggested slices."""
    return slices_mask(shape, [[s.index for s in suggestions if s.axis == axis] for axis in range(3)])


def with_mark(
    values: np.ndarray,
    suggestions: Sequence[Suggestion],
    annotated: np.ndarray,
    specification: str,
    affine: np.ndarray,
    mark: int,
) -> np.ndarray:
    """Return a template in which it can be told which slices count, where 0 is background and unlabeled.

    Suggested slices that cross the annotated ones may hide which these are: unlabeled voxels then get a value of their
    own.

    Args:
        values: (X, Y, Z) from :func:`template`.
        suggestions: the suggested slices.
        annotated: (X, Y, Z) boolean, the voxels that were annotated before.
        specification: how the annotated slices are found: "all", or the name of a plane.
        affine: affine of the image.
        mark: value for unlabeled voxels, which is no class.

    Returns:
        `values` itself, if the slices are found in it.
    """
    counted = annotated | _on(suggestions, values.shape)
    try:
        found = nonempty_slices(specification, values != 0, affine, "")
        if infer(values, "").annotated_slices == ALL and np.array_equal(slices_mask(values.shape, found), counted):
            return values
    except DataError:  # they are not found, or something else may be
        pass
    return marked(values, counted, mark, np.promote_types(values.dtype, np.min_scalar_type(mark)))


def as_rows(suggestions: Sequence[Suggestion]) -> list[dict[str, Any]]:
    """Return rows for JSON: plane, axis, index, position_mm, benefit, doubt and distance_mm (null if none)."""
    return [
        {
            "plane": s.plane,
            "axis": s.axis,
            "index": s.index,
            "position_mm": float(f"{s.position:.6g}"),
            "benefit": round(s.benefit, 4),
            "doubt": round(s.doubt, 4),
            "distance_mm": None if s.distance is None else float(f"{s.distance:.6g}"),
        }
        for s in suggestions
    ]


def write_json(path: Path, by_case: Mapping[str, Sequence[Suggestion]]) -> None:
    """Write the suggestions of each case, see :func:`as_rows`, atomically."""
    rows = {name: as_rows(suggestions) for name, suggestions in by_case.items()}
    write_text(path, json.dumps(rows, indent=1) + "\n")


def show(by_case: Mapping[str, Sequence[Suggestion]]) -> None:
    """Print the suggestions of at most SHOWN_CASES cases as a table."""
    shown = {name: entries for name, entries in list(by_case.items())[:SHOWN_CASES] if entries}
    if not any(by_case.values()):
        return
    table = Table(title="Annotate these slices next", box=box.SIMPLE_HEAD)
    several = len(by_case) > 1
    if several:
        table.add_column("case", overflow="fold")
    table.add_column("plane")
    for heading in ("slice (from 0)", "mm", "mm from annotation", "doubt", "benefit"):
        table.add_column(heading, justify="right")
    for name, entries in shown.items():
        for entry in entries:
            title = [escape(name) if entry is entries[0] else ""] if several else []
            table.add_row(*title, *_cells(entry), end_section=entry is entries[-1])
    console = Console()
    console.print(table)
    more = len(by_case) - SHOWN_CASES
    text = "Benefit: relative to the best slice. Doubt: mean of 1 - confidence over foreground and doubtful voxels."
    console.print(text + (f" {more} more case(s) are not shown." if more > 0 else ""), style="dim", highlight=False)


def _cells(entry: Suggestion) -> tuple[str, ...]:
    distance = "none" if entry.distance is None else f"{entry.distance:.1f}"
    numbers = (f"{entry.position:.1f}", distance, f"{entry.doubt:.3f}", f"{entry.benefit:.2f}")
    return entry.plane, str(entry.index), *numbers


def _position(affine: np.ndarray, shape: Sequence[int], axis: int, index: int) -> float:
    """Return the position of a slice's middle, in mm, along the axis in space that it is perpendicular to."""
    voxel = (np.asarray(shape) - 1) / 2
    voxel[axis] = index
    world = int(nib.io_orientation(affine)[axis, 0])
    return float(affine[world, :3] @ voxel + affine[world, 3])


def _choose(profile: _Profile, spacing: float, count: int) -> list[tuple[int, float]]:
    """Return up to `count` slices, and the doubt that each settles in addition to those before it, in voxels per mm.

    They are first chosen one by one, then each is moved in turn while that improves the total: one slice is best in the
    middle of evenly distributed doubt, two are best at its quarters.
    """
    n = len(profile.gain)
    inside = np.flatnonzero(profile.extent)
    if not len(inside):
        return []
    extent = (inside[-1] - inside[0] + 1) * spacing
    width = max(spacing, WIDTH * extent / (profile.annotated[inside[0] : inside[-1] + 1].sum() + count))
    kernel = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * spacing / width)
    known = kernel[:, profile.annotated].max(1, initial=0)
    allowed = np.where(profile.annotated, 0, profile.share)

    def benefits(others: list[int]) -> np.ndarray:
        settled = np.maximum(known, kernel[:, others].max(1, initial=0))
        added = profile.gain @ np.maximum(kernel - settled[:, None], 0) / width
        added[others] = 0
        return np.asarray(added * allowed)

    chosen = _together(benefits, _one_by_one(benefits, count))
    result: list[tuple[int, float]] = []
    while chosen:
        offered = benefits([place for place, _ in result])
        best = max(sorted(chosen), key=offered.__getitem__)
        result.append((best, float(offered[best])))
        chosen.remove(best)
    return result


def _together(benefits: Callable[[list[int]], np.ndarray], chosen: list[int]) -> list[int]:
    """Return the slices, each moved in turn to the best place given the others, while that helps."""
    for _ in range(_ROUNDS):
        before = list(chosen)
        for number, place in enumerate(before):
            offered = benefits(chosen[:number] + chosen[number + 1 :])
            if offered.max() > offered[place] * (1 + _TIE):
                chosen[number] = _best(offered)
        if chosen == before:
            break
    return chosen


def _one_by_one(benefits: Callable[[list[int]], np.ndarray], count: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < count:
        offered = benefits(chosen)
        if offered.max() <= 0:
            break
        chosen.append(_best(offered))
    return chosen


def _best(benefits: np.ndarray) -> int:
    """Return the best slice; the middle one of several equally good ones."""
    ties = np.flatnonzero(benefits >= benefits.max() * (1 - _TIE))
    return int(ties[len(ties) // 2])


def _profiles(
    confidence: np.ndarray, segmentation: np.ndarray, annotated: np.ndarray, spacing: np.ndarray
) -> list[_Profile]:
    """Return the profile of each axis, computed slab by slab in integers."""
    shape = confidence.shape
    weights, step = _nearness(segmentation, spacing)
    rows, columns = (np.arange(n) // step for n in shape[1:])
    across = np.zeros((7, shape[0]), np.int64)
    along = np.zeros((7, *shape[1:]), np.int64)
    for start in range(0, shape[0], _SLAB):
        slab = slice(start, min(start + _SLAB, shape[0]))
        near = weights[np.arange(slab.start, slab.stop) // step][:, rows][:, :, columns]
        unknown = annotated[slab] == 0
        doubt = 255 - np.asarray(confidence[slab], np.uint8)
        judged = unknown & ((segmentation[slab] != 0) | (doubt >= IN_DOUBT))
        gain = _STAKES[doubt] * near * unknown
        for number, part in enumerate((gain, near, near * unknown, doubt * judged, judged, ~unknown, near == 255)):
            along[number] += part.sum(0, dtype=np.int64)
            across[number, slab] = part.sum((1, 2), dtype=np.int64)
    sums = [across, along.sum(2), along.sum(1)]
    return [_profile(part, math.prod(shape) // shape[axis]) for axis, part in enumerate(sums)]


def _profile(sums: np.ndarray, voxels: int) -> _Profile:
    gain, near, unknown, doubt, judged, known, inside = sums
    return _Profile(
        gain=gain / (255 * _MOST),
        share=unknown / np.maximum(near, 1),
        doubt=doubt / np.maximum(judged, 1) / 255,
        annotated=2 * known > voxels,
        extent=inside > 0,
    )


def _nearness(segmentation: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, int]:
    """Return weights (uint8, 255 on the foreground) of blocks of voxels, and the edge length of the blocks."""
    step = max(1, math.ceil((segmentation.size / MOST_VOXELS) ** (1 / 3)))
    foreground = segmentation != 0
    for axis in range(3):
        foreground = np.logical_or.reduceat(foreground, np.arange(0, foreground.shape[axis], step), axis)
    if not foreground.any():
        return np.full(foreground.shape, 255, np.uint8), step
    reach = REACH * math.prod(spacing) ** (1 / 3)
    distance = distance_transform_edt(~foreground, sampling=tuple(spacing * step))
    return np.rint(255 * np.exp(-distance / reach)).astype(np.uint8), step


def _wide_enough(label: np.ndarray, segmentation: np.ndarray) -> np.dtype[Any]:
    """Return a type that holds the values of both."""
    values = np.asarray(label)
    # Integers if possible, as which label maps are written
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        return np.result_type(values.dtype, segmentation.dtype)
    ends = [int(f(array)) for array in (values, segmentation) for f in (np.min, np.max)]
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        if limits.min <= min(ends) and max(ends) <= limits.max:
            return values.dtype
    signed = (np.int8, np.int16, np.int32, np.int64)
    types = signed if min(ends) < 0 else (np.uint8, np.uint16, np.uint32, np.uint64)
    return next(np.dtype(t) for t in types if np.iinfo(t).min <= min(ends) and max(ends) <= np.iinfo(t).max)
