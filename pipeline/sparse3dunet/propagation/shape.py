"""Shape interpolation between annotated slices by signed distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from sparse3dunet.errors import DataError
from sparse3dunet.propagation.scan import Propagator, Scan, softmax

SHARE = 0.3
"""Share of a slice's voxels above which it counts as annotated; its other voxels get the class of the nearest."""


class ShapeInterpolation(Propagator):
    """Classes from the shapes on annotated slices, without the intensities.

    On annotated slices, every voxel gets its signed distance from each class; between two slices of an axis these are
    interpolated linearly, beyond the last one repeated (Raya and Udupa, Shape-Based Interpolation of Multidimensional
    Objects, IEEE TMI 9(1), 1990). The axes are averaged, weighted by the nearness of their slices.

    Args:
        num_classes: K; None: as many as are annotated.
        reach: maximum distance, in voxels of the plane; larger ones are clipped.
    """

    def __init__(self, num_classes: int | None = None, reach: float = 50.0) -> None:
        if not 0 < reach < math.inf:
            raise ValueError(f"reach must be a number above 0, got {reach}.")
        self.num_classes, self.reach = num_classes, reach

    def fit(self, image: Any, label: Any, weight: Any, spacing: Sequence[float] = (1, 1, 1)) -> ShapeInterpolation:
        """Fit to an image and its annotation, as all methods; raise DataError if no slices are annotated."""
        super().fit(image, label, weight, spacing)
        if not self._axes:
            raise DataError(
                "no slices are annotated, only parts of some, so there are no shapes to interpolate. Annotate whole "
                "slices, or use RandomWalker or Forest, which learn from any voxels."
            )
        return self

    def fit_scan(self, scan: Scan) -> ShapeInterpolation:
        unit, self._axes = scan.plane_spacing, 0
        total = np.zeros((scan.num_classes, *scan.shape), np.float32)
        weight = np.full(scan.shape, 1e-6, np.float32)
        for axis, slices in enumerate(_annotated_slices(scan.known.numpy())):
            known, size = np.moveaxis(scan.known.numpy(), axis, 0), scan.spacing[axis] / unit
            if not len(slices) or min(known.shape[1:]) < 2:
                continue
            self._axes += 1
            label = np.moveaxis(scan.label.numpy(), axis, 0)
            sampling = np.delete(scan.spacing, axis) / unit
            signed = np.stack([self._signed(label[i], known[i], scan.num_classes, sampling) for i in slices])
            _spread(np.moveaxis(total, axis + 1, 1), np.moveaxis(weight, axis, 0), signed, slices, size)
        self._logits = total / weight / 1.5
        self._absent = np.setdiff1d(np.arange(scan.num_classes), scan.classes())
        return self

    def predict_proba(self) -> np.ndarray:
        self._check_fitted()
        prob = softmax(self._logits)
        prob[self._absent] = 0
        return prob / np.maximum(prob.sum(0), 1e-6)

    def _signed(self, label: np.ndarray, known: np.ndarray, num_classes: int, sampling: np.ndarray) -> np.ndarray:
        """Return signed distances (K, A, B) in voxels, positive within the class."""
        if not known.all():
            nearest = distance_transform_edt(~known, sampling, return_distances=False, return_indices=True)
            label = label[tuple(nearest)]
        result = np.empty((num_classes, *label.shape), np.float32)
        for number in range(num_classes):
            inside = label == number
            if inside.all() or not inside.any():
                result[number] = self.reach if inside.any() else -self.reach
            else:
                result[number] = distance_transform_edt(inside, sampling) - distance_transform_edt(~inside, sampling)
        return result.clip(-self.reach, self.reach)


def _annotated_slices(known: np.ndarray) -> list[np.ndarray]:
    """Return the annotated slices by axis.

    Across a dense stack, all slices show as much as the stack is dense: they don't count if those of another axis do.
    """
    shares = [known.mean(tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    found = [np.flatnonzero(share > SHARE) for share in shares]
    is_stack = [0 < len(slices) < len(share) for slices, share in zip(found, shares)]
    return [slices if of_axis or not any(is_stack) else slices[:0] for slices, of_axis in zip(found, is_stack)]


def _spread(total: np.ndarray, weight: np.ndarray, signed: np.ndarray, slices: np.ndarray, size: float) -> None:
    """Add the interpolation of annotated slices (S, K, A, B) to `total` (K, N, A, B) and `weight` (N, A, B)."""
    for place in range(len(weight)):
        after = int(np.searchsorted(slices, place))
        before, after = max(after - 1, 0), min(after, len(slices) - 1)
        gap = slices[after] - slices[before]
        share = (place - slices[before]) / gap if gap else 0.0
        share = min(max(share, 0.0), 1.0)
        distance = np.abs(slices - place).min() * size
        nearness = 1 / (1 + distance) ** 2
        total[:, place] += nearness * ((1 - share) * signed[before] + share * signed[after])
        weight[place] += nearness


def distance_from(known: torch.Tensor, spacing: np.ndarray) -> np.ndarray:
    """Return the distance (X, Y, Z), float32, of each voxel to the nearest annotated one, in the spacing's unit."""
    return np.asarray(distance_transform_edt(~known.numpy(), sampling=spacing), np.float32)
