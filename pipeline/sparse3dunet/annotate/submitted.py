"""Annotation in label maps that an annotation tool submits, in which 0 stands for all that is not painted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from sparse3dunet.data.finished import finished_part
from sparse3dunet.data.slices import Slices, plane_names, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_map
from sparse3dunet.io.formats import read_named_label
from sparse3dunet.io.volumes import UNLABELED_VALUE, Volume, check_same_grid, marked, on_grid_of
from sparse3dunet.io.written import file_digest

ANNOTATION, DELIVERED, SUBMITTED = "annotation.nii.gz", "delivered.nii.gz", "submitted.txt"
"""In a scan's folder: its annotation, the segmentation that the tool got last, and the label map that was read last."""
FEWEST_CORRECTED = 4
"""Number of changed voxels from which on a slice counts as corrected."""
AGREEMENT = 0.5
"""Share of a segmentation's foreground that a label map has in common with it if it is the corrected segmentation."""


@dataclass(frozen=True)
class Submitted:
    """Annotation in a label map.

    Attributes:
        annotation: (X, Y, Z) uint8: classes, and UNLABELED_VALUE.
        reason: what counts as annotated, for the user.
    """

    annotation: np.ndarray
    reason: str


def annotation_in(
    label: np.ndarray, affine: np.ndarray, former: np.ndarray | None = None, delivered: np.ndarray | None = None
) -> Submitted:
    """Return the annotation in a submitted label map.

    It is either drawn by hand: then finished slices count (:func:`~sparse3dunet.data.finished.finished_part`). Or it is
    the segmentation that was delivered before, with corrections: then the former annotation counts, if there is one,
    and the slices that were corrected, as finished. Corrections that are not on slices count by themselves.

    Args:
        label: (X, Y, Z) integers, 0 where not painted.
        affine: voxel to RAS+ world, for the names of planes.
        former: (X, Y, Z) the former annotation; None for none: a trained model's segmentation may come first.
        delivered: (X, Y, Z) the segmentation that was delivered before.
    """
    former = np.full(label.shape, UNLABELED_VALUE, np.uint8) if former is None else former
    if delivered is None or not _is_corrected(label, former, delivered):
        part = finished_part(label > 0, affine)
        return Submitted(marked(label, part.annotated, UNLABELED_VALUE, np.uint8), part.reason)
    changed = label != delivered
    slices = corrected_slices(changed)
    known = changed | (former != UNLABELED_VALUE)
    reason = "the delivered segmentation, with nothing corrected" if not changed.any() else "corrections by voxel"
    if any(slices):
        known |= slices_mask(label.shape, slices)
        named = ", ".join(f"{plane} {found}" for plane, found in zip(plane_names(affine), slices) if found)
        reason = f"the corrected slices of the delivered segmentation count as finished ({named})"
    if (former != UNLABELED_VALUE).any():
        reason += "; so does the former annotation"
    return Submitted(marked(label, known, UNLABELED_VALUE, np.uint8), reason)


