"""Keys that are nearly known ones: keys of others are left aside, and so are mistyped ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, REFERENCE, WEIGHT

PATH = re.compile(r".*[./\\\\].*")
OF_CASES: dict[str, Any] = {WEIGHT: PATH, REFERENCE: PATH, ANNOTATED_SLICES: (dict, list, str), ANNOTATED_CLASSES: list}
"""Keys of a case that may be left out, and the types of their values, or how their texts look."""
OF_LISTS: dict[str, Any] = {
    "labels": (dict, list),
    "colors": (dict, list),
    "ignore_index": int,
    "regions": dict,
    "validation": list,
    "modality": dict,
    "channel_names": dict,
    ANNOTATED_SLICES: (dict, list, str),
    ANNOTATED_CLASSES: (list, dict),
}
"""Keys of a list that may be left out, and the types of their values."""
NEAR = 0.8
"""Likeness, 0 to 1, from which on a key counts as a mistyped one, if its value fits."""


def mistyped_keys(file: Path, content: Mapping[Any, Any], entries: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """Return warnings of keys that are nearly those of declarations, which are thus lost: kind and text of each.

    Args:
        file: the list, for messages.
        content: all of it.
        entries: its cases.
    """
    found = {key: (meant, f"{file}") for key, meant in _meant(content, OF_LISTS).items()}
    for number, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            for key, meant in _meant(entry, OF_CASES).items():
                found.setdefault(key, (meant, f"{file}: training case {number}"))
    return tuple(
        (
            f"key {key}",
            f"{place}: the key {key!r} is not known, and ignored; did you mean {meant!r}? Correct it, or rename it if "
            "it is for another program.",
        )
        for key, (meant, place) in found.items()
    )


def _meant(entry: Mapping[Any, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Return the known key that each of some others is nearly, by the other; not one that is there itself."""
    return {key: name for key, name in nearly_known(entry, known).items() if _fits(entry[key], known[name])}


def nearly_known(keys: Collection[Any], known: Collection[str]) -> dict[Any, str]:
    """Return the known key that each of some others is nearly, by the other; not one that is there itself."""
    missing = tuple(name for name in known if name not in keys)
    near = {key: _nearest(str(key), missing) for key in keys if key not in known}
    return {key: name for key, name in near.items() if name}


@lru_cache
def _nearest(key: str, names: Sequence[str]) -> str | None:
    plain = {_plain(name): name for name in names}
    found = difflib.get_close_matches(_plain(key), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, re.Pattern):
        return isinstance(value, str) and bool(kind.fullmatch(value))
    return isinstance(value, kind)


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()
