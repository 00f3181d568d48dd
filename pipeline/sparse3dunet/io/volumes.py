"""Volumes, NIfTI files read as volumes, and checks of volumes."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.nifti_header import BYTE_ORDERS, check_nifti_header
from sparse3dunet.io.payload import check_packed, check_regular

AFFINE_TOLERANCE = 0.1
"""Maximum distance in voxels between the corners of two volumes on the same grid."""
MOST_AFTER_VOXELS = 2**20
"""Bytes of padding that may follow the voxels; a gzip bomb could be unpacked for hours."""
NO_VOXEL_SIZE = "states no voxel size, so it is taken for 1 mm; pass it as --voxel-size 0.5,0.5,2um (along x, y, z)."
ROUNDING = 1e-3
"""Maximum distance of a label's value from a whole number: what scaling or another type of number leaves behind."""
UNLABELED_VALUE = 255
"""Value that means unlabeled in most programs, as negative values do."""
LARGEST_VALUE = 2**32
"""Largest value of a class or of unlabeled voxels."""
LARGEST_NUMBER = 1e36
"""Largest intensity: below the largest 32-bit float, which differences and products would exceed."""
MOST_VALUES = 255
"""Number of values of a label map above which it is taken for an image."""
IN_MM = {"micron": 1e-3, "meter": 1e3}
"""NIfTI's units of length in mm; files without one of them are in mm."""


@dataclass(frozen=True)
class Volume:
    """Voxels (X, Y, Z) or (X, Y, Z, C) of a file, and what it states of them.

    Attributes:
        path: path of the file.
        data: the voxels.
        affine: voxel-to-world affine (4, 4), in mm.
        header: nibabel's header; other formats: what results need to be written in the same kind of file.
        has_orientation: whether the format has orientations, as those of microscopy have not.
        has_voxel_size: whether the voxel size is known; otherwise it is 1 mm.
        notes: what else a user must know of how it was read.
    """

    path: str
    data: np.ndarray
    affine: np.ndarray
    header: Any = None
    has_orientation: bool = True
    has_voxel_size: bool = True
    notes: tuple[str, ...] = ()

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.data.shape[:3]

    @property
    def num_channels(self) -> int:
        return self.data.shape[3] if self.data.ndim == 4 else 1

    def in_ras_order(self, values: Sequence) -> tuple:
        """Reorder values by array axis to left-right, posterior-anterior, inferior-superior."""
        by_axis = zip(nib.io_orientation(self.affine)[:, 0], values)
        return tuple(value for _, value in sorted(by_axis, key=lambda pair: pair[0]))

    @property
    def is_placed(self) -> bool:
        """Whether the file states the patient's orientation: NIfTI by its codes, microscopy never, others always."""
        codes = ("qform_code", "sform_code")
        if not self.has_orientation:
            return False
        try:
            return any(int(self.header[code]) > 0 for code in codes)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError):
            return True

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size by array axis, in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


def read_volume(path: str | Path) -> Volume:
    """Read a whole NIfTI file.

    Raises:
        DataError: when it is missing, empty, truncated, damaged, not NIfTI, in colours, or has a degenerate affine.
    """
    if os.path.lexists(path):
        check_regular(path)
    check_nifti_header(path)
    try:
        image = _open(path)
        if str(path).lower().endswith(".gz"):
            dtype, shape = image.get_data_dtype(), image.shape
            check_packed(path, os.path.getsize(path), dtype.itemsize * math.prod(shape))
            with gzip.open(path) as file:
                image = type(image).from_stream(file)
                data = np.asanyarray(image.dataobj)
                _check_end(file, data.size)  # where the checksum is
        else:
            data = np.asanyarray(image.dataobj)
            with open(path, "rb") as file:
                file.seek(image.dataobj.offset + image.dataobj.dtype.itemsize * data.size)
                _check_end(file, data.size)
    except DataError:
        raise
    except Exception as error:  # nibabel, zlib and the file system raise a dozen kinds here
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: cannot be read ({what}); expected a whole NIfTI file. It is missing, truncated, damaged or "
            "something else; copy or export it again, or remove the case from the data set."
        ) from error
    if data.dtype.names is not None:
        raise DataError(f"{path}: found colours ({data.dtype}); expected one number per voxel. Export it as numbers.")
    if np.iscomplexobj(data):
        raise DataError(
            f"{path}: found complex numbers ({data.dtype}); expected one real number per voxel. Export the magnitude, "
            "for example."
        )
    if data.ndim not in (3, 4) or 0 in data.shape:
        raise DataError(
            f"{path}: expected a three-dimensional volume, found shape {data.shape}. Export the whole stack "
            "as one volume."
        )
    data = data[..., 0] if data.shape[3:] == (1,) else data
    affine = affine_in_mm(image.affine, image.header)
    check_affine(path, affine)
    return Volume(str(path), data, affine, image.header)


