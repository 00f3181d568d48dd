"""Reading of images in any supported format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.dicom import read_dicom_file, read_dicom_folder
from sparse3dunet.io.dicom_annotation import LabelOnImage, annotation_file, read_alone, read_on_grid, read_result
from sparse3dunet.io.dicom_codes import class_code
from sparse3dunet.io.dicom_folders import dicom_folders, is_dicom_folder
from sparse3dunet.io.dicom_header import is_dicom_file
from sparse3dunet.io.dicom_header import is_dicom_image as is_dicom_image_file
from sparse3dunet.io.hdf5 import label_dataset, read_hdf5
from sparse3dunet.io.meta_image import read_meta_image
from sparse3dunet.io.microscopy import readable
from sparse3dunet.io.nrrd import read_named, read_nrrd, segments_of
from sparse3dunet.io.ome_zarr import label_group, read_ome_zarr
from sparse3dunet.io.parts import Part, relative, split_part
from sparse3dunet.io.payload import check_regular
from sparse3dunet.io.segments import BACKGROUND
from sparse3dunet.io.suffixes import (
    HDF5_SUFFIXES,
    IMAGE_SUFFIXES,
    META_SUFFIXES,
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    ON_IMAGE,
    TIFF_SUFFIXES,
    ZARR_SUFFIXES,
    image_suffix,
    is_image_file,
    split,
)
from sparse3dunet.io.tiff import read_tiff
from sparse3dunet.io.volumes import Volume, count_nifti_channels, read_volume, whole_labels

READERS = {
    **dict.fromkeys(NIFTI_SUFFIXES, read_volume),
    **dict.fromkeys(NRRD_SUFFIXES, read_nrrd),
    **dict.fromkeys(META_SUFFIXES, read_meta_image),
    **dict.fromkeys(TIFF_SUFFIXES, read_tiff),
    **dict.fromkeys(ZARR_SUFFIXES, read_ome_zarr),
    **dict.fromkeys(HDF5_SUFFIXES, read_hdf5),
}
"""Functions that read a file, by its suffix."""
MOST_OPENED = 256
"""Number of volumes that stay open for their parts: of as many scans, annotations and weights as fit in a data set of
large volumes."""


def read_image(source: str | Path) -> Volume:
    """Read a whole image; uncompressed NIfTI and TIFF files are memory-mapped, and ITK's images are not copied.

    Args:
        source: a file with one of IMAGE_SUFFIXES, or a folder of OME-Zarr; a dataset in an HDF5 file,
            ``file.h5:/raw``, or a group in an OME-Zarr folder, ``a.zarr/labels/cells``; a folder with one DICOM series,
            or a DICOM file of several frames; a DICOM annotation on an image's grid, see
            :class:`~sparse3dunet.io.dicom_annotation.LabelOnImage`, or a segmentation alone, on its own.

    Returns:
        Voxels (X, Y, Z), or (X, Y, Z, C) if they have several components, first axis fastest on disk; affine in
        mm, RAS.

    Raises:
        DataError: when it is missing, truncated, damaged, not a volume, complex, has a degenerate affine, or has
            another format; or when the package that reads it is not installed.
    """
    if ON_IMAGE.fullmatch(str(source)):
        label = LabelOnImage.parse(source)
        return read_on_grid(label.annotation, read_grid(label.image), label.values, label.unlabeled)
    path, part = split_part(source)
    if part is not None:
        return _read_part(path, part, str(source))
    if os.path.lexists(path) and not path.is_dir():
        check_regular(path)
    suffix = image_suffix(path)
    if suffix and (suffix in ZARR_SUFFIXES or not path.is_dir()):
        return READERS[suffix](path)
    if path.is_dir():
        return read_dicom_folder(path)
    if annotation_file(path):
        return read_alone(path)
    if is_dicom_file(path):
        return read_dicom_file(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected an image, or a folder with a DICOM series.")
    raise DataError(
        f"{path}: unknown format; expected {', '.join(IMAGE_SUFFIXES)}, a DICOM file of several frames, or a folder "
        "with a DICOM series. Convert it to .nii.gz."
    )


def read_label(source: str | Path) -> Volume:
    """Read a label map as :func:`read_image` does; values within 1e-3 of a whole number are rounded."""
    volume = read_image(source)
    return replace(volume, data=whole_labels(volume.data))


def read_named_label(source: str | Path) -> tuple[Volume, Labels]:
    """Read a label map as :func:`read_label` does, and 3D Slicer's segments by value; empty if none."""
    path, part = split_part(source)
    if part is not None or image_suffix(path) not in NRRD_SUFFIXES or not os.path.lexists(path) or path.is_dir():
        return read_label(source), Labels({})
    check_regular(path)
    volume, names = read_named(path)
    return replace(volume, data=whole_labels(volume.data)), names


