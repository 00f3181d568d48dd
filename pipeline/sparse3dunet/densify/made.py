"""NIfTI files that are made from a scan and its annotation in other formats."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.data.layouts import read_json
from sparse3dunet.errors import DataError
from sparse3dunet.io import write_map
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.suffixes import is_other_volume, split, state_of
from sparse3dunet.io.volumes import Volume
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE

DATALIST = "datalist.json"
SOURCES = {IMAGE: "scan", LABEL: "annotation", REFERENCE: "reference"}
"""Key of a datalist under which the path is that a file of its case was made from, by the file's key."""


@dataclass(frozen=True)
class Converted:
    """Label map on the scan's grid to be written, and its value outside of what was annotated."""

    voxels: np.ndarray
    outside: int


Pair = tuple[Volume, Converted | None, dict[str, Any], Labels]
"""The image; the label map unless the file can be used as it is; what the datalist declares; the values' names."""


def settings() -> list[int]:
    """Return a number that changes with the options by which files are read."""
    options = as_key()
    return [zlib.crc32(json.dumps(options, sort_keys=True).encode())] if options else []


def pair_of(datalist: str | Path) -> dict[str, Any] | None:
    """Return the content of a datalist that was made of a scan and its annotation; None for other data sets."""
    with contextlib.suppress(DataError, AttributeError):
        content = read_json(Path(datalist)) if Path(datalist).name == DATALIST else {}
        return content if all(isinstance(content.get(name), str) for name in ("scan", "annotation")) else None
    return None


@contextlib.contextmanager
def naming_sources(datalist: str | Path) -> Iterator[None]:
    """Have errors name the files that a datalist was made from, not those made from them, which users never saw."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, DataError):
                for file, source in _sources_of(datalist).items():
                    cause.args = tuple(a.replace(file, source) if isinstance(a, str) else a for a in cause.args)
            cause = cause.__cause__ or cause.__context__
        raise


def _sources_of(datalist: str | Path) -> dict[str, str]:
    """Return the source of each file that was made, by its path."""
    content = pair_of(datalist) or {}
    try:
        (entry,) = content["training"]
        pairs = {entry[key]: content[what] for key, what in SOURCES.items() if key in entry and what in content}
    except (KeyError, TypeError, ValueError):  # a list of another form
        return {}
    return {file: source for file, source in pairs.items() if file != source}


class Made:
    """NIfTI files made in a folder, and the sources of each.

    Attributes:
        states: states of the sources, by the name of the file made from them; as kept in the datalist.
    """

    def __init__(self, folder: Path, sources: Sequence[Path]) -> None:
        self.folder, self.sources = folder, sources
        self.states: dict[str, list[Any]] = {}
        self.former: dict[str, Any] = {}
        self.former_scan: str | None = None
        with contextlib.suppress(DataError, AttributeError, TypeError, ValueError):  # missing or damaged
            content = read_json(folder / DATALIST)
            self.former = dict(content.get("made_from"))
            self.former_scan = content["scan"] if isinstance(content.get("scan"), str) else None

    def check_scan(self, scan: Path) -> None:
        """Raise DataError if the folder belongs to another scan, whose results would be replaced."""
        former = self.former_scan
        if former and is_other_volume(former, scan):
            raise DataError(
                f"{scan}: the results next to {self.folder} are those of {former}. Pass another folder (-o) "
                "for this scan; or both scans in one datalist, to train on them together."
            )

    def write(self, name: str, data: np.ndarray, image: Volume, made_from: Iterable[Path], *settings: int) -> str:
        """Write voxels on an image's grid, unless the file is up to date, and return its path."""
        file = self.folder / name
        if any(file.exists() and os.path.samefile(file, split(source)[0]) for source in self.sources):
            raise DataError(
                f"{file} would be replaced by a file made from it. Move it out of {self.folder}, or rename it."
            )
        states: list[Any] = [*(state_of(source) for source in made_from), *settings]
        if not (file.is_file() and states == self.former.get(name)):
            (self.folder / DATALIST).unlink(missing_ok=True)  # it describes the former file
            write_map(file, data, image)
        self.states[name] = states
        return str(file)
