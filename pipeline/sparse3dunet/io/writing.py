"""Writing of results in any of the formats, on exactly the grid of an image."""

from __future__ import annotations

import csv
import ctypes
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_results import check_dicom_output, write_dicom_segmentation
from sparse3dunet.io.dicom_writers import WRITERS
from sparse3dunet.io.folders import is_running, unused_name
from sparse3dunet.io.grid import SHEAR_TOLERANCE, shear
from sparse3dunet.io.hdf5 import write_hdf5
from sparse3dunet.io.meta_image import write_meta_image
from sparse3dunet.io.microscopy import check_grid, package
from sparse3dunet.io.nifti import write_nifti_labels, write_nifti_map
from sparse3dunet.io.nrrd import write_nrrd
from sparse3dunet.io.ome_zarr import write_ome_zarr
from sparse3dunet.io.slicer import check_segment_values, slicer_segments
from sparse3dunet.io.suffixes import DICOM_SUFFIXES, NIFTI_SUFFIXES, output_suffix
from sparse3dunet.io.tiff import check_imagej, write_tiff
from sparse3dunet.io.volumes import Volume

MICROSCOPY_WRITERS = {
    ".ome.tif": (write_tiff, "tifffile"),
    ".tif": (write_tiff, "tifffile"),
    ".ome.zarr": (write_ome_zarr, "zarr"),
    ".h5": (write_hdf5, "h5py"),
}
"""Functions that write a result, and the packages that they need, by suffix."""

FORMER = ".former"
"""What is added to the name of a draft for the folder that it replaces."""


def check_output(path: str | Path, like: Volume, class_names: Mapping[int, str] | None = None) -> None:
    """Check that a result on `like`'s grid can be written to `path`, for example before hours of computing.

    Raises:
        DataError: when the format is unknown, needs a package that is not installed, or cannot hold the image's grid
            or a value of `class_names`.
    """
    suffix = output_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        return
    if suffix in DICOM_SUFFIXES:
        check_dicom_output(path, like, class_names or {}, suffix)
        return
    if suffix in MICROSCOPY_WRITERS:
        package(MICROSCOPY_WRITERS[suffix][1], path)
        check_grid(path, like, suffix)
        if suffix == ".tif":
            check_imagej(path, like, class_names or {})
        return
    cosine = shear(like.affine)
    if cosine > SHEAR_TOLERANCE:
        raise DataError(
            f"{path}: the grid of {like.path} is sheared (the cosine between two of its axes is {cosine:.4f}), which "
            f"{suffix} cannot hold; expected orthogonal axes. Write to .nii.gz, which can."
        )
    if suffix == ".seg.nrrd":
        check_segment_values(path, class_names or {})


