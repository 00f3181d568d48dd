"""From an annotation, in any convention that it came in on disk, to label and weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple

from sparse3dunet.data.slices import listed_slices, nonempty_slices, slices_mask
from sparse3dunet.errors import DataError


class SparseLabel(Transform):
    """Turn a label map, and what is known of where it was annotated, into label and weight.

    A voxel is annotated unless something says otherwise: its value (`ignore_index`), a weight of 0, or its lying
    outside of the annotated slices. These add up.

    Args:
        classes: the classes' values on disk in the order of their numbers 0 ... K-1, as ``[0, 100, 200]``; or K, where
            the values are 0 ... K-1.
        ignore_index: the value, or values, that mean "unlabeled" on disk; None for none.
        annotated_slices: for label maps in which every unannotated voxel is 0: the annotated slices, in any of the
            forms of :func:`~sparse3dunet.data.slices.listed_slices`, or a word by which to find them
            (:func:`~sparse3dunet.data.slices.nonempty_slices`); None where slices do not matter.

    Shapes: label map (1, X, Y, Z), any number type, and optionally a weight image of the same shape, >= 0 -> label
    (1, X, Y, Z) int16, the class number, 0 where unlabeled; weight (1, X, Y, Z) float32, 0 where unlabeled, elsewhere 1
    or as in the weight image. Both keep the label map's metadata. Slices go by array axes and by the affine: apply it
    before anything turns or resamples the label map.

    Raises:
        DataError: when an annotated voxel's value is no class, when no voxel is annotated, when the weight image has
            another shape or a value below 0, or when the annotated slices are wrong or cannot be told.

    Example:
        >>> label, weight = SparseLabel(classes=3, ignore_index=3)(torch.tensor([[[[0, 1, 3]]]]))
        >>> label.tolist(), weight.tolist()
        ([[[[0, 1, 0]]]], [[[[1.0, 1.0, 0.0]]]])
    """

    def __init__(
        self,
        classes: int | Sequence[int],
        ignore_index: int | Sequence[int] | None = None,
        annotated_slices: Any = None,
    ) -> None:
        self.classes = tuple(range(classes)) if isinstance(classes, int) else tuple(int(c) for c in classes)
        self.ignore_index = () if ignore_index is None else tuple(int(i) for i in ensure_tuple(ignore_index))
        self.annotated_slices = annotated_slices
        clash = [i for i in self.ignore_index if i in self.classes]
        if clash:
            raise DataError(
                f"ignore_index {clash[0]} is also a class: the classes are {_listed(self.classes)}. "
                f"Choose another value for unlabeled voxels, {max(self.classes) + 1} for example."
            )

    def __call__(
        self, annotation: Any, weight: Any = None, annotated_slices: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = convert_to_tensor(annotation, track_meta=True)
        source = source_of(values)
        if values.shape[0] != 1 or values.ndim != 4:
            raise DataError(
                f"{source}: a label map must have one channel and three dimensions, found shape "
                f"{tuple(values.shape)} with the channel first."
            )
        plain = values.as_tensor()
        slices = self.annotated_slices if annotated_slices is None else annotated_slices
        weights = self._weights(plain, weight, source)
        weights = torch.where(self._unlabeled(plain, values.affine, slices, source), 0.0, weights)
        if not bool((weights > 0).any()):
            elsewhere = "" if slices is None else ", or lie outside of the annotated slices"
            elsewhere += "" if weight is None else f", or have weight 0 in {source_of(weight)}"
            raise DataError(
                f"{source}: no voxel is annotated; all are unlabeled ({self._unlabeled_text()}{elsewhere}). "
                "Annotate at least one slice, or take the case out of the data set."
            )
        label = self._class_numbers(plain, weights > 0, source)
        return tuple(convert_to_dst_type(part, values, dtype=part.dtype)[0] for part in (label, weights))

    def _weights(self, plain: torch.Tensor, weight: Any, source: str) -> torch.Tensor:
        if weight is None:
            return torch.ones(plain.shape, dtype=torch.float32, device=plain.device)
        given = convert_to_tensor(weight, track_meta=True)
        name = source_of(given)
        given = torch.as_tensor(convert_to_tensor(given, track_meta=False), dtype=torch.float32, device=plain.device)
        if given.shape != plain.shape:
            raise DataError(
                f"{name}: the weight image has shape {tuple(given.shape[1:])}, its label map {tuple(plain.shape[1:])} "
                f"({source}). Both must lie on one grid; resample the weight image to it."
            )
        if not bool(torch.isfinite(given).all()) or bool((given < 0).any()):
            raise DataError(
                f"{name}: the weight image has values that are negative, NaN or infinite; expected numbers of at least "
                "0, where 0 means unlabeled. Correct them, or leave the weight image out."
            )
        if not bool(given.any()):
            raise DataError(
                f"{name}: the weight image is 0 everywhere; expected numbers of at least 0, where 0 means unlabeled. "
                "Correct it, or leave it out where the values tell what is unlabeled."
            )
        return given

    def _unlabeled(self, plain: torch.Tensor, affine: torch.Tensor, slices: Any, source: str) -> torch.Tensor:
        """Where the values or the slices say that nobody annotated."""
        unlabeled = torch.zeros(plain.shape, dtype=torch.bool, device=plain.device)
        for value in self.ignore_index:
            unlabeled |= plain == value
        if slices is None:
            return unlabeled
        annotated = listed_slices(slices, plain.shape[1:], affine, source)
        if annotated is None:
            foreground = ((plain != 0) & ~unlabeled)[0].cpu().numpy()
            annotated = nonempty_slices(slices, foreground, affine, source)
        return unlabeled | ~torch.from_numpy(slices_mask(plain.shape[1:], annotated)).to(plain.device)

    def _class_numbers(self, plain: torch.Tensor, annotated: torch.Tensor, source: str) -> torch.Tensor:
        label = torch.zeros(plain.shape, dtype=torch.int16, device=plain.device)
        known = ~annotated
        for number, value in enumerate(self.classes):
            match = (plain == value) & annotated
            label[match] = number
            known |= match
        unknown = plain[~known].unique().cpu().numpy()
        if unknown.size:
            whole = [float(value).is_integer() for value in unknown]
            found = ", ".join(str(int(v) if is_whole else v) for v, is_whole in zip(unknown[:5], whole))
            cure = (
                "If it means unlabeled, pass it as ignore_index; if it is a class, declare it (labels in dataset.json)."
                if all(whole)
                else "Round labels that were rescaled or interpolated, and look whether the file is an image."
            )
            raise DataError(
                f"{source}: label value {found}{', ...' if len(unknown) > 5 else ''} is neither a class "
                f"({_listed(self.classes)}) nor unlabeled ({self._unlabeled_text()}); labels must be whole numbers. "
                f"{cure}"
            )
        return label

    def _unlabeled_text(self) -> str:
        return "ignore_index: " + (", ".join(map(str, self.ignore_index)) or "none set")


def source_of(image: Any) -> str:
    """The file that a MetaTensor was read from, for messages; "label map" where that is unknown."""
    return str(image.meta.get("filename_or_obj", "label map")) if isinstance(image, MetaTensor) else "label map"


def _listed(values: Sequence[int]) -> str:
    """Values as a range where they are one."""
    if list(values) == list(range(len(values))):
        return f"0 ... {len(values) - 1}"
    return ", ".join(map(str, values))
