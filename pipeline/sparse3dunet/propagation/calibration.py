"""How sure methods are against how often they are right, by the distance from annotation; and the best decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse3dunet.propagation.scan import softmax

BINS = 12
MOST_ROWS = 20_000
LEAST = 1e-3
LEAST_THRESHOLD = 0.3
"""Of a class's probability against the background's: below, a class would be drawn where it hardly is."""


@dataclass(frozen=True)
class Calibration:
    """A temperature that grows or falls with the distance from annotation.

    Attributes:
        near: logarithm of the temperature beside the annotation.
        far: what is added to it at `reach` and beyond.
        reach: of distances.
    """

    near: float = 0.0
    far: float = 0.0
    reach: float = 1.0

    @classmethod
    def fit(cls, prob: np.ndarray, label: np.ndarray, distance: np.ndarray, weight: np.ndarray) -> Calibration:
        """The one by which held-out labels are most likely.

        Args:
            prob: (K, N) of held-out voxels.
            label: (N,) their classes.
            distance: (N,) from the annotation that methods knew.
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
            # Held towards no change: a few slices tell little
            hold = 0.02 * (candidate.near**2 + candidate.far**2)
            return float(-(weight * np.log(np.maximum(likelihood, LEAST))).sum() / weight.sum()) * (1 + hold)

        return min(tried, key=loss)

    def __call__(self, prob: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """(K, ...) probabilities, from such and the distances (...)."""
        temperature = np.exp(self.near + self.far * np.minimum(distance / self.reach, 1)).astype(np.float32)
        return softmax(np.log(np.maximum(prob.astype(np.float32), LEAST / 10)) / temperature)


def importance(held: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (N,) of held-out voxels, so that their distances are distributed as those of the voxels that matter.

    Args:
        held: (N,) distances from annotation of the held-out voxels.
        target: (M,) of the unlabeled ones.
    """
    if not len(target) or not len(held):
        return np.ones(len(held))
    edges = np.unique(np.quantile(target, np.linspace(0, 1, BINS + 1)))
    if len(edges) < 3:
        return np.ones(len(held))
    edges[0], edges[-1] = -np.inf, np.inf
    found = np.digitize(held, edges[1:-1])
    wanted = np.bincount(np.digitize(target, edges[1:-1]), minlength=len(edges) - 1) / len(target)
    there = np.bincount(found, minlength=len(edges) - 1) / len(held)
    return np.clip(wanted / np.maximum(there, 1e-6), 0.1, 10)[found]


def decide(prob: np.ndarray, unlabeled: np.ndarray, rounds: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The classes whose mean Dice is expected to be highest, and that Dice.

    A voxel adds to a class's Dice D where its probability is above D / 2 (Lipton et al., Optimal Thresholding of
    Classifiers to Maximize F1 Measure, ECML 2014): below a half, where much is in doubt. The most probable class alone
    would lose what is small or uncertain.

    Args:
        prob: (K, N) calibrated.
        unlabeled: (N,) bool; others get their most probable class, and don't count.
        rounds: of the iteration, as D depends on the choice.

    Returns:
        (N,) class numbers, and (K,) the Dice expected on unlabeled voxels; NaN for a class that is nowhere expected.
    """
    chosen = prob.argmax(0)
    inside = np.ascontiguousarray(prob[:, unlabeled])
    classes, volume = inside.argmax(0), inside.sum(1, dtype=float)
    expected = _expected_dice(inside, classes, volume)
    for _ in range(rounds if len(prob) > 1 else 0):
        threshold = np.clip(np.nan_to_num(expected[1:]), 2 * LEAST_THRESHOLD, 1)
        gain = 2 * inside[1:] - threshold[:, None].astype(np.float32)
        best = gain.argmax(0)
        classes = np.where(gain.max(0) > 0, best + 1, 0)
        expected = 0.5 * expected + 0.5 * _expected_dice(inside, classes, volume)
    chosen[unlabeled] = classes
    return chosen, _expected_dice(inside, classes, volume)


def _expected_dice(prob: np.ndarray, classes: np.ndarray, volume: np.ndarray) -> np.ndarray:
    count = np.bincount(classes, minlength=len(prob))
    hits = np.array([prob[number][classes == number].sum(dtype=float) for number in range(len(prob))])
    total = count + volume
    return np.where(total > 0.5, 2 * hits / np.maximum(total, 1e-9), np.nan)


def dice(classes: np.ndarray, label: np.ndarray, weight: np.ndarray, num_classes: int) -> np.ndarray:
    """(K,) of weighted voxels; NaN for a class that no label shows."""
    hits, found, there = (
        np.bincount(values, weights, minlength=num_classes)
        for values, weights in ((label, weight * (classes == label)), (classes, weight), (label, weight))
    )
    return np.where(there > 0, 2 * hits / np.maximum(found + there, 1e-9), np.nan)
