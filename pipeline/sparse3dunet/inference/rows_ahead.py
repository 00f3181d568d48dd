"""Reading ahead from arrays on disk, in the order of sliding windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse3dunet.inference.windows import Windows
from sparse3dunet.io.chunked import ChunkedArray


class RowsAhead:
    """Array of which the rows of the current windows are in memory, so that no chunk is decoded for each window."""

    def __init__(self, array: ChunkedArray, windows: Windows) -> None:
        self.array, self.shape, self.row_axis = array, array.shape, windows.row_axis
        first, last = (windows.inputs([axis.starts[end] for axis in windows.axes]) for end in (0, -1))
        self.reach = [slice(max(f[0], 0), min(e[1], n)) for f, e, n in zip(first, last, self.shape)]
        self.box: list[slice] = []
        self.values = np.empty(0)

    def __getitem__(self, wanted: tuple[slice, ...]) -> np.ndarray:
        if not _contains(self.reach, wanted):  # beyond, by reflection at the border
            return self.array[wanted]
        if not (self.box and _contains(self.box, wanted)):
            self.box = [w if axis == self.row_axis else r for axis, (w, r) in enumerate(zip(wanted, self.reach))]
            self.values = self.array[tuple(self.box)]
        return self.values[tuple(slice(w.start - b.start, w.stop - b.start) for w, b in zip(wanted, self.box))]


def _contains(box: Sequence[slice], wanted: Sequence[slice]) -> bool:
    return all(b.start <= w.start and w.stop <= b.stop for b, w in zip(box, wanted))
