"""Where the voxels of an HDF5 dataset are: links lead elsewhere in the file; virtual datasets show those of others.

A file from elsewhere must not choose which others are read, as it may name any file of the user's. So links to other
files are not followed, nor is external storage, which makes voxels of any bytes. Virtual datasets may show those of the
same file, and of files beside it or in folders there.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.microscopy import package
from sparse3dunet.io.payload import named
from sparse3dunet.io.suffixes import split

MOST_LINKS = 32
"""Number of links from one to the next, as these may be a circle."""


@dataclass(frozen=True)
class _Source:
    """A dataset that a virtual one shows, and what a user must know of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    notes: tuple[str, ...]


def linked(h5py: Any, path: Path, content: Any, name: str) -> Any:
    """Return what a name leads to, also by links within the file; None if to nothing.

    Raises:
        DataError: for a link to another file.
    """
    item, steps, followed = content, name.split("/"), 0
    while steps:
        step = steps.pop(0)
        if step in ("", "."):
            continue
        links, key = getattr(item.id, "links", None), step.encode(errors="surrogateescape")
        if links is None or not links.exists(key):
            return None
        kind = links.get_info(key).type
        if kind == h5py.h5l.TYPE_EXTERNAL:
            raise DataError(
                f"{path}: {name} is, or is in, a link to another file, which is not followed; expected a dataset of "
                "the file itself. Pass the other file, with its dataset, such as other.h5:/raw."
            )
        if kind == h5py.h5l.TYPE_SOFT:
            target = links.get_val(key).decode(errors="surrogateescape")
            item, steps, followed = content if target.startswith("/") else item, target.split("/") + steps, followed + 1
            if followed > MOST_LINKS:
                return None
            continue
        item = item[key]
    return item


def check_sources(h5py: Any, path: Path, dataset: Any, above: tuple[tuple[str, str], ...] = ()) -> tuple[str, ...]:
    """Check where a dataset's voxels are, before they are read; return notes.

    Args:
        h5py: the package.
        path: the image, for messages, and beside which sources must be.
        dataset: its dataset, or one that this shows.
        above: file and name of the datasets that show this one.

    Raises:
        DataError: when they are in files elsewhere, or some are missing: HDF5 reads zeros there, or other memory.
    """
    if dataset.external:
        raise DataError(
            f"{path}: its voxels are in another file (external storage), which is not read; expected a dataset with "
            "voxels of its own. Save it as one, for example with h5py."
        )
    if not dataset.is_virtual:
        return ()
    this = (os.path.realpath(dataset.file.filename), dataset.name)
    if this in above:  # which would end the process
        raise DataError(f"{path}: a virtual dataset shows itself; expected one of other datasets. Export it again.")
    known: dict[tuple[str, str], _Source | None] = {}
    points = 0.0
    for shown in dataset.virtual_sources():
        for number in _numbers(shown.file_name, shown.dset_name):
            name, inner = _numbered(shown.file_name, number), _numbered(shown.dset_name, number)
            if (name, inner) not in known:
                known[name, inner] = _source(h5py, path, dataset, name, inner, (*above, this))
            source = known[name, inner]
            if source is not None:
                points += _check_shown(h5py, path, dataset, shown, source)
            elif number is not None:
                break  # there are no more
            else:
                raise DataError(
                    f"{path}: it shows a dataset of {named(name)}, which is missing or damaged; expected all files "
                    "that it consists of. Copy them, too, to the same folder."
                )
    notes = [note for source in known.values() if source for note in source.notes]
    if points < dataset.size:
        notes.append(
            f"{path}: {dataset.size - int(points)} of {dataset.size} voxels of the virtual dataset are in none of the "
            "datasets that it shows, and have its fill value."
        )
    return tuple(dict.fromkeys(notes))


def _source(
    h5py: Any, path: Path, dataset: Any, name: str, inner: str, above: tuple[tuple[str, str], ...]
) -> _Source | None:
    """Return what is known of a source by its file's name and its own; None if it is missing or damaged."""
    own = Path(dataset.file.filename)
    file = own if name == "." else _found(name, own)
    if file is None:
        return None
    if name != "." and not _is_beside(file, name, path):
        raise DataError(
            f"{path}: it shows voxels of {named(name)}, which is elsewhere and not read; expected files in its folder, "
            "or in folders there. Copy the voxels into one file, for example with h5py."
        )
    try:
        with h5py.File(file, "r") as content:
            item = linked(h5py, path, content, inner)
            if not isinstance(item, h5py.Dataset):
                return None
            return _Source(item.shape or (), item.dtype, check_sources(h5py, path, item, above))
    except (OSError, KeyError):
        return None


