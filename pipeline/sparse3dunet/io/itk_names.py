"""Names of files for SimpleITK, which ends the process for one that is no UTF-8."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse3dunet.errors import DataError

DETACHED = (".mhd", ".nhdr")
"""Suffixes of headers whose voxels are in other files of the folder."""


@contextmanager
def name_for_itk(path: str | Path) -> Iterator[str]:
    """Context with a name of a file, to read or to write, that is UTF-8: its own, or one that leads to it by links.

    Raises:
        DataError: when there can be no links.
    """
    if is_utf8(str(path)):
        yield str(path)
        return
    place = Path(path).absolute()
    with tempfile.TemporaryDirectory(prefix="links-") as folder:
        try:
            name = _link(place, Path(folder))
        except OSError as error:
            raise DataError(
                f"{path}: its name, or that of a folder, is not in UTF-8, and no link to it can be made ({error}); "
                "expected a name that all programs can read. Rename it."
            ) from error
        yield str(name)


def _link(path: Path, folder: Path) -> Path:
    if is_utf8(path.name):
        parent = folder / "folder"
        parent.symlink_to(path.parent, target_is_directory=True)
        return parent / path.name
    if path.suffix.lower() in DETACHED:
        for file in path.parent.iterdir():
            if is_utf8(file.name):
                (folder / file.name).symlink_to(file)
    name = folder / f"links-to-header{path.suffix if is_utf8(path.suffix) else ''}"
    name.symlink_to(path)
    return name


def is_utf8(text: str) -> bool:
    """Return whether a text, such as a file's name, was UTF-8 where Python got it from."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
