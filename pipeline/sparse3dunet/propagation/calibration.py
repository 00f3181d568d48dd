"""Calibration of probabilities by distance from annotation, and the decision of highest expected Dice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse3dunet.propagation.scan import softmax

BINS = 12
MOST_ROWS = 20_000
LEAST = 1e-3
LEAST_THRESHOLD = 0.3
"""Minimum probability for a class to win over the background: lower ones would add classes that are hardly there."""


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling that depends on the distance from annotation.

    Attributes:
        near: logarithm of the temperature next to the annotation.
        far: amount added to it at `reach` and beyond.
        reach: distance up to which the temperature changes.
    """

    near: float = 0.0
    far: float = 0.0
    reach: float = 1.0

    @classmethod
    def fit(cls, prob: np.ndarray, label: np.ndarray, distance: np.ndarray, weight: np.ndarray) -> Calibration:
        """Return the calibration that maximizes the likelihood of held-out labels.

        Args:
            prob: (K, N) probabilities of held-out voxels.
            label: (N,) their classes.
            distance: (N,) distance from the annotation that the methods saw.
            weight: (N,) see :func:`importance`.
        """
        if not len(label):
            return cls()
        chosen = np.random.default_rng(0).permutation(len(label))[:MOST_ROWS]
        prob, label, distance, weight = prob[:, chosen], label[chosen], distance[chosen], weight[chosen]
        reach = max(float(np.quantile(distance, 0.95)), 1e-6)
        tried = [cls(near, far, reach) for near in np.linspace(-0.8, 0.8, 9) for far in np.linspace(-1, 1, 9)]

        def loss(candidate: Calibration) -> float:
            likelihood = candidate(prob, distance)[label, np.arange(len(label))]
            # Regularized towards no change: a few slices are little evidence
            penalty = 0.02 * (candidate.near**2 + candidate.far**2)
            return float(-(weight * np.log(np.maximum(likelihood, LEAST))).sum() / weight.sum()) * (1 + penalty)

        return min(tried, key=loss)

    def __call__(self, prob: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (K, ...) from probabilities (K, ...) and distances (...)."""
        temperature = np.exp(self.near + self.far * np.minimum(distance / self.reach, 1)).astype(np.float32)
        return softmax(np.log(np.maximum(prob.astype(np.float32), LEAST / 10)) / temperature)


def importance(held: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return weights (N,) of held-out voxels that give them the distribution of distances of unlabeled voxels.

    Args:
        held: (N,) distances of held-out voxels from annotation.
        target: (M,) distances of unlabeled voxels from annotation.
    """
    if not len(target) or not len(held):
        return np.ones(len(held))
    edges = np.unique(np.quantile(target, np.linspace(0, 1, BINS + 1)))
    if len(edges) < 3:
        return np.ones(len(held))
    bins = np.digitize(held, edges[1:-1])
    wanted = np.bincount(np.digitize(target, edges[1:-1]), minlength=len(edges) - 1) / len(target)
    present = np.bincount(bins, minlength=len(edges) - 1) / len(held)
    return np.clip(wanted / np.maximum(present, 1e-6), 0.1, 10)[bins]


def decide(prob: np.ndarray, unlabeled: np.ndarray, rounds: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes with the highest expected mean Dice, and their expected Dice.

    A voxel increases a class's Dice D if its probability is above D / 2 (Lipton et al., Optimal Thresholding of
    Classifiers to Maximize F1 Measure, ECML 2014), which is below one half for uncertain classes. Taking the most
    probable class would lose small or uncertain structures. Where no class is above, as between two that are equally
    probable, it is the most probable one, which need not be the background: that would leave gaps between classes.

    Args:
        prob: (K, N) calibrated probabilities.
        unlabeled: (N,) bool; other voxels get their most probable class, and don't count.
        rounds: number of iterations, as D depends on the decision.

    Returns:
        (N,) class numbers, and (K,) expected Dice on unlabeled voxels; NaN for a class that is expected nowhere.
    """
    chosen = prob.argmax(0)
    inside = np.ascontiguousarray(prob[:, unlabeled])
    likeliest, volume = inside.argmax(0), inside.sum(1, dtype=float)
    classes, expected = likeliest, _expected_dice(inside, likeliest, volume)
    for _ in range(rounds if len(prob) > 1 else 0):
        threshold = np.clip(np.nan_to_num(expected[1:]), 2 * LEAST_THRESHOLD, 1)
        gain = 2 * inside[1:] - threshold[:, None].astype(np.float32)
        best = gain.argmax(0)
        classes = np.where(gain.max(0) > 0, best + 1, likeliest)
        expected = 0.5 * expected + 0.5 * _expected_dice(inside, classes, volume)
    chosen[unlabeled] = classes
    return chosen, _expected_dice(inside, classes, volume)


def _expected_dice(prob: np.ndarray, classes: np.ndarray, volume: np.ndarray) -> np.ndarray:
    count = np.bincount(classes, minlength=len(prob))
    hits = np.array([prob[number][classes == number].sum(dtype=float) for number in range(len(prob))])
    total = count + volume
    return np.where(total > 0.5, 2 * hits / np.maximum(total, 1e-9), np.nan)


def dice(classes: np.ndarray, label: np.ndarray, weight: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the Dice (K,) of weighted voxels; NaN for a class that does not occur in the labels."""
    hits, predicted, true = (
        np.bincount(values, weights, minlength=num_classes)
        for values, weights in ((label, weight * (classes == label)), (classes, weight), (label, weight))
    )
    return np.where(true > 0, 2 * hits / np.maximum(predicted + true, 1e-9), np.nan)
