"""Finding the images to predict: files, folders, patterns, datalists, DICOM series."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparse3dunet.data.layouts import IMAGE_SUFFIXES, channel_fault, group_channels, list_volumes, read_json
from sparse3dunet.data.names import distinct_names
from sparse3dunet.datasets.mni152 import ensure_default
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_series
from sparse3dunet.io.dicom_folders import dicom_folders, is_dicom_folder
from sparse3dunet.io.suffixes import files_of, is_image_file, suffix_among
from sparse3dunet.keys import CASE_NAME, IMAGE
from sparse3dunet.missing import broken_link, no_image

Images = dict[tuple[str, ...], str]
"""Why an image cannot be predicted, if that is known, else empty; by the image's files."""


@dataclass(frozen=True)
class ImageCase:
    """An image to predict.

    Attributes:
        name: name of the case, unique among those found together, after which results are named.
        files: absolute paths of the image's files: one, one for each channel, or a folder of DICOM or Zarr; a dataset
            of HDF5 as ``file.h5:/raw``.
        fault: why it cannot be predicted, if that is known.
    """

    name: str
    files: tuple[str, ...]
    fault: str = ""

    @cached_property
    def size(self) -> int:
        """Bytes on disk, looked up once, for which headers are read; 0 if unknown."""
        try:
            return sum(os.path.getsize(file) for file in self.all_files())
        except (OSError, ValueError):
            return 0

    def all_files(self) -> list[str]:
        """Return its files on disk, including those in a folder."""
        return [file for path in self.files for file in files_of(path)]


def find_images(
    sources: Sequence[str | Path], num_channels: int = 1, leave_out: Collection[str] = ()
) -> list[ImageCase]:
    """Find the images that `sources` name.

    Args:
        sources: each an image; a folder of images (without its subfolders); the folder of a DICOM series, or one
            with such folders at any depth, each an image (with ``--series``, that series alone); a pattern such as
            ``"scans/*/t1.nii.gz"``; or a JSON file: a list of paths or of ``{"image": path}``, by itself or under
            "testing" as in MONAI's datalists, relative to the JSON file.
        num_channels: channels of the model. If there are several, files of a folder or pattern with nnU-Net's channel
            numbers (``a_0000.nii.gz``, ``a_0001.nii.gz``) are one image; any other file contains all its channels.
        leave_out: :func:`place_of` files that are not to be predicted: the results of earlier runs.

    Returns:
        The images, each once, named by :func:`~sparse3dunet.data.names.distinct_names`.

    Raises:
        DataError: when a source does not exist, names a missing file, or contains no image; when two
            images have the same name; when none can be predicted (else, the fault of each tells).
    """
    images: Images = {}
    for source in sources:
        for image, fault in _images_of(str(source), num_channels).items():
            images[image] = images.get(image) or fault
    files = [image for image in images if not leave_out or place_of(image[0]) not in leave_out]
    if not files:
        raise DataError(f"{', '.join(map(str, sources))}: only results of earlier runs, no image. Pass the images.")
    names = distinct_names(files, "images to predict")
    cases = [ImageCase(name, image, images[image] or _link_fault(image)) for name, image in zip(names, files)]
    if all(case.fault for case in cases):
        raise DataError(cases[0].fault)
    return cases


def place_of(path: str | Path) -> str:
    """Return the absolute path of a file without links in that of its folder: the same by whatever way it is named."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def _link_fault(files: Iterable[str]) -> str:
    """Return what is wrong if one of an image's files is a link that leads nowhere; empty if none is."""
    for file in files:
        if fault := broken_link(file):
            return f"{file} {fault}; expected an image. Put it there, or remove the link."
    return ""


def list_images(source: str | Path | None, num_channels: int = 1) -> list[dict[str, Any]]:
    """List the images that `source` names in the form of MONAI's datasets, each with its ``case_name``.

    The ``image`` of each is a path, or the list of its channels' paths. The list is empty for None; the built-in images
    are prepared if absent.

    Raises:
        DataError: as :func:`find_images` does, and when one of them cannot be predicted.
    """
    cases = [] if source is None else find_images([ensure_default(source)], num_channels)
    for fault in (case.fault for case in cases if case.fault):
        raise DataError(fault)
    files = [case.files[0] if len(case.files) == 1 else list(case.files) for case in cases]
    return [{IMAGE: image, CASE_NAME: case.name} for image, case in zip(files, cases)]


def _images_of(source: str, num_channels: int) -> Images:
    """Return the images that a source names."""
    path = Path(os.path.abspath(os.path.expanduser(source)))  # without "..", which must not get into names
    if path.suffix == ".json":
        return dict.fromkeys(_listed(path), "")
    if os.path.isdir(path) and not is_image_file(path):
        return _in_folder(path, num_channels)
    if os.path.isfile(path) or is_image_file(path):
        return _each([path])
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise no_image(path.absolute())
    files = [file for file in found if suffix_among(file, IMAGE_SUFFIXES)]
    folders = [folder for folder in found if folder.is_dir() and is_dicom_folder(folder)]
    if not files and not folders:
        raise DataError(
            f"{source}: {len(found)} file(s) match, but none is an image ({_endings()}); one is {found[0]}."
        )
    return _grouped(files, num_channels) | _each(folders)


def _in_folder(folder: Path, num_channels: int) -> Images:
    files = list_volumes(folder, IMAGE_SUFFIXES)
    if files:
        return _grouped(files, num_channels)
    series = [folder] if is_dicom_folder(folder) else dicom_folders(folder)
    if series and default_series():
        series = [folder]  # one of the study's series is read
    if not series:
        raise DataError(
            f"{folder.absolute()} contains no image ({_endings()}, or DICOM series). Pass the folder that directly "
            "contains the images."
        )
    return _each(series)


def _each(paths: Iterable[Path]) -> Images:
    """Return each file or folder as an image."""
    return {(str(path.absolute()),): "" for path in paths}


def _grouped(files: Sequence[Path], num_channels: int) -> Images:
    """Return the files as images, those of several channels together."""
    if num_channels == 1:
        return _each(files)
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.absolute().parent, []).append(file.absolute())
    groups = (group for in_one in by_folder.values() for group in group_channels(in_one).items())
    return {tuple(map(str, group)): channel_fault(name, group) for name, group in groups}


def _listed(path: Path) -> list[tuple[str, ...]]:
    content = read_json(path)
    entries = content.get("testing", content.get("test")) if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path}: expected a list of images, by itself or under "testing".')
    images = []
    for number, entry in enumerate(entries):
        listed = entry.get(IMAGE) if isinstance(entry, dict) else entry
        names = listed if isinstance(listed, list) else [listed]
        files = [os.path.abspath(path.parent / name) for name in names if isinstance(name, str)]
        if len(files) < len(names) or not files or not all(os.path.exists(f) or is_image_file(f) for f in files):
            raise DataError(f"{path}: entry {number} names no existing image: {entry!r}.")
        images.append(tuple(files))
    return images


def _endings() -> str:
    return ", ".join(f"*{suffix}" for suffix in IMAGE_SUFFIXES)
