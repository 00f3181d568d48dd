"""From a label map with unlabeled voxels, as it lies on disk, to label and weight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor, ensure_tuple

from sparse3dunet.errors import DataError
from sparse3dunet.keys import LABEL, WEIGHT


class SparseLabel(Transform):
    """Split a label map with unlabeled voxels into label and weight.

    Args:
        num_classes: K; the classes on disk are 0 ... K-1.
        ignore_index: the value, or values, that mean "unlabeled" on disk; None where every voxel is annotated.

    Shapes: (1, X, Y, Z), any number type -> label (1, X, Y, Z) int16, 0 where unlabeled; weight (1, X, Y, Z) float32,
    1 where annotated, 0 where unlabeled. Both keep the input's metadata.

    Raises:
        DataError: when a value is neither a class nor unlabeled, when no voxel is annotated, or when the map has more
            than one channel.

    Example:
        >>> label, weight = SparseLabel(num_classes=3, ignore_index=3)(torch.tensor([[[[0, 1, 3]]]]))
        >>> label.tolist(), weight.tolist()
        ([[[[0, 1, 0]]]], [[[[1.0, 1.0, 0.0]]]])
    """

    def __init__(self, num_classes: int, ignore_index: int | Sequence[int] | None = None) -> None:
        self.num_classes = int(num_classes)
        self.ignore_index = () if ignore_index is None else tuple(int(i) for i in ensure_tuple(ignore_index))
        clash = [i for i in self.ignore_index if 0 <= i < self.num_classes]
        if clash:
            raise DataError(
                f"ignore_index {clash[0]} is also a class: the {num_classes} classes are 0 ... {num_classes - 1}. "
                f"Choose another value for unlabeled voxels, {num_classes} for example."
            )

    def __call__(self, annotation: Any) -> tuple[torch.Tensor, torch.Tensor]:
        values = convert_to_tensor(annotation, track_meta=True)
        source = source_of(values)
        if values.shape[0] != 1:
            raise DataError(f"{source}: a label map must have one channel, found {values.shape[0]}.")
        unlabeled = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        plain = values.as_tensor() if isinstance(values, MetaTensor) else values
        for value in self.ignore_index:
            unlabeled |= plain == value
        annotated = plain[~unlabeled]
        if annotated.numel() == 0:
            raise DataError(
                f"{source}: no voxel is annotated; all are unlabeled ({self._unlabeled_text()}). "
                "Annotate at least one slice, or take the case out of the data set."
            )
        classes = torch.arange(self.num_classes, device=plain.device)
        unknown = annotated[~torch.isin(annotated, classes.to(annotated.dtype))].unique()
        if unknown.numel():
            found = ", ".join(f"{v:.7g}" for v in unknown[:5].tolist())
            raise DataError(
                f"{source}: label value {found} is neither a class (0 ... {self.num_classes - 1}) nor unlabeled "
                f"({self._unlabeled_text()}); labels must be whole numbers. If it means unlabeled, pass it as "
                "ignore_index; if it is a class, declare it (num_classes, or labels in dataset.json)."
            )
        label = torch.where(unlabeled, torch.zeros_like(plain), plain).to(torch.int16)
        return _like(label, values), _like((~unlabeled).to(torch.float32), values)

    def _unlabeled_text(self) -> str:
        return "ignore_index: " + (", ".join(map(str, self.ignore_index)) or "none set")


class SparseLabeld(MapTransform):
    """Dictionary twin of :class:`SparseLabel`: replaces the label map and adds its weight.

    Args:
        keys: key of the label map.
        num_classes: see :class:`SparseLabel`.
        ignore_index: see :class:`SparseLabel`.
        weight_key: key under which the weight is put.
        allow_missing_keys: whether to pass on a dictionary without the label map as it is.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        num_classes: int,
        ignore_index: int | Sequence[int] | None = None,
        weight_key: str = WEIGHT,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"SparseLabeld takes one key, got {self.keys}.")
        self.weight_key = weight_key
        self.split = SparseLabel(num_classes, ignore_index)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.weight_key] = self.split(d[key])
        return d


def source_of(image: Any) -> str:
    """The file that a MetaTensor was read from, for messages; "label map" where that is unknown."""
    return str(image.meta.get("filename_or_obj", "label map")) if isinstance(image, MetaTensor) else "label map"


def _like(values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return MetaTensor(values).copy_meta_from(source) if isinstance(source, MetaTensor) else values
