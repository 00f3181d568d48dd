"""Resampling of volumes over the same field of view, plane by plane: for volumes of any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

PLANES = 16
"""That are in memory at once."""


def resize_linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fill `target` (X', Y', Z') with `source` (X, Y, Z), linearly interpolated; beyond, the border is repeated.

    Voxel i' of the target lies at (i' + 0.5) n / n' - 0.5 of the source: the same as
    :class:`~sparse3dunet.transforms.ExtentSpacing`, which needs the whole volume, and more, in memory. Either array may
    be on disk. Returns `target`.
    """
    position = (np.arange(len(target)) + 0.5) * len(source) / len(target) - 0.5
    position = position.clip(0, len(source) - 1)
    lower = np.floor(position).astype(int)
    upper = np.minimum(lower + 1, len(source) - 1)
    fraction = position - lower
    for start in range(0, len(target), PLANES):  # in 64 bits, so that what is constant stays so
        chunk = slice(start, start + PLANES)
        first, last = lower[chunk][0], upper[chunk][-1]
        planes = torch.from_numpy(np.array(source[first : last + 1], dtype=np.float64))[None]
        sized = F.interpolate(planes, target.shape[1:], mode="bilinear")[0].numpy()
        weight = fraction[chunk, None, None]
        target[chunk] = sized[lower[chunk] - first] * (1 - weight) + sized[upper[chunk] - first] * weight
    return target


def nearest_indices(length: int, target_length: int) -> np.ndarray:
    """For each of `target_length` voxels over the same extent the nearest of `length` voxels, of two the latter."""
    return np.minimum((np.arange(target_length) * 2 + 1) * length // (2 * target_length), length - 1)


def take_rows(values: np.ndarray, rows: slice, axis: int, shape: Sequence[int], lengths: Sequence[int]) -> tuple:
    """A slab of a volume of `lengths`, resampled to its part of the grid of `shape` by nearest neighbours.

    Args:
        values: (X, Y, Z), the slab: `rows` along `axis`, all along the others.
        rows: of the volume.
        axis: along which the slab is cut.
        shape: of the target.
        lengths: of the volume.

    Returns:
        The voxels along `axis` of the target that lie in the slab, and their values.
    """
    indices = [nearest_indices(n, m) for n, m in zip(lengths, shape)]
    within = np.flatnonzero((indices[axis] >= rows.start) & (indices[axis] < rows.stop))
    indices[axis] = indices[axis][within] - rows.start
    for i, index in enumerate(indices):
        values = values.take(index, i)
    first = int(within[0]) if len(within) else 0
    return slice(first, first + len(within)), values
