"""Voxel weights by class, so that frequent classes do not dominate rare ones in the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from sparse3dunet.data.label_and_weight import source_of
from sparse3dunet.errors import DataError
from sparse3dunet.keys import LABEL, WEIGHT
from sparse3dunet.transforms.arguments import entry


def class_weights(counts: Sequence[float], scheme: str | None = "inverse", cap: float = 10.0) -> list[float]:
    """Compute the weight of each class from its number of annotated voxels.

    Args:
        counts: annotated voxels of each class in the whole data set, not in a patch.
        scheme: "inverse" for equal total weights of all classes; "inverse_sqrt" for the square root of these weights;
            "none" or None for weight 1 everywhere.
        cap: largest ratio of a weight to the least one.

    Returns:
        Per class a weight above 0. Their mean over all annotated voxels is 1, so that the loss keeps its scale. A class
        that is never annotated gets 1.

    Raises:
        DataError: when a count is negative or not finite, nothing is annotated, or a setting is not one of the above.

    Example:
        >>> [round(w, 3) for w in class_weights([800, 100, 100, 0])]
        [0.417, 3.333, 3.333, 1.0]
    """
    counts = [float(n) for n in counts]
    if not all(math.isfinite(n) and n >= 0 for n in counts):
        raise DataError(f"voxels per class must be finite and not negative, got {counts}.")
    if not any(counts):
        raise DataError(f"no voxel of any class is annotated (voxels per class: {counts}); annotate some.")
    if not cap >= 1:
        raise DataError(f"cap must be at least 1, got {cap}.")
    relative = _scheme(scheme)
    total = sum(counts)
    weights = [relative(total / n) if n else math.inf for n in counts]
    limit = cap * min(weights)
    weights = [min(w, limit) for w in weights]
    scale = total / sum(w * n for w, n in zip(weights, counts) if n)
    return [w * scale if n else 1.0 for w, n in zip(weights, counts)]


def rare_class_weights(
    counts: Sequence[float], share: float = 0.01, scheme: str | None = None, cap: float = 100.0
) -> list[float] | None:
    """Return by class how much its voxels count in the cross-entropy, so that a rare class is not lost beside others.

    A class with less than a `share` of the annotated voxels counts as if it had it; the others' voxels count once. With
    the plain mean over voxels, a network in its first minutes does best to predict no such class anywhere, and then has
    hardly a gradient, in Dice neither, to find it by.

    Args:
        counts: annotated voxels of each class in the whole data set.
        share: 0 ... 1; 0 for no weights.
        scheme: that of :func:`class_weights`, if all classes have such a weight: then there are none of these.
        cap: the largest weight.

    Returns:
        Weights (K,); None if no class is that rare.

    Raises:
        DataError: when `share` is not in [0, 1].

    Example:
        >>> rare_class_weights([9940, 50, 0, 10], share=0.01)
        [1.0, 2.0, 1.0, 10.0]
    """
    if scheme not in (None, "none"):
        return None
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise DataError(f"rare_share must be from 0 (no weights) to 1, a share of the annotated voxels; got {share}.")
    least = share * sum(counts)
    weights = [min(max(least / n, 1.0), cap) if n else 1.0 for n in counts]
    return weights if max(weights, default=1.0) > 1 else None


def _scheme(name: str | None) -> Callable[[float], float]:
    """Return the function from the inverse of a class's share to its weight, up to a factor."""
    if name not in _SCHEMES:
        raise DataError(f"scheme must be one of {', '.join(str(s) for s in _SCHEMES if s)}; got {name!r}.")
    return _SCHEMES[name]


_SCHEMES: dict[str | None, Callable[[float], float]] = {
    "inverse": float,
    "inverse_sqrt": math.sqrt,
    "none": lambda inverse: 1.0,
    None: lambda inverse: 1.0,
}


class ClassWeight(Transform):
    """Multiply the weight of each annotated voxel by that of its class.

    As in Çiçek et al. (3D U-Net, MICCAI 2016), whose weighted cross-entropy gives the frequent background less weight
    and the rare inner tubule more, to balance their influence on the loss.

    Args:
        weights: weights of class 0 ... K-1, finite and above 0, for example from :func:`class_weights`.

    Shapes: weight (1, X, Y, Z), label (1, X, Y, Z) -> weight (1, X, Y, Z) float32, with the weight's metadata.
    Unlabeled voxels stay 0, whatever their label.

    Raises:
        DataError: when an annotated voxel has a class without a weight, or a class's weight is not above 0.

    Example:
        >>> ClassWeight([0.5, 2.0])(torch.tensor([[[[1.0, 1.0, 0.0]]]]), torch.tensor([[[[0, 1, 255]]]])).tolist()
        [[[[0.5, 2.0, 0.0]]]]
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(float(w) for w in weights)
        if not self.weights or not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise DataError(
                f"the weights of the classes must be finite and above 0, got {list(self.weights)}; to exclude voxels, "
                "leave them unlabeled."
            )

    def __call__(self, weight: Any, label: Any) -> torch.Tensor:  # type: ignore[override]
        source = convert_to_tensor(weight, track_meta=True)
        result = convert_to_tensor(source, dtype=torch.float32, track_meta=False).clone()
        annotated = result > 0
        classes = convert_to_tensor(label, device=result.device, track_meta=False)[annotated]
        numbers = classes.double()  # in a small integer type, the number of weights may be out of range
        is_class = (numbers >= 0) & (numbers < len(self.weights)) & (numbers == numbers.floor())
        unknown = classes[~is_class].unique()
        if unknown.numel():
            found = ", ".join(f"{v:.7g}" for v in unknown[:5].tolist())
            raise DataError(
                f"{source_of(label)}: an annotated voxel has class {found}, which has no weight; the "
                f"{len(self.weights)} weights are for the classes 0 ... {len(self.weights) - 1}. Give each class one."
            )
        result[annotated] *= torch.tensor(self.weights, device=result.device)[classes.long()]
        return convert_to_dst_type(result, source, dtype=torch.float32)[0]


class ClassWeightd(MapTransform):
    """Dictionary version of :class:`ClassWeight`.

    Args:
        keys: key of the weight.
        label_key: key of the label.
        weights: see :class:`ClassWeight`.
        allow_missing_keys: whether to return a dictionary without the weight unchanged.
    """

    def __init__(
        self,
        keys: KeysCollection = WEIGHT,
        label_key: str = LABEL,
        *,
        weights: Sequence[float],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key = label_key
        self.weigh = ClassWeight(weights)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.weigh(d[key], entry(d, self.label_key, self))
        return d
