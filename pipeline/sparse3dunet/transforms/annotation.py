"""Conversion of an annotation, in any convention on disk, to label and weight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from sparse3dunet.data.label_and_weight import SparseLabel, source_of
from sparse3dunet.data.partial_labels import looked_for
from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, LABEL, WEIGHT


class SparseLabeld(MapTransform):
    """Dictionary version of :class:`SparseLabel`: replaces the label map and adds its weight.

    A case's own ``annotated_slices``, if the dictionary has them, are removed, and its weight image is replaced. Its
    ``annotated_classes``, the values of the classes that were looked for, are replaced by (K,) bool.

    Args:
        keys: key of the label map.
        classes: see :class:`SparseLabel`.
        ignore_index: see :class:`SparseLabel`.
        annotated_slices: see :class:`SparseLabel`; for cases without slices of their own.
        weight_key: key for the weight; an existing weight image under this key is taken into account.
        slices_key: key of a case's own annotated slices.
        classes_key: key of the classes that were looked for; without it, all classes were.
        allow_missing_keys: whether to return a dictionary without the label map unchanged.
    """

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        classes: int | Sequence[int],
        ignore_index: int | Sequence[int] | None = None,
        annotated_slices: Any = None,
        weight_key: str = WEIGHT,
        slices_key: str = ANNOTATED_SLICES,
        classes_key: str = ANNOTATED_CLASSES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"SparseLabeld takes one key, got {self.keys}.")
        self.weight_key = weight_key
        self.slices_key = slices_key
        self.classes_key = classes_key
        self.split = SparseLabel(classes, ignore_index, annotated_slices)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            slices = d.pop(self.slices_key, None)
            source = source_of(d[key])
            d[key], d[self.weight_key] = self.split(d[key], d.get(self.weight_key), slices)
            if d.get(self.classes_key) is not None:
                values = self.split.classes
                d[self.classes_key] = looked_for(d[key], d[self.weight_key], d[self.classes_key], values, source)
        return d
