"""NRRD; 3D Slicer's segmentations in this format become label maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparse3dunet.io.itk import itk_affine, itk_array, itk_header, itk_read, itk_write
from sparse3dunet.io.nrrd_header import check_voxels, read_nrrd_header
from sparse3dunet.io.slicer import label_map, segments_in
from sparse3dunet.io.suffixes import NRRD_SUFFIXES, image_suffix
from sparse3dunet.io.volumes import Volume


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file to an (X, Y, Z) or (X, Y, Z, C) volume; a segmentation in layers to a label map (X, Y, Z).

    Raises:
        DataError: when it is damaged, or has another format; when segments overlap, see
            :func:`~sparse3dunet.io.slicer.label_map`.
    """
    check_voxels(path, read_nrrd_header(path))
    reader = itk_header(path, "NrrdImageIO")
    segments = segments_in(path, reader)
    voxels, notes = label_map(path, itk_array(itk_read(reader, path)), segments)
    return Volume(str(path), voxels, itk_affine(reader), notes=notes)


def read_segments(path: Path) -> dict[int, str]:
    """Return segment names by value in the label map; empty if the file is not a segmentation of 3D Slicer."""
    if image_suffix(path) not in NRRD_SUFFIXES:
        return {}
    read_nrrd_header(path)  # checks it, which ITK does not
    return {segment.label: segment.name for segment in segments_in(path, itk_header(path, "NrrdImageIO"))}


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
