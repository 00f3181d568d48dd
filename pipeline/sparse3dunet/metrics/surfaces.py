"""Distances between surfaces, in mm: 95 % Hausdorff distance, average surface distance, surface Dice at a tolerance.

Edges and distances are MONAI's (``monai.metrics.utils``), and for two whole volumes the three scores equal MONAI's
``compute_hausdorff_distance(percentile=95)``, ``compute_average_surface_distance(symmetric=True)`` and
``compute_surface_dice``. Here they are computed once for all three scores, can be restricted to some voxels, and can be
pooled over slices.

A surface is the set of voxels of a mask that have a neighbour (by a face) outside of it; beyond the volume's border is
outside. Each of these voxels counts once, whatever the area of its faces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance

ROUNDING = 1e-5
"""Share by which a distance may exceed the tolerance: in 32 bits, three voxels of 0.1 mm can be more than 0.3 mm."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from each voxel of two surfaces to the other surface.

    Attributes:
        from_pred: (N,) float32, mm, from the segmentation's surface to the reference's; infinite where there is none.
        from_true: (M,) float32, mm, from the reference's surface to the segmentation's; likewise.
    """

    from_pred: np.ndarray
    from_true: np.ndarray

    @property
    def hd95(self) -> float | None:
        """95th percentile of the distances, mm, the larger of the two directions (Huttenlocher et al. 1993).

        None if there is no surface, or if more than 5 % of one has no counterpart.
        """
        return _finite(max((_percentile95(d) for d in (self.from_pred, self.from_true) if len(d)), default=np.inf))

    @property
    def average(self) -> float | None:
        """Average symmetric surface distance, mm: the mean over both surfaces (Heimann et al. 2009).

        What has no counterpart is left out, see :attr:`unmatched`; None if nothing is left.
        """
        joined = np.concatenate([self.from_pred, self.from_true])
        joined = joined[np.isfinite(joined)]
        return float(joined.mean(dtype=np.float64)) if len(joined) else None

    def surface_dice(self, tolerance: float) -> float | None:
        """Return the share of both surfaces within `tolerance` mm of the other one (NSD, Nikolov et al. 2018).

        What has no counterpart is not within. None if there is no surface.
        """
        near = sum(int((d <= tolerance * (1 + ROUNDING)).sum()) for d in (self.from_pred, self.from_true))
        count = len(self.from_pred) + len(self.from_true)
        return near / count if count else None

    @property
    def unmatched(self) -> float | None:
        """Share of both surfaces without a counterpart, 0 to 1; None if there is no surface."""
        count = len(self.from_pred) + len(self.from_true)
        alone = sum(int(np.isinf(d).sum()) for d in (self.from_pred, self.from_true))
        return alone / count if count else None


def surface_distances(
    pred: np.ndarray, true: np.ndarray, spacing: Sequence[float], counted: np.ndarray | None = None
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, in a volume or a slice.

    Args:
        pred: (X, Y, Z) or (X, Y) boolean: the segmentation of a class.
        true: boolean, of the same shape: its reference.
        spacing: voxel size in mm, one for each axis.
        counted: boolean, of the same shape: only the parts of both surfaces on these voxels are measured, by their
            distances to the other surface as a whole; None for all.

    Raises:
        ValueError: when shapes or the number of axes differ, or the spacing is not above 0.
    """
    masks = [np.asarray(mask, bool) for mask in (pred, true, *([] if counted is None else [counted]))]
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"masks must have one shape, got {', '.join(str(mask.shape) for mask in masks)}.")
    check_spacing(spacing, masks[0].ndim)
    union = masks[0] | masks[1]
    if not union.any():
        return pooled([])
    box = _box(union)
    of_pred, of_true = (np.asarray(edge) for edge in get_mask_edges(masks[0][box], masks[1][box], crop=False))
    where = True if counted is None else masks[2][box]
    return SurfaceDistances(_nearest(of_pred & where, of_true, spacing), _nearest(of_true & where, of_pred, spacing))


def check_spacing(spacing: Sequence[float], num_axes: int) -> None:
    """Raise ValueError unless the spacing is a number above 0 for each axis."""
    sizes = np.asarray(spacing, float)
    if sizes.shape != (num_axes,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"spacing must be {num_axes} numbers above 0, one for each axis; got {spacing!r}.")


def pooled(parts: Iterable[SurfaceDistances]) -> SurfaceDistances:
    """Join the distances of several slices."""
    known = [SurfaceDistances(np.zeros(0, np.float32), np.zeros(0, np.float32)), *parts]
    return SurfaceDistances(*(np.concatenate([getattr(d, name) for d in known]) for name in ("from_pred", "from_true")))


def complete_slices(annotated: np.ndarray) -> list[list[int]]:
    """Return, for each axis, the slices perpendicular to it on which every voxel of an (X, Y, Z) mask is annotated."""
    axes = range(annotated.ndim)
    return [np.flatnonzero(annotated.all(axis=_others(annotated.ndim, axis))).tolist() for axis in axes]


def slice_distances(
    pred: np.ndarray, true: np.ndarray, spacing: Sequence[float], slices: Sequence[Sequence[int]]
) -> SurfaceDistances:
    """Measure distances within slices, where a surface is the outline in the slice, and join them.

    An outline in a slice where the other mask has none is without counterpart: its distances are infinite.

    Args:
        pred: (X, Y, Z) boolean: the segmentation of a class.
        true: boolean, of the same shape: its reference.
        spacing: voxel size in mm by axis.
        slices: indices of the slices for each axis, see :func:`complete_slices`.
    """
    check_spacing(spacing, pred.ndim)
    parts = []
    for axis, indices in enumerate(slices):
        within = [size for a, size in enumerate(spacing) if a != axis]
        for index in indices:
            found, expected = pred.take(index, axis), true.take(index, axis)
            if found.any() or expected.any():
                parts.append(surface_distances(found, expected, within))
    return pooled(parts)


def _nearest(points: np.ndarray, surface: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance of each point (true in a mask) to a surface (another mask); either may be empty."""
    if not points.any():
        return np.zeros(0, np.float32)
    if not surface.any():
        return np.full(np.count_nonzero(points), np.inf, np.float32)
    return np.asarray(get_surface_distance(points, surface, spacing=list(spacing)), np.float32)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the bounding box of a mask that is not empty."""
    shown = [np.flatnonzero(mask.any(axis=_others(mask.ndim, axis))) for axis in range(mask.ndim)]
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in shown)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)


def _percentile95(distances: np.ndarray) -> float:
    """Return the 95th percentile, infinite if it lies among, or next to, infinite distances."""
    if np.isinf(distances).sum() > 0.05 * (len(distances) - 1):
        return np.inf
    finite_after = np.where(np.isinf(distances), np.finfo(np.float32).max, distances)  # infinities give NaN
    return float(np.quantile(finite_after, 0.95))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
