"""Labels that the gray values alone make certain: a random walk from the annotated voxels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from sparse3dunet.keys import IMAGE, LABEL, WEIGHT

MOST_VOXELS = 1_500_000
"""On which a random walk takes seconds; larger volumes are walked through on a coarser grid."""


class RandomWalkerLabel(Transform):
    """Give unlabeled voxels the class that a random walk from the annotated ones makes nearly certain.

    Where very few slices are annotated, large parts of a volume look like nothing on them, and a network takes far
    background for tissue. A random walker (Grady, Random Walks for Image Segmentation, IEEE TPAMI 28(11), 2006; that of
    scikit-image) needs no learning: it is sure of what the gray values connect to the annotation. Its labels are taken
    where its probability is at least `certainty`, at a weight well below that of the annotation, which stays as it is.

    Args:
        num_classes: K.
        weight: of a voxel labelled so; annotated voxels mostly have 1. 0 leaves everything as it is.
        certainty: least probability, above 0.5.
        beta: how much a step across an edge costs, relative to the image's own roughness (the 90th percentile of
            squared differences of neighbours): in a noisy image, each voxel would be an island else.
        most_voxels: of the grid that is walked on; of a larger volume, blocks of 2x2x2 voxels or more are one.

    Shapes: image (C, X, Y, Z), normalised; label and weight (1, X, Y, Z) -> label, weight (1, X, Y, Z).

    Raises:
        ValueError: when an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        weight: float = 0.1,
        certainty: float = 0.9,
        beta: float = 200.0,
        most_voxels: int = MOST_VOXELS,
    ) -> None:
        if not 0.5 < certainty <= 1 or weight < 0 or beta <= 0:
            raise ValueError(
                f"expected weight >= 0, 0.5 < certainty <= 1 and beta > 0, got {weight}, {certainty} and {beta}."
            )
        self.num_classes, self.weight, self.certainty, self.beta = num_classes, weight, certainty, beta
        self.most_voxels = most_voxels

    def __call__(  # type: ignore[override]
        self, image: Any, label: Any, weight: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        label, weight = convert_to_tensor(label, track_meta=True), convert_to_tensor(weight, track_meta=True)
        if self.weight == 0:
            return label, weight
        scan, classes, annotated = (
            convert_to_tensor(x, track_meta=False).cpu().numpy() for x in (image, label, weight)
        )
        found = self._walk(np.asarray(scan, np.float32), classes[0], annotated[0] > 0)
        sure = torch.from_numpy(found >= 0)[None] & (torch.from_numpy(annotated) == 0)
        new_label = torch.where(sure, torch.from_numpy(found)[None].to(label.dtype), torch.from_numpy(classes))
        new_weight = torch.where(sure, self.weight, torch.from_numpy(annotated))
        return (
            convert_to_dst_type(new_label, label, dtype=label.dtype)[0],
            convert_to_dst_type(new_weight, weight, dtype=weight.dtype)[0],
        )

    def _walk(self, image: np.ndarray, label: np.ndarray, annotated: np.ndarray) -> np.ndarray:
        """(X, Y, Z) int16: the class where it is certain, else -1."""
        shape = label.shape
        step = math.ceil((label.size / self.most_voxels) ** (1 / 3))
        coarse = np.stack([_block_means(channel, step) for channel in image])
        seeds = np.zeros(coarse.shape[1:], np.int32)
        places = np.nonzero(annotated)
        seeds[tuple(i // step for i in places)] = label[places].astype(np.int32) + 1
        found = self._certain(coarse, seeds)
        for axis in range(3):
            found = found.repeat(step, axis) if step > 1 else found
        return found[tuple(slice(n) for n in shape)]

    def _certain(self, image: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """(X, Y, Z) int16 from an image (C, X, Y, Z) and seeds (0: none, else the class + 1)."""
        from skimage.segmentation import random_walker

        result = np.full(seeds.shape, -1, np.int16)
        present = np.unique(seeds[seeds > 0])
        if len(present) == 1 or not (seeds == 0).any() or np.ptp(image) == 0:
            return result  # one class alone would be certain of all, and nothing follows from no gray values
        numbers = np.searchsorted(present, seeds) + 1
        numbers[seeds == 0] = 0
        # Of deviation 1, since scikit-image divides by the deviation.
        scan = np.moveaxis(image, 0, -1).astype(np.float64)
        scan /= max(float(scan.std()), 1e-6)
        beta = self.beta / _roughness(scan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on solvers that are not installed, and what does not quite converge
            prob = random_walker(
                scan, numbers, beta=beta, mode="cg_j", tol=1e-3, return_full_prob=True, channel_axis=-1
            )
        best = prob.argmax(0)
        sure = prob.max(0) >= self.certainty
        result[sure] = (present - 1)[best[sure]]
        return result


class RandomWalkerLabeld(MapTransform):
    """Dictionary twin of :class:`RandomWalkerLabel`: replaces label and weight.

    Args:
        keys: key of the label.
        num_classes: see :class:`RandomWalkerLabel`.
        weight: see :class:`RandomWalkerLabel`.
        certainty: see :class:`RandomWalkerLabel`.
        beta: see :class:`RandomWalkerLabel`.
        most_voxels: see :class:`RandomWalkerLabel`.
        image_key: key of the image.
        weight_key: key of the weight.
        allow_missing_keys: whether to pass on a dictionary without the label as it is.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        num_classes: int,
        weight: float = 0.1,
        certainty: float = 0.9,
        beta: float = 200.0,
        most_voxels: int = MOST_VOXELS,
        image_key: str = IMAGE,
        weight_key: str = WEIGHT,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.weight_key = image_key, weight_key
        self.walker = RandomWalkerLabel(num_classes, weight, certainty, beta, most_voxels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.weight_key] = self.walker(d[self.image_key], d[key], d[self.weight_key])
        return d


def _roughness(scan: np.ndarray) -> float:
    """The 90th percentile of squared differences of neighbours in (X, Y, Z, C); of those that differ, if few do."""
    squares = np.concatenate([(np.diff(scan, axis=axis) ** 2).sum(-1).ravel() for axis in range(3)])
    found = float(np.percentile(squares, 90))
    return found or float(np.percentile(squares[squares > 0], 90))


def _block_means(channel: np.ndarray, step: int) -> np.ndarray:
    """Means of blocks of step^3 voxels, those at the end being smaller."""
    if step == 1:
        return channel
    total, count = channel, np.ones(channel.shape, np.float32)
    for axis in range(3):
        starts = np.arange(0, channel.shape[axis], step)
        total, count = (np.add.reduceat(part, starts, axis) for part in (total, count))
    return total / count
