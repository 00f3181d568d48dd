"""Pseudo-labels: classes found without a network, for the network to learn where nothing is annotated."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, ResampleToMatch

from sparse3dunet.data.names import case_name
from sparse3dunet.data.slices import Slices
from sparse3dunet.densify.propagated import Propagation
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.keys import LABEL, WEIGHT

MOST_WEIGHT = 0.3
"""Weight of a voxel that was found, where much is annotated; annotated ones mostly have 1."""


class PseudoLabels:
    """Pseudo-labels of a part of a run, found when the network's data are read.

    Args:
        propagation: finds them.
        cases: cases of the run.
        held_out: by case, slices that the network is judged on, which propagation does not see then either.
        seconds: duration within which cases with such slices get them: they are found anew for these.
    """

    def __init__(
        self, propagation: Propagation, cases: Sequence[ImageCase], held_out: Mapping[str, Slices], seconds: float
    ) -> None:
        self.propagation, self.cases, self.held_out = propagation, {case.name: case for case in cases}, held_out
        self.until = time.perf_counter() + seconds

    def __call__(self, name: str) -> MetaTensor | None:
        """Return the classes (1, X, Y, Z) of a case that are certain, -1 elsewhere; None if there are none."""
        unseen = self.held_out.get(name)
        if unseen is not None and time.perf_counter() > self.until:
            return None
        return self.propagation.certain_classes(self.cases[name], unseen)


class PseudoLabeld(MapTransform):
    """Give unannotated voxels the class that other methods found for them, with a low weight (Lee 2013).

    A few annotated slices show the network little of a volume, and it mistakes what it has not seen. The other methods
    see more: all voxels' positions, and how intensities connect them. What they find is mostly right, and a network
    that learns from it is better than they are, as it does not repeat errors that do not recur.

    They weigh as much as the annotation together: else their errors outweigh it where very few slices are annotated.
    A loss divides by a patch's weights, so that this is so in patches that show both, as all do of small volumes.

    Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML 2013
    Workshop on Challenges in Representation Learning.

    Args:
        keys: key of the label.
        weight_key: key of the weight; annotated voxels mostly have 1, the others 0.
        found: returns, by the case's name, the classes (1, X, Y, Z) with their affine, -1 where none is certain; None
            for a case to be left as it is.
        total: weight of all voxels with such a class together, relative to that of the annotated ones; of a single one,
            at most :data:`MOST_WEIGHT`.
        allow_missing_keys: whether to return a dictionary without the label unchanged.

    Shapes:
        label and weight (1, X, Y, Z), in RAS order -> the same.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        weight_key: str = WEIGHT,
        found: Callable[[str], MetaTensor | None],
        total: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.weight_key, self.found, self.total = weight_key, found, total
        self.orientation = Orientation("RAS", labels=None)
        self.resample = ResampleToMatch(mode="nearest", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            found = self.found(case_name(d))
            if found is None:
                continue
            label, weight = d[key], d[self.weight_key]
            classes = self._to_match(found, label).to(label.device, label.dtype)
            chosen = (weight.as_tensor() == 0) & (classes >= 0)
            each = self.total * float(weight.sum()) / max(int(chosen.sum()), 1)
            d[key] = torch.where(chosen, classes, label)
            d[self.weight_key] = torch.where(chosen, min(each, MOST_WEIGHT), weight)
        return d

    def _to_match(self, found: MetaTensor, label: MetaTensor) -> torch.Tensor:
        """Turn the classes into the label's order, and resample them if it has another grid, which takes far longer."""
        turned = cast(MetaTensor, self.orientation(found))
        if turned.shape != label.shape or not torch.allclose(turned.affine, label.affine.to(turned.affine), atol=1e-3):
            turned = cast(MetaTensor, self.resample(turned, img_dst=label))
        return turned.as_tensor()
