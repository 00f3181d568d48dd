"""Reader for MONAI's LoadImage that uses this package's reading functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from sparse3dunet.io.formats import read_image
from sparse3dunet.io.volumes import check_channels


class VolumeReader(ImageReader):
    """Reader for all formats of :func:`~sparse3dunet.io.formats.read_image`: ``LoadImaged(reader=VolumeReader)``.

    Unlike MONAI's NIfTI reader, it respects units (affines are in mm), and verifies checksums. The metadata are those
    that MONAI's transforms need, ``is_placed``: whether the file states the patient's orientation, and
    ``has_orientation`` and ``has_voxel_size``: see :class:`~sparse3dunet.io.volumes.Volume`.

    Shapes: one file (X, Y, Z) or (X, Y, Z, C); several files, one for each channel, (C, X, Y, Z).
    """

    def verify_suffix(self, filename: Any) -> bool:
        return True

    def read(self, data: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the paths: LoadImage would take any error here as a reason to try MONAI's other readers."""
        return ensure_tuple(data)

    def get_data(self, img: Sequence[Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read one file, or several with one channel each, and return the voxels and their metadata.

        Raises:
            DataError: when a file cannot be read, or the channels' shapes or grids differ.
        """
        volumes = [read_image(path) for path in img]
        first, channel_dim = volumes[0], float("nan") if volumes[0].data.ndim == 3 else -1
        array = first.data
        if len(volumes) > 1:
            check_channels(volumes, len(volumes))
            array, channel_dim = np.stack([volume.data for volume in volumes]), 0
        return array, {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(first.spatial_shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: channel_dim,
            "is_placed": first.is_placed,
            "has_orientation": first.has_orientation,
            "has_voxel_size": first.has_voxel_size,
        }
