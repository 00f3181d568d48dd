"""Writing of results in NIfTI, with nibabel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.io.grid import SHEAR_TOLERANCE, shear
from sparse3dunet.io.volumes import Volume, affine_in_mm


def write_nifti_labels(path: Path, labels: np.ndarray, like: Volume, class_names: Mapping[int, str]) -> None:
    """Write a label map on an image's grid, with the class names as JSON in an extension of the header."""
    header = _result_header(labels, like)
    header.set_intent("label")
    names = {"labels": {str(value): name for value, name in class_names.items()}}
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(names).encode()))
    _write(path, labels, header)


def write_nifti_map(path: Path, values: np.ndarray, like: Volume, description: str) -> None:
    """Write numbers on an image's grid, with the first 79 bytes of their description."""
    header = _result_header(values, like)
    header["descrip"] = description.encode()[:79].decode(errors="ignore").encode()
    _write(path, values, header)


def _result_header(array: np.ndarray, like: Volume) -> Any:
    """Return a header for an array on an image's grid: a copy of the image's NIfTI header, or a new one."""
    header = like.header
    if (
        isinstance(header, nib.Nifti1Header)
        and header.is_single
        and np.array_equal(affine_in_mm(header.get_best_affine(), header), like.affine)
    ):
        header = header.copy()
        header.extensions.clear()  # they describe the image's voxels, and may name the patient
    else:
        header = _new_header(array.shape, like.affine)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["vox_offset"] = 0  # set later from the extensions' size
    header.set_intent("none")
    return header


def _new_header(shape: tuple[int, ...], affine: np.ndarray) -> Any:
    # NIfTI-1 counts voxels in 16 bits.
    header = nib.Nifti2Header() if max(shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=int(shear(affine) <= SHEAR_TOLERANCE))  # a qform cannot be sheared
    header.set_xyzt_units("mm", "sec")
    return header


def _write(path: Path, array: np.ndarray, header: Any) -> None:
    """Write the array with an unchanged header; compressed files contain neither the file name nor the time."""
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    kind(array, None, header).to_filename(path)
