"""Filter responses at several scales, which describe the appearance of a voxel and its surroundings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from sparse3dunet.propagation.scan import Scan

SCALES = (1.0, 2.0, 4.0, 8.0)
"""Standard deviations of Gaussians, in voxels of the plane."""

DISTANCES = (4.0, 9.0)
"""Offsets to either side along each axis at which the smoothed intensity is sampled, in voxels of the plane."""
SMOOTHED = 1.5
"""Standard deviation of that smoothing, in voxels of the plane."""


def filter_responses(scan: Scan, scales: Sequence[float] = SCALES) -> torch.Tensor:
    """Return rotation-invariant features of each channel: its intensity, and at each scale the smoothed intensity, the
    gradient magnitude and the eigenvalues of the Hessian in descending order.

    Nothing is smoothed or differentiated across thick slices, whose neighbours show something else.

    Returns:
        (F, X, Y, Z) float32.
    """
    axes, unit = scan.filtered_axes, scan.plane_spacing
    result: list[torch.Tensor] = []
    for channel in scan.image:
        result.append(channel)
        for scale in scales:
            smooth = gaussian(channel[None], scale * unit, scan.spacing, axes)[0]
            result += [smooth, *_derivatives(smooth, axes, scan.spacing / (scale * unit))]
    return torch.stack(result)


def surroundings(scan: Scan) -> torch.Tensor:
    """Return smoothed intensities at offsets along each axis: an organ is recognized by its neighbours.

    After Shotton et al., TextonBoost for Image Understanding, IJCV 81(1), 2009. The border value is repeated.

    Returns:
        (F, X, Y, Z) float32.
    """
    unit, axes = scan.plane_spacing, scan.filtered_axes
    smooth = gaussian(scan.image, SMOOTHED * unit, scan.spacing, axes)
    result = []
    for distance in DISTANCES:
        for axis in axes:
            step, last = max(1, round(distance * unit / scan.spacing[axis])), scan.shape[axis] - 1
            indices = torch.arange(last + 1)
            result += [smooth.index_select(axis + 1, (indices + way).clamp(0, last)) for way in (-step, step)]
    return torch.cat(result)


def positions(scan: Scan) -> torch.Tensor:
    """Return the position (3, X, Y, Z), float32, of each voxel in the unit of the spacing."""
    axes = [torch.arange(n, dtype=torch.float32) * float(s) for n, s in zip(scan.shape, scan.spacing)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def gaussian(values: torch.Tensor, sigma: float, spacing: np.ndarray, axes: Sequence[int] = (0, 1, 2)) -> torch.Tensor:
    """Smooth (C, X, Y, Z) along some axes, repeating the border; `sigma` and `spacing` are in the same unit."""
    for axis in axes:
        width = sigma / spacing[axis]
        if width < 0.2:
            continue
        radius = max(1, round(3 * width))
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / width) ** 2)
        lines = values.movedim(axis + 1, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        smooth = F.conv1d(padded, (kernel / kernel.sum())[None, None])
        values = smooth.reshape(lines.shape).movedim(-1, axis + 1)
    return values


def _derivatives(smooth: torch.Tensor, axes: Sequence[int], spacing: np.ndarray) -> list[torch.Tensor]:
    """Return the gradient magnitude and the Hessian's eigenvalues, in units of the scale."""
    first = {a: _difference(smooth, a, spacing[a]) for a in axes}
    length = torch.stack(list(first.values())).square().sum(0).sqrt()
    second = {(a, b): _difference(first[a], b, spacing[b]) for a in axes for b in axes if b >= a}
    if len(axes) == 1:
        return [length, *second.values()]
    if len(axes) == 2:
        a, b = axes
        middle = (second[a, a] + second[b, b]) / 2
        spread = (((second[a, a] - second[b, b]) / 2).square() + second[a, b].square()).sqrt()
        return [length, middle + spread, middle - spread]
    return [length, *_eigenvalues([second[p] for p in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))])]


def _difference(values: torch.Tensor, axis: int, spacing: float) -> torch.Tensor:
    """Return central differences; at the border that of the next voxel."""
    count = values.shape[axis]
    if count < 3:
        return torch.zeros_like(values)
    inner = (values.narrow(axis, 2, count - 2) - values.narrow(axis, 0, count - 2)) / (2 * float(spacing))
    return torch.cat([inner.narrow(axis, 0, 1), inner, inner.narrow(axis, count - 3, 1)], axis)


def _eigenvalues(entries: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return descending eigenvalues of symmetric matrices (xx, yy, zz, xy, xz, yz) (Smith, CACM 4(4), 1961)."""
    xx, yy, zz, xy, xz, yz = entries
    mean = (xx + yy + zz) / 3
    off = xy.square() + xz.square() + yz.square()
    size = (((xx - mean).square() + (yy - mean).square() + (zz - mean).square() + 2 * off) / 6).clamp(min=1e-20).sqrt()
    a, b, c, d, e, f = ((entry / size) for entry in (xx - mean, yy - mean, zz - mean, xy, xz, yz))
    half_det = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2
    angle = torch.acos(half_det.clamp(-1, 1)) / 3
    first = mean + 2 * size * torch.cos(angle)
    last = mean + 2 * size * torch.cos(angle + 2 * math.pi / 3)
    return [first, 3 * mean - first - last, last]
