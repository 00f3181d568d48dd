"""Reading and writing with SimpleITK, with arrays in nibabel's order and messages of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io.grid import lps_geometry, ras_affine
from sparse3dunet.io.itk_names import name_for_itk
from sparse3dunet.io.text_header import unreadable, without_texts
from sparse3dunet.io.volumes import check_affine


def itk_reader(io: str) -> sitk.ImageFileReader:
    """Return a reader for one of ITK's formats, by the name of its ``ImageIO``; :func:`itk_read` gives it the file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    return reader


def itk_header(path: str | Path, io: str) -> sitk.ImageFileReader:
    """Return a reader that has read the header of a volume of real numbers.

    Raises:
        DataError: when the header is damaged, or not that of such a volume.
    """
    reader = itk_reader(io)
    itk_read(reader, path, information_only=True)
    if reader.GetDimension() != 3:
        raise DataError(
            f"{path}: expected a three-dimensional volume, found shape {reader.GetSize()}. Export the whole stack as "
            "one volume; split a series over time into volumes, and store channels as the components of a voxel."
        )
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise DataError(
            f"{path}: found complex numbers ({kind}); expected one real number per voxel. Export the magnitude, for "
            "example."
        )
    check_affine(path, itk_affine(reader))
    return reader


def itk_read(reader: sitk.ImageFileReader, path: str | Path, information_only: bool = False) -> Any:
    """Read an image; with `information_only`, read its header into the reader.

    Raises:
        DataError: for any error that ITK reports.
    """
    try:
        with itk_warnings_off(), name_for_itk(path) as name:
            reader.SetFileName(name)
            return reader.ReadImageInformation() if information_only else reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, itk_reason(error)) from error


def itk_write(path: Path, io: str, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) on a grid without shear; integers are compressed.

    Raises:
        OSError: when it could not be written; ITK does not notice if the disk is full when it writes the last few KB,
            on closing the file.
    """
    writer = sitk.ImageFileWriter()
    writer.SetImageIO(io)
    writer.SetUseCompression(array.dtype.kind != "f")
    try:
        with name_for_itk(path) as name:
            writer.SetFileName(name)
            writer.Execute(_itk_image(array, affine, metadata))
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written ({itk_reason(error)})") from error


def _itk_image(array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> sitk.Image:
    array = array[..., 0] if array.shape[3:] == (1,) else array
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    origin, spacing, axes = lps_geometry(affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(axes.ravel())
    for key, text in metadata.items():
        image.SetMetaData(key, text)
    return image


@contextmanager
def itk_warnings_off() -> Iterator[None]:
    """Context without ITK's warnings: what matters of them is checked."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def itk_reason(error: Exception) -> str:
    """Return the informative line of an ITK exception, without source files, addresses, callers and quoted texts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if "[nrrd]" in lines[-1] else next((line for line in lines if "ERROR: " in line), lines[-1])
    return without_texts(re.sub(r"^\[nrrd\] \w+: *|^.*ERROR: (\w+\(0x[0-9a-f]+\): )?", "", line))


class _Voxels:
    """Array interface of an image's voxels, through which NumPy keeps the image and need not copy them."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        interface = sitk.GetArrayViewFromImage(image).__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}  # not read-only


def itk_array(image: sitk.Image) -> np.ndarray:
    """Return an image's voxels in nibabel's order, (X, Y, Z) or (X, Y, Z, C), without a copy."""
    voxels = np.asarray(_Voxels(image))
    return voxels.transpose(2, 1, 0, *range(3, voxels.ndim))


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return a three-dimensional image's affine (4, 4), voxel to world, RAS in mm."""
    return ras_affine(image.GetOrigin(), image.GetSpacing(), np.reshape(image.GetDirection(), (3, 3)))