def _open(path: str | Path) -> Any:
    """Open a NIfTI file; nibabel's own function changes suffixes of mixed case, ``.Nii``, to those of other files."""
    if not os.path.getsize(path):
        raise EOFError("the file is empty")
    with gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb") as file:
        size = file.read(4)
    second = nib.Nifti2Header.sizeof_hdr in (int.from_bytes(size, order) for order in BYTE_ORDERS)
    kind: Any = nib.Nifti2Image if second else nib.Nifti1Image
    return kind.from_file_map({"image": nib.FileHolder(filename=str(path))})


def _check_end(file: IO[bytes] | gzip.GzipFile, voxels: int) -> None:
    """Raise ValueError if more than padding follows the voxels: then the header is not that of these voxels."""
    rest = file.read(MOST_AFTER_VOXELS + 1)
    if not voxels:
        return  # an axis of length 0, which is told by itself
    if len(rest) > MOST_AFTER_VOXELS or rest.strip(b"\0"):
        raise ValueError("it goes on behind its voxels")


def affine_in_mm(affine: np.ndarray, header: Any) -> np.ndarray:
    """Convert the affine (4, 4) of a NIfTI file from its header's unit of length to mm."""
    try:
        unit = header.get_xyzt_units()[0]
    except (AttributeError, KeyError):  # formats without units; codes that NIfTI does not know
        unit = "unknown"
    scale = IN_MM.get(unit, 1.0)
    return np.asarray(affine, np.float64) * np.array([[scale], [scale], [scale], [1.0]])


def check_affine(path: str | Path, affine: np.ndarray) -> None:
    """Raise DataError unless the (4, 4) voxel-to-world affine of the file `path` has three independent axes."""
    axes = affine[:3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        directions = axes / np.linalg.norm(axes, axis=0)
    if not (np.isfinite(affine).all() and np.isfinite(directions).all() and abs(np.linalg.det(directions)) > 1e-6):
        raise DataError(
            f"{path}: the affine is degenerate (a spacing of 0 or NaN, or axes in one plane): {affine[:3].tolist()}; "
            "expected three independent axes in mm. Set the voxel size in the header, or export the volume again."
        )


def count_nifti_channels(path: str | Path) -> int:
    """Return the number of channels in a NIfTI file, by its header alone; 0 if that cannot be read."""
    try:
        check_regular(path)
        shape = _open(path).shape
    except Exception:  # see read_volume
        return 0
    return shape[3] if len(shape) == 4 else 1


def check_channels(volumes: Sequence[Volume], num_channels: int) -> None:
    """Raise DataError unless an image, in one file or one per channel, has `num_channels` on the same grid."""
    first = volumes[0]
    found = sum(volume.num_channels for volume in volumes)
    bad = first if found != num_channels else None
    if len(volumes) > 1:
        bad = next((volume for volume in volumes if volume.data.ndim == 4), bad)
    if bad is not None:
        raise DataError(
            f"{bad.path}: expected a 3D image with {num_channels} channel(s), found shape {bad.data.shape} of "
            f"{bad.data.dtype}{f' in {len(volumes)} files' if len(volumes) > 1 else ''}. The number goes by the "
            'model, by dataset.json ("modality" or "channel_names"), or by most images: correct one or the other. '
            "A series over time must be split into volumes."
        )
    for volume in volumes[1:]:
        check_same_grid(volume, first)
        if not np.allclose(volume.affine, first.affine):  # MONAI's readers stack channels only so
            raise DataError(
                f"{volume.path}: its affine differs from that of the image's first channel ({first.path}). Copy the "
                "first channel's header to it."
            )


def check_finite(volume: Volume) -> None:
    """Raise DataError if a voxel is NaN or infinite, also after conversion to the 32 bits that networks use."""
    if volume.data.dtype.kind != "f":
        return
    bad = no_numbers(volume.data)
    if bad.size:
        raise DataError(f"{volume.path}: {bad.size} of {volume.data.size} voxels {no_numbers_text(bad)}")


def no_numbers(values: np.ndarray) -> np.ndarray:
    """Return the values that are NaN, infinite, or too large to compute with in 32 bits."""
    return values[~(np.abs(values) <= LARGEST_NUMBER)]  # false for NaN, too


def no_numbers_text(bad: np.ndarray) -> str:
    """Return what is wrong with :func:`no_numbers`, to follow their count."""
    if not np.isfinite(bad).all():
        return "are NaN or infinite; expected numbers. Replace them, for example by the background's value."
    return (
        f"are too large to compute with in 32-bit floats, such as {bad[0]:g}; expected at most {LARGEST_NUMBER:g}. "
        "Scale the image, or replace them, for example by the background's value."
    )


def check_same_grid(volume: Volume, image: Volume) -> None:
    """Raise DataError unless shapes are equal and affines agree within a tenth of a voxel at every corner."""
    has_shape, off = volume.data.shape == image.spatial_shape, _most_off(volume.affine, image)
    if not has_shape or off > AFFINE_TOLERANCE:
        _check_directions(volume, image)
    if not has_shape:
        raise DataError(
            f"{volume.path}: shape {volume.data.shape} differs from the image's, {image.spatial_shape} ({image.path}). "
            "Both must be on the same grid; resample this one to the image, or check for a mix-up of files."
        )
    if off > AFFINE_TOLERANCE:
        raise DataError(
            f"{volume.path}: its position in space differs from the image's by up to {off_text(off)} voxels "
            f"({image.path}); expected at most {AFFINE_TOLERANCE}. Copy the image's header to it if the voxels belong "
            "together, or resample this one to the image."
        )
    if not np.array_equal(nib.io_orientation(volume.affine), nib.io_orientation(image.affine)):
        # Only possible for oblique grids, half-way between two orientations.
        raise DataError(
            f"{volume.path}: its axes and the image's ({image.path}) round to different directions, although their "
            "affines nearly agree. Copy the image's header to it."
        )


def _most_off(affine: np.ndarray, image: Volume) -> float:
    """Return how far apart, in voxels, the corners of an image are from those by another affine."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.spatial_shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.abs(np.linalg.solve(image.affine, affine @ corners) - corners).max())


def off_text(off: float) -> str:
    """Return a distance in voxels above the tolerance with as many digits as show that it is."""
    return next((text for n in range(1, 17) if float(text := f"{off:.{n}f}") > AFFINE_TOLERANCE), f"{off}")


def _check_directions(volume: Volume, image: Volume) -> None:
    """Raise DataError if a volume has an image's grid, but axes in another order or direction."""
    if volume.data.ndim != 3 or not (volume.has_orientation and image.has_orientation):
        return
    ours, theirs = (nib.io_orientation(each.affine) for each in (image, volume))
    turn = nib.orientations.ornt_transform(theirs, ours)
    shape = tuple(volume.data.shape[int(axis)] for axis in np.argsort(turn[:, 0]))
    turned = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.data.shape)
    if shape == image.spatial_shape and _most_off(turned, image) <= AFFINE_TOLERANCE:
        wanted, found = ("".join(nib.orientations.ornt2axcodes(each)) for each in (ours, theirs))
        raise DataError(
            f"{volume.path}: it has the image's grid ({image.path}), but its axes run along {found}, the image's along "
            f"{wanted}; expected the same. Turn its voxels along with its header: SimpleITK.DICOMOrient(volume, "
            f'"{wanted}"), or as_reoriented of nibabel.'
        )


