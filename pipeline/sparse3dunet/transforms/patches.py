"""Random positions of training patches, around annotated voxels."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_numpy, fall_back_tuple

from sparse3dunet.errors import DataError
from sparse3dunet.keys import CENTER, WEIGHT
from sparse3dunet.transforms.arguments import number, size_in_voxels


class RandPatchCenter(Randomizable, Transform):
    """Draw the position of a patch around an annotated voxel, anywhere in the volume.

    ``monai.transforms.RandWeightedCrop`` draws only centres whose patch is inside the volume, and any of them if none
    is annotated. Here every annotated voxel can be drawn, and every patch contains the voxel that it was drawn for.
    Near the border the patch is moved inside; if the volume is smaller than the patch along an axis, the volume is in
    the patch's middle.

    Args:
        spatial_size: size of the patch in voxels.
        class_balance: b, 0 ... 1. With 0 every annotated voxel is drawn equally often, with 1 every annotated class,
            and within a class every voxel; in between, the mixture of both: class k, with n of N annotated voxels, is
            drawn with probability (1 - b) n / N + b / K, K being the number of annotated classes.

    Raises:
        DataError: when no voxel is annotated, or `class_balance` is not in 0 ... 1.
    """

    def __init__(self, spatial_size: Sequence[int] | int, class_balance: float = 0.0) -> None:
        self.spatial_size = size_in_voxels(spatial_size)
        self.class_balance = number("class_balance", class_balance, 0, 1)

    def __call__(self, indices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:  # type: ignore[override]
        """Return the voxel in the patch's middle (the latter of two) for MONAI's ``SpatialCrop``: (3,) integers.

        Args:
            indices: by class, indices of the annotated voxels in the flattened volume, as from ``ClassesToIndices``.
            shape: shape of the volume, (X, Y, Z).
        """
        counts = np.array([len(voxels) for voxels in indices], dtype=float)
        if not counts.any():
            raise DataError("no voxel is annotated (weight > 0), so no patch can be drawn.")
        shown = counts > 0
        shares = (1 - self.class_balance) * counts / counts.sum() + self.class_balance * shown / shown.sum()
        voxels = indices[self.R.choice(len(shares), p=shares / shares.sum())]
        voxel = np.array(np.unravel_index(int(voxels[self.R.randint(len(voxels))]), tuple(shape)))
        size, length = np.asarray(fall_back_tuple(self.spatial_size, shape)), np.asarray(shape)
        return np.where(size > length, length // 2, np.clip(voxel, size // 2, length - size + size // 2))


class UntilAnnotated(Randomizable, Transform):
    """Repeat random transforms until the patch has an annotated voxel.

    A patch is drawn around one, but a rotation can move it out of the patch if it is in a corner.

    Args:
        transform: transform of a data dictionary to one, or to a list of them (patches that must all be annotated).
        weight_key: key of the weight.
        attempts: number of attempts after which the last patch is returned, even without annotation; its loss is zero.
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


class RandPatchCenterd(MapTransform, Randomizable):
    """Dictionary version of :class:`RandPatchCenter`.

    Args:
        keys: key of the weight, which has the volume's shape.
        spatial_size: see :class:`RandPatchCenter`.
        class_balance: see :class:`RandPatchCenter`.
        indices_key: key of the annotated voxels by class, as from ``monai.transforms.ClassesToIndicesd`` with
            ``keys="label", image_key="weight"``; without it, and with `class_balance` 0, they are found by the weight.
        center_key: key for the voxel in the patch's middle.
        allow_missing_keys: whether to return a dictionary without the weight unchanged.
    """

    def __init__(
        self,
        keys: KeysCollection = WEIGHT,
        *,
        spatial_size: Sequence[int] | int,
        class_balance: float = 0.0,
        indices_key: str = "label_cls_indices",
        center_key: str = CENTER,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"RandPatchCenterd takes one key, got {self.keys}.")
        self.indices_key = indices_key
        self.center_key = center_key
        self.center = RandPatchCenter(spatial_size, class_balance)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandPatchCenterd:
        super().set_random_state(seed, state)
        self.center.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            indices = self._indices(d, key)
            d[self.center_key] = self.center(indices, d[key].shape[1:])
        return d

    def _indices(self, d: Mapping[Hashable, Any], key: Hashable) -> list[Any]:
        """Return the annotated voxels by class; of all classes together if classes do not matter."""
        if self.indices_key in d:
            return [convert_to_numpy(voxels) for voxels in d[self.indices_key]]
        if self.center.class_balance:
            raise DataError(
                f"RandPatchCenterd: there is no {self.indices_key!r}, which class_balance needs unless it is 0; "
                'put ClassesToIndicesd(keys="label", image_key="weight", num_classes=K) before it.'
            )
        return [np.flatnonzero(convert_to_numpy(d[key]) > 0)]
