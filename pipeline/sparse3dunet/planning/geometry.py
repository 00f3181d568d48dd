"""Patch size, strides and kernel sizes for the voxels of a data set, as nnU-Net's, for fewer voxels and minutes.

The rules follow nnU-Net (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, supplementary note 2): patches cover as
many mm along each axis as the volumes allow, an axis is pooled only while its voxels are less than twice as long as the
finest axis's, and until then kernels do not reach along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

RATIO = 2.0
"""Ratio to the finest axis from which an axis is not pooled, and kernels have size 1 along it."""
LEAST = 4
"""Minimum number of voxels along an axis after pooling."""
ROUNDING = 1e-6
"""Tolerance in voxels: the third root of 16 x 16 x 16 is a little less than 16."""
STEPS = 6
"""Maximum number of downsamplings."""
WORTH = 1.15
"""Least ratio of voxel sizes for which volumes are resampled, which blurs them."""
LITTLE = 1 / 15
"""Padding as a share of a volume's length with which it is pooled once more: 30 voxels as 32."""
ENOUGH = 0.82
"""Least share of a volume's length that a patch which may be as long covers: 24 of 30 voxels are too few."""
Triple = tuple[int, int, int]


def patch_lengths(
    shape: Sequence[float], spacing: Sequence[float], voxels: float, largest: Sequence[float] | None = None
) -> list[float]:
    """Return the patch's lengths in voxels, not yet whole numbers, by axis.

    Args:
        shape: volumes' typical shape, which no length exceeds.
        spacing: voxel size in mm.
        voxels: number of voxels of the patch; fewer if the volume has fewer.
        largest: upper bound of each length; None for none.

    Returns:
        As many mm along each axis, but no more than the volume has; what one axis cannot use goes to the others.
    """
    limits = [min(n, bound) for n, bound in zip(shape, largest or [math.inf] * 3)]
    lengths: dict[int, float] = {}
    while len(lengths) < 3:
        free = [axis for axis in range(3) if axis not in lengths]
        left = voxels / math.prod(lengths.values())
        edge = (left * math.prod(spacing[axis] for axis in free)) ** (1 / len(free))
        full = [axis for axis in free if edge / spacing[axis] >= limits[axis] - ROUNDING]
        for axis in full or free:
            lengths[axis] = max(limits[axis] if full else edge / spacing[axis], 1.0)
    return [lengths[axis] for axis in range(3)]


def coarsened(extents: Any, spacing: Sequence[float], most_voxels: float) -> list[float]:
    """Return the spacing in mm at which volumes have together at most so many voxels: the finest axes become coarser.

    No axis is resampled by less than WORTH: volumes that have little more voxels stay as they are.

    Args:
        extents: lengths of the volumes in mm, (cases, 3).
        spacing: their spacing in mm, which is returned if they have no more voxels.
        most_voxels: number of voxels of all volumes.
    """
    lengths, size = np.asarray(extents, dtype=float), np.asarray(spacing, dtype=float)

    def voxels(edge: float) -> float:
        return float(np.prod(lengths / np.maximum(size, edge), axis=1).sum())

    if voxels(0) <= most_voxels:
        return size.tolist()
    low, high = 0.0, float(lengths.max())
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if voxels(middle) > most_voxels else (low, middle)
    return [float(f"{s:.4g}") for s in np.where(high < WORTH * size, size, high)]


def steps(
    lengths: Sequence[float], spacing: Sequence[float], shape: Sequence[float] | None = None
) -> tuple[list[Triple], list[Triple]]:
    """Return strides of STEPS downsamplings, and kernel sizes of the STEPS + 1 resolutions, for a network to use.

    Args:
        lengths: the patch's lengths in voxels.
        spacing: voxel size in mm.
        shape: the volumes' typical shape, beyond which :func:`whole_lengths` may round a little; None: it does not.
    """
    size = [n * (1 + LITTLE) if n >= limit else float(n) for n, limit in zip(lengths, shape or [math.inf] * 3)]
    voxel = list(map(float, spacing))
    kernel = [1, 1, 1]
    strides: list[Triple] = []
    kernels: list[Triple] = []
    for _ in range(STEPS + 1):
        finest = min(voxel[axis] for axis in range(3) if size[axis] >= 2 or max(size) < 2)
        kernel = [3 if k == 3 or v < RATIO * finest else 1 for k, v in zip(kernel, voxel)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        pooled = _pooled(size, voxel)
        strides.append((pooled[0], pooled[1], pooled[2]))
        size = [n / stride for n, stride in zip(size, pooled)]
        voxel = [v * stride for v, stride in zip(voxel, pooled)]
    return strides[:STEPS], kernels


def _pooled(size: Sequence[float], voxel: Sequence[float]) -> list[int]:
    large = [axis for axis in range(3) if size[axis] >= 2 * LEAST - ROUNDING]
    finest = min((voxel[axis] for axis in large), default=math.inf)
    return [2 if axis in large and voxel[axis] < RATIO * finest else 1 for axis in range(3)]


def whole_lengths(
    lengths: Sequence[float],
    shape: Sequence[float],
    multiple_of: Sequence[int] | int,
    largest: Sequence[float] | None = None,
) -> list[int]:
    """Return the patch size: lengths rounded down to a multiple; up at the volume's end, if too little were covered.

    Beyond the volume, patches are padding: on a CPU, time that smaller patches use for more iterations. A length of one
    multiple, one voxel for the deepest features, covers too little as well.

    Args:
        lengths: from :func:`patch_lengths`.
        shape: the volumes' typical shape.
        multiple_of: what each length must be a multiple of, by axis or for all.
        largest: upper bound of each length, unless it is less than a multiple; None for none.
    """
    factors = [multiple_of] * 3 if isinstance(multiple_of, int) else multiple_of
    whole = []
    for n, limit, factor, bound in zip(lengths, shape, factors, largest or [math.inf] * 3):
        count = math.floor(n / factor + ROUNDING)
        if n >= limit and (factor * count < ENOUGH * n or count == 1 < n / factor - ROUNDING):
            count = math.ceil(n / factor - ROUNDING)
        whole.append(int(factor * max(min(count, bound // factor), 1)))
    return whole