def _check_shown(h5py: Any, path: Path, dataset: Any, shown: Any, source: _Source) -> float:
    """Return how many voxels of a virtual dataset a source gives; infinite if as many as there are.

    Raises:
        DataError: when they are not all in it, or do not fit in the dataset's type.
    """
    # Fractions are computed with in 32 bits anyway
    if not np.can_cast(source.dtype, dataset.dtype) and not (dataset.dtype.kind == "f" and source.dtype.kind in "iuf"):
        raise DataError(
            f"{path}: a virtual dataset of {dataset.dtype} shows one of {source.dtype}, which may change values; "
            "expected a type that holds them all. Export it again with the type of the other one."
        )
    _, points, is_limited = _selection(h5py, shown.vspace)
    if shown.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        is_there = math.prod(source.shape) == points
    else:
        ends, _, _ = _selection(h5py, shown.src_space)
        is_there = len(ends) == len(source.shape) and all(end <= n for end, n in zip(ends, source.shape))
    if not is_there:
        raise DataError(
            f"{path}: a virtual dataset shows more or other voxels than those of the other one, whose shape is "
            f"{source.shape}. These files do not belong together; copy or export them again."
        )
    return points if is_limited else math.inf


def _selection(h5py: Any, space: Any) -> tuple[list[int], int, bool]:
    """Return where a selection ends along each axis, its number of voxels, and whether it is limited.

    Of one that goes on along an axis, the end there is 0, and the voxels are those of a block.
    """
    try:
        return [last + 1 for last in space.get_select_bounds()[1]], space.get_select_npoints(), True
    except RuntimeError:
        ends, points = [], 1
        for start, stride, count, block in zip(*space.get_regular_hyperslab()):
            is_limited = h5py.h5s.UNLIMITED not in (count, block)
            ends.append(start + (count - 1) * stride + block if is_limited else 0)
            points *= count * block if is_limited else block if count == h5py.h5s.UNLIMITED else count
        return ends, points, False


def _numbers(*texts: str) -> Iterable[int | None]:
    """Return the numbers to try in names of sources: 0, 1, ... if one is a pattern, for as many as there are."""
    return itertools.count() if any(_numbered(text, 0) != _numbered(text, 1) for text in texts) else (None,)


def _numbered(text: str, number: int | None) -> str:
    """Return the name of a source by HDF5's rules: %b is a number, and %% is %."""
    return re.sub("%([b%])", lambda found: "%" if found[1] == "%" else str(number), text)


def _found(name: str, own: Path) -> Path | None:
    """Return the file that HDF5 takes for a source's file in another one; None if there is none."""
    is_absolute = Path(name).is_absolute()
    short = Path(name).name if is_absolute else name
    places = [Path(name)] if is_absolute else []
    places += [own.parent / short, Path(short), Path(os.path.realpath(own)).parent / short]
    return next((place for place in places if os.path.isfile(place)), None)


def _is_beside(file: Path, name: str, path: Path) -> bool:
    """Return whether a source's file is in an image's folder or below, by its name alone: links are the user's own."""
    image, _ = split(path)
    folders = (os.path.abspath(image.parent), os.path.dirname(os.path.realpath(image)))
    places = (os.path.abspath(file), os.path.join(os.path.realpath(file.parent), file.name))
    is_in = any(Path(place).is_relative_to(folder) for place in places for folder in folders)
    return is_in and ".." not in Path(name).parts  # by which a link to a folder would lead elsewhere


def source_files(file: Path) -> list[Path]:
    """Return the files that the voxels of a file's virtual datasets are in, and those of the files found."""
    h5py = package("h5py", file)

    def visit(_: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.is_virtual:
            return
        for source in {source.file_name for source in item.virtual_sources()} - {"."}:
            for number in _numbers(source):
                name = _numbered(source, number)
                other = _found(name, Path(item.file.filename))
                if other is None or not _is_beside(other, name, file):
                    break
                shown.add(other)

    seen: set[Path] = set()
    shown = {file}
    while left := shown - seen:
        seen |= left
        for one in left:
            # A damaged file raises errors of many kinds, and is told by who reads it
            with contextlib.suppress(Exception), h5py.File(one, "r") as content:
                content.visititems(visit)
    return sorted(seen)
