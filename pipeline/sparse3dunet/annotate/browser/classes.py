"""Classes of an annotation: their values on disk, names and colours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparse3dunet.colors import Labels, class_color
from sparse3dunet.errors import DataError
from sparse3dunet.io.segments import UNLABELED_NAMES, check_structures
from sparse3dunet.io.volumes import LARGEST_VALUE, UNLABELED_VALUE

MOST_CLASSES = 254
"""Maximum number of classes: a painted voxel is class number + 1 in 8 bits."""
LONGEST_NAME = 60
BACKGROUND_COLOR = "#8c8c8c"


@dataclass(frozen=True)
class Class:
    """Class of an annotation.

    Attributes:
        value: value on disk.
        name: name of at most LONGEST_NAME characters.
        color: #rrggbb.
    """

    value: int
    name: str
    color: str


def make_classes(
    names: Sequence[str], values: Sequence[int] | None = None, own: Mapping[int, str] | None = None
) -> list[Class]:
    """Return classes by class number, background first; values 0, 1, ... unless given, `own` colours by value.

    Raises:
        DataError: when the names are not as expected.
    """
    values = range(len(names)) if values is None else values
    colors = [BACKGROUND_COLOR, *map(class_color, range(1, len(names)))]
    own = own or {}
    return _new([Class(int(value), name, own.get(value, color)) for value, name, color in zip(values, names, colors)])


def labels(classes: Sequence[Class]) -> Labels:
    """Return names and colours by value."""
    return Labels({one.value: one.name for one in classes}, {one.value: one.color for one in classes})


def edited(classes: Sequence[Class], entries: Any) -> list[Class]:
    """Return the classes with new names and colours, and new classes after them, which get unused values.

    Args:
        classes: the classes so far.
        entries: from JSON: a list of {"name": text, "color": "#rrggbb"} by class number.

    Raises:
        DataError: when it is none, or a class is missing.
    """
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise DataError('expected a list of classes such as {"name": "liver", "color": "#e69f00"}.')
    if len(entries) < len(classes):
        raise DataError(f"found {len(entries)} classes; expected at least {len(classes)}: none is ever removed.")
    _check_count(len(entries))
    taken = {entry.value for entry in classes} | {UNLABELED_VALUE}
    free = (value for value in range(2**16) if value not in taken)
    values = [*(entry.value for entry in classes), *(next(free) for _ in entries[len(classes) :])]
    default = [BACKGROUND_COLOR, *map(class_color, range(1, len(entries)))]
    return _new(
        [
            Class(value, entry.get("name", ""), (entry.get("color") or color).lower())
            for value, color, entry in zip(values, default, entries)
        ]
    )


def _is_entry(entry: Any) -> bool:
    """Return whether an entry is {"name": text, "color": text}, of which each may be missing; None is no color."""
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("name", ""), str) and isinstance(entry.get("color") or "", str)


def _new(classes: list[Class]) -> list[Class]:
    """Return the classes if they can be used, and mean the same in the files that are written."""
    check_structures([entry.name for entry in checked(classes)[1:]], "the classes")
    if classes[0].name.lower() in UNLABELED_NAMES:
        raise DataError(f"the first class is named {classes[0].name!r}; expected the background's name. Rename it.")
    return classes


def checked(classes: list[Class]) -> list[Class]:
    """Return the classes if they can be used.

    Raises:
        DataError: when names are empty, too long, with quotes or line breaks, or not unique; when a colour is none;
            when there are fewer than two classes, or too many; when values are not unique.
    """
    _check_count(len(classes))
    for entry in classes:
        plain = " ".join(entry.name.split()) == entry.name and '"' not in entry.name and entry.name.isprintable()
        if not (plain and 0 < len(entry.name) <= LONGEST_NAME):
            raise DataError(
                f"the class name {entry.name[:80]!r} cannot be used; expected 1 to {LONGEST_NAME} characters without "
                "quotes, line breaks and double blanks."
            )
        if not re.fullmatch("#[0-9a-f]{6}", entry.color):
            raise DataError(f"the colour of {entry.name} is {entry.color[:20]!r}; expected #rrggbb.")
    if len({entry.name for entry in classes}) < len(classes):
        raise DataError(f"two classes have one name: {', '.join(c.name for c in classes)[:300]}. Choose another.")
    values = [entry.value for entry in classes]
    if len(set(values)) < len(values) or any(abs(value) > LARGEST_VALUE for value in values):
        raise DataError(f"the classes have the values {str(values)[1:300]}; expected whole numbers, all different.")
    return classes


def _check_count(count: int) -> None:
    if not 2 <= count <= MOST_CLASSES:
        raise DataError(f"found {count} classes; expected 2 to {MOST_CLASSES}, background first.")


def unlabeled_value(classes: Sequence[Class]) -> int:
    """Return the value that means unlabeled on disk: the usual one, or, if that is a class, one past the largest."""
    values = [entry.value for entry in classes]
    return max(values) + 1 if UNLABELED_VALUE in values else UNLABELED_VALUE


def as_rows(classes: Sequence[Class]) -> list[dict[str, Any]]:
    """Return the classes for JSON."""
    return [asdict(entry) for entry in classes]
