"""Comparison of an image's voxel size with the spacing that a network was trained at: a wrong unit is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import Volume

SUSPICIOUS, IMPOSSIBLE = 8.0, 100.0
"""Ratios of spacings, the mean over the axes, from which on a wrong unit is likely: cm for mm, and µm or m for mm."""


def check_scale(image: Volume, spacing: Sequence[float]) -> None:
    """Raise DataError if voxels are far too large or small for a network, or resampled to its spacing would be none.

    Args:
        image: the image.
        spacing: spacing in mm that the network was trained at, by axis in RAS order.
    """
    if not 1 / IMPOSSIBLE < _ratio(image, spacing) < IMPOSSIBLE:
        raise DataError(
            f"{image.path}: {_told(image, spacing)}; expected voxels of a similar size, as in the training. "
            f"{_cure(image)}"
        )
    extent = np.multiply(image.in_ras_order(image.spatial_shape), image.in_ras_order(image.spacing))
    if (extent / spacing).max() < 0.5:
        raise DataError(
            f"{image.path}: the whole image, {_by_axis(extent)} mm, is smaller than half a voxel of those that the "
            f"model was trained on, {_by_axis(spacing)} mm, along every axis; expected an image of several. "
            f"{_cure(image)}"
        )


def scale_note(image: Volume, spacing: Sequence[float] | None) -> str:
    """Return what a user must know of an image with voxels much larger or smaller than a network's; empty if nothing.

    Args:
        image: the image.
        spacing: voxel size in mm that the network was trained at; None if unknown.
    """
    if not spacing or 1 / SUSPICIOUS < _ratio(image, spacing) < SUSPICIOUS:
        return ""
    return f"{image.path}: {_told(image, spacing)}. {_cure(image)}"


def _ratio(image: Volume, spacing: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(image.in_ras_order(image.spacing)) - np.log(spacing))))


def _cure(image: Volume) -> str:
    """Return what to do; --voxel-size counts only for files that state no size, in the training as here."""
    if not image.has_voxel_size:
        return "The file states no voxel size: pass it as --voxel-size."
    return (
        "Check the units of the file, and correct them there; if it was the files of the training that stated no voxel "
        "size, train again with it as --voxel-size."
    )


def _by_axis(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _told(image: Volume, spacing: Sequence[float]) -> str:
    ratio = _ratio(image, spacing)
    factor = f"{ratio:.3g} times larger" if ratio >= 1 else f"{1 / ratio:.3g} times smaller"
    own = _by_axis(image.in_ras_order(image.spacing))
    return f"its voxels, {own} mm, are {factor} than those that the model was trained on, {_by_axis(spacing)} mm"
