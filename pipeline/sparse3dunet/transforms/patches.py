"""Where training patches are drawn: around annotated voxels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_tensor, ensure_tuple_rep

from sparse3dunet.errors import DataError
from sparse3dunet.keys import CENTERS, WEIGHT


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

    Shapes: weight (1, X, Y, Z), >= 0 -> centres (1, X, Y, Z), the number of annotated voxels that each stands for.

    Raises:
        DataError: when no voxel within reach has a weight above 0.
    """

    def __init__(self, spatial_size: Sequence[int] | int) -> None:
        self.spatial_size = ensure_tuple_rep(spatial_size, 3)

    def __call__(self, weight: Any) -> torch.Tensor:
        tensor = convert_to_tensor(weight, track_meta=True)
        plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        # The cumulative sum that MONAI draws from would stand still in float32 beyond 2^24.
        centers = (plain > 0).to(torch.float32 if plain.numel() < 2**24 else torch.float64)
        for axis, (patch, size) in enumerate(zip(self.spatial_size, plain.shape[1:])):
            patch = min(patch, size) if patch > 0 else size
            # The range of centres in monai.transforms.utils.weighted_patch_samples.
            first = patch // 2
            last = first + max(size - patch, 1) - 1
            _fold(centers, axis + 1, first, last, reach=last - first + patch)
        if not centers.any():
            raise DataError("no voxel within reach of a patch is annotated (weight > 0), so that none can be drawn.")
        return MetaTensor(centers).copy_meta_from(tensor) if isinstance(tensor, MetaTensor) else centers


def _fold(counts: torch.Tensor, axis: int, first: int, last: int, reach: int) -> None:
    """Move, in place, what lies before `first`, and after `last` but before `reach`, to these planes; drop the rest."""
    counts.select(axis, first).add_(counts.narrow(axis, 0, first).sum(axis))
    counts.narrow(axis, 0, first).zero_()
    counts.select(axis, last).add_(counts.narrow(axis, last + 1, reach - last - 1).sum(axis))
    counts.narrow(axis, last + 1, counts.shape[axis] - last - 1).zero_()


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
        centers_key: key under which the map is put.
        allow_missing_keys: whether to pass on a dictionary without the weight as it is.
    """

    def __init__(
        self,
        keys: KeysCollection = WEIGHT,
        *,
        spatial_size: Sequence[int] | int,
        centers_key: str = CENTERS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"PatchCentersd takes one key, got {self.keys}.")
        self.centers_key = centers_key
        self.to_centers = PatchCenters(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[self.centers_key] = self.to_centers(d[key])
        return d
