"""Label maps in formats without an orientation, placed on their image's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from sparse3dunet.data.label_and_weight import as_tensor
from sparse3dunet.io.volumes import Volume, on_grid_of
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE, WEIGHT
from sparse3dunet.transforms.arguments import entry


class ImageGridd(MapTransform):
    """Dictionary transform that gives label maps their image's affine, see :func:`~sparse3dunet.io.volumes.on_grid_of`.

    TIFF, HDF5 and OME-Zarr state no orientation, and often no voxel size: their voxels belong to those of the image by
    their indices. All other maps stay as they are.

    Args:
        keys: keys of the label maps, tensors (1, X, Y, Z) loaded by VolumeReader.
        image_key: key of the image.
        allow_missing_keys: whether to skip keys that the dictionary lacks.
    """

    def __init__(
        self,
        keys: KeysCollection = (LABEL, WEIGHT, REFERENCE),
        image_key: str = IMAGE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            volume, image = _volume(d[key]), _volume(entry(d, self.image_key, self))
            placed = on_grid_of(volume, image)
            if placed is not volume:
                d[key].affine = torch.as_tensor(placed.affine)
        return d


def _volume(tensor: Any) -> Volume:
    """Return a tensor's first channel as a volume, with what its metadata say of the file."""
    # Without metadata, it stays as it is
    tensor = tensor if isinstance(tensor, MetaTensor) else as_tensor(tensor, "volume")
    meta = tensor.meta
    flags = (bool(meta.get("has_orientation", True)), bool(meta.get("has_voxel_size", True)))
    return Volume("", tensor[0], np.asarray(tensor.affine), None, *flags)
