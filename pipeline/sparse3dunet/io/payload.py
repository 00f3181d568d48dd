"""Checks of the bytes of voxels, before a library reads them."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError

CHUNK = 2**20
LARGEST_RATIO = 1032
"""Bytes that one compressed byte of gzip or zlib can give at most (zlib's technical details)."""
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
    where = f"{part_of}: {named(path)}" if part_of else path
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:  # missing, no access, a loop of links; a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{where}: cannot be read ({reason}); expected a whole image. It is missing, or its links lead nowhere; "
            "copy or export it again."
        ) from error
    _check_kind(mode, where)


def named(path: str | Path) -> str:
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


def check_compressed(
    path: Path, file: Path, start: int, size: int, expected: int, kinds: Sequence[str] = ("gzip", "zlib")
) -> None:
    """Check the checksum and the length of compressed voxels: ITK does neither for NRRD, and invents what is missing.

    Args:
        path: path of the image, for messages.
        file: path of the file with the voxels.
        start: offset of the compressed bytes: gzip or zlib, by the first bytes.
        size: number of compressed bytes.
        expected: number of bytes that they are to give; no more is unpacked.
        kinds: what the format's reader unpacks: Teem takes anything but gzip for the voxels themselves.

    Raises:
        DataError: when they are damaged, or give more or fewer bytes.
    """
    check_packed(path, size, expected)
    found = 0
    try:
        for piece in _unpacked(file, start, size, kinds):
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


def check_packed(path: str | Path, size: int, expected: int) -> None:
    """Raise DataError if `size` bytes of gzip or zlib cannot give as many as `expected`, before memory is asked for."""
    if size * LARGEST_RATIO + CHUNK < expected:
        raise DataError(
            f"{path}: truncated: {size} compressed bytes cannot be the {expected} bytes of voxels of its header; "
            "header and voxels do not belong together. Copy or export it again."
        )


def check_text(path: Path, file: Path, start: int, count: int, dtype: np.dtype, has_commas: bool = False) -> None:
    """Raise DataError unless voxels written as text are `count` numbers of that type.

    ITK takes 300 for 44 where the type is of 8 bits, and 1.7 for 1 where it is whole.

    Args:
        path: path of the image, for messages.
        file: path of the file with the voxels.
        start: offset of the text.
        count: number of numbers.
        dtype: their type.
        has_commas: whether a comma may follow a number.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        words = stream.read().split()
    words = [word.removesuffix(b",") for word in words] if has_commas else words
    if len(words) != count:
        raise DataError(
            f"{path}: the voxels in {file.name} are {len(words)} numbers as text, expected {count}; header and voxels "
            "do not belong together. Copy or export it again."
        )
    is_whole = dtype.kind in "iu"
    bounds = np.iinfo(dtype) if is_whole else np.finfo(dtype)
    limits = (bounds.min, bounds.max) if is_whole else (float(bounds.min), float(bounds.max))
    if not all(_is_number(word, is_whole, *limits) for word in set(words)):
        raise DataError(
            f"{path}: the voxels in {file.name}, written as text, are not all {'whole ' * is_whole}numbers from "
            f"{bounds.min:g} to {bounds.max:g}, as its type says; expected these, with blanks between. Export it again."
        )


def _is_number(word: bytes, is_whole: bool, low: float, high: float) -> bool:
    """Return whether a word is a number within bounds; for fractions also NaN and infinity, which are told later."""
    if is_whole:
        return bool(re.fullmatch(rb"[+-]?\d{1,20}(\.0*)?", word)) and low <= int(word.split(b".")[0]) <= high
    if re.fullmatch(rb"(?i:[+-]?(nan|inf))", word):
        return True
    is_number = re.fullmatch(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", word)
    return bool(is_number) and low <= float(word) * (1 - 1e-7) <= high  # rounded to the digits of the type


def _unpacked(file: Path, start: int, size: int, kinds: Sequence[str]) -> Iterator[bytes]:
    """Yield the unpacked bytes piece by piece.

    Raises:
        ValueError: when they are not of one of the kinds.
        EOFError: when the end is missing.
        OSError: when gzip's bytes are damaged.
        zlib.error: when zlib's are.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        head = stream.read(2)
        stream.seek(start)
        is_gzip = head == b"\x1f\x8b"
        if ("gzip" if is_gzip else "zlib") not in kinds:
            raise ValueError(f"they do not begin as {kinds[0]} does")
        if is_gzip:
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