def write_segmentation(
    path: str | Path,
    labels: np.ndarray,
    like: Volume,
    class_names: Mapping[int, str],
    is_semi_automatic: bool = False,
) -> None:
    """Write a label map on exactly the grid of an image, with the names of its classes.

    The same input gives the same bytes, but in DICOM. Class names are stored in NIfTI as JSON in a header extension,
    ``{"labels": {"0": "background", ...}}``; in NRRD and MetaImage as keys ``label_0``, ... (in MetaImage, letters
    that are not ASCII, and = or : at the start, are escaped as in Python, ``\\xfc``); in .seg.nrrd as 3D Slicer's
    segments, all but the background; for DICOM see :mod:`~sparse3dunet.io.dicom_results`, for those of microscopy
    :mod:`~sparse3dunet.io.tiff`, :mod:`~sparse3dunet.io.hdf5` and :mod:`~sparse3dunet.io.ome_zarr`.

    Args:
        path: path of the file, whose suffix (OUTPUT_SUFFIXES) gives the format; its folder is created if missing.
        labels: (X, Y, Z) integers in the order of `like.data`, in memory or on disk, in any memory layout. NRRD and
            MetaImage need a copy in memory.
        like: the image, in any format; from NIfTI to NIfTI, the header's geometry is copied bit by bit.
        class_names: class names by value in `labels`, background first.
        is_semi_automatic: whether a person annotated a part of this very image, which is stated in DICOM.

    Raises:
        DataError: see :func:`check_output`.
        OSError: when it could not be written completely; a former file at `path` is kept.
        ValueError: when `labels` are not integers, or have another shape than the image; when `class_names` are no
            dictionary.
    """
    if not isinstance(class_names, Mapping):
        raise ValueError(f"class_names must be a dictionary of names by value, got {str(class_names)[:80]}.")
    check_output(path, like, class_names)
    labels = _array(labels)
    _check_shape(labels, like, "biu", 3)
    labels, suffix = _of_common_type(labels), output_suffix(path)
    with replacing(path, suffix) as draft:
        if suffix in NIFTI_SUFFIXES:
            write_nifti_labels(draft, labels, like, class_names)
        elif suffix in DICOM_SUFFIXES:
            write_dicom_segmentation(draft, labels, like, class_names, is_semi_automatic, WRITERS[suffix])
        elif suffix in MICROSCOPY_WRITERS:
            MICROSCOPY_WRITERS[suffix][0](draft, labels, like, class_names)
        elif suffix == ".seg.nrrd":
            write_nrrd(draft, labels, like.affine, slicer_segments(labels.shape, class_names))
        else:
            names = {f"label_{value}": name for value, name in class_names.items()}
            (write_meta_image if suffix == ".mha" else write_nrrd)(draft, labels, like.affine, names)


def write_map(path: str | Path, values: np.ndarray, like: Volume, description: str = "") -> None:
    """Write numbers on exactly the grid of an image: confidence, or a probability for each class.

    The same input gives the same bytes. Integers are compressed, and everything in .nii.gz; floats, which hardly
    shrink, are not compressed in .nrrd and .mha.

    Args:
        path: as for :func:`write_segmentation`, but not .seg.nrrd.
        values: (X, Y, Z), or (X, Y, Z, K) to be written as a fourth dimension of NIfTI and as components in other
            formats; integers or floats (16-bit ones become 32-bit). Memory as for :func:`write_segmentation`.
        like: the image.
        description: description of the numbers; in NIfTI its first 79 bytes.

    Raises:
        DataError: see :func:`check_output`.
        OSError: when it could not be written completely; a former file at `path` is kept.
        ValueError: when `values` are not real numbers, or have another shape than the image.
    """
    check_output(path, like)
    values = _array(values)
    _check_shape(values, like, "biuf", values.ndim if values.ndim == 4 else 3)
    values, suffix = _of_common_type(values), output_suffix(path)
    if suffix == ".seg.nrrd" or suffix in DICOM_SUFFIXES:
        raise DataError(f"{path}: {suffix} is for segmentations only; expected one of .nii.gz, .nrrd and .mha.")
    with replacing(path, suffix) as draft:
        if suffix in NIFTI_SUFFIXES:
            write_nifti_map(draft, values, like, description)
        elif suffix in MICROSCOPY_WRITERS:
            MICROSCOPY_WRITERS[suffix][0](draft, values, like, None, description)
        else:
            metadata = {"description": description} if description else {}
            (write_meta_image if suffix == ".mha" else write_nrrd)(draft, values, like.affine, metadata)


def _array(values: Any) -> np.ndarray:
    """Return a tensor, or nested lists, as an array; arrays, also on disk, as they are."""
    if hasattr(values, "detach"):
        return np.asarray(values.detach().cpu())
    return values if hasattr(values, "dtype") else np.asarray(values)


def _check_shape(array: np.ndarray, like: Volume, kinds: str, ndim: int) -> None:
    if array.ndim != ndim or array.shape[:3] != like.spatial_shape:
        raise ValueError(f"expected an array of the image's shape {like.spatial_shape}, got {array.shape}.")
    if array.dtype.kind not in kinds:
        raise ValueError(f"expected {'integers' if 'f' not in kinds else 'real numbers'}, got {array.dtype}.")


