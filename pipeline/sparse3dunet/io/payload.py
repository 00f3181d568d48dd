"""Checks of the bytes of voxels, before a library reads them."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from sparse3dunet.errors import DataError

CHUNK = 2**20
_KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISDIR: "a folder",
}


def check_regular(path: str | Path, part_of: str | Path = "") -> None:
    """Raise DataError unless a path is a regular file, or a link to one: reading a pipe or a device might never end.

    Args:
        path: path of the file.
        part_of: path of the image that names the file, for the message.
    """
    where = f"{part_of}: {_named(path)}" if part_of else path
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # missing, no access, a loop of links; a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{where}: cannot be read ({reason}); expected a whole image. It is missing, or its links lead nowhere; "
            "copy or export it again."
        ) from error
    _check_kind(mode, where)


def _named(path: str | Path) -> str:
    """Return a path that a header names; not one in which more of a damaged header may be, as there may be names."""
    text = str(path)
    is_plain = text.isprintable() and not re.search(r"[=:]", text)
    return text if is_plain else f"the file of its voxels, whose name has {len(Path(path).name)} characters"


def check_no_pipe(path: str | Path) -> None:
    """Raise DataError if there is something else than a regular file at a path: reading it might never end."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # who reads it tells
        return
    _check_kind(mode, path)


def _check_kind(mode: int, where: str | Path) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for is_kind, words in _KINDS.items() if is_kind(mode)), "no regular file")
        raise DataError(f"{where} is {kind}; expected a file. Copy the content to a file, and pass that.")


def check_compressed(path: Path, file: Path, start: int, size: int, expected: int) -> None:
    """Check the checksum and the length of compressed voxels: ITK does neither for NRRD, and invents what is missing.

    Args:
        path: path of the image, for messages.
        file: path of the file with the voxels.
        start: offset of the compressed bytes: gzip or zlib, by the first bytes.
        size: number of compressed bytes.
        expected: number of bytes that they are to give; no more is unpacked.

    Raises:
        DataError: when they are damaged, or give more or fewer bytes.
    """
    found = 0
    try:
        for piece in _unpacked(file, start, size):
            found += len(piece)
            if found > expected:
                break
    except (zlib.error, OSError, EOFError, ValueError) as error:
        reason = re.sub(r" 0x.*", "", str(error))  # the checksums themselves tell nobody anything
        raise DataError(
            f"{path}: the voxels in {file.name} are damaged or truncated ({reason}). Copy or export it again."
        ) from error
    check_length(path, file, found, expected)


def check_length(path: Path, file: Path, found: int, expected: int) -> None:
    """Raise DataError unless `expected` bytes of voxels were found."""
    if found > expected:
        raise DataError(
            f"{path}: {file.name} contains more voxels than the {expected} bytes of its header; header and voxels do "
            "not belong together. Copy or export it again."
        )
    if found < expected:
        raise DataError(
            f"{path}: truncated: {file.name} contains {found} bytes of voxels, expected {expected}. Copy or export it "
            "again."
        )


def _unpacked(file: Path, start: int, size: int) -> Iterator[bytes]:
    """Yield the unpacked bytes piece by piece.

    Raises:
        EOFError: when the end is missing.
        OSError: when gzip's bytes are damaged.
        zlib.error: when zlib's are.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        head = stream.read(2)
        stream.seek(start)
        if head == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=stream) as unpacked:
                while piece := unpacked.read(CHUNK):
                    yield piece
            return
        inflater = zlib.decompressobj()
        while not inflater.eof:
            packed = inflater.unconsumed_tail or stream.read(min(CHUNK, start + size - stream.tell()))
            if not packed:
                raise EOFError("the end is missing")
            yield inflater.decompress(packed, 16 * CHUNK)
