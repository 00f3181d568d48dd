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

GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""Fields of a header that place an image in space, beside pixdim."""


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
    """Return a header for an array on an image's grid: with the geometry of the image's NIfTI header, or a new one."""
    header = like.header
    if (
        isinstance(header, nib.Nifti1Header)
        and header.is_single
        and np.array_equal(affine_in_mm(header.get_best_affine(), header), like.affine)
    ):
        header = _with_geometry(header)
    else:
        header = _new_header(array.shape, like.affine)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    return header


def _with_geometry(header: Any) -> Any:
    """Return a new header with nothing but another one's geometry; its texts may name the patient."""
    result = type(header)(endianness=header.endianness)
    for field in GEOMETRY:
        result[field] = header[field]
    result["pixdim"][:4] = header["pixdim"][:4]
    return result


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
