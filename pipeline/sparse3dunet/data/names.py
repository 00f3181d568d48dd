"""Names of cases, after which results, pictures and rows of tables are named: by files and folders alone."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """Return the name of an image: its file's or folder's without suffix and nnU-Net's channel number ``_0000``."""
    path = _first(image)
    is_folder = os.path.isdir(path) and not is_image_file(path)
    return (os.path.basename(os.path.abspath(path)) if is_folder else file_stem(path)).removesuffix("_0000")


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


def with_writers_meta(item: Mapping[str, Any], key: str = "pred") -> Mapping[str, Any]:
    """Return an item whose segmentation's metadata tell MONAI's ``SaveImaged`` the case, and of one channel."""
    meta = item[key].meta
    meta[CASE_NAME] = item.get(CASE_NAME) or image_name(meta["filename_or_obj"])
    meta["original_channel_dim"] = float("nan")
    return item


def written_name(meta: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Return what MONAI's ``SaveImaged`` makes a file's name of (``output_name_formatter``)."""
    return {"subject": meta[CASE_NAME], "idx": None}


def distinct_names(images: Sequence[Image], source: str) -> list[str]:
    """Return the names of images, of which each has its own.

    Those with the same name get the first folder before it that differs among them all: ``P001/scan/CT`` and
    ``P002/scan/CT`` are P001_CT and P002_CT. If there is none, or another image has that name, they get all folders
    that differ, P001_scan1_CT, and then those above.

    Args:
        images: path of each image, or of its channels.
        source: where they are listed, for messages.

    Raises:
        DataError: when two have the same name even so.
    """
    same: dict[str, list[int]] = {}
    for number, image in enumerate(images):
        same.setdefault(image_name(image), []).append(number)
    choices: dict[int, list[str]] = {}
    for name, numbers in same.items():
        folders = _telling_folders([_first(images[number]) for number in numbers])
        choices |= {number: ["_".join((*own, name)) for own in chosen] for number, chosen in zip(numbers, folders)}
    names = first = [choices[number][0] for number in range(len(images))]
    while clash := _same_names(names):
        for number in itertools.chain(*(numbers for numbers in same.values() if clash.intersection(numbers))):
            choices[number] = choices[number][1:] or choices[number]
        former, names = names, [choices[number][0] for number in range(len(images))]
        if names == former:
            one = min(clash)
            other = next(number for number in sorted(clash) if number != one and names[number] == names[one])
            name = first[one] if first[one] == first[other] else names[one]
            raise DataError(
                f"{source}: several cases have the same name, {name}: {_first(images[one])} and "
                f"{_first(images[other])}. Cases are told apart by the names of their images' files and folders; give "
                "each a different one, and list it once."
            )
    return names


def may_be_named(case: Mapping[Any, Any], name: str) -> bool:
    """Return whether a case may have another name among other images: with other folders before it, or without."""
    volume, part = split_part(_path(case))
    own = image_name(volume) + ("" if part is None else f"_{part.name}")
    before = name.removesuffix(own)
    if before == name or (before and not before.endswith("_")):
        return False
    return case_name(case) == own or _is_made_of(before, _folders(str(volume)))


def _is_made_of(text: str, folders: Sequence[str]) -> bool:
    """Return whether a text is names of folders in this order, each with ``_`` after it."""
    return not text or any(
        text.startswith(f"{folder}_") and _is_made_of(text[len(folder) + 1 :], folders[number + 1 :])
        for number, folder in enumerate(folders)
    )


def _same_names(names: Sequence[str]) -> set[int]:
    """Return the numbers of names that are there more than once."""
    counts = Counter(names)
    return {number for number, name in enumerate(names) if counts[name] > 1}


def _telling_folders(paths: Sequence[str]) -> list[list[tuple[str, ...]]]:
    """Return for each path which folders tell it from the others: the fewest, then more of them."""
    if len(paths) == 1:
        return [[()]]
    levels = list(itertools.zip_longest(*map(_folders, paths), fillvalue=""))
    differing = [number for number, level in enumerate(levels) if len(set(level)) > 1]
    alone = [number for number in differing if len(set(levels[number])) == len(paths)]
    first = sorted(alone, key=lambda number: ("" in levels[number], number))[:1]
    above = range(differing[0] - 1, -1, -1) if differing else ()
    chosen = [
        *([first] if first and first != differing else []),
        differing,
        *([*range(number, differing[0]), *differing] for number in above),
    ]
    return [
        [tuple(filter(None, (levels[number][path] for number in numbers))) for numbers in chosen]
        for path in range(len(paths))
    ]


def _folders(path: str) -> tuple[str, ...]:
    """Return the folders that a file or folder is in, outermost first."""
    return Path(os.path.abspath(split(path)[0])).parent.parts[1:]


def _path(case: Mapping[Any, Any]) -> str:
    image = case[IMAGE]
    return _first(image.meta["filename_or_obj"] if hasattr(image, "meta") else image)


def _first(image: Image) -> str:
    return str(image if isinstance(image, (str, Path)) else image[0])
