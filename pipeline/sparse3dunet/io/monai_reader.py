"""Reader for MONAI's LoadImage that uses this package's reading functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from sparse3dunet.io.formats import read_image
from sparse3dunet.io.volumes import Volume


class VolumeReader(ImageReader):
    """Reader for all formats of :func:`~sparse3dunet.io.formats.read_image`: ``LoadImaged(reader=VolumeReader)``.

    Unlike MONAI's NIfTI reader, it respects units (affines are in mm), and verifies checksums. The metadata are those
    that MONAI's transforms need, and ``is_placed``: whether the file states the patient's orientation.

    Shapes: one file (X, Y, Z) or (X, Y, Z, C); several files, one for each channel, (C, X, Y, Z).
    """

    def verify_suffix(self, filename: Any) -> bool:
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Volume]:
        """Read one file, or several files with an image's channels.

        Raises:
            DataError: when a file cannot be read.
        """
        return [read_image(path) for path in ensure_tuple(data)]

    def get_data(self, img: Sequence[Volume]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the voxels of volumes from :meth:`read`, and their metadata; the grid is that of the first file."""
        first, channel_dim = img[0], float("nan") if img[0].data.ndim == 3 else -1
        array = first.data
        if len(img) > 1:
            array, channel_dim = np.stack([volume.data for volume in img]), 0
        return array, {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(first.spatial_shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: channel_dim,
            "is_placed": first.is_placed,
        }
