"""What was drawn on a scan: painted voxels and finished slices, with undo."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparse3dunet.data.slices import PLANES, slices_mask
from sparse3dunet.errors import DataError

MOST_UNDO = 200
"""Number of changes that can be undone."""


@dataclass(frozen=True)
class Change:
    """State of a slice after a change, or before it.

    Attributes:
        axis: axis in RAS order that the slice is perpendicular to.
        index: index along it, from 0.
        finished: whether the slice is finished.
        voxels: painted voxels of the slice (see :class:`Drawing`), first axis fastest, compressed by zlib; empty if
            they do not change.
    """

    axis: int
    index: int
    finished: bool
    voxels: bytes = b""


class Drawing:
    """Painted voxels and finished slices of a scan, in RAS order.

    A painted voxel has its class. A voxel that is not painted is background on a finished slice, and unlabeled
    elsewhere: on a slice that was touched but not finished, painted voxels alone count.

    Args:
        painted: (X, Y, Z) uint8, class number + 1; 0 where nothing is painted.
        finished: finished slices by axis.
        sequence: number of changes so far.

    Attributes:
        undoable: states of slices that undo leads to, the next one last.
    """

    def __init__(
        self, painted: np.ndarray, finished: Sequence[Sequence[int]] = ((), (), ()), sequence: int = 0
    ) -> None:
        self.painted = np.asfortranarray(painted, np.uint8)
        self.finished = [set(indices) for indices in finished]
        self.sequence = sequence
        self.undoable: deque[Change] = deque(maxlen=MOST_UNDO)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.painted.shape

    def slice_of(self, axis: int, index: int) -> np.ndarray:
        """Return the painted voxels of a slice; a view.

        Raises:
            DataError: when there is no such slice.
        """
        if axis not in (0, 1, 2) or not 0 <= index < self.shape[axis]:
            raise DataError(f"there is no slice {index} of axis {axis}; the volume has {self.shape} voxels.")
        return self.painted[(slice(None),) * axis + (index,)]

    def change(
        self, axis: int, index: int, voxels: np.ndarray | None = None, finished: bool | None = None
    ) -> Change | None:
        """Return the state of a slice after a change, or None if nothing changes; :meth:`keep` applies it.

        Args:
            axis: axis of the slice, in RAS order.
            index: its index.
            voxels: new painted voxels, in the shape of the slice; None: as they are.
            finished: whether the slice is finished now; None: as before.

        Raises:
            DataError: when there is no such slice.
        """
        view, was = self.slice_of(axis, index), index in self.finished[axis]
        now = was if finished is None else finished
        repainted = voxels is not None and not np.array_equal(view, voxels)
        if now == was and not repainted:
            return None
        return Change(axis, index, now, _packed(voxels) if repainted and voxels is not None else b"")

    def keep(self, change: Change) -> None:
        """Apply a change, so that it can be undone."""
        view, was = self.slice_of(change.axis, change.index), change.index in self.finished[change.axis]
        self.undoable.append(Change(change.axis, change.index, was, _packed(view) if change.voxels else b""))
        self.apply(change)

    def undo(self) -> None:
        """Apply the last one of :attr:`undoable`."""
        self.apply(self.undoable[-1])
        self.undoable.pop()

    def apply(self, change: Change) -> None:
        """Put a slice into a state.

        Raises:
            DataError: when the slice does not exist or has another size.
        """
        view = self.slice_of(change.axis, change.index)
        if change.voxels:
            view[...] = unpacked(change.voxels, view.shape)
        (self.finished[change.axis].add if change.finished else self.finished[change.axis].discard)(change.index)
        self.sequence += 1

    def annotation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return class numbers (X, Y, Z), 0 where unlabeled, and whether a voxel is annotated."""
        numbers = np.where(self.painted > 0, self.painted - 1, 0).astype(np.uint8)
        return numbers, (self.painted > 0) | slices_mask(self.shape, [sorted(indices) for indices in self.finished])

    def touched(self) -> list[list[int]]:
        """Return by axis the slices that are not finished and on which more than crossing slices was painted.

        A slice on which voxels are painted only where it crosses painted slices of another axis cannot be told from
        one with small structures; so a slice counts if it was painted in a square of two voxels or more.
        """
        drawn = self.painted > 0
        found = []
        for axis in range(3):
            across = [other for other in range(3) if other != axis]
            square = drawn
            for other in across:
                ahead = (slice(None),) * other + (slice(1, None),)
                back = (slice(None),) * other + (slice(None, -1),)
                square = square[ahead] & square[back]
            shown = np.flatnonzero(square.any(axis=tuple(across)))
            found.append([int(i) for i in shown if int(i) not in self.finished[axis]])
        return found


def from_annotation(numbers: np.ndarray, annotated: np.ndarray) -> Drawing:
    """Return a drawing of an annotation, both (X, Y, Z) in RAS order, that means the same.

    Slices that are annotated in whole are finished, and background on them is not painted.
    """
    finished = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        finished.append([int(i) for i in np.flatnonzero(annotated.all(axis=others))])
    painted = np.where(annotated, numbers + 1, 0).astype(np.uint8)
    painted[(painted == 1) & slices_mask(painted.shape, finished)] = 0
    return Drawing(painted, finished)


def unpacked(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """Return the voxels of a slice from compressed bytes.

    Raises:
        DataError: when they are damaged, or not of this shape.
    """
    return as_slice(inflated(data, int(np.prod(shape))), shape)


def inflated(data: bytes, size: int, gzip: bool = False) -> bytes:
    """Decompress bytes of zlib or gzip, at most one byte more than `size`.

    Raises:
        DataError: when they are damaged.
    """
    try:
        return zlib.decompressobj(31 if gzip else 15).decompress(data, size + 1)
    except zlib.error as error:
        raise DataError(f"the voxels of a slice are damaged ({error}); expected compressed bytes.") from error


def as_slice(data: bytes, shape: Sequence[int]) -> np.ndarray:
    """Return the voxels of a slice from bytes, first axis fastest.

    Raises:
        DataError: when there are more or fewer than of this shape.
    """
    size = int(np.prod(shape))
    if len(data) != size:
        raise DataError(f"found {len(data)} voxels; expected {size}, one byte each, in a slice of {tuple(shape)}.")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F")


def describe(axis: int, index: int) -> str:
    """Return the name of a slice for messages."""
    return f"{PLANES[axis]} {index}"


def _packed(view: np.ndarray) -> bytes:
    return zlib.compress(view.tobytes(order="F"), 1)
