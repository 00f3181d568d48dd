"""Keys of data lists that are nearly known ones: keys of other programs are left aside, and so are mistyped ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, REFERENCE, WEIGHT

OF_CASES = (WEIGHT, REFERENCE, ANNOTATED_SLICES, ANNOTATED_CLASSES)
"""Keys of a case that may be left out."""
OF_LISTS = (
    *("labels", "colors", "ignore_index", "regions", "validation", "modality", "channel_names"),
    *(ANNOTATED_SLICES, ANNOTATED_CLASSES),
)
"""Keys of a list that may be left out."""
NEAR = 0.8
"""Likeness, 0 to 1, from which on a key counts as a mistyped one."""


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


def _meant(keys: Collection[Any], known: Sequence[str]) -> dict[str, str]:
    """Return the known key that each of some others is nearly, by the other; not one that is there itself."""
    plain = {_plain(name): name for name in known if name not in keys}
    near = {key: difflib.get_close_matches(_plain(key), plain, n=1, cutoff=NEAR) for key in keys if key not in known}
    return {key: plain[names[0]] for key, names in near.items() if names}


def _plain(key: Any) -> str:
    return re.sub(r"[\W_]", "", str(key)).lower()
