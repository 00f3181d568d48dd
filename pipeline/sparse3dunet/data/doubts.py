"""Doubts about valid volumes: what is probably not as its user thinks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.finished import half_painted
from sparse3dunet.data.slices import find_slices, plane_names
from sparse3dunet.io.grid import shear
from sparse3dunet.io.volumes import Volume

SMALLEST_CONTRAST = float(np.finfo(np.float32).tiny)
"""Smallest difference of values that 32-bit floats compute with in full precision."""
SHEAR_TOLD = 0.01
"""Cosine between two axes of a volume above which a warning is given."""

Doubt = tuple[str, str]
"""Kind and text of a warning."""
OWN_FIGURES = re.compile(
    r"\d+(\.\d+){3,}|\d[\d.]*(?= (?:of|to|mm|voxels|slices|contours|structure|other structure)\b| \+)"
)
"""UIDs and counts in a note, in which cases differ that it says the same of; names of classes may have numbers, too."""


def notes(volume: Volume, *paths: str) -> list[Doubt]:
    """Return the notes on how a volume was read; those that differ in a case's files and figures alone are of one kind.

    Args:
        volume: the volume.
        paths: other files of the case that its notes may name.
    """
    names = sorted({volume.path, *paths}, key=len, reverse=True)  # a name may begin with another
    own = re.compile("|".join([*map(re.escape, filter(None, names)), OWN_FIGURES.pattern]))
    return [(own.sub("*", text), text) for text in volume.notes]


def image_doubts(image: Volume) -> list[Doubt]:
    """Return doubts about an image."""
    doubts = []
    low, high = image.data.min(), image.data.max()
    if low == high:
        text = f"{image.path}: all voxels have the value {low}; there is nothing to learn."
        doubts.append(("constant", text))
    elif np.float32(low) == np.float32(high) or float(high) - float(low) < SMALLEST_CONTRAST:
        text = (
            f"{image.path}: all voxels have nearly the same value, from {float(low)!r} to {float(high)!r}, which is no "
            "contrast for the 32-bit floats that are computed with. Scale the image."
        )
        doubts.append(("constant", text))
    cosine = shear(image.affine)
    if cosine > SHEAR_TOLD:
        text = (
            f"{image.path}: the axes of its affine are not orthogonal (the cosine between two of them is "
            f"{cosine:.2g}). If the scan was not made with a tilted gantry, the header is damaged: export it again."
        )
        doubts.append(("shear", text))
    return doubts


def annotation_doubts(
    label: Volume, annotated: np.ndarray, class_counts: Sequence[int], data_set: DataSet, on_slices: bool
) -> list[Doubt]:
    """Return doubts about an annotation.

    Args:
        label: the label map.
        annotated: (X, Y, Z), which voxels count as annotated.
        class_counts: number of annotated voxels of each class.
        data_set: data set, for the values and names of classes.
        on_slices: whether 0 is background on some slices and unlabeled elsewhere.
    """
    doubts = []
    if class_counts[0] == 0:
        text = (
            f"{label.path}: no voxel is labelled {data_set.class_names[0]} ({data_set.class_values[0]}). Annotate the "
            "background on each annotated slice too."
        )
        doubts.append(("no background", text))
    if data_set.class_values[0] == 0 and annotated.all():
        doubts += _forgotten_slices(label)
    if data_set.class_values[0] == 0 and on_slices:
        doubts += _half_painted_slices(label, annotated)
    return doubts


def _forgotten_slices(label: Volume) -> list[Doubt]:
    """Return a doubt about a label map that counts as dense although its foreground lies on single slices."""
    found = find_slices(label.data != 0)
    if found is None or not any(found):
        return []
    where = ", ".join(f"{plane} {indices}" for plane, indices in zip(plane_names(label.affine), found) if indices)
    text = (
        f"{label.path}: every voxel counts as annotated, but only these slices show any foreground: {where[:200]}. If "
        "the others were not annotated, set annotated_slices: all, or they are learned as background."
    )
    return [("slices", text)]


def _half_painted_slices(label: Volume, annotated: np.ndarray) -> list[Doubt]:
    """Return doubts about slices with far less foreground than both annotated slices next to them."""
    slices = find_slices(annotated)
    foreground = (label.data != 0) & annotated
    by_axis = half_painted(foreground, slices or [[], [], []])
    odd = [f"{plane} {i}" for plane, indices in zip(plane_names(label.affine), by_axis) for i in indices]
    if not odd:
        return []
    text = (
        f"{label.path}: {', '.join(odd)[:200]} show(s) far less foreground than the annotated slices on both sides. If "
        "only a part is painted, the rest of it is learned as background, as 0 means: give what is not annotated a "
        "value of its own, such as 255."
    )
    return [("half-painted slices", text)]
