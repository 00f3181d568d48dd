"""Working grid of a scan: a box around its foreground, coarser if the scan is large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparse3dunet.data.slices import Slices, crossed, find_slices
from sparse3dunet.propagation.random_walker import PriorWalker
from sparse3dunet.propagation.scan import Scan, enlarged, one_hot, pooled

MARGIN = 0.2
"""Margin around the annotated foreground, as a share of its extent."""
LEAST_MARGIN = 8
"""Minimum margin in voxels."""
MOST_WALKED = 2**27
"""Maximum voxels times classes of the box for moving borders to the edges of the image."""
WALK, PRIOR_WEIGHT = 8, 0.5
"""Iterations of the random walk that moves coarse borders to the edges of the image, and the weight of these borders.

Measured on seven scans: with a weight of 1, borders stayed too coarse; with 0.3, a thin tube in noise was lost.
"""
ACROSS = 2**0.5
"""Factor by which voxels count as larger across a single stack of slices: only few lie between two annotated ones."""


@dataclass(frozen=True)
class Field:
    """Box of a scan, and the size of the working grid's voxels.

    Attributes:
        box: slice of the scan along each axis.
        step: voxels of the scan per voxel of the working grid, by axis.
    """

    box: tuple[slice, slice, slice]
    step: tuple[int, int, int]

    @classmethod
    def of(cls, scan: Scan, most: float) -> Field:
        """Return the whole grid of a small scan, or a box around the foreground, made coarser along the finest axes.

        Args:
            scan: the whole scan.
            most: maximum voxels times (classes + 1), to which the run time is proportional.
        """
        if np.prod(scan.shape) * (scan.num_classes + 1) <= most:
            return cls(tuple(slice(0, n) for n in scan.shape), (1, 1, 1))  # type: ignore[arg-type]
        slices = find_slices(scan.known.numpy()) or [[], [], []]
        box = _box(scan, slices)
        shape = np.array([b.stop - b.start for b in box])
        step = np.ones(3, int)
        counted = scan.spacing * _across_stack(slices)
        while np.prod(np.ceil(shape / step)) * (scan.num_classes + 1) > most and (shape > 2 * step).any():
            sizes = np.where(shape > 2 * step, counted * step, np.inf)
            step[int(np.argmin(sizes))] += 1
        return cls(box, tuple(int(s) for s in step))  # type: ignore[arg-type]

    @property
    def is_coarse(self) -> bool:
        return max(self.step) > 1

    def cut(self, scan: Scan) -> Scan:
        """Return the scan within the box, at full resolution."""
        image = scan.image[(slice(None), *self.box)]
        return Scan(image, scan.label[self.box], scan.known[self.box], scan.spacing, scan.num_classes)

    def coarse(self, scan: Scan) -> Scan:
        """Return the scan within the box on the working grid; a block gets the most frequent class of its voxels."""
        inside = self.cut(scan)
        if not self.is_coarse:
            return inside
        votes = pooled(one_hot(inside.label, inside.known, scan.num_classes), self.step)
        known = pooled(inside.known[None].float(), self.step)[0] > 0
        label = torch.where(known, votes.argmax(0), 0)
        return Scan(pooled(inside.image, self.step), label, known, scan.spacing * self.step, scan.num_classes)

    def fine(self, prob: np.ndarray, scan: Scan) -> np.ndarray:
        """Bring probabilities on the working grid to the voxels of the box (K, X', Y', Z')."""
        if not self.is_coarse:
            return prob
        inside = self.cut(scan)
        prior = enlarged(torch.from_numpy(prob), self.step, inside.shape)
        if prior.numel() > MOST_WALKED:  # a walk needs eight times this memory
            return prior.numpy()
        walker = PriorWalker(prior.numpy(), gamma=PRIOR_WEIGHT, iterations=WALK)
        return walker.fit_scan(inside).predict_proba()

    def spread(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask (X', Y', Z') of the box's voxels by a mask (x, y, z) of the working grid."""
        for axis, step in enumerate(self.step):
            mask = mask.repeat(step, axis)
        return mask[tuple(slice(b.stop - b.start) for b in self.box)]

    def places(self, indices: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Return the positions (N, 3) in the whole scan of voxels by flat index in the working grid of this shape."""
        coarse = np.stack(np.unravel_index(indices, tuple(shape)), 1)
        start, stop = ([getattr(b, end) for b in self.box] for end in ("start", "stop"))
        return np.minimum(coarse * self.step + np.array(self.step) // 2 + start, np.array(stop) - 1)


def _across_stack(slices: Slices) -> np.ndarray:
    """Return the factors (3,) by which voxels count as larger when an axis is to become coarser."""
    annotated = np.array([bool(of_axis) for of_axis in slices])
    return np.where(annotated & (annotated.sum() == 1), ACROSS, 1.0)


def _box(scan: Scan, slices: Slices) -> tuple[slice, slice, slice]:
    """Return the box of the foreground with a margin for what may lie between slices and beyond the last ones."""
    known = scan.known.numpy()
    foreground = known & (scan.label > 0).numpy()
    if not foreground.any():
        return tuple(slice(0, n) for n in scan.shape)  # type: ignore[return-value]
    shown = [np.flatnonzero(crossed(foreground, axis)) for axis in range(3)]
    extent = np.array([indices[-1] - indices[0] + 1 for indices in shown])
    widest = float((extent * scan.spacing).max())
    result = []
    for axis, n in enumerate(scan.shape):
        first, last = int(shown[axis][0]), int(shown[axis][-1])
        gap = int(np.diff(slices[axis]).max()) if len(slices[axis]) > 1 else 0
        margin = max(LEAST_MARGIN, gap, round(MARGIN * extent[axis]))
        annotated = np.flatnonzero(crossed(known, axis))
        reach = round(widest / scan.spacing[axis]) - (last - first)
        # On one slice, or adjacent ones, nothing tells where a structure ends that goes on at their end
        is_run = len(annotated) == annotated[-1] - annotated[0] + 1
        before = max(margin, reach) if is_run and annotated[0] == first else margin
        after = max(margin, reach) if is_run and annotated[-1] == last else margin
        result.append(slice(max(first - before, 0), min(last + 1 + after, n)))
    return tuple(result)  # type: ignore[return-value]
