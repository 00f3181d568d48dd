"""Resampling over the same field of view, plane by plane, for volumes of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

PLANES = 16
"""Number of planes in memory at once."""


def resize_linear(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fill `target` (X', Y', Z') with `source` (X, Y, Z), linearly interpolated; the border is repeated outside.

    Voxel i' of the target is at (i' + 0.5) n / n' - 0.5 of the source, as in
    :class:`~sparse3dunet.transforms.ExtentSpacing`, which needs more than the whole volume in memory. Either array may
    be on disk. Returns `target`.
    """
    lower, upper, fraction = _between(len(source), len(target))
    for start in range(0, len(target), PLANES):  # in 64 bits, so that constants stay constant
        chunk = slice(start, start + PLANES)
        first, last = lower[chunk][0], upper[chunk][-1]
        planes = torch.from_numpy(np.array(source[first : last + 1], dtype=np.float64))[None]
        sized = F.interpolate(planes, target.shape[1:], mode="bilinear")[0].numpy()
        weight = fraction[chunk, None, None]
        target[chunk] = sized[lower[chunk] - first] * (1 - weight) + sized[upper[chunk] - first] * weight
    return target


class SlabResizer:
    """Resample slabs of a network's logits linearly, as :func:`resize_linear`.

    Args:
        axis: axis across which the slabs are cut.
        lengths: (X, Y, Z) of the incoming volume.
        shape: (X', Y', Z') of the result.
    """

    def __init__(self, axis: int, lengths: Sequence[int], shape: Sequence[int]) -> None:
        self.axis = axis
        self.plane = tuple(n for other, n in enumerate(shape) if other != axis)
        self.lower, self.upper, self.fraction = _between(lengths[axis], shape[axis])
        self.done = 0
        self.kept: torch.Tensor | None = None  # the last row: some rows lie between it and the next slab

    def begin_at(self, row: int) -> int:
        """Begin with this row of the result; return the row of the incoming volume from which slabs are needed."""
        self.done = row
        return int(self.lower[row])

    def add(self, rows: slice, values: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Add a slab (K, X, Y, Z) at `rows` of the volume, in ascending order.

        Yields:
            The rows of the result that are known by now, in ascending order, and their values.
        """
        slab = values.movedim(self.axis + 1, 1)
        first = rows.start
        if self.kept is not None:
            slab, first = torch.cat([self.kept, slab], 1), first - 1
        self.kept = slab[:, -1:].clone()
        end = int(np.searchsorted(self.upper, rows.stop))
        for start in range(self.done, end, PLANES):
            chunk = slice(start, min(start + PLANES, end))
            lower, upper = self.lower[chunk] - first, self.upper[chunk] - first
            planes = F.interpolate(slab[:, lower[0] : upper[-1] + 1], self.plane, mode="bilinear")
            weight = torch.from_numpy(self.fraction[chunk]).to(planes)[:, None, None]
            both = planes[:, lower - lower[0]] * (1 - weight) + planes[:, upper - lower[0]] * weight
            yield chunk, both.movedim(1, self.axis + 1)
        self.done = max(self.done, end)


def _between(length: int, target_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each target voxel the two source voxels that it lies between, and its fraction of the way."""
    position = ((np.arange(target_length) + 0.5) * length / target_length - 0.5).clip(0, length - 1)
    lower = np.floor(position).astype(int)
    return lower, np.minimum(lower + 1, length - 1), position - lower
