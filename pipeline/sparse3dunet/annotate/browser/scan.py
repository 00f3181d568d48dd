"""The scan as the page sees it: axes in RAS order, so that a voxel's indices mean the same there and here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, ornt_transform

from sparse3dunet.annotate.browser.drawing import describe
from sparse3dunet.data.large import is_large
from sparse3dunet.data.names import image_name
from sparse3dunet.errors import DataError
from sparse3dunet.io import natural_suffix, read_image
from sparse3dunet.io.formats import is_chunked, open_image
from sparse3dunet.io.suffixes import is_image_file
from sparse3dunet.io.volumes import Volume, check_finite
from sparse3dunet.missing import no_part_of_pair

SHOWN_AS_IT_IS = ("uint8", "int16", "float32")
RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


@dataclass(frozen=True)
class Scan:
    """Scan with its voxels in the order of the file, and the way to RAS order and back.

    Attributes:
        path: absolute path of the file or folder.
        volume: its content.
        orientation: nibabel's orientation of its axes, (3, 2).
    """

    path: Path
    volume: Volume
    orientation: np.ndarray

    @property
    def name(self) -> str:
        """Name of the case, after which results are named, as in densify."""
        return image_name(self.path)

    @property
    def suffix(self) -> str:
        """Suffix of results: that of the scan's format."""
        return natural_suffix(self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in RAS order."""
        return tuple(int(n) for n in self.volume.in_ras_order(self.volume.spatial_shape))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size in RAS order, in mm."""
        return self.volume.in_ras_order(self.volume.spacing)

    @property
    def flipped(self) -> list[bool]:
        """Whether the file counts slices the other way round, by axis in RAS order."""
        return [bool(direction < 0) for direction in self.volume.in_ras_order(self.orientation[:, 1].tolist())]

    def to_ras(self, array: np.ndarray) -> np.ndarray:
        """Turn voxels (X, Y, Z) from the order of the file to RAS order; a view."""
        return apply_orientation(array, self.orientation)

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Turn voxels (X, Y, Z) from RAS order to the order of the file; a view."""
        return apply_orientation(array, ornt_transform(RAS, self.orientation))

    def slice_in_ras(self, axis: int, index: int) -> tuple[int, int]:
        """Return axis and index in RAS order of a slice of the file."""
        world, direction = self.orientation[axis].astype(int)
        return int(world), index if direction > 0 else self.volume.spatial_shape[axis] - 1 - index

    def slice_name(self, axis: int, index: int) -> str:
        """Return the name of a slice, given in RAS order, by the index of the file, which the page shows, too."""
        return describe(axis, self.shape[axis] - 1 - index if self.flipped[axis] else index)

    def shown(self, channel: int) -> bytes:
        """Return a channel as NIfTI in RAS order, for the page.

        Its grid begins at 0 and is not rotated: viewers then show the voxels in their own rows and columns.

        Raises:
            DataError: when there is no such channel.
        """
        if not 0 <= channel < self.volume.num_channels:
            raise DataError(f"there is no channel {channel}; expected 0 to {self.volume.num_channels - 1}.")
        data = self.volume.data if self.volume.data.ndim == 3 else self.volume.data[..., channel]
        return nifti(self.to_ras(_shown(data)), self.spacing)


def read_scan(path: str | Path) -> Scan:
    """Read a scan in any format.

    Raises:
        DataError: when it cannot be read, has NaN, is larger than memory, or is no volume but a picture.
    """
    source = Path(os.path.abspath(os.path.expanduser(path)))
    if not (source.exists() or is_image_file(source)):
        raise no_part_of_pair(source, "scan")
    _check_size(source)
    volume = read_image(source)
    check_finite(volume)
    if min(volume.spatial_shape) < 2:
        raise DataError(f"{source}: found shape {volume.spatial_shape}; expected a volume of two slices or more.")
    return Scan(source, volume, nib.io_orientation(volume.affine))


def _check_size(source: Path) -> None:
    """Raise DataError for a scan that is larger than memory, by its header."""
    if not is_chunked(source):
        return
    volume = open_image(source)
    if is_large(volume):
        shape = " x ".join(map(str, volume.spatial_shape))
        raise DataError(
            f"{source}: {shape} voxels are too many for the memory of this machine (SPARSE3DUNET_VOLUME_MEMORY sets "
            "another limit), and the page shows whole scans. Annotate a part of it, or annotate it in another program."
        )


def nifti(array: np.ndarray, spacing: tuple[float, ...]) -> bytes:
    """Return voxels as an uncompressed NIfTI file with nothing in its header but shape, type and voxel size."""
    image = nib.Nifti1Image(np.asfortranarray(array), np.diag([*spacing, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _shown(data: np.ndarray) -> np.ndarray:
    """Return voxels of a type that is shown as it is, in little-endian order."""
    if data.dtype.name in SHOWN_AS_IT_IS and data.dtype.isnative:
        return data
    if data.dtype.kind == "b":
        return data.astype(np.uint8)
    small = data.dtype.kind in "iu" and data.min() >= -(2**15) and data.max() < 2**15
    return data.astype(np.int16 if small else np.float32)
