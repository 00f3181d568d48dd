"""Mean and standard deviation of arrays of any size, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import ChunkedArray
from sparse3dunet.io.volumes import no_numbers, no_numbers_text

LEAST_STEPS = 2
"""Standard deviation, in steps of 32-bit floats around the mean, up to which nothing is to be seen in an image."""
EXACT = 1e-12
"""Standard deviation of equal values, relative to them, that is due to rounding."""
AT_ONCE = 2**22
"""Number of voxels of a piece of an array in memory."""


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of the values so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0

    def add(self, part: np.ndarray) -> None:
        """Add values, float64 (Chan, Golub and LeVeque 1979: moments of two parts combined)."""
        delta, total = part.mean() - self.mean, self.count + part.size
        self.squares += float(part.var() * part.size + delta**2 * self.count * part.size / total)
        self.mean += float(delta * part.size / total)
        self.count = total


def moments(array: np.ndarray | ChunkedArray, path: str) -> Moments:
    """Return the moments of all voxels of a channel (X, Y, Z), in memory or on disk.

    Args:
        array: the voxels.
        path: file, for messages.

    Raises:
        DataError: when a voxel is NaN or infinite, also after conversion to 32 bits.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        return _of_counts(array)
    found = Moments()
    for piece in pieces(array):
        part = np.asarray(piece, np.float64)
        bad = no_numbers(part)
        if bad.size:
            raise DataError(f"{path}: some voxels {no_numbers_text(bad)}")
        found.add(part)
    return found


def _of_counts(array: np.ndarray | ChunkedArray) -> Moments:
    """Return the moments of integers of 8 or 16 bits from the number of voxels of each value, which is faster."""
    low = int(np.iinfo(array.dtype).min)
    counts = np.zeros(int(np.iinfo(array.dtype).max) - low + 1, np.int64)
    for piece in pieces(array):
        counts += np.bincount(piece.ravel().astype(np.int64) - low, minlength=len(counts))
    values, total = np.arange(len(counts)) + float(low), int(counts.sum())
    mean = float((values * counts).sum() / total)
    return Moments(total, mean, float(((values - mean) ** 2 * counts).sum()))


def pieces(array: np.ndarray | ChunkedArray) -> Iterator[np.ndarray]:
    """Yield an array piece by piece, in the order in which it is stored."""
    if isinstance(array, ChunkedArray):
        return (array[box] for box in array.boxes(4 * AT_ONCE))
    return _planes(array)


def _planes(array: np.ndarray) -> Iterator[np.ndarray]:
    slowest = int(np.argmax(np.abs(array.strides)))
    planes = np.moveaxis(array, slowest, 0)
    step = max(AT_ONCE // max(planes[0].size, 1), 1)
    return (planes[start : start + step] for start in range(0, len(planes), step))


def channels_of(data: np.ndarray | ChunkedArray) -> list[np.ndarray | ChunkedArray]:
    """Return each channel (X, Y, Z) of voxels (X, Y, Z) or (X, Y, Z, C)."""
    if data.ndim == 3:
        return [data]
    if isinstance(data, ChunkedArray):
        return [data.at(3, i) for i in range(data.shape[3])]
    return [data[..., i] for i in range(data.shape[3])]


def channel_moments(arrays: Iterable[np.ndarray | ChunkedArray], path: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel."""
    found = [moments(array, path) for array in arrays]
    return [entry.mean for entry in found], [entry.std for entry in found]


def contrast_notes(means: Sequence[float], deviations: Sequence[float], path: str) -> tuple[str, ...]:
    """Return a note for each channel in which a network, which computes with 32-bit floats, can see nothing."""
    notes = []
    for number, (mean, std) in enumerate(zip(means, deviations)):
        tiny = float(np.finfo(np.float32).tiny)
        step = max(float(np.spacing(np.float32(abs(mean)))), tiny)
        if std > LEAST_STEPS * step:
            continue
        where = path if len(means) == 1 else f"{path}: channel {number}"
        what = f"its voxels have a single value, {mean:.6g}"
        if std > EXACT * abs(mean):  # else what rounding leaves of 0
            what = f"its contrast, a standard deviation of {std:.3g} around {mean:.6g}, is lost in 32-bit floats"
        elif 0 < abs(mean) < tiny:  # where the standard deviation itself may be too small
            what = f"its values, {mean:.6g} on average, are too small for 32-bit floats"
        notes.append(f"{where}: {what}; the result says nothing of it. Check the image, and its scale.")
    return tuple(notes)