def _of_common_type(array: np.ndarray) -> np.ndarray:
    """Convert an array to a type that all formats support."""
    name = {"bool": "uint8", "float16": "float32"}.get(array.dtype.name, array.dtype.name)
    return array.astype(name, copy=False)


@contextmanager
def replacing(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """Context with a file or folder to write that replaces `path` once it is complete: `path` is always whole.

    Args:
        path: path of the file; its folder is created if missing.
        suffix: lower-case suffix of the file to write, as MetaIO expects; "" for none.

    Raises:
        DataError: when a file was written, and a folder is at its place.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_path(target, suffix)
    remove(draft)  # a link there would be followed
    try:
        yield draft
        flush(draft)
        if not draft.is_dir():
            check_no_folder(target)
        move(draft, target)
    except OSError as error:
        if error.errno and error.filename is None:  # the system names no file when a disk is full
            error.filename = str(target)
        raise
    finally:
        remove(draft)


def check_no_folder(path: Path) -> None:
    """Raise DataError if there is a folder at the place of a file: it would be removed with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        raise DataError(f"{path.absolute()} is a folder; expected a file, or nothing. Move it, or write elsewhere.")


def flush(path: Path) -> None:
    """Have the disk write a file, or all files in a folder."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def move(path: Path, target: Path) -> None:
    """Move a file or folder to `target`, and replace what is there; a folder that is replaced is removed afterwards.

    A process that is killed leaves either of the two at `target`; or, where the system cannot exchange two folders, the
    former one under a name that :func:`replacing` finds, and puts back.
    """
    if not (path.is_dir() or target.is_dir()):
        os.replace(path, target)
        return
    if not target.exists():
        os.replace(path, target)
    elif _exchange(path, target):
        remove(path)
    else:
        former = path.with_name(path.name + FORMER)
        os.replace(target, former)
        try:
            os.replace(path, target)
        except BaseException:
            os.replace(former, target)
            raise
        remove(former)


def _exchange(path: Path, target: Path) -> bool:
    """Exchange two files or folders in one step; return whether the system can (Linux can, on most file systems)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(path.absolute()), here, os.fsencode(target.absolute()), exchange) == 0


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def aside(path: Path, suffix: str) -> Path:
    """Return a path beside a file, ``a_before.nii.gz``, at which there is nothing yet, to keep the file there."""
    stem = path.name[: len(path.name) - len(suffix)]
    return path.with_name(unused_name(path.parent, f"{stem}_before", suffix))


def draft_path(target: Path, suffix: str) -> Path:
    """Return the path of a draft of this process alone, and clear away those of this machine's processes that ended."""
    stem = f".{target.name[: len(target.name) - len(suffix)]}"[:150]
    host = re.sub(r"\W", "", platform.node())[:40]
    pattern = re.compile(rf"{re.escape(stem)}\.{host}-(\d{{1,9}})\.part{re.escape(suffix)}({re.escape(FORMER)})?")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        if found and not is_running(int(found[1])):
            if found[2] and not os.path.lexists(target):
                os.replace(target.with_name(name), target)
            remove(target.with_name(name))
    return target.with_name(f"{stem}.{host}-{os.getpid()}.part{suffix}")


def write_text(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write text in UTF-8 to a file that is always whole, see :func:`replacing`."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors=errors)


def write_csv(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows of cells in UTF-8 to a file that is always whole, see :func:`replacing`.

    Lines end with LF. Text that a spreadsheet would take for a formula begins with ', as names of cases and classes may
    come from others.
    """
    # Names of files may be no UTF-8
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        _write_rows(file, rows)


def append_csv(path: str | Path, row: Iterable[object]) -> None:
    """Add a row to a file of :func:`write_csv`."""
    with Path(path).open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
        _write_rows(file, [row])


def _write_rows(file: IO[str], rows: Iterable[Iterable[object]]) -> None:
    csv.writer(file, lineterminator="\n").writerows([_harmless(cell) for cell in row] for row in rows)


def _harmless(cell: object) -> object:
    """Return a cell that a spreadsheet does not take for a formula; numbers stay."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
