"""All scores of a segmentation by class: overlap, distances of surfaces, volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.ndimage import find_objects

from sparse3dunet.losses.regions import Regions, membership
from sparse3dunet.losses.target import annotated_classes, unpack_target
from sparse3dunet.metrics.masked import overlap_counts, overlap_scores, whole_classes
from sparse3dunet.metrics.surfaces import (
    SurfaceDistances,
    check_spacing,
    complete_slices,
    slice_distances,
    surface_distances,
)
from sparse3dunet.metrics.tolerance import check_tolerances

ABSENT, MISSED, NOT_LOOKED_FOR = "not in the reference", "not predicted", "was not looked for"
SPURIOUS = f"{ABSENT}, but predicted"
NO_SLICES = "no whole annotated slice shows it"
UNMATCHED = "more than 5 % of its surface has no counterpart"


@dataclass(frozen=True)
class Measures:
    """Scores of a class, or a region made of classes, in a volume; None if a score is not defined there.

    Attributes:
        voxels: number of scored voxels that have the class in the reference.
        dice: Dice.
        iou: IoU.
        nsd: surface Dice, the share of both surfaces within the tolerance of the other.
        nsd_tolerance_mm: the tolerance.
        hd95_mm: 95 % Hausdorff distance.
        assd_mm: average symmetric surface distance.
        volume_difference_percent: volume of the segmentation minus that of the reference, relative to the latter.
        volume_difference_ml: the same in ml.
        reference_ml: volume of the reference on the scored voxels.
        predicted_ml: volume of the segmentation on the scored voxels.
        surfaces: "3D"; "2D" for outlines within annotated slices; "" if no distances were measured.
        unmatched_percent: share of the surfaces without a counterpart, which NSD counts as an error, the average
            distance leaves out, and HD95 tolerates up to 5 %.
        note: why scores are not defined; "" if all are.
    """

    voxels: int
    dice: float | None = None
    iou: float | None = None
    nsd: float | None = None
    nsd_tolerance_mm: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    volume_difference_percent: float | None = None
    volume_difference_ml: float | None = None
    reference_ml: float | None = None
    predicted_ml: float | None = None
    surfaces: str = ""
    unmatched_percent: float | None = None
    note: str = ""


SCORES = ("dice", "iou", "nsd", "hd95_mm", "assd_mm", "volume_difference_percent", "volume_difference_ml")
"""Names of the scores, of which means and medians over volumes are made."""
COLUMNS = tuple(field.name for field in fields(Measures))


def measure(
    pred: torch.Tensor,
    target: torch.Tensor,
    num_classes: int,
    spacing: Sequence[float],
    *,
    tolerances: Sequence[float] | None = None,
    reference: torch.Tensor | None = None,
    regions: Regions | None = None,
) -> list[Measures]:
    """Score a segmentation on the voxels of a target whose weight is not 0.

    Distances between surfaces need to know the reference around each voxel. They are those of the 3D surfaces if every
    voxel has a weight, or `reference` is given, of which the parts on the scored voxels are then measured. Otherwise
    they are those of the outlines within the slices of which every voxel has a weight (whole annotated slices, across
    any axis), all together. Without such slices (scribbles) there are none: unlabeled voxels are never taken as
    background. Nor are there distances for the background, class 0.

    Args:
        pred: (1, X, Y, Z) the segmentation, classes 0 ... K-1.
        target: (C, X, Y, Z) label and weight of the volume, see :func:`~sparse3dunet.losses.target.pack_target`.
        num_classes: K.
        spacing: voxel size in mm by axis.
        tolerances: (K,) tolerance of the surface Dice in mm, of the regions if there are some; None: no distances.
        reference: (1, X, Y, Z) a dense label, which agrees with the target.
        regions: as for :func:`~sparse3dunet.metrics.masked.overlap_counts`.

    Returns:
        The scores of each class 0 ... K-1, or of the background and each region.

    Raises:
        ValueError: when shapes differ, a class is out of range or no whole number, the spacing is not above 0, or a
            tolerance is negative or no number.
    """
    check_spacing(spacing, pred.ndim - 1)
    check_tolerances(tolerances, num_classes)
    counts = overlap_counts(pred[None], target[None], num_classes, regions)[0].cpu()
    looked_for = annotated_classes(target[None], num_classes)
    known = np.ones(num_classes, bool) if looked_for is None else looked_for[0].cpu().numpy()
    members = torch.cat([torch.eye(1, num_classes), membership(regions)]) if regions else torch.eye(num_classes)
    of_class: list[SurfaceDistances | None] = [None] * num_classes
    kind = ""
    if tolerances is not None:
        kind, distances_of = _comparison(pred, target, num_classes, spacing, reference, known)
        shown = [bool(count[0] + count[2]) for count in counts]
        wanted = [number > 0 and shown[number] and bool(kind) for number in range(num_classes)]
        of_class = [distances_of(members[n].bool().numpy()) if wanted[n] else None for n in range(num_classes)]
    ml = float(np.prod(spacing)) / 1000
    return [
        _measures(
            counts[number],
            of_class[number],
            None if tolerances is None or number == 0 else tolerances[number],
            ml,
            kind,
            bool(known[members[number].bool().numpy()].all()),
        )
        for number in range(num_classes)
    ]


def _comparison(
    pred: torch.Tensor,
    target: torch.Tensor,
    num_classes: int,
    spacing: Sequence[float],
    reference: torch.Tensor | None,
    known: np.ndarray,
) -> tuple[str, Callable[[np.ndarray], SurfaceDistances]]:
    """Return "3D", "2D" or "", and what measures the distances of some classes, given (K,) which ones."""
    label, weight = unpack_target(target[None])
    counted = (weight[0] > 0).cpu().numpy()
    is_whole = bool(counted.all())
    true = label[0] if reference is None or is_whole else unpack_target(reference[None])[0][0]
    labels = [_classes(array, num_classes) for array in (pred[0], true)]
    if not known.all():
        labels[0] = np.where(known, np.arange(num_classes), 0).astype(np.int16)[labels[0]]
    slices = [] if is_whole or reference is not None else complete_slices(counted)
    boxes = [find_objects(array, num_classes - 1) for array in labels]

    def distances(chosen: np.ndarray) -> SurfaceDistances:
        box = _union([found[n - 1] for found in boxes for n in np.flatnonzero(chosen)])
        found, expected = (chosen[array[box]] for array in labels)
        if not slices:
            return surface_distances(found, expected, spacing, None if is_whole else counted[box])
        inside = [[i - b.start for i in indices if b.start <= i < b.stop] for indices, b in zip(slices, box)]
        return slice_distances(found, expected, spacing, inside)

    return "3D" if not slices else "2D" if any(slices) else "", distances


def _classes(values: torch.Tensor, num_classes: int) -> np.ndarray:
    """Return classes (X, Y, Z) as int16; raise ValueError for other values, which could become one."""
    plain = whole_classes(values) if values.is_floating_point() else values
    numbers = np.asarray(plain.cpu())  # also of a MetaTensor
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_classes:
        raise ValueError(f"a class is outside of 0 ... {num_classes - 1}.")
    return numbers.astype(np.int16)


def _union(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """Return the box around boxes, of which some are None."""
    known = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*known))


def _measures(
    counts: torch.Tensor,
    distances: SurfaceDistances | None,
    tolerance: float | None,
    ml: float,
    kind: str,
    was_looked_for: bool,
) -> Measures:
    """Return the scores of a class.

    Args:
        counts: (3,) true positives, false positives, false negatives.
        distances: distances of the surfaces; None if there are none.
        tolerance: tolerance of the surface Dice; None if no distances are asked for.
        ml: volume of a voxel.
        kind: kind of the distances, "3D", "2D" or "".
        was_looked_for: whether the class was looked for in the volume.
    """
    hits, spurious, missed = counts.tolist()
    true, predicted = hits + missed, hits + spurious
    if not was_looked_for:
        return Measures(true, note=NOT_LOOKED_FOR)
    volumes = {
        "volume_difference_ml": (predicted - true) * ml,
        "reference_ml": true * ml,
        "predicted_ml": predicted * ml,
    }
    if not true:
        return Measures(0, **volumes, note=SPURIOUS if predicted else ABSENT)
    scores = {name: float(overlap_scores(counts, name)) for name in ("dice", "iou")}
    notes = [] if predicted else [MISSED]
    if tolerance is not None and distances is not None and distances.unmatched is not None:
        scores |= {"nsd_tolerance_mm": tolerance, "unmatched_percent": 100 * distances.unmatched}
        # Surfaces are those of the whole segmentation, which may show the class beyond the scored voxels
        found = (
            (distances.surface_dice(tolerance), distances.hd95, distances.average) if predicted else (0.0, None, None)
        )
        scores |= {name: value for name, value in zip(("nsd", "hd95_mm", "assd_mm"), found) if value is not None}
        notes += [UNMATCHED] if predicted and distances.hd95 is None else []
    elif tolerance is not None:
        kind, notes = "", [*notes, NO_SLICES]
    else:
        kind = ""
    scores["volume_difference_percent"] = 100 * (predicted - true) / true
    return Measures(true, **scores, **volumes, surfaces=kind, note="; ".join(notes))


@dataclass(frozen=True)
class Summary:
    """A score over volumes: mean and median of the `n` volumes in which it is defined; None if n = 0."""

    mean: float | None
    median: float | None
    n: int


def summarize(measures: Sequence[Measures], name: str) -> Summary:
    """Summarize a score, one of :data:`SCORES`, over volumes; a class that the reference does not show is left out."""
    values = [getattr(one, name) for one in measures if one.voxels]
    values = [value for value in values if value is not None]
    if not values:
        return Summary(None, None, 0)
    return Summary(float(np.mean(values)), float(np.median(values)), len(values))
