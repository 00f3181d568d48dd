"""Where training patches are drawn: around annotated voxels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep

from sparse3dunet.errors import DataError
from sparse3dunet.keys import CENTERS, LABEL, WEIGHT


class PatchCenters(Transform):
    """From a weight to the map of patch centres that ``monai.transforms.RandWeightedCrop`` draws from.

    Every annotated voxel is drawn equally often, and every patch contains the voxel that it was drawn for. MONAI draws
    only centres whose patch lies inside the volume, and draws *anywhere* when none of these is annotated: given the
    weight itself it would rarely see what lies near the border, and could return a patch with nothing annotated. Here
    an annotated voxel near the border counts for the nearest centre that MONAI can draw.

    MONAI (1.6.1) never draws the last possible patch along an axis, so that the last plane of a volume larger than the
    patch is out of reach: pad one voxel at the far end of each axis before (``BorderPadd``, as the bundle does).

    Args:
        spatial_size: the patch's size in voxels, as given to ``RandWeightedCrop``.
        class_balance: b, 0 ... 1. With 0 every annotated voxel is drawn equally often, with 1 every class that is
            annotated within reach, and within a class every voxel; between, the mixture of both. A voxel then counts
            1 - b + b N / (K n), being one of n of its class and of N of all K classes: the map's total remains N.

    Shapes: weight (1, X, Y, Z), >= 0, and with `class_balance` label (1, X, Y, Z) -> centres (1, X, Y, Z), the number
    of annotated voxels that each stands for, each counted as above; float64 with `class_balance`.

    Raises:
        DataError: when no voxel within reach has a weight above 0, or `class_balance` is not in 0 ... 1.
        ValueError: when called without the label that `class_balance` needs.
    """

    def __init__(self, spatial_size: Sequence[int] | int, class_balance: float = 0.0) -> None:
        if not 0 <= class_balance <= 1:
            raise DataError(f"class_balance must be between 0 and 1, got {class_balance}.")
        self.spatial_size = ensure_tuple_rep(spatial_size, 3)
        self.class_balance = float(class_balance)

    def __call__(self, weight: Any, label: Any = None) -> torch.Tensor:
        tensor = convert_to_tensor(weight, track_meta=True)
        plain = tensor.as_tensor()
        annotated = plain > 0
        spans = [_span(patch, size) for patch, size in zip(self.spatial_size, plain.shape[1:])]
        for axis, (_, _, reach) in enumerate(spans, start=1):
            annotated.narrow(axis, reach, annotated.shape[axis] - reach).zero_()
        if not annotated.any():
            raise DataError("no voxel within reach of a patch is annotated (weight > 0), so that none can be drawn.")
        centers = self._count(annotated, label)
        for axis, (first, last, _) in enumerate(spans, start=1):
            _fold(centers, axis, first, last)
        return convert_to_dst_type(centers, tensor, dtype=centers.dtype)[0]

    def _count(self, annotated: torch.Tensor, label: Any) -> torch.Tensor:
        """What each annotated voxel counts."""
        if not self.class_balance:
            # The cumulative sum that MONAI draws from would stand still in float32 beyond 2^24.
            return annotated.to(torch.float32 if annotated.numel() < 2**24 else torch.float64)
        if label is None:
            raise ValueError(f"class_balance {self.class_balance} needs the label: pass it along with the weight.")
        classes = convert_to_tensor(label, device=annotated.device, track_meta=False)[annotated]
        _, index, counts = classes.unique(return_inverse=True, return_counts=True)
        alike = len(classes) / (len(counts) * counts.to(torch.float64))
        centers = torch.zeros(annotated.shape, dtype=torch.float64, device=annotated.device)
        centers[annotated] = (1 - self.class_balance + self.class_balance * alike)[index]
        return centers


def _span(patch: int, size: int) -> tuple[int, int, int]:
    """The first and last centre that MONAI draws along an axis (``weighted_patch_samples``), and the voxels reached."""
    patch = min(patch, size) if patch > 0 else size
    first = patch // 2
    last = first + max(size - patch, 1) - 1
    return first, last, last - first + patch


def _fold(counts: torch.Tensor, axis: int, first: int, last: int) -> None:
    """Move, in place, what lies before `first` and after `last` to these planes."""
    for plane, start, length in ((first, 0, first), (last, last + 1, counts.shape[axis] - last - 1)):
        outside = counts.narrow(axis, start, length)
        counts.select(axis, plane).add_(outside.sum(axis))
        outside.zero_()


class UntilAnnotated(Randomizable, Transform):
    """Applies random transforms anew until the patch has an annotated voxel.

    A patch is drawn around one, but a rotation can carry it out where it lies in a corner.

    Args:
        transform: of a data dictionary to one, or to a list of them (several patches, each of which must be annotated).
        weight_key: key of the weight.
        attempts: after which the last patch is passed on, annotated or not; the losses are then zero.
    """

    def __init__(self, transform: Callable, weight_key: str = WEIGHT, attempts: int = 20) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}.")
        self.transform = transform
        self.weight_key = weight_key
        self.attempts = attempts

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> UntilAnnotated:
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        for _ in range(self.attempts):
            result = self.transform(data)
            patches = result if isinstance(result, list) else [result]
            if all(bool((patch[self.weight_key] > 0).any()) for patch in patches):
                break
        return result


class PatchCentersd(MapTransform):
    """Dictionary twin of :class:`PatchCenters`, for the ``w_key`` of ``monai.transforms.RandWeightedCropd``.

    Args:
        keys: key of the weight.
        spatial_size: see :class:`PatchCenters`.
        class_balance: see :class:`PatchCenters`.
        label_key: key of the label, which `class_balance` needs.
        centers_key: key under which the map is put.
        allow_missing_keys: whether to pass on a dictionary without the weight as it is.
    """

    def __init__(
        self,
        keys: KeysCollection = WEIGHT,
        *,
        spatial_size: Sequence[int] | int,
        class_balance: float = 0.0,
        label_key: str = LABEL,
        centers_key: str = CENTERS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"PatchCentersd takes one key, got {self.keys}.")
        self.centers_key = centers_key
        self.label_key = label_key
        self.to_centers = PatchCenters(spatial_size, class_balance)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.centers_key] = self.to_centers(d[key], d.get(self.label_key))
        return d