def named_segments(source: str | Path) -> dict[int, str]:
    """Return the names of the segments of a segmentation of 3D Slicer, by value; empty for others. No voxel is read.

    Raises:
        DataError: when its header is damaged.
    """
    path, part = split_part(source)
    if part is not None or image_suffix(path) not in NRRD_SUFFIXES or not path.is_file():
        return {}
    return segments_of(path)


def is_chunked(source: str | Path) -> bool:
    """Return whether the format is one that :func:`open_image` opens, by the suffix."""
    return image_suffix(source) in (*ZARR_SUFFIXES, *HDF5_SUFFIXES)


def open_image(source: str | Path) -> Volume:
    """Open an image of OME-Zarr or HDF5 without reading voxels: its ``data`` is a ``ChunkedArray``, read box by box.

    All else is as in :func:`read_image`; a part of a volume is opened as the whole of it.

    Raises:
        DataError: when it has another format, is missing, damaged or not a volume.
    """
    path, _ = split_part(source)
    if not is_chunked(path):
        expected = ", ".join((*ZARR_SUFFIXES, *HDF5_SUFFIXES))
        raise DataError(f"{path}: this format is read as a whole; expected one of {expected}. Convert it to .ome.zarr.")
    if image_suffix(path) in HDF5_SUFFIXES:
        return read_hdf5(path, opened=True)
    return read_ome_zarr(path, opened=True)


def opened_once(source: str | Path) -> Volume:
    """Return an opened image, see :func:`open_image`, which stays open for its parts until something in it changes.

    Opening a folder of Zarr tests the length of every chunk.

    Raises:
        DataError: as :func:`open_image`.
    """
    path, _ = split_part(source)
    file, _ = split(path)
    if not os.path.exists(file):
        return open_image(path)  # its error
    return _opened(path, _changed(path, file), tuple(as_key().items()))


def _changed(path: Path, file: Path) -> tuple[int, ...]:
    """Return inode and time of the last change of a file; of a folder, those of it and its metadata, not each chunk."""
    metadata = [place / name for place in {file, path} for name in (".", ".zattrs", ".zgroup", ".zarray", "zarr.json")]
    found = [os.stat(place) for place in (file, *sorted(metadata)) if place.exists()]
    return tuple(number for status in found for number in (status.st_ino, status.st_mtime_ns))


@lru_cache(maxsize=MOST_OPENED)
def _opened(path: Path, changed: tuple[int, ...], options: tuple[tuple[str, str], ...]) -> Volume:
    return open_image(path)


def _read_part(path: Path, part: Part, name: str) -> Volume:
    """Read a part of an image of OME-Zarr or HDF5; its affine is that of the part's first voxel."""
    whole = opened_once(path)
    if any(along.stop > n or along.start >= along.stop for along, n in zip(part.box, whole.spatial_shape)):
        raise DataError(f"{name}: the part lies outside of the volume, shape {whole.spatial_shape}. Cut it again.")
    with readable(path, "a whole volume"):
        data = whole.data[part.box]
    if part.inner is not None:
        inner = relative(part.inner, part.box)
        masked = np.full(data.shape, part.outside, np.promote_types(data.dtype, np.min_scalar_type(part.outside)))
        masked[inner] = data[inner]
        data = masked
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [along.start for along in part.box]
    return replace(whole, path=name, data=data, affine=affine)


def read_segmentation(path: str | Path, image: Volume, class_names: Mapping[int, str]) -> np.ndarray:
    """Read a segmentation that was written on an image's grid, in any format of results; return its values (X, Y, Z).

    Args:
        path: the file.
        image: the image.
        class_names: class names by value, background first.
    """
    if annotation_file(path) is None:
        return np.asarray(read_image(path).data)
    background, *values = class_names
    by_label = {class_code(class_names[value]).label: value for value in values}
    return read_result(Path(path), image, {BACKGROUND: background, **by_label})


def read_grid(path: str | Path) -> Volume:
    """Return a volume on the grid of an image; of a DICOM series, without its voxels, which are all 0."""
    return read_dicom_folder(path, pixels=False) if is_dicom_image(path) and Path(path).is_dir() else read_image(path)


def is_dicom_image(path: str | Path) -> bool:
    """Return whether a path names an image in DICOM: a file, or a folder that contains a series at any depth."""
    path = Path(path)
    if image_suffix(path) or ON_IMAGE.fullmatch(str(path)) or not path.exists():
        return False
    return is_dicom_folder(path) or bool(dicom_folders(path)) if path.is_dir() else is_dicom_image_file(path)


def count_channels(path: str | Path) -> int:
    """Return the number of channels in a file, by its header if that suffices; 0 if it cannot be read."""
    if image_suffix(path) in NIFTI_SUFFIXES:
        return count_nifti_channels(path)
    try:
        return (open_image(path) if is_chunked(path) else read_image(path)).num_channels
    except DataError:
        return 0


def annotation_path(path: str) -> str:
    """Return the path of an annotation, which in a file or folder of several volumes is that of the label.

    Raises:
        DataError: when an OME-Zarr image has several labels.
    """
    if not is_image_file(path):
        return path
    return label_group(label_dataset(path))
