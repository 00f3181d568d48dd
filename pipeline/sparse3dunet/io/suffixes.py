"""File suffixes of the supported formats, and paths that name a part of a file: a dataset of HDF5, a label of Zarr."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.parts import split_part
from sparse3dunet.io.volumes import Volume

NIFTI_SUFFIXES, NRRD_SUFFIXES, META_SUFFIXES = (".nii.gz", ".nii"), (".nrrd", ".nhdr"), (".mha", ".mhd")
TIFF_SUFFIXES, ZARR_SUFFIXES, HDF5_SUFFIXES = (
    (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".ome.btf", ".btf"),
    (".ome.zarr", ".zarr"),
    (".h5", ".hdf5"),
)
MICROSCOPY_SUFFIXES = (*TIFF_SUFFIXES, *ZARR_SUFFIXES, *HDF5_SUFFIXES)
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *META_SUFFIXES, *MICROSCOPY_SUFFIXES)
"""Suffixes of images that can be read, except DICOM."""
ON_IMAGE = re.compile(r"(.*)(\?image=[^?&]+&unlabeled=-?\d{1,18}(?:&-?\d{1,18}=[^?&]*)*)", re.DOTALL)
"""Path of a DICOM annotation on an image's grid, see `dicom_annotation.LabelOnImage`: the file, and what follows it."""
DICOM_SEG_SUFFIX, RTSTRUCT_SUFFIX = ".seg.dcm", ".rtstruct.dcm"
DICOM_SUFFIXES = (DICOM_SEG_SUFFIX, RTSTRUCT_SUFFIX)
"""Suffixes of segmentations in DICOM, of images in DICOM."""
FORMAT_NAMES = {"dicom-seg": DICOM_SEG_SUFFIX, "rtstruct": RTSTRUCT_SUFFIX}
"""Other names of formats, for --format."""
ORIENTED_SUFFIXES = (*NIFTI_SUFFIXES, ".seg.nrrd", ".nrrd", ".mha")
OUTPUT_SUFFIXES = (*ORIENTED_SUFFIXES, ".ome.tif", ".tif", ".ome.zarr", ".h5", *DICOM_SUFFIXES)
"""Suffixes of results; the first ones are of formats that state an orientation."""
MAP_SUFFIXES = {".seg.nrrd": ".nrrd", **dict.fromkeys(DICOM_SUFFIXES, ".nii.gz")}
"""Suffixes of maps and label maps next to segmentations in formats that can hold nothing else."""


def natural_suffix(source: Volume | str | Path) -> str:
    """Return the suffix of results for an input: that of its format in a single file; NIfTI for DICOM and others."""
    path = source.path if isinstance(source, Volume) else source
    suffix = image_suffix(path)
    if suffix in TIFF_SUFFIXES:
        from sparse3dunet.io.tiff import is_ome

        return ".ome.tif" if suffix.startswith(".ome") or is_ome(path) else ".tif"
    if suffix in ZARR_SUFFIXES:
        return ".ome.zarr"
    if suffix in HDF5_SUFFIXES:
        return ".h5"
    if Path(path).is_dir() or not suffix:
        return ".nii.gz"
    return ".nrrd" if suffix in NRRD_SUFFIXES else ".mha" if suffix in META_SUFFIXES else suffix


def format_suffix(format: str | None) -> str | None:
    """Return the suffix of a format of results, given with or without its dot, or by its name; None for None.

    Raises:
        DataError: when there is no such format.
    """
    if format is None:
        return None
    suffix = FORMAT_NAMES.get(str(format).lower(), "." + str(format).lstrip("."))
    if suffix not in OUTPUT_SUFFIXES:
        raise DataError(
            f"format is {format!r}; expected one of {', '.join(OUTPUT_SUFFIXES)}, {' or '.join(FORMAT_NAMES)}."
        )
    return suffix


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
    name = split(path)[0].name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix)), "")


def split(path: str | Path) -> tuple[Path, str]:
    """Return the file or folder of a volume, and the place in it, "" for none.

    ``a.h5:/raw`` and ``a.h5/raw`` give ``a.h5`` and ``raw``; ``a.zarr/labels/cells`` gives ``a.zarr`` and
    ``labels/cells``; a DICOM annotation on an image's grid its file and the rest; any other path is returned as it is.
    The name of a part (:mod:`~sparse3dunet.io.parts`) is left out.
    """
    if on_image := ON_IMAGE.fullmatch(str(path)):
        return Path(on_image[1]), on_image[2]
    path, _ = split_part(path)
    parts = path.parts
    for number in reversed(range(len(parts))):
        name, inner = parts[number].rstrip(":"), "/".join(parts[number + 1 :])
        file = Path(*parts[:number], name)
        if name.lower().endswith(HDF5_SUFFIXES) and (os.path.isfile(file) if inner else not os.path.isdir(file)):
            return file, inner
        if name.lower().endswith(ZARR_SUFFIXES) and (not inner or _is_zarr(file)):
            return file, inner
        if not inner and name.lower().endswith(IMAGE_SUFFIXES):
            break
    return path, ""


def _is_zarr(folder: Path) -> bool:
    """Return whether a folder has the metadata of Zarr; one with a name like that may contain anything."""
    return any(os.path.isfile(folder / name) for name in ("zarr.json", ".zgroup", ".zarray"))


def is_image_file(path: str | Path) -> bool:
    """Return whether a path names an existing file of an image, a folder of Zarr, or a place in one of these."""
    file, inner = split(path)
    if suffix_among(path, ZARR_SUFFIXES):
        return os.path.isdir(file / inner)
    return os.path.isfile(file)


def same_volume(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths name the same file and place in it; False if either file does not exist."""
    (file, place), (other_file, other_place) = split(one), split(other)
    both = os.path.exists(file) and os.path.exists(other_file)
    return both and place.strip("/") == other_place.strip("/") and os.path.samefile(file, other_file)


def is_other_volume(former: str | Path, path: str | Path) -> bool:
    """Return whether a path that was noted earlier names another volume than `path`, which is still there."""
    return os.path.exists(split(former)[0]) and not same_volume(former, path)


def files_of(path: str | Path) -> list[str]:
    """Return the files on disk that a volume is read from: of a folder, its DICOM images, or all files below it.

    Other files next to DICOM images do not count, such as a DICOMDIR or results. Of a file, also those that it names
    for its voxels, such as the ``.raw`` of a ``.mhd``.
    """
    from sparse3dunet.io.dicom_folders import dicom_images
    from sparse3dunet.io.voxel_files import voxel_files

    file, _ = split(path)
    if not os.path.isdir(file):
        return [str(file), *voxel_files(file)]
    images = [] if suffix_among(path, ZARR_SUFFIXES) else dicom_images(file)
    below = (os.path.join(place, name) for place, _, names in os.walk(file) for name in names)
    return sorted(map(str, images) if images else below)


def state_of(source: Path) -> list[str | int]:
    """Return path, number of files, size, and sum of the times of the last change in ns, of :func:`files_of`.

    The sum, as the last one would stay if a file were replaced by an older one.
    """
    files = [os.stat(file) for file in files_of(source)]
    return [str(source), len(files), sum(file.st_size for file in files), sum(file.st_mtime_ns for file in files)]
