"""Reading of images in any supported format."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom import read_dicom_file, read_dicom_folder
from sparse3dunet.io.dicom_header import is_dicom_file
from sparse3dunet.io.hdf5 import label_dataset, read_hdf5
from sparse3dunet.io.meta_image import read_meta_image
from sparse3dunet.io.nrrd import read_nrrd
from sparse3dunet.io.ome_zarr import label_group, read_ome_zarr
from sparse3dunet.io.payload import check_regular
from sparse3dunet.io.suffixes import (
    HDF5_SUFFIXES,
    IMAGE_SUFFIXES,
    META_SUFFIXES,
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    TIFF_SUFFIXES,
    ZARR_SUFFIXES,
    image_suffix,
    is_image_file,
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


def read_image(source: str | Path) -> Volume:
    """Read a whole image; uncompressed NIfTI and TIFF files are memory-mapped, and ITK's images are not copied.

    Args:
        source: a file with one of IMAGE_SUFFIXES, or a folder of OME-Zarr; a dataset in an HDF5 file,
            ``file.h5:/raw``, or a group in an OME-Zarr folder, ``a.zarr/labels/cells``; a folder with one DICOM series,
            or a DICOM file of several frames.

    Returns:
        Voxels (X, Y, Z), or (X, Y, Z, C) if they have several components, first axis fastest on disk; affine in
        mm, RAS.

    Raises:
        DataError: when it is missing, truncated, damaged, not a volume, complex, has a degenerate affine, or has
            another format; or when the package that reads it is not installed.
    """
    path = Path(source)
    if os.path.lexists(path) and not path.is_dir():
        check_regular(path)
    suffix = image_suffix(path)
    if suffix and (suffix in ZARR_SUFFIXES or not path.is_dir()):
        return READERS[suffix](path)
    if path.is_dir():
        return read_dicom_folder(path)
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


def count_channels(path: str | Path) -> int:
    """Return the number of channels in a file, by its header alone if it is NIfTI; 0 if that cannot be read."""
    if image_suffix(path) in NIFTI_SUFFIXES:
        return count_nifti_channels(path)
    try:
        return read_image(path).num_channels
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
