"""Random walks on the graph of voxels (Grady, Random Walks for Image Segmentation, IEEE TPAMI 28(11), 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.propagation.scan import Propagator, Scan, enlarged, one_hot, pooled

FLOOR = 1e-4
"""Minimum conductance of an edge, so that no voxel is isolated."""
SMALLEST = 4000
"""Maximum voxels of the coarsest grid."""
SHORTEST, LONGEST = 8, 24
"""Length in voxels up to which an axis is not halved for a coarser grid, and maximum length of the coarsest one: a few
iterations reach no farther."""


class RandomWalker(Propagator):
    """Probability that a random walk from a voxel, which avoids edges of the image, reaches each class first.

    Solved by conjugate gradients for all classes at once, from the coarsest grid to the finest, each starting from the
    coarser solution; a few iterations on each suffice, and make the result smoother than the exact one.

    Args:
        beta: penalty on intensity steps: the conductance of an edge is exp(-beta d^2 / (10 s)) for the intensity
            difference d (intensities from 0 to 1) and the standard deviation s, as in scikit-image. Of several channels
            d^2 is the mean: with a sum, noise of many would be edges everywhere.
        iterations: maximum number on each grid.
        num_classes: K; None: as many as are annotated.
    """

    def __init__(self, beta: float = 2000.0, iterations: int = 40, num_classes: int | None = None) -> None:
        _check_numbers(iterations, beta=beta)
        self.beta, self.iterations, self.num_classes = beta, iterations, num_classes

    def fit_scan(self, scan: Scan) -> RandomWalker:
        beta = self.beta / (10 * max(float(scan.image.std()), 1e-6))
        seeds = one_hot(scan.label, scan.known, scan.num_classes)
        solution = _walk(scan.image, seeds, scan.known.float(), scan.spacing, beta, self.iterations)
        self._prob = solution.clamp_(0, 1)
        return self

    def predict_proba(self) -> np.ndarray:
        self._check_fitted()
        total = self._prob.sum(0).clamp(min=1e-6)
        return (self._prob / total).numpy()


class PriorWalker(Propagator):
    """Random walk with a prior: the solution of (L + gamma) x = gamma p with fixed annotated voxels.

    It moves the borders of `prior` to the edges of the image (Grady, Multilabel Random Walker Image Segmentation Using
    Prior Models, CVPR 2005).

    Args:
        prior: (K, X, Y, Z) class probabilities.
        beta: as for :class:`RandomWalker`, but relative to the image's roughness: the 90th percentile of squared
            differences of neighbours.
        gamma: weight of the prior, relative to an edge between equal intensities.
        iterations: maximum number.
    """

    def __init__(self, prior: np.ndarray, beta: float = 3.0, gamma: float = 1.0, iterations: int = 20) -> None:
        _check_numbers(iterations, beta=beta, gamma=gamma)
        self.prior = torch.from_numpy(np.array(prior, np.float32))
        if not bool(((self.prior >= 0) & self.prior.isfinite()).all()):
            raise DataError("the prior has values that are negative, NaN or infinite; expected probabilities.")
        self.beta, self.gamma, self.iterations = beta, gamma, iterations
        self.num_classes = len(self.prior)

    def fit_scan(self, scan: Scan) -> PriorWalker:
        if tuple(self.prior.shape) != (scan.num_classes, *scan.shape):
            raise DataError(
                f"the prior has shape {tuple(self.prior.shape)}; expected {(scan.num_classes, *scan.shape)}, the "
                "probabilities of the classes at each voxel."
            )
        edges = conductances(scan.image, scan.spacing, self.beta / roughness(scan.image))
        start = torch.where(scan.known, one_hot(scan.label, scan.known, scan.num_classes), self.prior)
        self._prob = solve(edges, scan.known, start, self.iterations, self.gamma, self.prior).clamp_(0, 1)
        return self

    def predict_proba(self) -> np.ndarray:
        self._check_fitted()
        return (self._prob / self._prob.sum(0).clamp(min=1e-6)).numpy()


def _check_numbers(iterations: float, **positive: float) -> None:
    """Raise ValueError unless the others are above 0 and finite, and the iterations at least 1."""
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {value}.")
    if not iterations >= 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")


def conductances(image: torch.Tensor, spacing: Sequence[float] | np.ndarray, beta: float) -> list[torch.Tensor]:
    """Return the conductances of the edges along each axis: (X-1, Y, Z), (X, Y-1, Z), (X, Y, Z-1).

    Between thick slices they are lower only by the square root of the ratio of voxel sizes: with its square, as in
    physics, a walk would hardly leave a slice.
    """
    nearest = min(spacing)
    return [
        (torch.exp(-beta * image.diff(dim=axis + 1).square().mean(0)) + FLOOR) * float(nearest / spacing[axis]) ** 0.5
        for axis in range(3)
    ]


def solve(
    edges: Sequence[torch.Tensor],
    fixed: torch.Tensor,
    start: torch.Tensor,
    iterations: int,
    gamma: float = 0.0,
    prior: torch.Tensor | None = None,
    tolerance: float = 1e-3,
) -> torch.Tensor:
    """Solve (L + gamma) x = gamma prior by preconditioned conjugate gradients, for all classes at once.

    Args:
        edges: see :func:`conductances`.
        fixed: (X, Y, Z) bool, voxels that keep their value in `start`.
        start: (K, X, Y, Z) initial values.
        iterations: maximum number.
        gamma: weight of the prior.
        prior: (K, X, Y, Z); None if gamma is 0.
        tolerance: residual norm at which to stop, relative to the initial one.
    """
    x, free = start.clone(), (~fixed).float()
    degree = torch.full(start.shape[1:], float(gamma))
    for axis, edge in enumerate(edges):
        count = degree.shape[axis] - 1
        degree.narrow(axis, 0, count).add_(edge)
        degree.narrow(axis, 1, count).add_(edge)
    inverse = free / degree.clamp(min=1e-8)
    residual = -_laplacian(x, edges, degree)
    if prior is not None:
        residual += gamma * prior
    residual *= free
    direction = residual * inverse
    size = _dots(residual, direction)
    least = tolerance**2 * size
    for _ in range(iterations):
        image = _laplacian(direction, edges, degree).mul_(free)
        step = size / _dots(direction, image).clamp(min=1e-30)
        x.addcmul_(direction, step[:, None, None, None])
        residual.addcmul_(image, step[:, None, None, None], value=-1)
        scaled = residual * inverse
        before, size = size, _dots(residual, scaled)
        if bool((size <= least).all()):
            break
        direction.mul_((size / before.clamp(min=1e-30))[:, None, None, None]).add_(scaled)
    return x


def _walk(
    image: torch.Tensor, seeds: torch.Tensor, counts: torch.Tensor, spacing: np.ndarray, beta: float, iterations: int
) -> torch.Tensor:
    """Solve on coarser grids first; `seeds` and `counts`: one-hot classes and annotation, averaged over blocks."""
    shape = counts.shape
    # An axis that is too short to be halved sets no limit to the others: in a thin volume, none would be halved
    finest = min((size for size, n in zip(spacing, shape) if n > SHORTEST), default=np.inf)
    step = [2 if size <= 1.5 * finest and n > SHORTEST else 1 for size, n in zip(spacing, shape)]
    if (counts.numel() > SMALLEST or max(shape) > LONGEST) and max(step) > 1:
        smaller, sums, share = (pooled(part, step) for part in (image, seeds, counts[None]))
        coarse = _walk(smaller, sums, share[0], spacing * step, beta, iterations)
        start = enlarged(coarse, step, shape)
    else:
        there = seeds.flatten(1).any(1).float()
        start = (there / there.sum())[:, None, None, None].expand(seeds.shape)
    fixed = counts > 0
    start = torch.where(fixed, seeds / counts.clamp(min=1e-6), start)
    return solve(conductances(image, spacing, beta), fixed, start, iterations)


def _laplacian(x: torch.Tensor, edges: Sequence[torch.Tensor], degree: torch.Tensor) -> torch.Tensor:
    result = x * degree
    for axis, edge in enumerate(edges, 1):
        count = x.shape[axis] - 1
        lower, upper = x.narrow(axis, 0, count), x.narrow(axis, 1, count)
        result.narrow(axis, 0, count).addcmul_(upper, edge, value=-1)
        result.narrow(axis, 1, count).addcmul_(lower, edge, value=-1)
    return result


def _dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def roughness(image: torch.Tensor) -> float:
    """Return the 90th percentile of squared differences of neighbours in (C, X, Y, Z), the mean over the channels.

    If nine of ten are 0, as around a masked organ, it is that of the others: otherwise any difference would be an edge.
    """
    squares = [image.diff(dim=axis).square().mean(0).flatten().numpy() for axis in (1, 2, 3)]
    mean = float(np.mean([np.percentile(part, 90) for part in squares if part.size]))
    if mean == 0:
        different = np.concatenate(squares)
        different = different[different > 0]
        mean = float(np.percentile(different, 90)) if different.size else 0.0
    return max(mean, 1e-12)
