"""File suffixes of the supported formats."""

from __future__ import annotations

from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import Volume

NIFTI_SUFFIXES, NRRD_SUFFIXES, META_SUFFIXES = (".nii.gz", ".nii"), (".nrrd", ".nhdr"), (".mha", ".mhd")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *META_SUFFIXES)
"""Suffixes of images that can be read, except DICOM."""
OUTPUT_SUFFIXES = (*NIFTI_SUFFIXES, ".seg.nrrd", ".nrrd", ".mha")


def natural_suffix(source: Volume | str | Path) -> str:
    """Return the suffix of results for an input: that of its format in a single file; NIfTI for DICOM and others."""
    path = Path(source.path if isinstance(source, Volume) else source)
    suffix = image_suffix(path)
    if path.is_dir() or not suffix:
        return ".nii.gz"
    return ".nrrd" if suffix in NRRD_SUFFIXES else ".mha" if suffix in META_SUFFIXES else suffix


def image_suffix(path: str | Path) -> str:
    """Return the one of IMAGE_SUFFIXES that a file has, or ""."""
    return suffix_among(path, IMAGE_SUFFIXES)


def output_suffix(path: str | Path) -> str:
    """Return the one of OUTPUT_SUFFIXES that a file has.

    Raises:
        DataError: when it has none of them.
    """
    suffix = suffix_among(path, OUTPUT_SUFFIXES)
    if not suffix:
        raise DataError(f"{path}: unsupported output format; expected one of {', '.join(OUTPUT_SUFFIXES)}.")
    return suffix


def suffix_among(path: str | Path, suffixes: tuple[str, ...]) -> str:
    """Return the one of `suffixes` that a file's name ends with, in upper or lower case, or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix)), "")
