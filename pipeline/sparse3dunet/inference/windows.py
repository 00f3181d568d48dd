"""Where sliding windows lie in a volume, and cutting them out of arrays in memory or on disk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BORDERS = ("replicate", "mirror")


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of a volume, by what they give of it.

    Attributes:
        length: of the volume, in voxels.
        starts: of the windows' outputs, ascending; the first may be negative, the last end beyond the volume.
        size: of an output.
        margin: by which an input is longer, on either side.
    """

    length: int
    starts: tuple[int, ...]
    size: int
    margin: int = 0

    @classmethod
    def overlapping(cls, length: int, size: int, overlap: float) -> Axis:
        """As MONAI's ``SlidingWindowInferer`` lays windows whose outputs are as large as their inputs.

        They start every int(size (1 - overlap)) voxels; the last is moved back into the volume, and a volume that is
        shorter than a window lies in its middle.
        """
        if length <= size:
            return cls(length, (-((size - length) // 2),), size)
        step = max(int(size * (1 - overlap)), 1)
        count = math.ceil((length - size) / step) + 1
        return cls(length, tuple(min(i * step, length - size) for i in range(count)), size)

    @classmethod
    def seamless(cls, length: int, size: int, margin: int, multiple: int) -> Axis:
        """For valid convolutions: side by side, as the paper tiles (figure 2 of U-Net, MICCAI 2015).

        Outputs start at multiples of the network's downsampling, so that each voxel is pooled with the same neighbours
        in whatever tile it lies.

        Raises:
            ValueError: when an output is shorter than `multiple`.
        """
        step = size // multiple * multiple
        if step == 0:
            raise ValueError(
                f"a window of {size + 2 * margin} voxels gives {size}, less than the {multiple} by which the network "
                "downsamples; take a larger window"
            )
        count = max(math.ceil((length - size) / step) + 1, 1)
        return cls(length, tuple(i * step for i in range(count)), size, margin)

    def inside(self, start: int) -> slice:
        """The voxels of the volume that the output at `start` gives."""
        return slice(max(start, 0), min(start + self.size, self.length))

    def of_output(self, start: int) -> slice:
        """Where these lie in the output."""
        inside = self.inside(start)
        return slice(inside.start - start, inside.stop - start)

    def of_input(self, start: int) -> tuple[int, int]:
        """Start and stop of the input, which may lie beyond the volume."""
        return start - self.margin, start + self.size + self.margin


@dataclass(frozen=True)
class Windows:
    """All windows of a volume, in rows across one axis, so that a row's voxels are soon complete.

    Attributes:
        axes: the windows along each of the three axes.
    """

    axes: tuple[Axis, Axis, Axis]

    @property
    def row_axis(self) -> int:
        """The axis along which rows follow each other: the one with most windows, which makes the rows smallest.

        Of equal ones the last, along which files are slowest: a row is then in one piece of them.
        """
        return max(range(3), key=lambda i: (self.axes[i].length / self.axes[i].size, i))

    @property
    def count(self) -> int:
        return math.prod(len(axis.starts) for axis in self.axes)

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    def rows(self) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        """Each row's start along the row axis, and the starts of its windows' outputs."""
        choices = [axis.starts for axis in self.axes]
        for start in self.axes[self.row_axis].starts:
            choices[self.row_axis] = (start,)
            yield start, [(x, y, z) for x, y, z in itertools.product(*choices)]


def cut(channels: Sequence[np.ndarray], bounds: Sequence[tuple[int, int]], border: str = "replicate") -> np.ndarray:
    """Cut a box out of a volume, which may be on disk: nothing else of it is read.

    Args:
        channels: one (X, Y, Z) array each.
        bounds: start and stop along each axis; may lie beyond the volume.
        border: what lies beyond: "replicate" the outermost voxels, or "mirror" the volume in them.

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
    """The voxels of the volume that stand for start ... stop - 1."""
    wanted = np.arange(start, stop)
    if border == "replicate":
        return wanted.clip(0, length - 1)
    if border != "mirror":
        raise ValueError(f"border must be one of {BORDERS}, got {border!r}.")
    period = max(2 * (length - 1), 1)
    wanted %= period
    return np.minimum(wanted, period - wanted) if length > 1 else np.zeros_like(wanted)
