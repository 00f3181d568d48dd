"""Reading of images in any supported format."""

from __future__ import annotations

import os
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom import read_dicom_file, read_dicom_folder
from sparse3dunet.io.dicom_header import is_dicom_file
from sparse3dunet.io.meta_image import read_meta_image
from sparse3dunet.io.nrrd import read_nrrd
from sparse3dunet.io.payload import check_regular
from sparse3dunet.io.suffixes import IMAGE_SUFFIXES, META_SUFFIXES, NIFTI_SUFFIXES, NRRD_SUFFIXES, image_suffix
from sparse3dunet.io.volumes import Volume, read_volume


def read_image(source: str | Path) -> Volume:
    """Read a whole image; uncompressed NIfTI files are memory-mapped, and ITK's images are not copied.

    Args:
        source: a NIfTI, NRRD or MetaImage file (IMAGE_SUFFIXES), a folder with one DICOM series, or a DICOM file of
            several frames.

    Returns:
        Voxels (X, Y, Z), or (X, Y, Z, C) if they have several components, first axis fastest on disk; affine in
        mm, RAS.

    Raises:
        DataError: when it is missing, truncated, damaged, not a volume, complex, has a degenerate affine, or has
            another format.
    """
    path = Path(source)
    if path.is_dir():
        return read_dicom_folder(path)
    if os.path.lexists(path):
        check_regular(path)
    suffix = image_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        return read_volume(source)
    if suffix in NRRD_SUFFIXES:
        return read_nrrd(path)
    if suffix in META_SUFFIXES:
        return read_meta_image(path)
    if is_dicom_file(path):
        return read_dicom_file(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected an image, or a folder with a DICOM series.")
    raise DataError(
        f"{path}: unknown format; expected {', '.join(IMAGE_SUFFIXES)}, a DICOM file of several frames, or a folder "
        "with a DICOM series. Convert it to .nii.gz."
    )
