"""Names of cases, after which results, pictures and rows of tables are named: by files and folders alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse3dunet.data.layouts import file_stem
from sparse3dunet.errors import DataError
from sparse3dunet.io.parts import split_part
from sparse3dunet.io.suffixes import is_image_file, split
from sparse3dunet.keys import CASE_NAME, IMAGE

Image = str | Path | Sequence[str]
"""Path of an image, or of its channels."""


def image_name(image: Image) -> str:
    """Return the name of an image: its file's without suffix and nnU-Net's channel number ``_0000``; a folder's own."""
    path = _first(image)
    if os.path.isdir(path) and not is_image_file(path):
        return os.path.basename(os.path.abspath(path))
    return file_stem(path).removesuffix("_0000")


def case_name(case: Mapping[Any, Any]) -> str:
    """Return the name of a case, or of an item that was loaded from it; that of a part ends with its place."""
    part = split_part(_path(case))[1]
    return volume_name(case) if part is None else f"{volume_name(case)}_{part.name}"


def volume_name(case: Mapping[Any, Any]) -> str:
    """Return the name of the volume that a case is, or is a part of."""
    return str(case.get(CASE_NAME) or image_name(split_part(_path(case))[0]))


def named(cases: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Return the cases; if images have the same name, each with its own as ``case_name``.

    Raises:
        DataError: as :func:`distinct_names`.
    """
    names = distinct_names([case[IMAGE] for case in cases], source)
    if names == [image_name(case[IMAGE]) for case in cases]:
        return [dict(case) for case in cases]
    return [{**case, CASE_NAME: name} for case, name in zip(cases, names)]


def distinct_names(images: Sequence[Image], source: str) -> list[str]:
    """Return the names of images, of which each has its own.

    Those with the same name get the first folder before it that differs among them all: ``P001/scan/CT`` and
    ``P002/scan/CT`` are P001_CT and P002_CT. If there is none, they get all folders that differ: P001_scan1_CT.

    Args:
        images: path of each image, or of its channels.
        source: where they are listed, for messages.

    Raises:
        DataError: when two have the same name even so.
    """
    names = [image_name(image) for image in images]
    same: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        same.setdefault(name, []).append(number)
    for name, numbers in same.items():
        folders = _differing_folders([_first(images[number]) for number in numbers]) if len(numbers) > 1 else []
        for number, own in zip(numbers, folders):
            names[number] = "_".join((*own, name))
    owners: dict[str, str] = {}
    for image, name in zip(images, names):
        path = _first(image)
        if name in owners:
            raise DataError(
                f"{source}: several cases have the same name, {name}: {owners[name]} and {path}. Cases are told apart "
                "by the names of their images' files and folders; give each a different one, and list it once."
            )
        owners[name] = path
    return names


def _differing_folders(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Return for each path the folders that tell it from the others."""
    parents = [Path(os.path.abspath(split(path)[0])).parent.parts[1:] for path in paths]
    levels = list(itertools.zip_longest(*parents, fillvalue=""))
    alone = [level for level in levels if len(set(level)) == len(level)]
    differing = alone[:1] or [level for level in levels if len(set(level)) > 1]
    return [tuple(filter(None, own)) for own in zip(*differing)]


def _path(case: Mapping[Any, Any]) -> str:
    image = case[IMAGE]
    return _first(image.meta["filename_or_obj"] if hasattr(image, "meta") else image)


def _first(image: Image) -> str:
    return str(image if isinstance(image, (str, Path)) else image[0])
