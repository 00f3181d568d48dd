"""Conversion of an annotation, in any of the conventions used on disk, to label and weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple

from sparse3dunet.data.finished import FINISHED, Finished, finished_part
from sparse3dunet.data.slices import listed_slices, nonempty_slices, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import UNLABELED_VALUE, whole_labels

MOST_CLASSES = 2**15
"""Maximum number of classes: their numbers are written in 16 bits."""


class SparseLabel(Transform):
    """Convert a label map to label and weight.

    A voxel is unlabeled if its value (`ignore_index`) means so, its weight is 0, or it is outside of the annotated
    slices; all others are annotated.

    Args:
        classes: values of the classes on disk in the order of their numbers 0 ... K-1, for example ``[0, 100, 200]``;
            or K, if the values are 0 ... K-1.
        ignore_index: value, or values, that mean "unlabeled" on disk; None: none.
        annotated_slices: for label maps in which all unlabeled voxels are 0: the annotated slices, in any of the forms
            of :func:`~sparse3dunet.data.slices.listed_slices`, or a word that says how to find them
            (:func:`~sparse3dunet.data.slices.nonempty_slices`); "finished": 0 is background on finished slices
            (:mod:`~sparse3dunet.data.finished`), unless there are voxels with an `ignore_index`; None: slices are not
            considered.

    Shapes: label map (1, X, Y, Z), any number type, and optionally a weight image of the same shape, >= 0 -> label
    (1, X, Y, Z) int16, the class number, 0 where unlabeled; weight (1, X, Y, Z) float32, 0 where unlabeled, elsewhere 1
    or as in the weight image. Both keep the label map's metadata. Slices refer to array axes and the affine, so apply
    this before the label map is reoriented or resampled.

    Raises:
        DataError: when an annotated voxel's value is not a class, when no voxel is annotated, when the weight image has
            another shape or a value below 0, or when the annotated slices are wrong or cannot be inferred.

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
        is_count = isinstance(classes, Integral) or getattr(classes, "ndim", None) == 0  # an array or tensor of one
        numbers = whole_numbers(classes, "classes")
        self.classes = tuple(range(min(numbers[0], MOST_CLASSES + 1))) if is_count else numbers
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise DataError(f"classes is {str(classes)[:80]}; expected from one to {MOST_CLASSES} with the background.")
        self.ignore_index = () if ignore_index is None else whole_numbers(ignore_index, "ignore_index")
        self.annotated_slices = annotated_slices
        twice = [value for value in self.classes if self.classes.count(value) > 1]
        if twice:
            raise DataError(f"classes has the value {twice[0]} twice: {classes}; expected another one for each class.")
        clash = [i for i in self.ignore_index if i in self.classes]
        if clash:
            raise DataError(
                f"ignore_index {clash[0]} is also a class: the classes are {_listed(self.classes)}. "
                f"Choose another value for unlabeled voxels, for example {max(self.classes) + 1}."
            )

    def __call__(
        self, annotation: Any, weight: Any = None, annotated_slices: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = as_tensor(annotation, "label map")
        source = source_of(values)
        if values.shape[0] != 1 or values.ndim != 4:
            raise DataError(
                f"{source}: a label map must have one channel and three dimensions, found shape "
                f"{tuple(values.shape)} with the channel first."
            )
        self._check_precision(values.dtype, source)
        plain = _whole(values.as_tensor())
        slices = self.annotated_slices if annotated_slices is None else annotated_slices
        weights = self._weights(plain, weight, source)
        weights = torch.where(self._unlabeled(plain, values.affine, slices, source), 0.0, weights)
        if not bool((weights > 0).any()):
            elsewhere = "" if slices is None else ", or lie outside of the annotated slices"
            elsewhere += "" if weight is None else f", or have weight 0 in {source_of(weight)}"
            raise DataError(
                f"{source}: no voxel is annotated; all are unlabeled ({self._unlabeled_text()}{elsewhere}). "
                "Annotate at least one slice, or remove the case from the data set."
            )
        label = self._class_numbers(plain, weights > 0, source)
        return tuple(convert_to_dst_type(part, values, dtype=part.dtype)[0] for part in (label, weights))  # type: ignore[return-value]

    def _check_precision(self, dtype: torch.dtype, source: str) -> None:
        """Raise DataError if numbers of this type cannot tell a class from the next whole number."""
        largest = 2 / torch.finfo(dtype).eps if dtype.is_floating_point else math.inf
        for value in self.classes:
            if abs(value) >= largest:
                raise DataError(
                    f"{source}: the class value {value} is too large for a label map of type {dtype}, in which whole "
                    f"numbers are distinct only below {largest:.0f}. Pass it as integers, such as torch.int64."
                )

    def _weights(self, plain: torch.Tensor, weight: Any, source: str) -> torch.Tensor:
        if weight is None:
            return torch.ones(plain.shape, dtype=torch.float32, device=plain.device)
        image = as_tensor(weight, "weight image")
        name = source_of(image)
        given = torch.as_tensor(convert_to_tensor(image, track_meta=False), dtype=torch.float32, device=plain.device)
        if given.shape[1:] == plain.shape[1:] and len(given) != 1:
            raise DataError(f"{name}: the weight image has {len(given)} channels; expected one ({source}).")
        if given.shape != plain.shape:
            raise DataError(
                f"{name}: the weight image has shape {tuple(given.shape[1:])}, its label map {tuple(plain.shape[1:])} "
                f"({source}). Both must be on the same grid; resample the weight image to it."
            )
        if not bool(torch.isfinite(given).all()) or bool((given < 0).any()):
            raise DataError(
                f"{name}: the weight image has values that are negative, NaN or infinite; expected numbers of at least "
                "0, where 0 means unlabeled. Correct them, or omit the weight image."
            )
        if not bool(given.any()):
            raise DataError(
                f"{name}: the weight image is 0 everywhere; expected numbers of at least 0, where 0 means unlabeled. "
                "Correct it, or omit it if the label values mark unlabeled voxels."
            )
        return given

    def _unlabeled(self, plain: torch.Tensor, affine: torch.Tensor, slices: Any, source: str) -> torch.Tensor:
        """Return the mask of voxels that are unlabeled by their value or the slices."""
        unlabeled = equal_to_any(plain, self.ignore_index)
        if slices is None:
            return unlabeled
        if isinstance(slices, str) and slices == FINISHED:
            part = finished_of(plain, unlabeled, self.ignore_index, affine)
            return unlabeled if part is None else ~torch.from_numpy(part.annotated).to(plain.device)[None]
        annotated = listed_slices(slices, plain.shape[1:], affine, source)
        if annotated is None:
            _check_numbers(plain, source)
            foreground = ((plain != 0) & ~unlabeled)[0].cpu().numpy()
            annotated = nonempty_slices(slices, foreground, affine, source)
        return unlabeled | ~torch.from_numpy(slices_mask(plain.shape[1:], annotated)).to(plain.device)

    def _class_numbers(self, plain: torch.Tensor, annotated: torch.Tensor, source: str) -> torch.Tensor:
        label = torch.zeros(plain.shape, dtype=torch.int16, device=plain.device)
        known = ~annotated
        for number, value in enumerate(self.classes):
            match = equal_to_any(plain, [value]) & annotated
            label[match] = number
            known |= match
        _check_numbers(plain[~known], source)
        unknown = plain[~known].unique().cpu().numpy()
        if unknown.size:
            whole = [float(value).is_integer() for value in unknown]
            found = ", ".join(str(int(v) if is_whole else v) for v, is_whole in zip(unknown[:5], whole))
            cure = (
                "If it means unlabeled, pass it as ignore_index; if it is a class, declare it (labels in dataset.json)."
                if all(whole)
                else "Round labels that were rescaled or interpolated, and check that the file is not an image."
            )
            raise DataError(
                f"{source}: label value {found}{', ...' if len(unknown) > 5 else ''} is neither a class "
                f"({_listed(self.classes)}) nor unlabeled ({self._unlabeled_text()}); labels must be whole numbers. "
                f"{cure}"
            )
        return label

    def _unlabeled_text(self) -> str:
        return "ignore_index: " + (", ".join(map(str, self.ignore_index)) or "none set")


def as_tensor(values: Any, name: str) -> MetaTensor:
    """Return an array, a tensor or nested lists as a MetaTensor; raise DataError, naming what it is, for others."""
    try:
        given = values if hasattr(values, "shape") else np.array(values)
        if isinstance(given, np.ndarray):  # PyTorch takes no other order of bytes than the machine's
            given = given.astype(given.dtype.newbyteorder("="), copy=False)
        tensor = convert_to_tensor(given, track_meta=True)
        return tensor if isinstance(tensor, MetaTensor) else MetaTensor(tensor)  # where MONAI tracks none
    except (TypeError, ValueError, RuntimeError) as error:  # lists of unequal lengths, text, None
        reason = str(error).split(". ")[0]
        raise DataError(f"the {name} is no array of numbers ({reason}); expected shape (1, X, Y, Z).") from error


def whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    """Return a value, or values, as whole numbers of Python; raise DataError, naming the argument, for others."""
    listed = ensure_tuple(values)
    try:
        whole = tuple(int(value) for value in listed)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinity
        whole = ()
    is_flag = isinstance(values, (bool, np.bool_))  # which would be 0 or 1
    if is_flag or len(whole) != len(listed) or any(number != value for number, value in zip(whole, listed)):
        raise DataError(f"{name} must be a whole number or a list of them, such as 255 or [4, 255]; found {values!r}.")
    return whole


def equal_to_any(values: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """Return the mask of values that equal one of some whole numbers; floats may round these, as they did the values.

    PyTorch compares integers modulo the range of the tensor's type, so that 0 == 256 in torch.uint8.
    """
    found = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for number in numbers:
        if values.is_floating_point():
            found |= values == float(number)
            continue
        limits = torch.iinfo(torch.uint8 if values.dtype == torch.bool else values.dtype)
        if limits.min <= number <= limits.max:
            found |= values == number
    return found


def _check_numbers(values: torch.Tensor, source: str) -> None:
    """Raise DataError if values of a label map are NaN."""
    bad = int(values.isnan().sum()) if values.is_floating_point() else 0
    if bad:
        raise DataError(
            f"{source}: {bad} voxel(s) are NaN; labels must be whole numbers. If NaN means unlabeled, replace it by a "
            f"value that is no class, such as {UNLABELED_VALUE}, and pass this as ignore_index (--ignore-index); else "
            "by the value of their class."
        )


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Return values with those that are nearly whole numbers rounded, as in ``whole_labels``."""
    if not values.is_floating_point():
        return values
    return torch.from_numpy(whole_labels(values.cpu().numpy())).to(values.device)


def finished_of(
    plain: torch.Tensor, unlabeled: torch.Tensor, ignore_index: Sequence[int], affine: torch.Tensor
) -> Finished | None:
    """Return the annotated part of a label map (1, X, Y, Z) by its finished slices; None if values tell it already.

    Args:
        plain: values on disk.
        unlabeled: boolean, the voxels whose value means unlabeled.
        ignore_index: these values.
        affine: affine of the label map.
    """
    if 0 in ignore_index or bool(unlabeled.any()):
        return None
    return finished_part((plain != 0)[0].cpu().numpy(), affine.cpu().numpy())


def source_of(image: Any) -> str:
    """Return the file that a MetaTensor was read from, for messages; "label map" if unknown."""
    return str(image.meta.get("filename_or_obj", "label map")) if isinstance(image, MetaTensor) else "label map"


def _listed(values: Sequence[int]) -> str:
    """Return a list of values as text, as a range if they are 0 ... n-1."""
    if list(values) == list(range(len(values))):
        return f"0 ... {len(values) - 1}"
    return ", ".join(map(str, values))
