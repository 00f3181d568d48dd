"""Predictions for held-out parts of the annotation, and how they are combined."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse3dunet.propagation.forest import Drawn, mean_prob
from sparse3dunet.propagation.scan import log_prob, softmax


@dataclass(frozen=True)
class View:
    """Part of the annotation, and predictions at its places by members that do not see it.

    Attributes:
        kind: see :class:`Part`.
        fold: see :class:`Part`.
        places: (N,) flat indices of its voxels in the scan and, if it is brought to full resolution from a coarse grid,
            of their unlabeled neighbours.
        count: number of its voxels, which are first.
        columns: (N, F) see :func:`context`.
        members: (M, K, N) probabilities by member.
        drawn: voxels to learn from.
        mean: (K, X, Y, Z) float16, mean of the members everywhere; None if the part is not brought to full resolution.
    """

    kind: str
    fold: int
    places: np.ndarray
    count: int
    columns: np.ndarray
    members: np.ndarray
    drawn: Drawn
    mean: np.ndarray | None = None

    @property
    def index(self) -> np.ndarray:
        """Flat indices of the part's voxels."""
        return self.places[: self.count]

    @property
    def distance(self) -> np.ndarray:
        """Distance of the part's voxels from the annotation that the members see."""
        return self.columns[: self.count, -1]  # see context


@dataclass(frozen=True)
class Found:
    """Predictions for a part's voxels, as in :class:`Held`."""

    prob: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Companion:
    """Members whose mean is multiplied with the auto-context's probabilities, and their share in the product."""

    members: tuple[int, ...]
    share: float

    def combine(self, prob: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Combine the auto-context's (K, ...) and all members' (M, K, ...) probabilities to (K, ...)."""
        return product(prob, mean_prob(members[list(self.members)]), self.share)


def product(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Return the product (K, ...) of two methods' probabilities, the second to the power of its share.

    If the share is above 1, the first is given less weight instead, so that the product is not overconfident.
    """
    return softmax((log_prob(first) + share * log_prob(second)) / max(share, 1.0))
