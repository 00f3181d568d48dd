"""Measurements of an annotated image from which a training is planned: intensities and places of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from sparse3dunet.io.volumes import Volume

SAMPLES = 2000
"""Maximum number of foreground intensities kept for each image."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of one annotated image.

    Attributes:
        foreground: intensities of annotated foreground voxels, (n,) with n up to SAMPLES, of the first channel.
        centers: mean position of each class's annotated voxels in mm from the volume's middle, by axis (left-right,
            posterior-anterior, inferior-superior), (K, 3); NaN for a class without any.
        spreads: standard deviation of these positions in mm, (K, 3); NaN for a class without any.
    """

    foreground: np.ndarray
    centers: np.ndarray
    spreads: np.ndarray


def measure(image: Volume, numbers: np.ndarray, annotated: np.ndarray, num_classes: int) -> Measurements:
    """Measure an image.

    Args:
        image: the image, or its first channel.
        numbers: class numbers on its grid, (X, Y, Z).
        annotated: which voxels are annotated, (X, Y, Z).
        num_classes: K.
    """
    foreground = np.flatnonzero(annotated & (numbers > 0))
    chosen = foreground[np.linspace(0, len(foreground) - 1, min(len(foreground), SAMPLES)).astype(np.int64)]
    first = image.data if image.data.ndim == 3 else image.data[..., 0]
    intensities = first[np.unravel_index(chosen, first.shape)].astype(np.float32)
    placed = [_place(image, annotated & (numbers == number)) for number in range(num_classes)]
    return Measurements(intensities, *(np.array(values) for values in zip(*placed)))


def _place(image: Volume, mask: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of a mask's positions in mm from the volume's middle, by axis in RAS order."""
    moments = [_moments(mask.sum(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    mean, deviation = np.array(moments).T * image.spacing
    flips = nib.io_orientation(image.affine)[:, 1]
    return tuple(image.in_ras_order(values.tolist()) for values in (mean * flips, deviation))  # type: ignore[return-value]


def _moments(counts: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of positions along an axis, from its middle, by their counts."""
    if not counts.any():
        return np.nan, np.nan
    position = np.arange(len(counts)) - (len(counts) - 1) / 2
    mean = np.average(position, weights=counts)
    return mean, np.sqrt(np.average((position - mean) ** 2, weights=counts))
