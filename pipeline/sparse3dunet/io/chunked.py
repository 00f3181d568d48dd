"""Arrays of Zarr and HDF5 that stay on disk and are read box by box, as NumPy arrays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 2**24
"""Number of voxels that are read at once where a whole array is gone through."""
USUAL_CHUNK = 64
"""Length of a chunk where the array has none, or chunks of whole planes."""


@dataclass(frozen=True)
class _Along:
    """An axis of the array: the stored axis that it is, and whether it runs the other way."""

    stored: int
    flipped: bool = False


@dataclass(frozen=True)
class ChunkedArray:
    """Array on disk, of which boxes are read: ``array[10:20, :, ::4]`` is a NumPy array of 10 planes.

    It has as much of NumPy's interface as volumes need; nothing but indexing reads voxels. Indices are slices with
    positive steps, one for each axis or fewer.

    Attributes:
        source: array of zarr or h5py.
        axes: the stored axis of each axis.
        fixed: index along each stored axis that is none of these.
        dtype: type that boxes are converted to.
    """

    source: Any
    axes: tuple[_Along, ...]
    fixed: tuple[tuple[int, int], ...]
    dtype: np.dtype

    @classmethod
    def of(cls, source: Any) -> ChunkedArray:
        """Return the whole array with its axes as stored."""
        return cls(source, tuple(_Along(i) for i in range(len(source.shape))), (), np.dtype(source.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(self.source.shape[along.stored]) for along in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Length of a chunk along each axis, at most the array's."""
        stored = getattr(self.source, "chunks", None) or (USUAL_CHUNK,) * len(self.source.shape)
        return tuple(min(int(stored[along.stored]), n) for along, n in zip(self.axes, self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("an array on disk is read box by box, not as a whole.")

    def __getitem__(self, box: slice | tuple[slice, ...]) -> np.ndarray:
        """Read a box."""
        given = box if isinstance(box, tuple) else (box,)
        given = (*given, *[slice(None)] * (self.ndim - len(given)))
        stored: list[Any] = [slice(None)] * len(self.source.shape)
        reverse: list[slice] = []
        for along, wanted, n in zip(self.axes, given, self.shape):
            positions = range(n)[wanted]
            if not len(positions):
                return np.empty([len(range(n)[w]) for w, n in zip(given, self.shape)], self.dtype)
            first, last = positions[0], positions[-1]
            if along.flipped:
                first, last = n - 1 - last, n - 1 - first
            stored[along.stored] = slice(first, last + 1, positions.step)
            reverse.append(slice(None, None, -1 if along.flipped else None))
        for axis, index in self.fixed:
            stored[axis] = slice(index, index + 1)
        found = np.asarray(self.source[tuple(stored)])
        found = found.squeeze(tuple(axis for axis, _ in self.fixed))
        kept = sorted(along.stored for along in self.axes)
        found = found.transpose([kept.index(along.stored) for along in self.axes])
        return found[tuple(reverse)].astype(self.dtype, copy=False)

    def transpose(self, order: Sequence[int]) -> ChunkedArray:
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def squeeze(self, axes: int | Sequence[int]) -> ChunkedArray:
        found = self
        for axis in sorted([axes] if isinstance(axes, int) else axes, reverse=True):
            found = found.at(axis, 0)
        return found

    def astype(self, dtype: Any, copy: bool = True) -> ChunkedArray:
        return replace(self, dtype=np.dtype(dtype))

    def at(self, axis: int, index: int) -> ChunkedArray:
        """Return the array without an axis, at one place along it: a channel, for example."""
        rest = tuple(along for i, along in enumerate(self.axes) if i != axis)
        return replace(self, axes=rest, fixed=(*self.fixed, (self.axes[axis].stored, index)))

    def turned(self, orientation: np.ndarray) -> ChunkedArray:
        """Return the array turned as by ``nibabel.apply_orientation``: axis i becomes ``orientation[i, 0]``."""
        axes = list(self.axes)
        for i, (target, sign) in enumerate(orientation):
            along = self.axes[i]
            axes[int(target)] = replace(along, flipped=along.flipped != (sign < 0))
        return replace(self, axes=tuple(axes))

    def boxes(self, most: int = PIECE) -> Iterator[tuple[slice, ...]]:
        """Yield boxes of whole chunks, each of at most `most` voxels, that together are the array."""
        lengths = [min(chunk, 4 * USUAL_CHUNK) for chunk in self.chunks]
        grown = True
        while grown:  # the shortest axis first: compact boxes have few neighbours
            grown = False
            for axis in sorted(range(self.ndim), key=lambda i: lengths[i]):
                longer = min(2 * lengths[axis], self.shape[axis])
                if longer > lengths[axis] and np.prod(lengths, dtype=float) / lengths[axis] * longer <= most:
                    lengths[axis], grown = longer, True
                    break
        flipped = [along.flipped for along in self.axes]
        yield from itertools.product(*map(pieces, self.shape, lengths, flipped))


def pieces(n: int, length: int, flipped: bool = False) -> list[slice]:
    """Return the pieces of an axis of n voxels that end where chunks of the stored axis end, which may be flipped."""
    found = [slice(start, min(start + length, n)) for start in range(0, n, length)]
    return [slice(n - p.stop, n - p.start) for p in reversed(found)] if flipped else found


def stored_bytes(array: Any, place: Path, enough: int) -> int:
    """Return how many bytes of a ChunkedArray are on disk; of a folder of Zarr, no more are counted than `enough`."""
    if hasattr(array.source, "is_virtual"):  # HDF5
        return enough if array.source.is_virtual else array.source.id.get_storage_size()
    total = 0
    for file in place.rglob("*"):
        total += file.stat().st_size if file.is_file() else 0
        if total >= enough:
            break
    return total
