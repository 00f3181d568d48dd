"""Whether a file is as it was written: its size, time of change and digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from sparse3dunet.io.payload import check_no_pipe
from sparse3dunet.io.suffixes import files_of, split


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 digest of a file's bytes, in hexadecimal; of a Zarr folder's files and their names."""
    digest, root = hashlib.sha256(), split(path)[0]
    for name in files_of(path):
        if root.is_dir():
            digest.update(os.fsencode(os.path.relpath(name, root)))
        check_no_pipe(name)
        with open(name, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def as_written(path: Path) -> list[Any]:
    """Return size, time of the last change, and digest of a result."""
    return [*size_and_time(path), file_digest(path)]


def is_as_written(path: Path, written: Any) -> bool:
    """Return whether a result is unchanged since it was written; a copy with another time of change counts, too."""
    if not path.exists() or not isinstance(written, list):
        return False
    size, changed = size_and_time(path)
    if [size, changed] == written[:2]:
        return True
    return len(written) > 2 and size == written[0] and file_digest(path) == written[2]


def size_and_time(path: Path) -> list[int]:
    """Return size in bytes and time of the last change, both kept by moving; of all files in a folder."""
    states = [file.stat() for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path.stat()]
    return [sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)]
