"""Forests on a voxel's appearance, its position, and other methods' predictions around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from sparse3dunet.errors import DataError
from sparse3dunet.propagation.responses import filter_responses, gaussian, positions, surroundings
from sparse3dunet.propagation.scan import Propagator, Scan, log_prob, single, softmax
from sparse3dunet.propagation.shape import distance_from

MOST, MOST_BACKGROUND = 8000, 20000
"""Maximum voxels of each class that a forest learns from; their weights make up for the rest."""
BLURS = (1.5, 4.0, 10.0)
"""Standard deviations, in voxels of the plane, of the smoothed probabilities around a voxel."""
LEAST_OF_TREE = 500
"""Minimum voxels per tree of the auto-context."""
MOST_ROWS = 300_000
"""Maximum rows from which the auto-context draws the voxels of its trees."""
CHUNK = 400_000
POSITIONS = 3
"""Number of position columns, the last ones of :func:`features`."""


class Forest(Propagator):
    """Extremely randomized trees on filter responses and position (Geurts et al., Machine Learning 63(1), 2006).

    Args:
        trees: number of trees.
        position: whether the trees see a voxel's position, in mm.
        seed: of the trees, and of the voxels drawn for them.
        num_classes: K; None: as many as are annotated.
    """

    def __init__(self, trees: int = 40, position: bool = True, seed: int = 0, num_classes: int | None = None) -> None:
        self.trees, self.position, self.seed, self.num_classes = trees, position, seed, num_classes

    def fit_scan(self, scan: Scan, columns: np.ndarray | None = None) -> Forest:
        """Fit to a checked scan; `columns`: its :func:`features`, if already computed."""
        self._columns = features(scan, self.position) if columns is None else columns
        self._scan = scan
        drawn = draw(scan.known.numpy(), scan.label.numpy(), self.seed, MOST, MOST_BACKGROUND)
        forest = ExtraTreesClassifier(self.trees, min_samples_leaf=2, n_jobs=-1, random_state=self.seed)
        self._forest = forest.fit(self._columns[drawn.index], drawn.label, sample_weight=drawn.weight)
        return self

    def predict_proba(self) -> np.ndarray:
        self._check_fitted()
        scan = self._scan
        return probabilities(self._forest, [self._columns], scan.num_classes).reshape(scan.num_classes, *scan.shape)

    def predict_at(self, index: np.ndarray) -> np.ndarray:
        """Return probabilities (K, N) of voxels by their flat index."""
        self._check_fitted()
        return probabilities(self._forest, [self._columns[index]], self._scan.num_classes)


class AutoContext:
    """Random forest that also sees the cross-fitted predictions of other methods at and around each voxel.

    After Breiman, Random Forests, Machine Learning 45(1), 2001; Tu and Bai, Auto-Context and Its Application to
    High-Level Vision Tasks, IEEE TPAMI 32(10), 2010; and Wolpert, Stacked Generalization, Neural Networks 5(2), 1992.

    Args:
        trees: number of trees.
        seed: of the trees, and of the voxels drawn for them.
        most: voxels of each class and part that they learn from.
        share: share of the rows that each tree sees: low, as the voxels of a part are alike, and the parts are few.
    """

    def __init__(self, trees: int = 64, seed: int = 0, most: int = 2000, share: float = 0.1) -> None:
        self.trees, self.seed, self.most, self.share = trees, seed, most, share

    def draw(self, scan: Scan, held: torch.Tensor) -> Drawn:
        """Draw voxels of a part to learn from."""
        return draw(held.numpy(), scan.label.numpy(), self.seed, self.most, 3 * self.most)

    def fit(self, rows: Sequence[np.ndarray], drawn: Sequence[Drawn]) -> AutoContext:
        """Fit to the rows (N, F) of each part and the voxels drawn from it."""
        label, weight = (np.concatenate([getattr(d, name) for d in drawn]) for name in ("label", "weight"))
        chosen = _by_weight(label, weight, self.seed)
        count = int(np.clip(self.share * len(chosen), min(LEAST_OF_TREE, len(chosen)), len(chosen)))
        forest = RandomForestClassifier(
            self.trees, min_samples_leaf=3, max_samples=count, n_jobs=-1, random_state=self.seed
        )
        self._forest = forest.fit(np.concatenate(rows)[chosen], label[chosen])
        return self

    def predict(self, columns: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
        """Return probabilities (K, N) of voxels whose columns (N, F) are given in one array or several."""
        if not hasattr(self, "_forest"):
            raise DataError("this AutoContext was not fitted yet; call fit(rows, drawn) first.")
        return probabilities(self._forest, columns, num_classes)


@dataclass(frozen=True)
class Drawn:
    """Voxels to learn from: flat index, class, and the number of voxels that each represents."""

    index: np.ndarray
    label: np.ndarray
    weight: np.ndarray

    def only(self, chosen: np.ndarray) -> Drawn:
        """Return those selected by a mask."""
        return Drawn(self.index[chosen], self.label[chosen], self.weight[chosen])


def features(scan: Scan, position: bool = True) -> np.ndarray:
    """Return filter responses, surroundings and positions of all voxels (N, F), float32."""
    parts = [filter_responses(scan), surroundings(scan), *([positions(scan)] if position else [])]
    result = np.empty((scan.label.numel(), sum(map(len, parts))), np.float32)
    for column, values in enumerate(row for part in parts for row in part):  # one copy less than with concatenation
        result[:, column] = values.numpy().ravel()
    return result


def mean_prob(members: np.ndarray) -> np.ndarray:
    """Return the geometric mean (K, ...) of the probabilities (M, K, ...) of some methods."""
    return softmax(log_prob(members).mean(0))


def context(scan: Scan, members: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the methods' predictions at and around each voxel, and its distance from annotation, (N, F) float32.

    Args:
        scan: scan with the annotation that the methods see.
        members: (M, K, X, Y, Z) probabilities of the methods.
        mean: (K, X, Y, Z) their mean.
    """
    prob = torch.from_numpy(mean)
    around = [gaussian(prob, scale * scan.plane_spacing, scan.spacing) for scale in BLURS]
    distance = torch.from_numpy(distance_from(scan.known, scan.spacing))[None]
    parts = [torch.from_numpy(single(members)).flatten(0, 1), prob, *around, distance]
    return torch.cat(parts).flatten(1).T.contiguous().numpy()


def draw(mask: np.ndarray, label: np.ndarray, seed: int, most: int, most_background: int) -> Drawn:
    """Draw up to `most` voxels of each class (`most_background` of class 0) within a mask."""
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
    """Draw rows with replacement in proportion to their weight, and at least one of each class.

    Sample weights of a forest that draws rows itself differ in meaning between versions of scikit-learn.
    """
    count = int(np.clip(weight.sum(), len(label), max(MOST_ROWS, len(label))))
    drawn = np.random.default_rng(seed).choice(len(label), count, p=weight / weight.sum())
    return np.concatenate([drawn, np.unique(label, return_index=True)[1]])


def probabilities(
    forest: ExtraTreesClassifier | RandomForestClassifier, columns: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """Return the forest's probabilities (K, N), float32, computed in chunks."""
    count = len(columns[0])
    result = np.zeros((num_classes, count), np.float32)
    for start in range(0, count, CHUNK):
        chunk = np.concatenate([part[start : start + CHUNK] for part in columns], 1)
        result[forest.classes_, start : start + CHUNK] = forest.predict_proba(chunk).T
    return result
