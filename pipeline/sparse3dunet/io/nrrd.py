"""NRRD; 3D Slicer's segmentations in this format become label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.errors import DataError
from sparse3dunet.io.itk import itk_affine, itk_array, itk_header, itk_read, itk_write
from sparse3dunet.io.nrrd_header import check_voxels, read_nrrd_header
from sparse3dunet.io.slicer import Segment, label_map, segments_in
from sparse3dunet.io.text_geometry import nrrd_in_mm
from sparse3dunet.io.volumes import Volume

PATIENT_SPACES = (
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las", "lpst", "rast", "last"),
)
"""Spaces whose axes are those of the patient; ITK takes all others for the first one."""


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file to an (X, Y, Z) or (X, Y, Z, C) volume; a segmentation in layers to a label map (X, Y, Z).

    Raises:
        DataError: when it is damaged, or has another format; when segments overlap, see
            :func:`~sparse3dunet.io.slicer.label_map`, or have values that depend on their order alone.
    """
    volume, segments = _read(path)
    if volume.data.ndim == 3 and any(segment.label != segment.value for segment in segments):
        raise DataError(
            f"{path}: segments in different layers have the same value; expected different ones, since classes are "
            "told by value here. Pass it to densify together with its scan, or export it as a label map in 3D Slicer "
            "(Data module, right click: Export visible segments to binary labelmap)."
        )
    return volume


def read_named(path: Path) -> tuple[Volume, Labels]:
    """Read a label map, and its segments' names and colours by value; empty if it is none of 3D Slicer.

    Segments of several layers with equal values get the values 1, 2, ... in their order.

    Raises:
        DataError: as :func:`read_nrrd`.
    """
    volume, segments = _read(path)
    colors = {segment.label: segment.color for segment in segments if segment.color}
    return volume, Labels({segment.label: segment.name for segment in segments}, colors)


def segments_of(path: Path) -> dict[int, str]:
    """Return the names of the segments that the header of an NRRD file lists, by value; empty if there are none.

    Raises:
        DataError: when the header is damaged.
    """
    read_nrrd_header(path)  # raises for what ends ITK
    return {segment.label: segment.name for segment in segments_in(path, itk_header(path, "NrrdImageIO"))}


def _read(path: Path) -> tuple[Volume, list[Segment]]:
    header = read_nrrd_header(path)
    check_voxels(path, header)  # which ITK does not
    reader = itk_header(path, "NrrdImageIO")
    segments = segments_in(path, reader)
    voxels, notes = label_map(path, itk_array(itk_read(reader, path)), segments)
    affine, is_sized = nrrd_in_mm(path, header.fields, itk_affine(reader))
    if header.fields.get("space", "").lower().removesuffix("-time") not in PATIENT_SPACES:
        notes += (
            f"{path}: its header does not name its space in the patient, such as left-posterior-superior, so x, y and "
            "z are taken for left, back and head.",
        )
    return Volume(str(path), voxels, affine, has_voxel_size=is_sized, notes=notes), segments


def write_nrrd(path: Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) on a grid without shear.

    Raises:
        OSError: when not all could be written.
    """
    itk_write(path, "NrrdImageIO", array, affine, metadata)
    if not _is_whole(path, array):
        raise OSError(f"{path} could not be written completely; is the disk full?")


def _is_whole(path: Path, array: np.ndarray) -> bool:
    """Return whether a file written by ITK is complete, which ITK does not check (see :func:`itk_write`)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.readline() not in (b"\n", b""):
            pass  # to the end of the header
        start = file.tell()
        if array.dtype.kind == "f":
            return size - start == array.nbytes
        file.seek(max(start, size - 4))
        return file.read() == (array.nbytes % 2**32).to_bytes(4, "little")  # the last bytes of gzip
