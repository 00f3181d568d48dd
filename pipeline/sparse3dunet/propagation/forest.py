"""Forests on what a voxel looks like, where it is, and what other methods say around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from sparse3dunet.propagation.responses import filter_responses, gaussian, positions, surroundings
from sparse3dunet.propagation.scan import Propagator, Scan, log_prob, softmax
from sparse3dunet.propagation.shape import distance_from

MOST, MOST_BACKGROUND = 8000, 20000
"""Voxels of each class that a forest learns from; their weights make up for the rest."""
BLURS = (1.5, 4.0, 10.0)
"""Standard deviations, in voxels of the plane, at which a voxel sees others' probabilities around it."""
LEAST_OF_TREE = 500
"""Voxels that a tree of the auto-context sees at least."""
MOST_ROWS = 300_000
"""That the auto-context draws its trees' voxels from."""
CHUNK = 400_000
POSITIONS = 3
"""The last columns of :func:`look`."""


class Forest(Propagator):
    """Extremely randomized trees on filter responses and position (Geurts et al., Machine Learning 63(1), 2006).

    Args:
        trees: how many.
        position: whether the trees see where a voxel lies, in mm.
        seed: of the trees, and of the voxels drawn for them.
        num_classes: K; None: as many as are annotated.
    """

    def __init__(self, trees: int = 40, position: bool = True, seed: int = 0, num_classes: int | None = None) -> None:
        self.trees, self.position, self.seed, self.num_classes = trees, position, seed, num_classes

    def fit_scan(self, scan: Scan, columns: np.ndarray | None = None) -> Forest:
        """`columns`: :func:`look` of the scan, where it is at hand."""
        self._columns = look(scan, self.position) if columns is None else columns
        self._scan = scan
        drawn = draw(scan.known.numpy(), scan.label.numpy(), self.seed, MOST, MOST_BACKGROUND)
        forest = ExtraTreesClassifier(self.trees, min_samples_leaf=2, n_jobs=-1, random_state=self.seed)
        self._forest = forest.fit(self._columns[drawn.index], drawn.label, sample_weight=drawn.weight)
        return self

    def predict_proba(self) -> np.ndarray:
        scan = self._scan
        return probabilities(self._forest, [self._columns], scan.num_classes).reshape(scan.num_classes, *scan.shape)

    def predict_at(self, index: np.ndarray) -> np.ndarray:
        """(K, N) of some voxels, by their index in the flat volume."""
        return probabilities(self._forest, [self._columns[index]], self._scan.num_classes)


