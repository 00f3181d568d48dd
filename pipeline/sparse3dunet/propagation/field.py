"""Where a scan is worked on: around its foreground, and coarsely where it is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparse3dunet.data.slices import find_slices
from sparse3dunet.propagation.random_walker import PriorWalker
from sparse3dunet.propagation.scan import Scan, enlarged, one_hot, pooled

MARGIN = 0.2
"""Around the annotated foreground, as a share of its extent."""
LEAST_MARGIN = 8
"""Voxels."""
MOST_WALKED = 2**27
"""Probabilities (voxels times classes) of the box, up to which borders are moved to the edges of the image."""
WALK = 8
"""Iterations of the random walk that moves coarse borders to the edges of the image."""


@dataclass(frozen=True)
class Field:
    """A box of a scan, and by how many voxels of an axis one voxel of the grid that is worked on stands.

    Attributes:
        box: where in the scan it begins and ends, by axis.
        step: by axis.
    """

    box: tuple[slice, slice, slice]
    step: tuple[int, int, int]

    @classmethod
    def of(cls, scan: Scan, most: float) -> Field:
        """All of a small scan; else the box of the foreground and a margin, and steps, of the finest axes first.

        Args:
            scan: the whole.
            most: voxels times (classes + 1), which is what methods' time goes by.
        """
        if np.prod(scan.shape) * (scan.num_classes + 1) <= most:
            return cls(tuple(slice(0, n) for n in scan.shape), (1, 1, 1))  # type: ignore[arg-type]
        box = _box(scan)
        shape = np.array([b.stop - b.start for b in box])
        step = np.ones(3, int)
        while np.prod(np.ceil(shape / step)) * (scan.num_classes + 1) > most and (shape > 2 * step).any():
            sizes = np.where(shape > 2 * step, scan.spacing * step, np.inf)
            step[int(np.argmin(sizes))] += 1
        return cls(box, tuple(int(s) for s in step))  # type: ignore[arg-type]

    @property
    def is_coarse(self) -> bool:
        return max(self.step) > 1

    def cut(self, scan: Scan) -> Scan:
        """The scan within the box, as fine as it is."""
        image = scan.image[(slice(None), *self.box)]
        return Scan(image, scan.label[self.box], scan.known[self.box], scan.spacing, scan.num_classes)

    def coarse(self, scan: Scan) -> Scan:
        """The scan within the box on the grid that is worked on: a block has the class that most of it has."""
        inside = self.cut(scan)
        if not self.is_coarse:
            return inside
        votes = pooled(one_hot(inside.label, inside.known, scan.num_classes), self.step)
        known = pooled(inside.known[None].float(), self.step)[0] > 0
        label = torch.where(known, votes.argmax(0), 0)
        return Scan(pooled(inside.image, self.step), label, known, scan.spacing * self.step, scan.num_classes)

    def fine(self, prob: np.ndarray, scan: Scan) -> np.ndarray:
        """Probabilities on the grid that is worked on, brought to the voxels of the box (K, X', Y', Z')."""
        if not self.is_coarse:
            return prob
        inside = self.cut(scan)
        prior = enlarged(torch.from_numpy(prob), self.step, inside.shape)
        if prior.numel() > MOST_WALKED:  # which a walk needs eight times in memory
            return prior.numpy()
        walker = PriorWalker(prior.numpy(), iterations=WALK)
        return walker.fit_scan(inside).predict_proba()

    def places(self, indices: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """(N, 3): in the whole scan, of voxels by their index in the flat grid that is worked on, of this shape."""
        found = np.stack(np.unravel_index(indices, tuple(shape)), 1)
        start, stop = ([getattr(b, end) for b in self.box] for end in ("start", "stop"))
        return np.minimum(found * self.step + np.array(self.step) // 2 + start, np.array(stop) - 1)


def _box(scan: Scan) -> tuple[slice, slice, slice]:
    """Around the foreground, wide enough for what may lie between slices and beyond the last ones."""
    foreground = (scan.known & (scan.label > 0)).numpy()
    if not foreground.any():
        return tuple(slice(0, n) for n in scan.shape)  # type: ignore[return-value]
    slices = find_slices(scan.known.numpy()) or [[], [], []]
    result = []
    for axis, n in enumerate(scan.shape):
        shown = np.flatnonzero(foreground.any(tuple(a for a in range(3) if a != axis)))
        gap = int(np.diff(slices[axis]).max()) if len(slices[axis]) > 1 else 0
        margin = max(LEAST_MARGIN, gap, round(MARGIN * (shown[-1] - shown[0] + 1)))
        result.append(slice(max(int(shown[0]) - margin, 0), min(int(shown[-1]) + 1 + margin, n)))
    return tuple(result)  # type: ignore[return-value]
