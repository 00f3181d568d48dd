"""Pseudo-labels: classes found without a network, for the network to learn where nothing is annotated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch
from monai.utils import convert_to_tensor

from sparse3dunet.data.names import case_name
from sparse3dunet.keys import LABEL, WEIGHT

MOST_WEIGHT = 0.3
"""Weight of a voxel that was found, where much is annotated; annotated ones mostly have 1."""


class PseudoLabeld(MapTransform):
    """Give unannotated voxels the class that other methods found for them, with a low weight (Lee 2013).

    A few annotated slices show the network little of a volume, and it mistakes what it has not seen. The other methods
    see more: all voxels' positions, and how intensities connect them. What they find is mostly right, and a network
    that learns from it is better than they are, as it does not repeat errors that do not recur.

    They weigh as much as the annotation together: else their errors outweigh it where very few slices are annotated.

    Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
    Workshop on Challenges in Representation Learning.

    Args:
        keys: key of the label.
        weight_key: key of the weight; annotated voxels mostly have 1, the others 0.
        found: by the case's name, the classes (1, X, Y, Z) with their affine, -1 where none is certain; as pairs, since
            a config would take a dict with a case named _target_ for a component.
        share: weight of all voxels with such a class together, relative to that of the annotated ones; of a single one,
            at most :data:`MOST_WEIGHT`.
        allow_missing_keys: whether to return a dictionary without the label unchanged.

    Shapes:
        label and weight (1, X, Y, Z) -> the same.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        weight_key: str = WEIGHT,
        found: Sequence[tuple[str, MetaTensor]],
        share: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.weight_key, self.found, self.share = weight_key, dict(found), share
        self.to_match = ResampleToMatch(mode="nearest", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            label, weight = d[key], d[self.weight_key]
            found = convert_to_tensor(self.to_match(self.found[case_name(d)], img_dst=label)).to(
                label.device, label.dtype
            )
            chosen = (weight.as_tensor() == 0) & (found >= 0)
            each = self.share * float(weight.sum()) / max(int(chosen.sum()), 1)
            d[key] = torch.where(chosen, found, label)
            d[self.weight_key] = torch.where(chosen, min(each, MOST_WEIGHT), weight)
        return d
