"""Volumes for MONAI's LoadImage, read as everywhere else here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from sparse3dunet.io.formats import read_image
from sparse3dunet.io.volumes import Volume


class VolumeReader(ImageReader):
    """Reader of any format of :func:`~sparse3dunet.io.formats.read_image`: ``LoadImaged(reader=VolumeReader)``.

    Unlike MONAI's own of NIfTI, it takes units into account (affines are in mm), and looks at checksums. The metadata
    are those that MONAI's transforms need, and ``is_placed``: whether the file tells the patient's sides.

    Shapes: a file (X, Y, Z) or (X, Y, Z, C); of several, one for each channel, (C, X, Y, Z).
    """

    def verify_suffix(self, filename: Any) -> bool:
        return True

    def read(self, data: Any, **kwargs: Any) -> list[Volume]:
        """Read one file, or some that are an image's channels.

        Raises:
            DataError: for a file that cannot be read.
        """
        return [read_image(path) for path in ensure_tuple(data)]

    def get_data(self, img: Sequence[Volume]) -> tuple[np.ndarray, dict[str, Any]]:
        """The voxels of what :meth:`read` gives, and their metadata; the grid is that of the first file."""
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
