"""Files beside an image's own that its voxels are in, so that a change of these is seen, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.hdf5_sources import source_files
from sparse3dunet.io.meta_header import read_meta_header
from sparse3dunet.io.meta_image import voxel_files as meta_files
from sparse3dunet.io.microscopy import package, readable
from sparse3dunet.io.nrrd_header import read_nrrd_header
from sparse3dunet.io.nrrd_header import voxel_files as nrrd_files
from sparse3dunet.io.suffixes import HDF5_SUFFIXES, META_SUFFIXES, NRRD_SUFFIXES, TIFF_SUFFIXES, suffix_among
from sparse3dunet.io.tiff import ome_files


def voxel_files(file: Path) -> list[str]:
    """Return the other existing files of the voxels, sorted; none of those that cannot be read, which reading tells."""
    kind = next((kind for kind in _FINDERS if suffix_among(file, kind)), None)
    if kind is None or not file.is_file():
        return []
    try:
        with readable(file, "a whole file"):
            found = _FINDERS[kind](file)
        return sorted({str(other) for other in found if other.is_file() and not other.samefile(file)})
    except (DataError, OSError, ValueError):
        return []


def _of_meta(file: Path) -> list[Path]:
    return meta_files(file, read_meta_header(file))


def _of_nrrd(file: Path) -> list[Path]:
    return nrrd_files(file, read_nrrd_header(file))


def _of_ome(file: Path) -> list[Path]:
    with package("tifffile", file).TiffFile(file) as content:
        return ome_files(file, content.ome_metadata or "" if content.is_ome else "")


_FINDERS: dict[tuple[str, ...], Callable[[Path], list[Path]]] = {
    META_SUFFIXES: _of_meta,
    NRRD_SUFFIXES: _of_nrrd,
    TIFF_SUFFIXES: _of_ome,
    HDF5_SUFFIXES: source_files,
}
