"""Comparison of an image's voxel size with the spacing that a network was trained at: a wrong unit is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import Volume

SUSPICIOUS, IMPOSSIBLE = 8.0, 100.0
"""Ratios of spacings, the mean over the axes, from which on a wrong unit is likely: cm for mm, and µm or m for mm."""


def check_scale(image: Volume, spacing: Sequence[float]) -> None:
    """Raise DataError if an image resampled to a network's spacing, in mm, would have no voxels, or far too many."""
    extent = np.multiply(image.spatial_shape, image.spacing)
    counts = extent / np.max(spacing)
    ratio = _ratio(image, spacing)
    if not 1 / IMPOSSIBLE < ratio < IMPOSSIBLE or counts.max() < 0.5:
        raise DataError(
            f"{image.path}: {_told(image, spacing)}; expected voxels of a similar size, as in the training. Check the "
            "units of the file, and correct them there; --voxel-size sets the size for files that state none."
        )


def scale_note(image: Volume, spacing: Sequence[float] | None) -> str:
    """Return what a user must know of an image with voxels much larger or smaller than a network's; empty if nothing.

    Args:
        image: the image.
        spacing: spacing in mm that the network was trained at; None for images as they are.
    """
    if not spacing or 1 / SUSPICIOUS < _ratio(image, spacing) < SUSPICIOUS:
        return ""
    return f"{image.path}: {_told(image, spacing)}. Check the units of the file (--voxel-size, if it states none)."


def _ratio(image: Volume, spacing: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(image.in_ras_order(image.spacing)) - np.log(spacing))))


def _told(image: Volume, spacing: Sequence[float]) -> str:
    ratio = _ratio(image, spacing)
    factor = f"{ratio:.3g} times larger" if ratio >= 1 else f"{1 / ratio:.3g} times smaller"
    sizes = [" x ".join(f"{size:.4g}" for size in each) for each in (image.in_ras_order(image.spacing), spacing)]
    return f"its voxels, {sizes[0]} mm, are {factor} than those that the model was trained on, {sizes[1]} mm"
