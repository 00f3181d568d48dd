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
"""Connectivity: voxels that share a face, an edge or a corner are connected."""
_LISTED = 65535  # scipy lists the boxes of all numbers up to the largest: larger classes are searched one by one
_CHUNK = 2**20  # voxels that are counted at once
_ROUNDING = 1e-6  # relative tolerance, so that components of exactly the smallest volume stay


def clean_components(
    segmentation: np.ndarray,
    voxel_ml: float,
    largest: Iterable[int] = (),
    min_ml: Mapping[int, float] | None = None,
    background: int = 0,
) -> np.ndarray:
    """Remove connected components, class by class: all but the largest, or those that are too small.

    Voxels that share a face, an edge or a corner are connected (26 neighbours). MONAI's KeepLargestConnectedComponent
    and RemoveSmallObjects do something similar, but need scikit-image or cuCIM, and process the whole volume for each
    class; this processes only the class's bounding box.

    Args:
        segmentation: (X, Y, Z) integer; not changed.
        voxel_ml: volume of a voxel in ml.
        largest: classes of which only the largest component is kept; of equal ones the first in voxel order.
        min_ml: by class, the volume in ml below which a component is removed.
        background: value for removed voxels.

    Returns:
        (X, Y, Z), of the same type.

    Raises:
        DataError: when the segmentation does not have three axes, or an integer type.
    """
    if segmentation.ndim != 3 or segmentation.dtype.kind not in "iub":
        raise DataError(
            f"expected an integer volume (X, Y, Z), got {segmentation.dtype} of shape {segmentation.shape}; argmax the "
            "logits first."
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
    """Find the bounding boxes of those classes that are in a segmentation."""
    listed = sorted(value for value in classes if 0 < value <= _LISTED)
    numbered = segmentation.view(np.uint8) if segmentation.dtype == bool else segmentation
    found = ndimage.find_objects(numbered, listed[-1]) if listed else []
    boxes = {value: found[value - 1] for value in listed}
    for value in sorted(set(classes) - set(listed)):
        boxes[value] = next(iter(ndimage.find_objects((segmentation == value).view(np.uint8))), None)
    return {value: box for value, box in boxes.items() if box is not None}


def _sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Count the voxels of each component, (count + 1,), 0 for the background."""
    sizes = np.zeros(count + 1, np.int64)
    flat = labels.ravel()
    step = max(_CHUNK, 4 * count)
    for start in range(0, flat.size, step):  # bincount makes a copy in 64 bits
        present = np.bincount(flat[start : start + step])
        sizes[: len(present)] += present
    sizes[0] = 0
    return sizes


class CleanComponents(Transform):
    """Remove connected components of class numbers, see :func:`clean_components`.

    Args:
        largest: True for all classes but the background, or numbers of some.
        min_ml: volume in ml for all classes but the background, or by number: a mapping, or a list from class 0 on. A
            voxel's volume is taken from the affine; without one, it is 1 mm^3.
        background: number of the background.

    Shapes: (1, X, Y, Z) -> (1, X, Y, Z), type and metadata are kept.

    Raises:
        DataError: when a volume is negative, a class is not a number, or a segmentation has numbers that are not whole,
            or several channels.

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
        self.min_ml: Any = min_ml  # by class, or for all
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
        """Return whether all classes are named; else they must be searched, which takes longer than the rest."""
        return self.largest is not True and (isinstance(self.min_ml, Mapping) or not self.min_ml)


def _class_numbers(name: str, values: Any) -> list[int]:
    """Return the class numbers of a list after checking them."""
    listed: list[Any] = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [None]
    if not all(isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in listed):
        raise DataError(f"{name} must be a list of whole class numbers, got {values!r}.")
    return [int(value) for value in listed]


def _whole_numbers(segmentation: np.ndarray) -> np.ndarray:
    """Return (X, Y, Z) integers from (1, X, Y, Z) of any type."""
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
    """Dictionary version of :class:`CleanComponents`.

    Args:
        keys: keys of the segmentations.
        allow_missing_keys: whether keys may be missing.
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