def corrected_slices(changed: np.ndarray) -> Slices:
    """Return the slices, by axis, on which a segmentation was corrected.

    Most voxels in front of and behind those that changed on such a slice did not change, unlike where a brush in three
    dimensions was used. And some of the changed voxels that touch span both directions of the slice: a straight line
    lies on two slices, and does not say which one was looked at.

    Args:
        changed: (X, Y, Z) boolean.
    """
    left = changed.copy()
    slices: Slices = [[], [], []]
    looked_at: Slices = [[], [], []]
    while True:
        counts = [left.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        for axis in range(3):
            counts[axis][looked_at[axis]] = 0
        axis = max(range(3), key=lambda a: counts[a].max())
        index = int(counts[axis].argmax())
        if counts[axis][index] < FEWEST_CORRECTED:
            return [sorted(found) for found in slices]
        looked_at[axis].append(index)
        there = left.take(index, axis)
        beside = [changed.take(i, axis) for i in (index - 1, index + 1) if 0 <= i < changed.shape[axis]]
        if 2 * (there & np.logical_or.reduce(beside)).sum() <= there.sum() and _spans_both(there):
            slices[axis].append(index)
            left[(slice(None),) * axis + (index,)] = False


def _spans_both(changed: np.ndarray) -> bool:
    """Return whether some voxels of a slice that touch, at corners too, span more than one row and one column."""
    numbers, _ = ndimage.label(changed, np.ones((3, 3)))
    return any(min(np.shape(numbers[box])) > 1 for box in ndimage.find_objects(numbers))


def update_annotation(scan: str | Path, label: str | Path, folder: Path, names: Sequence[str] | None = None) -> str:
    """Write the annotation in a submitted label map to a scan's folder, unless that was done already.

    Args:
        scan: the image.
        label: the label map, on its grid.
        folder: the scan's folder.
        names: names of the classes of values 1, 2, ...; None to accept any.

    Returns:
        What counts as annotated.

    Raises:
        DataError: when the label map is no label map, empty, on another grid, or has values or segments other than
            the classes, see :func:`check_classes`.
    """
    note = folder / SUBMITTED
    digest = file_digest(label)
    if note.is_file() and (folder / ANNOTATION).is_file():
        known, _, reason = note.read_text(encoding="utf-8").partition("\n")
        if known == digest:
            return reason
    image = read_image(scan)
    values = _label_map(label, image, names)
    former, delivered = (_stored(folder / name, values.shape) for name in (ANNOTATION, DELIVERED))
    found = annotation_in(values, image.affine, former, delivered)
    write_map(folder / ANNOTATION, found.annotation, image)
    note.write_text(f"{digest}\n{found.reason}", encoding="utf-8")
    return found.reason


def check_classes(path: str | Path, found: Mapping[int, str], names: Sequence[str]) -> None:
    """Raise DataError if a label map has a value without a class, or a segment with the name of another class.

    Args:
        path: the label map.
        found: names of the values in it, but 0; empty for those without a name.
        names: names of the classes of values 1, 2, ...
    """
    for value, name in sorted(found.items()):
        if value > len(names):
            raise DataError(
                f"{path}: a label map has the value {value}, but the app has {len(names)} class(es): "
                f"{', '.join(names)}. Use these segments, in this order, or write an app with more: sparse3dunet "
                "label-app --class-names."
            )
        if name and name.lower() != names[value - 1].lower():
            raise DataError(
                f"{path}: the value {value} is the segment {name}, but {names[value - 1]} in the app, whose classes "
                f"are {', '.join(names)}. Use these segments, in this order."
            )


def _label_map(path: str | Path, image: Volume, names: Sequence[str] | None) -> np.ndarray:
    """Return the label map (X, Y, Z) uint8 on an image's grid."""
    volume, segments = read_named_label(path)
    label = on_grid_of(volume, image)
    check_same_grid(label, image)
    values = np.asarray(label.data)
    if values.ndim != 3 or not np.isin(values, range(UNLABELED_VALUE)).all():
        largest = UNLABELED_VALUE - 1
        raise DataError(f"{path}: expected a label map with one whole number, 0 to {largest}, in each voxel.")
    if not values.any():
        raise DataError(f"{path}: nothing is painted. Paint the structures on some slices, and submit the label again.")
    if names is not None:
        check_classes(path, {int(value): segments.get(int(value), "") for value in np.unique(values) if value}, names)
    return values.astype(np.uint8)


def _stored(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    if not path.is_file():
        return None
    values = np.asarray(read_image(path).data)
    return values if values.shape == shape else None  # of another scan of that name


def _is_corrected(label: np.ndarray, former: np.ndarray, delivered: np.ndarray) -> bool:
    """Return whether a label map has most of the delivered foreground that was not annotated before."""
    found = (delivered > 0) & (former == UNLABELED_VALUE)
    return bool(found.any()) and float((label == delivered)[found].mean()) >= AGREEMENT
