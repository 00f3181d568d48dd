"""Positions of sliding windows in a volume, and cropping them from arrays in memory or on disk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BORDERS = ("replicate", "mirror")


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a volume.

    Attributes:
        length: length of the volume, in voxels.
        starts: starts of the windows' outputs, ascending; the first may be negative, the last end beyond the volume.
        size: size of an output.
        margin: number of voxels by which an input is longer, on either side.
    """

    length: int
    starts: tuple[int, ...]
    size: int
    margin: int = 0

    @classmethod
    def overlapping(cls, length: int, size: int, overlap: float) -> Axis:
        """Place windows whose outputs are as large as their inputs, as MONAI's ``SlidingWindowInferer``.

        They start every int(size (1 - overlap)) voxels; the last is moved back into the volume, and a volume shorter
        than a window is in its middle.
        """
        if length <= size:
            return cls(length, (-((size - length) // 2),), size)
        step = max(int(size * (1 - overlap)), 1)
        count = math.ceil((length - size) / step) + 1
        return cls(length, tuple(min(i * step, length - size) for i in range(count)), size)

    @classmethod
    def seamless(cls, length: int, size: int, margin: int, multiple: int) -> Axis:
        """Place windows side by side for valid convolutions, as the tiles of figure 2 in U-Net (MICCAI 2015).

        Outputs start at multiples of the network's downsampling, so that each voxel is pooled with the same neighbours
        in any tile.

        Raises:
            ValueError: when an output is shorter than `multiple`.
        """
        step = size // multiple * multiple
        if step == 0:
            raise ValueError(
                f"a window of {size + 2 * margin} voxels gives {size}, fewer than the network's downsampling factor "
                f"{multiple}; use a larger window"
            )
        count = max(math.ceil((length - size) / step) + 1, 1)
        return cls(length, tuple(i * step for i in range(count)), size, margin)

    def within(self, part: slice) -> Axis:
        """Return the same windows, as far as they reach into a part of the volume, counted from its start."""
        reach = [s - part.start for s in self.starts if s < part.stop and s + self.size > part.start]
        return Axis(part.stop - part.start, tuple(reach), self.size, self.margin)

    def inside(self, start: int) -> slice:
        """Return the voxels of the volume that the output at `start` covers."""
        return slice(max(start, 0), min(start + self.size, self.length))

    def of_output(self, start: int) -> slice:
        """Return the position of these voxels in the output."""
        inside = self.inside(start)
        return slice(inside.start - start, inside.stop - start)

    def of_input(self, start: int) -> tuple[int, int]:
        """Return start and stop of the input, which may lie beyond the volume."""
        return start - self.margin, start + self.size + self.margin


@dataclass(frozen=True)
class Windows:
    """All windows of a volume, in rows across one axis, so that each row's voxels are soon complete.

    Attributes:
        axes: the windows along each of the three axes.
        fixed_row_axis: see :attr:`row_axis`; None to choose it.
        origin: where the volume that these windows cover begins in the one that they are cut from.
    """

    axes: tuple[Axis, Axis, Axis]
    fixed_row_axis: int | None = None
    origin: tuple[int, int, int] = (0, 0, 0)

    def within(self, box: Sequence[slice]) -> Windows:
        """Return the windows that reach into a box of the volume, in the same order."""
        x, y, z = (axis.within(part) for axis, part in zip(self.axes, box))
        return Windows((x, y, z), self.row_axis, (box[0].start, box[1].start, box[2].start))

    def inputs(self, place: Sequence[int]) -> list[tuple[int, int]]:
        """Return start and stop along each axis of the input of the window at `place`; see :meth:`Axis.of_input`."""
        return [axis.of_input(s + first) for axis, s, first in zip(self.axes, place, self.origin)]

    @property
    def row_axis(self) -> int:
        """Axis along which rows follow each other: the one with most windows, so that rows are smallest.

        Of equal ones it is the last, the slowest in files, so that a row is contiguous in them.
        """
        if self.fixed_row_axis is not None:
            return self.fixed_row_axis
        return max(range(3), key=lambda i: (self.axes[i].length / self.axes[i].size, i))

    @property
    def count(self) -> int:
        return math.prod(len(axis.starts) for axis in self.axes)

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    def rows(self) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        """Yield each row's start along the row axis, and the starts of its windows' outputs."""
        starts = [axis.starts for axis in self.axes]
        for start in self.axes[self.row_axis].starts:
            starts[self.row_axis] = (start,)
            yield start, [(x, y, z) for x, y, z in itertools.product(*starts)]


def cut(channels: Sequence[np.ndarray], bounds: Sequence[tuple[int, int]], border: str = "replicate") -> np.ndarray:
    """Crop a box from a volume, which may be on disk: nothing else of it is read.

    Args:
        channels: one (X, Y, Z) array for each channel.
        bounds: start and stop along each axis; may lie beyond the volume.
        border: how to extend the volume: "replicate" the outermost voxels, or "mirror" the volume in them.

    Returns:
        (C, X', Y', Z') float32, contiguous.
    """
    indices = [_indices(start, stop, n, border) for (start, stop), n in zip(bounds, channels[0].shape)]
    reached = tuple(slice(int(i.min()), int(i.max()) + 1) for i in indices)
    box = np.empty((len(channels), *(len(i) for i in indices)), np.float32)
    for target, channel in zip(box, channels):
        part = channel[reached]
        for axis, (i, within) in enumerate(zip(indices, reached)):
            if len(i) != part.shape[axis] or i[0] != within.start or i[-1] != within.stop - 1:
                part = part.take(i - within.start, axis)
        target[...] = part
    return box


def _indices(start: int, stop: int, length: int, border: str) -> np.ndarray:
    """Return the voxels of the volume for the positions start ... stop - 1."""
    wanted = np.arange(start, stop)
    if border == "replicate":
        return wanted.clip(0, length - 1)
    if border != "mirror":
        raise ValueError(f"border must be one of {BORDERS}, got {border!r}.")
    period = max(2 * (length - 1), 1)
    wanted %= period
    return np.minimum(wanted, period - wanted) if length > 1 else np.zeros_like(wanted)
