"""Clean-up of segmentations by connected components."""

from __future__ import annotations

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


def clean_components(
    segmentation: np.ndarray,
    voxel_ml: float,
    largest: Iterable[int] = (),
    min_ml: Mapping[int, float] | None = None,
    background: int = 0,
) -> np.ndarray:
    """Remove connected components, class by class: all but the largest, or those that are too small.

    Voxels are connected that touch by a face, an edge or a corner (26 neighbours). MONAI's
    KeepLargestConnectedComponent and RemoveSmallObjects do the like with scikit-image, on the whole volume for each
    class; this looks at the class's bounding box alone.

    Args:
        segmentation: (X, Y, Z) integer; not changed.
        voxel_ml: a voxel's volume, in ml.
        largest: classes of which only the largest component is kept; of equal ones the first.
        min_ml: by class, the volume in ml under which a component is removed.
        background: what is put in the place of what is removed.

    Returns:
        (X, Y, Z), of the same type.
    """
    result, min_ml, largest = segmentation.copy(), dict(min_ml or {}), set(largest)
    for value in sorted({*largest, *min_ml}):
        box = ndimage.find_objects((segmentation == value).view(np.uint8))
        if not box:
            continue
        labels, _ = ndimage.label(segmentation[box[0]] == value, NEIGHBOURS)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        removed = sizes < min_ml.get(value, 0) / voxel_ml
        if value in largest:
            removed[np.arange(len(sizes)) != sizes.argmax()] = True
        removed[0] = False
        result[box[0]][removed[labels]] = background
    return result


class CleanComponents(Transform):
    """See :func:`clean_components`, for class numbers.

    Args:
        largest: True for all classes but the background, or numbers of some.
        min_ml: in ml, of all classes but the background, or by number. A voxel's volume is the affine's; without one,
            it is 1 mm^3.
        background: its number.

    Shapes: (1, X, Y, Z) -> (1, X, Y, Z), type and metadata are kept.

    Raises:
        DataError: when a volume is negative, or a segmentation holds numbers that are not whole.
    """

    def __init__(
        self, largest: bool | Sequence[int] = (), min_ml: float | Mapping[int, float] = 0.0, background: int = 0
    ) -> None:
        self.largest = largest
        for ml in min_ml.values() if isinstance(min_ml, Mapping) else [min_ml]:
            number("min_ml", ml, 0)
        self.min_ml = min_ml
        self.background = background

    def __call__(self, segmentation: Any) -> Any:
        plain = segmentation.detach().cpu().numpy() if isinstance(segmentation, torch.Tensor) else segmentation
        numbers = np.asarray(plain)[0].astype(np.int32)
        if not np.array_equal(numbers, np.asarray(plain)[0]):
            raise DataError("CleanComponents takes class numbers, but not all are whole; argmax the logits first.")
        classes = [int(value) for value in np.unique(numbers) if value != self.background]
        affine = segmentation.affine.numpy() if isinstance(segmentation, MetaTensor) else np.eye(4)
        cleaned = clean_components(
            numbers,
            float(abs(np.linalg.det(affine[:3, :3]))) / 1000,
            classes if self.largest is True else list(self.largest or ()),
            dict(self.min_ml) if isinstance(self.min_ml, Mapping) else dict.fromkeys(classes, self.min_ml),
            self.background,
        )
        return convert_to_dst_type(cleaned[None], segmentation)[0]


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