class AutoContext:
    """A random forest that also sees what other methods say of a voxel and around it, where these knew nothing of it.

    After Breiman, Random Forests, Machine Learning 45(1), 2001, and Tu and Bai, Auto-Context and Its Application to
    High-Level Vision Tasks, IEEE TPAMI 32(10), 2010; what the methods say is cross-fitted (Wolpert, Stacked
    Generalization, Neural Networks 5(2), 1992).

    Args:
        trees: how many.
        seed: of the trees, and of the voxels drawn for them.
        most: voxels of each class and part that they learn from.
        share: of the voxels that these stand for, as many as each tree sees: those of a part are alike, and the parts
            are few.
    """

    def __init__(self, trees: int = 64, seed: int = 0, most: int = 2000, share: float = 0.1) -> None:
        self.trees, self.seed, self.most, self.share = trees, seed, most, share

    def draw(self, scan: Scan, held: torch.Tensor) -> Drawn:
        """Voxels of a part to learn from."""
        return draw(held.numpy(), scan.label.numpy(), self.seed, self.most, 3 * self.most)

    def fit(self, rows: Sequence[np.ndarray], drawn: Sequence[Drawn]) -> AutoContext:
        """Learn from the rows of some parts: of each (N, F) and the voxels that were drawn."""
        label, weight = (np.concatenate([getattr(d, name) for d in drawn]) for name in ("label", "weight"))
        chosen = _by_weight(label, weight, self.seed)
        count = int(np.clip(self.share * len(chosen), min(LEAST_OF_TREE, len(chosen)), len(chosen)))
        forest = RandomForestClassifier(
            self.trees, min_samples_leaf=3, max_samples=count, n_jobs=-1, random_state=self.seed
        )
        self._forest = forest.fit(np.concatenate(rows)[chosen], label[chosen])
        return self

    def predict(self, columns: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
        """(K, N) of voxels whose columns (N, F) are given in one piece or several."""
        return probabilities(self._forest, columns, num_classes)


@dataclass(frozen=True)
class Drawn:
    """Voxels to learn from: their index in the flat volume, their class, and for how many each stands."""

    index: np.ndarray
    label: np.ndarray
    weight: np.ndarray

    def only(self, chosen: np.ndarray) -> Drawn:
        """Some of them, by a mask."""
        return Drawn(self.index[chosen], self.label[chosen], self.weight[chosen])


def look(scan: Scan, position: bool = True) -> np.ndarray:
    """(N, F) float32: filter responses, surroundings and position of all voxels."""
    parts = [filter_responses(scan), surroundings(scan), *([positions(scan)] if position else [])]
    result = np.empty((scan.label.numel(), sum(map(len, parts))), np.float32)
    for column, values in enumerate(row for part in parts for row in part):  # one copy less than by concatenation
        result[:, column] = values.numpy().ravel()
    return result


def mean_prob(members: np.ndarray) -> np.ndarray:
    """(K, X, Y, Z): the geometric mean of some methods' probabilities (M, K, X, Y, Z)."""
    return softmax(log_prob(members).mean(0))


def context(scan: Scan, members: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(N, F) float32: what methods say of each voxel, and on average around it, and its distance from annotation.

    Args:
        scan: with the annotation that they know.
        members: (M, K, X, Y, Z) their probabilities.
        mean: (K, X, Y, Z) their mean.
    """
    prob = torch.from_numpy(mean)
    around = [gaussian(prob, scale * scan.plane_spacing, scan.spacing) for scale in BLURS]
    distance = torch.from_numpy(distance_from(scan.known, scan.spacing))[None]
    parts = [torch.from_numpy(members.astype(np.float32)).flatten(0, 1), prob, *around, distance]
    return torch.cat(parts).flatten(1).T.contiguous().numpy()


def draw(mask: np.ndarray, label: np.ndarray, seed: int, most: int, most_background: int) -> Drawn:
    """Up to so many voxels of each class within a mask."""
    random, flat = np.random.default_rng(seed), label.ravel()
    inside = np.flatnonzero(mask)
    index, weight = [], []
    for number in np.unique(flat[inside]):
        of_class = inside[flat[inside] == number]
        count = min(len(of_class), most if number else most_background)
        index.append(random.choice(of_class, count, replace=False))
        weight.append(np.full(count, len(of_class) / count))
    chosen = np.concatenate(index)
    return Drawn(chosen, flat[chosen], np.concatenate(weight))


def _by_weight(label: np.ndarray, weight: np.ndarray, seed: int) -> np.ndarray:
    """Rows drawn with replacement, as often as they stand for voxels, and one of each class at least.

    Weights given to a forest mean different things in different versions of scikit-learn where it draws rows itself.
    """
    count = int(np.clip(weight.sum(), len(label), max(MOST_ROWS, len(label))))
    drawn = np.random.default_rng(seed).choice(len(label), count, p=weight / weight.sum())
    return np.concatenate([drawn, np.unique(label, return_index=True)[1]])


def probabilities(
    forest: ExtraTreesClassifier | RandomForestClassifier, columns: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """(K, N) float32, chunk by chunk."""
    count = len(columns[0])
    result = np.zeros((num_classes, count), np.float32)
    for start in range(0, count, CHUNK):
        chunk = np.concatenate([part[start : start + CHUNK] for part in columns], 1)
        result[forest.classes_, start : start + CHUNK] = forest.predict_proba(chunk).T
    return result
