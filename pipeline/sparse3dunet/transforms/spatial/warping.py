"""Application of a deformation, with one resampling for all volumes that are deformed alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.utils import GridSamplePadMode
from scipy.ndimage import map_coordinates
from torch.nn.functional import grid_sample, pad

from sparse3dunet.transforms.spatial.bspline_field import Deformation

BILINEAR, NEAREST, BICUBIC = MODES = ("bilinear", "nearest", "bicubic")
BORDER, ZEROS = PADDING_MODES = (GridSamplePadMode.BORDER.value, GridSamplePadMode.ZEROS.value)

_CUBIC_REACH = 12  # voxels beyond which a cubic spline's coefficients depend on an intensity by less than 1e-6


def warp(
    volumes: Sequence[torch.Tensor],
    deformation: Deformation,
    modes: Sequence[str],
    padding_modes: Sequence[str],
) -> list[torch.Tensor]:
    """Sample patches of volumes that share one grid, deformed alike. Only the required part of the volumes is read.

    Args:
        volumes: plain tensors (C, X, Y, Z) of one spatial shape on one device.
        deformation: deformation of the patch.
        modes: for each volume "bilinear" (of the eight neighbours), "nearest", or "bicubic" (SciPy, on the CPU).
        padding_modes: for each volume the values outside: "border" for its nearest voxel, or "zeros".

    Returns:
        For each volume (C, *deformation.size), of the same type; float32 if integers are interpolated. Values that are
        not interpolated are exact (integers up to 2^53).
    """
    start, shape = deformation.crop_start(), volumes[0].shape[1:]
    types = [v.dtype if m == NEAREST or v.is_floating_point() else torch.float32 for v, m in zip(volumes, modes)]
    if start is not None and (start < shape).all() and (start + deformation.size > 0).all():
        boxes = [_box(v, start, start + deformation.size, p, _exact(v.dtype)) for v, p in zip(volumes, padding_modes)]
        return [box.to(dtype, copy=True) for box, dtype in zip(boxes, types)]
    rows = deformation.grid_rows(volumes[0].device)
    first, behind = _reach(rows, deformation.center, shape, _CUBIC_REACH if BICUBIC in modes else 1)
    center = deformation.center - first
    results: dict[int, torch.Tensor] = {}
    for mode, sample in {BICUBIC: _sample_cubic, NEAREST: _sample_nearest, BILINEAR: _sample_linear}.items():
        members = [index for index, m in enumerate(modes) if m == mode]
        if not members:
            continue
        boxes = [
            _box(v, first, behind, padding_modes[index], _exact(v.dtype) if mode == NEAREST else torch.float32)
            for index, v in ((index, volumes[index]) for index in members)
        ]
        box = boxes[0] if len(boxes) == 1 else torch.cat(boxes)
        for index, part in zip(members, sample(box, rows, center).split([len(b) for b in boxes])):
            results[index] = part.reshape(-1, *deformation.size).to(types[index])
    return [results[index] for index in range(len(volumes))]


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return a type that can be padded and represents all values of another; 64-bit integers up to 2^53."""
    return torch.float32 if dtype == torch.float32 or dtype.itemsize < 4 else torch.float64


def _reach(rows: torch.Tensor, center: np.ndarray, shape: Sequence[int], margin: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the box of voxels (first, behind the last) around the points, at most `margin` outside the volume."""
    # Along the rows first: torch is slow at reducing to the last axis of three.
    extremes = (rows.amin(0).view(-1, 3).amin(0), rows.amax(0).view(-1, 3).amax(0))
    low, high = (extreme.flip(-1).double().cpu().numpy() + center for extreme in extremes)
    first = np.clip(np.floor(low).astype(int) - margin, -margin, np.asarray(shape) - 1)
    behind = np.clip(np.ceil(high).astype(int) + margin + 1, first + margin + 1, np.asarray(shape) + margin)
    return first, behind


def _box(
    volume: torch.Tensor, first: np.ndarray, behind: np.ndarray, padding_mode: str, dtype: torch.dtype
) -> torch.Tensor:
    """Crop the voxels from `first` to before `behind` from (C, X, Y, Z), padded outside."""
    shape = np.asarray(volume.shape[1:])
    start, stop = np.clip(first, 0, shape), np.clip(behind, 0, shape)
    box = volume[(slice(None), *(slice(a, b) for a, b in zip(start, stop)))].to(dtype)
    before, after = start - first, behind - stop
    if not (before.any() or after.any()):
        return box
    widths = [int(w) for pair in zip(before[::-1], after[::-1]) for w in pair]
    if padding_mode == ZEROS:
        return pad(box, widths)
    return pad(box[None], widths, mode="replicate")[0]


def _sample_cubic(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """Sample the box at the points `rows`, relative to `center`, by cubic splines; returns (C, number of points)."""
    coordinates = rows.view(-1, 3).flip(-1).double().cpu().numpy().T + center[:, None]
    channels = [
        map_coordinates(channel, coordinates, order=3, mode="nearest") for channel in box.detach().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(channels)).to(rows.device)


def _sample_nearest(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """Sample like :func:`_sample_cubic`, but the nearest voxel (the even of two), in half of ``grid_sample``'s time."""
    shape = box.shape[1:]
    # Index in the flattened box: float32 counts up to 2^24.
    index = torch.zeros((), dtype=torch.float32 if math.prod(shape) < 2**24 else torch.float64, device=rows.device)
    for axis, places in enumerate(reversed(rows.view(-1, 3).unbind(1))):
        voxel = torch.add(places, float(center[axis])).round_().clamp_(0, shape[axis] - 1)
        index = torch.add(voxel, index, alpha=shape[axis])
    index = index.to(torch.int32 if math.prod(shape) < 2**31 else torch.int64)
    result = box.new_empty(len(box), len(index))
    for channel, values in zip(box.reshape(len(box), -1), result):
        torch.index_select(channel, 0, index, out=values)
    return result


def _sample_linear(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """Sample like :func:`_sample_cubic`, but linearly. Changes `rows`, since new memory would cost more time."""
    # To the coordinates of grid_sample, from -1 to 1 between the outer borders of the outer voxels.
    shape = np.asarray(box.shape[1:])
    grid = torch.addcmul(_along((2 * center + 1) / shape - 1, rows), rows, _along(2 / shape, rows), out=rows)
    # grid_sample uses several cores only for several volumes, so the single one is passed as several.
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    parts = next(n for n in range(threads, 0, -1) if grid.numel() // 3 % n == 0)
    sampled = grid_sample(
        box.expand(parts, *box.shape),
        grid.view(parts, 1, 1, -1, 3),
        mode=BILINEAR,
        padding_mode=BORDER,  # the box is already padded
        align_corners=False,
    )
    return sampled.transpose(0, 1).reshape(len(box), -1)


def _along(numbers: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """Repeat numbers by axis in the order of a row: torch is slow at broadcasting to a last axis of three."""
    return torch.from_numpy(numbers[::-1].copy()).to(rows).repeat(rows.shape[1] // 3)
