"""Named segments of annotations, in DICOM or by 3D Slicer: special names, those of ``--segments``, and overlaps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse3dunet.errors import DataError

BACKGROUND = "background"
UNLABELED_NAMES = ("ignore", "ignored", "unlabeled", "unlabelled", "unannotated")
"""Names of segments that cover unlabeled voxels."""
SPECIAL = (*UNLABELED_NAMES, BACKGROUND)
"""Names of segments that are no structures, in lower case; ``--segments`` leaves none of them out."""
NAMES_SHOWN = 30
Overlaps = Mapping[tuple[str, str], int]
"""Number of voxels by the names of two segments, of which the second counts."""


def check_names(source: str | Path, chosen: Sequence[str], found: Sequence[str]) -> None:
    """Raise DataError if a name of ``--segments``, in lower case, is none of those found."""
    there = {name.lower() for name in found}
    missing = [name for name in chosen if name not in there]
    if missing:
        raise DataError(
            f"{source}: no segment is named {listed(missing)} (--segments); found {listed(found)}. Correct the names."
        )


def names_fault(names: Sequence[str]) -> str:
    """Return what is wrong with the names of classes; empty if each is another one, and none blank or of two lines."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    odd = next((name for name in names if not name.strip() or name.splitlines() != [name]), None)
    if twice is not None:
        return f"{twice!r} is there twice"
    return "" if odd is None else f"{odd!r} is blank or has a line break"


def check_structures(names: Sequence[str], source: str) -> None:
    """Raise DataError if a structure has a name that means the background or unlabeled voxels, in annotations."""
    reserved = [name for name in names if name.lower() in SPECIAL]
    if reserved:
        meaning = BACKGROUND if reserved[0].lower() == BACKGROUND else "unlabeled"
        raise DataError(
            f"{source}: a structure is named {reserved[0]!r}, which means {meaning} in annotations; expected another "
            "name. Rename it."
        )


def check_overlaps(path: Path, overlaps: Overlaps) -> None:
    """Raise DataError if there are overlaps, for which ``--segments`` gave no order."""
    if overlaps:
        shown = "; ".join(f"{one} and {other} in {n} voxels" for (one, other), n in list(overlaps.items())[:5])
        raise DataError(
            f"{path}: segments overlap: {shown}; expected at most one class for each voxel. Name the segments to use, "
            f"later ones over earlier ones, for example --segments '{','.join(map(quoted, next(iter(overlaps))))}'."
        )


def undeclared_note(path: Path, names: Sequence[str], declared: Sequence[str], lacking: Sequence[str]) -> str:
    """Return what a user must know of segments that no class is named after.

    Those nearly named as a class without a segment are named, as they are likely misspelled; others, of which clinical
    structure sets have many, are counted.

    Args:
        path: the file.
        names: their names.
        declared: names of the classes, in lower case.
        lacking: those of them that no segment has.
    """
    near = {name: difflib.get_close_matches(name.lower(), lacking, n=1) for name in names}
    guesses = {name: found[0] for name, found in near.items() if found}
    shown = [f"{quoted(name)} (did you mean {quoted(guess)}?)" for name, guess in list(guesses.items())[:NAMES_SHOWN]]
    more, classes = len(names) - len(shown), f"the voxels count as in no segment. The classes are {listed(declared)}."
    if not shown:
        return f"{path}: {more} structure(s) that no declared class names are left out; {classes}"
    others = f", and {more} other structure(s)" if more else ""
    return (
        f"{path}: left out, since no class has this name: {', '.join(shown)}{others}; {classes} Correct the name, here "
        "or in labels; or name the segments to use with --segments."
    )


def overlap_notes(path: Path, overlaps: Overlaps) -> tuple[str, ...]:
    """Return what a user must know of overlaps."""
    return tuple(
        f"{path}: {count} voxels are in {one} and in {other}, and count as {other} (--segments)."
        for (one, other), count in overlaps.items()
    )


def first_of(files: Sequence[object]) -> str:
    """Return the first of the files with annotations, and how many others there are, for a message."""
    return f"{files[0]}" + (f" and {len(files) - 1} other annotation(s)" if len(files) > 1 else "")


def listed(names: Sequence[str]) -> str:
    """Return names for a message; of many, the first."""
    return ", ".join(map(quoted, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")


def quoted(name: str) -> str:
    """Return a name as ``--segments`` takes it: in quotes if it has a comma."""
    return '"' + name.replace('"', '""') + '"' if set(name) & {",", '"'} else name
