"""Conversion of a network's logits of regions to logits of classes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from sparse3dunet.keys import PRED
from sparse3dunet.losses.regions import Regions, class_logits


class RegionsToClasses(Transform):
    """Turn logits of regions into logits of classes, whose argmax is the segmentation by regions.

    See :func:`~sparse3dunet.losses.regions.class_logits`.

    Args:
        regions: class numbers by the name of the region, in the order in which regions are written.

    Shapes: (R, X, Y, Z) -> (R + 1, X, Y, Z), with the metadata of the input.
    """

    def __init__(self, regions: Regions) -> None:
        self.regions = dict(regions)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if len(logits) != len(self.regions):
            raise ValueError(f"expected logits of {len(self.regions)} regions, got shape {tuple(logits.shape)}.")
        return convert_to_dst_type(
            class_logits(convert_to_tensor(logits, track_meta=False), self.regions), logits, dtype=logits.dtype
        )[0]


class RegionsToClassesd(MapTransform):
    """Dictionary version of :class:`RegionsToClasses`.

    Args:
        keys: keys of the logits.
        regions: see :class:`RegionsToClasses`.
        allow_missing_keys: whether keys may be missing.
    """

    def __init__(self, keys: KeysCollection = PRED, *, regions: Regions, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.convert = RegionsToClasses(regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.convert(d[key])
        return d
