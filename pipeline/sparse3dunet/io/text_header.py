"""Text headers of NRRD and MetaImage, read here before ITK does, whose parsers crash on some damaged ones."""

from __future__ import annotations

import math
import re
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_regular

LONGEST_LINE, LONGEST_HEADER = 30_000, 2**20
"""Bytes; MetaIO has room for 32 KiB in a line."""
MOST_VOXELS = 2**31
"""Along an axis."""


def unreadable(path: str | Path, reason: str) -> DataError:
    """Return the error for an image that is no whole one."""
    return DataError(
        f"{path}: cannot be read ({reason}); expected a whole image. It is missing, truncated, damaged or something "
        "else; copy or export it again."
    )


def shown(text: str) -> str:
    """Return the text of a field as a message may quote it: numbers as they are, of other text its length alone.

    Names of patients get into any field of text.
    """
    if re.fullmatch(r"([\d\s.,+\-()eE]|nan|inf)*", text):
        return repr(text[:60])
    return f"text of {len(text)} character(s)"


def without_texts(reason: str) -> str:
    """Return a library's message without the parts of metadata that it quotes, in which there may be names."""
    reason = re.sub(r"\{.*\}|\[[^\]]*['\"].*\]", "[...]", reason)
    return re.sub(r"(?<!\w)(['\"]).*\1(?!\w)", "'...'", reason)


def header_lines(path: Path, last: str) -> tuple[list[str], int]:
    """Return the lines of a header up to the one that the regular expression `last` matches, and the offset after it.

    If there is none, up to the end of the file.

    Raises:
        DataError: when it is no text, or too long.
    """
    check_regular(path)
    lines: list[str] = []
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE or file.tell() > LONGEST_HEADER:
                raise unreadable(path, f"line {len(lines) + 1} of its header is too long")
            if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", line):
                raise unreadable(path, f"line {len(lines) + 1} of its header is no text")
            lines.append(line.decode("latin-1").rstrip("\r\n"))
            if re.match(last, lines[-1]):
                break
        return lines, file.tell()


def whole_numbers(path: Path, name: str, text: str, low: int, high: int) -> list[int]:
    """Return the whole numbers of a field.

    Raises:
        DataError: when it has others, or some that are not within `low` ... `high`.
    """
    numbers = [int(word) if re.fullmatch(r"[+-]?\d{1,18}", word) else None for word in text.split()]
    found = [number for number in numbers if number is not None and low <= number <= high]
    if not found or len(found) < len(numbers):
        raise unreadable(path, f"{name} is {shown(text)}, expected whole numbers from {low} to {high}")
    return found


def whole_number(path: Path, name: str, text: str, low: int, high: int) -> int:
    """Return the one whole number of a field, as :func:`whole_numbers` does."""
    numbers = whole_numbers(path, name, text, low, high)
    if len(numbers) > 1:
        raise unreadable(path, f"{name} is {shown(text)}, expected one number")
    return numbers[0]


def decimals(path: Path, name: str, text: str, count: int) -> list[float]:
    """Return the `count` finite decimal numbers of a field.

    Raises:
        DataError: when it has others.
    """
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise unreadable(path, f"{name} is {shown(text)}, expected {count} finite number(s)")
    return numbers
