"""Results that are written chunk by chunk, as OME-Zarr with pyramid or as HDF5, and can be continued after a stop."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import ChunkedArray, pieces
from sparse3dunet.io.hdf5 import new_dataset
from sparse3dunet.io.microscopy import package
from sparse3dunet.io.ome_zarr import CHUNK, SMALLEST_LEVEL, VERSIONS, describe, new_group, new_level, version_for
from sparse3dunet.io.suffixes import suffix_among
from sparse3dunet.io.volumes import Volume

SUFFIXES = (".ome.zarr", ".h5")
"""Formats that are written chunk by chunk."""
COPIED = 4 * CHUNK
"""Length of the boxes that are copied at once to a coarser level, or to HDF5."""


@dataclass
class ChunkedResult:
    """Result (X, Y, Z) or (X, Y, Z, K) on the grid of an image, in a folder of Zarr that grows by whole chunks.

    Attributes:
        path: path of the result; for HDF5, the folder of Zarr is next to it until :meth:`finish`.
        shape: shape of the result.
        dtype: its type.
        like: the image.
        class_names: names of a segmentation's classes by value; None for a map.
        description: description of the numbers.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: Any
    like: Volume
    class_names: Mapping[int, str] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        self.zarr = package("zarr", self.path)
        self.version = version_for(self.zarr, self.like)
        self.axes = "zyx" if len(self.shape) == 3 else "czyx"
        self.is_hdf5 = self.path.name.endswith(".h5")
        if self.is_hdf5:
            package("h5py", self.path)
        self.folder = self.path.with_name(f"{self.path.name}.zarr") if self.is_hdf5 else self.path

    def begin(self) -> None:
        """Make the array, of zeros; what is there is replaced."""
        group = new_group(self.zarr, self.folder, VERSIONS[self.version])
        new_level(group, "0", self.shape[::-1], self.dtype, self.axes, VERSIONS[self.version])

    @property
    def voxels(self) -> ChunkedArray:
        """The result as far as it is written."""
        return ChunkedArray.of(self._group("r")["0"]).transpose(range(len(self.shape))[::-1])

    def write(self, box: Sequence[slice], values: np.ndarray) -> None:
        """Write a box (X, Y, Z) of whole chunks, so that it is on the disk when this returns."""
        stored = (*[slice(None)] * (len(self.shape) - 3), *reversed(box))
        self._group("r+")["0"][stored] = values.transpose(range(values.ndim)[::-1])
        for file in self._files(box):
            if file.is_file():  # chunks of zeros are not stored
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())

    def finish(self) -> None:
        """Complete the result, once all boxes are written: the pyramid and metadata, or the file of HDF5."""
        if self.is_hdf5:
            self._write_hdf5()
            return
        group = self._group("r+")
        levels = 1
        while max(group[str(levels - 1)].shape[-3:]) > SMALLEST_LEVEL:
            self._coarser(group, levels)
            levels += 1
        describe(group, self.axes, levels, self.like, self.version, self.class_names, self.description)

    def _group(self, mode: str) -> Any:
        return self.zarr.open_group(str(self.folder), mode=mode)

    def _files(self, box: Sequence[slice]) -> Iterator[Path]:
        """Yield the files of the chunks in a box."""
        root = self.folder / "0" / ("c" if VERSIONS[self.version] == 3 else "")
        counts = [range(self.shape[3])] if len(self.shape) == 4 else []
        numbers = [range(along.start // CHUNK, -(-along.stop // CHUNK)) for along in reversed(box)]
        return (root.joinpath(*map(str, place)) for place in itertools.product(*counts, *numbers))

    def _coarser(self, group: Any, number: int) -> None:
        """Write a level of every second voxel of the one before; an unfinished one is replaced."""
        finer = group[str(number - 1)]
        shape = [*finer.shape[:-3], *((n + 1) // 2 for n in finer.shape[-3:])]
        if str(number) in group:
            del group[str(number)]
        level = new_level(group, str(number), shape, finer.dtype, self.axes, VERSIONS[self.version])
        for box in _boxes(shape):
            source = [slice(2 * b.start, 2 * b.stop, 2) for b in box[-3:]]
            level[box] = finer[(*box[:-3], *source)]

    def _write_hdf5(self) -> None:
        stored = self._group("r")["0"]
        with package("h5py", self.path).File(self.path, "w") as content:
            chunks = tuple(min(n, CHUNK) if axis != "c" else 1 for n, axis in zip(stored.shape, self.axes))
            options: dict[str, Any] = {"chunks": chunks}
            dataset = new_dataset(
                content, stored.shape, stored.dtype, self.axes, self.like, self.class_names, self.description, **options
            )
            for box in _boxes(stored.shape):
                part = stored[box]
                if part.any():
                    dataset[box] = part


def check_suffix(path: str | Path) -> None:
    """Raise DataError unless a result can be written chunk by chunk in this format."""
    if not suffix_among(path, SUFFIXES):
        raise DataError(
            f"{path}: this format is written as a whole, which a volume of this size does not allow; expected "
            f"{' or '.join(SUFFIXES)}. Pass --format ome.zarr."
        )


def _boxes(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Yield boxes of whole chunks of a stored array, one channel at a time."""
    lengths = [1] * (len(shape) - 3) + [COPIED] * 3
    yield from itertools.product(*map(pieces, shape, lengths))
