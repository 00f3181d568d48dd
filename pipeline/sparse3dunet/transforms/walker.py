"""Labels that the intensities alone make certain, by a random walk from the annotated voxels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from sparse3dunet.data.label_and_weight import as_tensor
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT
from sparse3dunet.propagation.field import Field
from sparse3dunet.propagation.random_walker import RandomWalker, roughness
from sparse3dunet.propagation.scan import Scan, enlarged
from sparse3dunet.transforms.arguments import entry

MOST_VOXELS = 1_500_000
"""Number of voxels on which a random walk takes seconds; larger volumes use a coarser grid."""


class RandomWalkerLabel(Transform):
    """Give unlabeled voxels the class that a random walk from the annotated ones makes nearly certain.

    If very few slices are annotated, large parts of a volume look unlike anything on them, and a network mistakes far
    background for tissue. A random walker (:class:`~sparse3dunet.propagation.RandomWalker`) needs no learning: it is
    certain where the intensities connect voxels to the annotation. Its labels are used where its probability is at
    least `certainty`, with a weight well below that of the annotation, which stays unchanged.

    Args:
        num_classes: K.
        weight: weight of voxels with such a label; annotated voxels mostly have 1. With 0 nothing is changed.
        certainty: least probability, above 0.5.
        beta: cost of a step across an edge, relative to the image's own roughness (the 90th percentile of squared
            differences of neighbours): otherwise, each voxel of a noisy image would be an island.
        most_voxels: largest number of grid points; in a larger volume, blocks of 2x2x2 voxels or more are combined.

    Shapes: image (C, X, Y, Z), normalised; label and weight (1, X, Y, Z) -> label, weight (1, X, Y, Z).

    Raises:
        ValueError: when an argument is out of range.
        DataError: when the image contains NaN or infinity.
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
        gray, label, weight = (
            as_tensor(image, "image").as_tensor(),
            as_tensor(label, "label"),
            as_tensor(weight, "weight"),
        )
        unlabeled = weight.as_tensor() == 0
        classes = label.as_tensor()[~unlabeled].unique()
        # A single class would be certain everywhere, and a constant image contains no information.
        if self.weight == 0 or len(classes) < 2 or not unlabeled.any() or gray.min() == gray.max():
            return label, weight
        best, found = self._probabilities(gray, label, weight).to(label.device).max(0, keepdim=True)
        sure = unlabeled & (best >= self.certainty)
        return torch.where(sure, found.to(label.dtype), label), torch.where(sure, self.weight, weight)

    def _probabilities(self, image: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return (K, X, Y, Z)."""
        whole = Scan.of(image, label, weight, (1, 1, 1), self.num_classes)
        step = (math.ceil((label.numel() / self.most_voxels) ** (1 / 3)),) * 3
        scan = Field((slice(None),) * 3, step).coarse(whole)
        # The walker's own beta is relative to the standard deviation.
        walker = RandomWalker(self.beta * float(scan.image.std()) / roughness(scan.image))
        return enlarged(torch.from_numpy(walker.fit_scan(scan).predict_proba()), step, whole.shape)


class RandomWalkerLabeld(MapTransform):
    """Dictionary version of :class:`RandomWalkerLabel`: replaces label and weight.

    Args:
        keys: key of the label.
        image_key: key of the image.
        weight_key: key of the weight.
        allow_missing_keys: whether to return a dictionary without the label unchanged.
        num_classes: see :class:`RandomWalkerLabel`, as for the others.
        weight: likewise.
        certainty: likewise.
        beta: likewise.
        most_voxels: likewise.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        image_key: str = IMAGE,
        weight_key: str = WEIGHT,
        allow_missing_keys: bool = False,
        num_classes: int,
        weight: float = 0.1,
        certainty: float = 0.9,
        beta: float = 200.0,
        most_voxels: int = MOST_VOXELS,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, self.weight_key = image_key, weight_key
        self.walker = RandomWalkerLabel(num_classes, weight, certainty, beta, most_voxels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image, weight = entry(d, self.image_key, self), entry(d, self.weight_key, self)
            d[key], d[self.weight_key] = self.walker(image, d[key], weight)
        return d