def on_grid_of(volume: Volume, image: Volume) -> Volume:
    """Return a label map with the affine of its image, if one of the two has no orientation or voxel size of its own.

    Their voxels then belong together by their indices: the affine of a format without orientation is a convention. It
    is returned as it is if the shapes differ, or if both state voxel sizes and these differ; 1 mm along all axes is
    what programs write that know none.
    """
    unplaced = not (volume.has_orientation and image.has_orientation)
    both_sized = volume.has_voxel_size and image.has_voxel_size
    alike = not both_sized or any(np.allclose(volume.spacing, size, rtol=1e-3, atol=0) for size in (image.spacing, 1))
    if unplaced and alike and volume.spatial_shape == image.spatial_shape:
        return replace(volume, affine=image.affine)
    return volume


def whole_labels(data: np.ndarray) -> np.ndarray:
    """Return a label map with values that are nearly whole numbers rounded; others, and NaN, are kept as they are."""
    if data.dtype.kind != "f":
        return data
    with np.errstate(invalid="ignore"):
        whole = np.rint(data)
        noise = (np.abs(data - whole) <= ROUNDING) & (data != whole)
    return np.where(noise, whole, data) if noise.any() else data


def values_found(data: np.ndarray) -> dict[float, int]:
    """Return the number of voxels of each finite value of a label map; values of floats as 32-bit ones."""
    if data.dtype.kind in "iub":
        if data.size and int(data.max()) - int(data.min()) < 2**16:
            low = int(data.min())
            counts = np.bincount((data.astype(np.int64) - low).ravel())  # much faster than sorting
            return {int(i) + low: int(counts[i]) for i in np.flatnonzero(counts)}
    else:
        with np.errstate(over="ignore"):
            data = data.astype(np.float32)
        data = data[np.isfinite(data)]
    values, counts = np.unique(data, return_counts=True)
    return {v.item(): int(n) for v, n in zip(values, counts)}


def value_text(value: float) -> str:
    """Return a value of a label map for people; whole numbers exactly."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.7g}"


def marked(values: np.ndarray, kept: np.ndarray, mark: int, dtype: Any) -> np.ndarray:
    """Return whole numbers where they are kept, and elsewhere a mark, in a type that holds both.

    NumPy takes a Python number modulo the range of the array beside it, so 257 beside 8-bit labels would be 1.
    """
    dtype = np.dtype(dtype)
    return np.where(kept, values.astype(dtype), dtype.type(mark))


def class_numbers(values: np.ndarray, class_values: Sequence[int]) -> np.ndarray:
    """Return class numbers, int16, by the values of a label map; 0 for values that no class has."""
    numbers = np.zeros(values.shape, np.int16)
    for number, value in enumerate(class_values):
        numbers[values == value] = number
    return numbers
