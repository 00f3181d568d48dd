"""Clean-up of segmentations by connected components."""

from __future__ import annotations

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from scipy import ndimage

from sparse3dunet.errors import DataError
from sparse3dunet.keys import PRED
from sparse3dunet.transforms.arguments import number

NEIGHBOURS = np.ones((3, 3, 3), bool)
"""Voxels that touch by a face, an edge or a corner are connected."""
_LISTED = (
    65535  # scipy lists the boxes of all numbers up to the largest: beyond this one, classes are looked for singly
)
_CHUNK = 2**20  # voxels that are counted at once
_ROUNDING = 1e-6  # of a volume: components of exactly the smallest volume stay, however that was computed


def clean_components(
    segmentation: np.ndarray,
    voxel_ml: float,
    largest: Iterable[int] = (),
    min_ml: Mapping[int, float] | None = None,
    background: int = 0,
) -> np.ndarray:
    """Remove connected components, class by class: all but the largest, or those that are too small.

    Voxels are connected that touch by a face, an edge or a corner (26 neighbours). MONAI's
    KeepLargestConnectedComponent and RemoveSmallObjects do the like, but need scikit-image or cuCIM, and go through the
    whole volume for each class; this looks at the class's bounding box alone.

    Args:
        segmentation: (X, Y, Z) integer; not changed.
        voxel_ml: a voxel's volume, in ml.
        largest: classes of which only the largest component is kept; of equal ones the first, in the order of voxels.
        min_ml: by class, the volume in ml under which a component is removed.
        background: what is put in the place of what is removed.

    Returns:
        (X, Y, Z), of the same type.

    Raises:
        DataError: when the segmentation is not of three axes, or not of an integer type.
    """
    if segmentation.ndim != 3 or segmentation.dtype.kind not in "iub":
        raise DataError(
            f"components are those of an integer volume (X, Y, Z), got {segmentation.dtype} of {segmentation.shape}; "
            "argmax the logits first."
        )
    result, min_ml, largest = segmentation.copy(), dict(min_ml or {}), set(largest)
    for value, box in _boxes(segmentation, {*largest, *min_ml} - {background}).items():
        labels, count = ndimage.label(segmentation[box] == value, NEIGHBOURS)
        sizes = _sizes(labels, count)
        removed = sizes * voxel_ml < min_ml.get(value, 0) * (1 - _ROUNDING)
        if value in largest:
            removed[np.arange(len(sizes)) != sizes.argmax()] = True
        removed[0] = False
        if removed.any():
            result[box][removed[labels]] = background
    return result


def _boxes(segmentation: np.ndarray, classes: Iterable[int]) -> dict[int, tuple[slice, ...]]:
    """The bounding boxes of those classes that are there."""
    listed = sorted(value for value in classes if 0 < value <= _LISTED)
    numbered = segmentation.view(np.uint8) if segmentation.dtype == bool else segmentation
    found = ndimage.find_objects(numbered, listed[-1]) if listed else []
    boxes = {value: found[value - 1] for value in listed}
    for value in sorted(set(classes) - set(listed)):
        boxes[value] = next(iter(ndimage.find_objects((segmentation == value).view(np.uint8))), None)
    return {value: box for value, box in boxes.items() if box is not None}


def _sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """(count + 1,) voxels of each component, 0 for what is outside of all."""
    sizes = np.zeros(count + 1, np.int64)
    flat = labels.ravel()
    step = max(_CHUNK, 4 * count)
    for start in range(0, flat.size, step):  # bincount makes a copy in 64 bits
        present = np.bincount(flat[start : start + step])
        sizes[: len(present)] += present
    sizes[0] = 0
    return sizes


class CleanComponents(Transform):
    """See :func:`clean_components`, for class numbers.

    Args:
        largest: True for all classes but the background, or numbers of some.
        min_ml: in ml, of all classes but the background, or by number: a mapping, or a list from class 0 on. A voxel's
            volume is the affine's; without one, it is 1 mm^3.
        background: its number.

    Shapes: (1, X, Y, Z) -> (1, X, Y, Z), type and metadata are kept.

    Raises:
        DataError: when a volume is negative, a class is no number, or a segmentation holds numbers that are not whole,
            or has several channels.

    Example:
        >>> CleanComponents(largest=True)(np.array([[[[1, 1, 0, 1, 0, 2]]]])).tolist()
        [[[[1, 1, 0, 0, 0, 2]]]]
    """

    def __init__(
        self,
        largest: bool | Sequence[int] = (),
        min_ml: float | Mapping[int, float] | Sequence[float] = 0.0,
        background: int = 0,
    ) -> None:
        number("background", background, -math.inf, whole=True)
        self.largest = largest if isinstance(largest, bool) else _class_numbers("largest", largest)
        if isinstance(min_ml, Mapping):
            _class_numbers("the classes of min_ml", list(min_ml))
        elif isinstance(min_ml, (Sequence, np.ndarray)) and not isinstance(min_ml, str):
            min_ml = dict(enumerate(min_ml))
        for ml in min_ml.values() if isinstance(min_ml, Mapping) else [min_ml]:
            number("min_ml", ml, 0)
        self.min_ml: Any = min_ml  # by class, or of all
        self.background = background

    def __call__(self, segmentation: Any) -> Any:
        plain = segmentation.detach().cpu().numpy() if isinstance(segmentation, torch.Tensor) else segmentation
        volume = _whole_numbers(np.asarray(plain))
        affine = segmentation.affine.cpu().numpy() if isinstance(segmentation, MetaTensor) else np.eye(4)
        classes = [] if self._names_classes() else [int(v) for v in np.unique(volume) if v != self.background]
        cleaned = clean_components(
            volume,
            float(abs(np.linalg.det(affine[:3, :3]))) / 1000,
            classes if self.largest is True else self.largest or (),
            self.min_ml if isinstance(self.min_ml, Mapping) else dict.fromkeys(classes, self.min_ml),
            self.background,
        )
        return convert_to_dst_type(cleaned[None], segmentation)[0]

    def _names_classes(self) -> bool:
        """Whether nothing is for all classes, whichever there are; to look for them takes longer than the rest."""
        return self.largest is not True and (isinstance(self.min_ml, Mapping) or not self.min_ml)


def _class_numbers(name: str, values: Any) -> list[int]:
    """The class numbers of a list, checked."""
    listed: list[Any] = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [None]
    if not all(isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in listed):
        raise DataError(f"{name} must be a list of whole class numbers, got {values!r}.")
    return [int(value) for value in listed]


def _whole_numbers(segmentation: np.ndarray) -> np.ndarray:
    """(X, Y, Z) integer, of (1, X, Y, Z) of any type."""
    if segmentation.ndim != 4 or len(segmentation) != 1:
        raise DataError(
            f"CleanComponents takes class numbers of shape (1, X, Y, Z), got {segmentation.shape}; argmax the logits "
            "first."
        )
    if segmentation.dtype.kind in "iub":
        return segmentation[0]
    if not (np.isfinite(segmentation) & (np.rint(segmentation) == segmentation)).all():
        raise DataError("CleanComponents takes class numbers, but not all are whole; argmax the logits first.")
    return segmentation[0].astype(np.int64)


class CleanComponentsd(MapTransform):
    """Dictionary twin of :class:`CleanComponents`.

    Args:
        keys: of segmentations.
        allow_missing_keys: whether to pass over keys that are missing.
        kwargs: see :class:`CleanComponents`.
    """

    def __init__(self, keys: KeysCollection = PRED, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clean = CleanComponents(**kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.clean(d[key])
        return d
