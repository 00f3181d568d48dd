"""Which slices of a label map are finished, so that what is not painted on them is background.

Annotation tools store 0 both for background and for what nobody has looked at. Here, 0 is background on finished slices
alone, and unlabeled elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, generate_binary_structure

from sparse3dunet.data.slices import ALL, Slices, find_slices, nonempty_slices, plane_names, slices_mask
from sparse3dunet.errors import DataError

FINISHED = "finished"
"""Word for annotated slices that are found in this way; see :func:`~sparse3dunet.transforms.SparseLabel`."""
HALF_PAINTED = 0.6
"""Share of the foreground on the neighbouring slices below which an annotated slice seems unfinished."""
FEWEST_PAINTED = 20
"""Number of foreground voxels on a slice below which nothing is concluded from their number."""
SOLID = 0.2
"""Share of the foreground with foreground on all six sides from which on a label map without slices is dense."""


@dataclass(frozen=True)
class Finished:
    """Annotated part of a label map in which 0 is background on finished slices and unlabeled elsewhere.

    Attributes:
        annotated: (X, Y, Z) boolean: the foreground, and all of the finished slices.
        reason: what was found, for the user.
    """

    annotated: np.ndarray
    reason: str


def finished_part(foreground: np.ndarray, affine: np.ndarray) -> Finished:
    """Return the annotated part of a label map, by where it shows foreground.

    Slices that show whole sections are finished, except those with far less foreground than both neighbours; slices
    that only cross these are not. If the foreground is a solid body instead, as in a corrected segmentation of a whole
    volume, all slices are finished; if it is neither, as scribbles are, none.

    Args:
        foreground: (X, Y, Z) boolean: where the label map is neither 0 nor unlabeled.
        affine: its affine, voxel to RAS+ world, for the names of planes.
    """
    slices = _sections(foreground)
    if slices is not None:
        left_out = half_painted(foreground, slices)
        kept = [sorted({*found} - {*odd}) for found, odd in zip(slices, left_out)]
        reason = f"0 is background on the finished slices ({_listed(kept, affine)}), and unlabeled elsewhere"
        if any(left_out):
            reason += f"; painted only in part, and so not finished: {_listed(left_out, affine)}"
        return Finished(foreground | slices_mask(foreground.shape, kept), reason)
    inside = binary_erosion(foreground, generate_binary_structure(3, 1), border_value=1)
    if inside.sum() >= SOLID * max(foreground.sum(), 1):
        return Finished(np.ones_like(foreground), "a solid body: all slices are finished, and 0 is background")
    return Finished(foreground, "no whole sections: no slice is finished, and 0 is unlabeled everywhere")


def half_painted(foreground: np.ndarray, slices: Slices) -> Slices:
    """Return the slices, by axis, with far less foreground than both of the annotated slices next to them."""
    odd: Slices = [[], [], []]
    for axis, indices in enumerate(slices):
        areas = [int(foreground.take(i, axis).sum()) for i in indices]
        for before, i, area, after in zip(areas, indices[1:], areas[1:], areas[2:]):
            if FEWEST_PAINTED <= area < HALF_PAINTED * min(before, after):
                odd[axis].append(i)
    return odd


def _sections(foreground: np.ndarray) -> Slices | None:
    """Return the slices that the foreground consists of; None if it does not."""
    if find_slices(foreground) is None or not foreground.any():
        return None
    try:
        return nonempty_slices(ALL, foreground, np.eye(4), "")
    except DataError:  # crossing lines that disagree, as of scribbles
        return None


def _listed(slices: Sequence[Sequence[int]], affine: np.ndarray) -> str:
    named = [f"{plane} {list(found)}" for plane, found in zip(plane_names(affine), slices) if found]
    return ", ".join(named) or "none"
