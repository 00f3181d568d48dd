"""Names of segments in the label maps of data sets: those of ``--segments``, and those of one value in .seg.nrrd."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_segments
from sparse3dunet.io.dicom_annotation import annotation_file
from sparse3dunet.io.formats import named_segments
from sparse3dunet.io.segments import BACKGROUND, SPECIAL, UNLABELED_NAMES, check_names, first_of, listed
from sparse3dunet.io.volumes import Volume
from sparse3dunet.keys import LABEL, REFERENCE

Case = dict[str, Any]
GENERIC = re.compile(r"(segment|segmentation|label|class|region|roi|structure|object|mask|value)?[ \d]*")
"""Names that say nothing, such as 3D Slicer's own, in lower case and with spaces."""
CURE = (
    "expected the same in all label maps of a data set, whose classes are told by value. Export the segments in the "
    "same order everywhere, or rename what is misnamed."
)


def check_named_segments(cases: Sequence[Case]) -> None:
    """Raise DataError if ``--segments`` is set, but cannot be followed: it names all segments of a .seg.nrrd, or none.

    Classes are told by value there, and other segments are not left out.
    """
    chosen = default_segments()
    if not chosen:
        return
    labels = labels_of(cases)
    named = {path: list(found.values()) for path in labels if (found := named_segments(path))}
    for path, names in named.items():
        if left_out := [name for name in names if name.lower() not in (*chosen, *SPECIAL)]:
            raise DataError(
                f"{path}: --segments leaves out {listed(left_out)}, which data sets can with segments in DICOM alone; "
                "expected all segments of a .seg.nrrd. Leave the option out, or remove the segments from the file."
            )
    if any(annotation_file(path) for path in labels):
        return
    if not named:
        raise DataError(
            f"{first_of(labels)}: --segments names {listed(chosen)}, but no annotation names its segments; expected "
            "DICOM or .seg.nrrd. Leave the option out."
        )
    check_names(first_of(labels), chosen, list(dict.fromkeys(itertools.chain(*named.values()))))


def only_chosen(label: Volume, segments: Labels, all_there: bool = True) -> tuple[Volume, Labels]:
    """Return the label map and the names of those segments alone that ``--segments`` names, if it is set.

    Voxels of others become 0. Segments for the background and for unlabeled voxels are never left out.

    Args:
        label: the label map.
        segments: names by value.
        all_there: whether each name must be that of a segment.

    Raises:
        DataError: when a name is that of none, or with `all_there` no segment has a name.
    """
    names = default_segments()
    if names and not segments and all_there:
        raise DataError(
            f"{label.path}: --segments names {', '.join(names)}, but the file names no segments; expected an "
            "annotation of named segments, in DICOM or .seg.nrrd. Leave the option out."
        )
    if not names or not segments:
        return label, segments
    if all_there:
        check_names(label.path, names, list(segments.values()))
    kept = {value: name for value, name in segments.items() if name.lower() in (*names, *SPECIAL)}
    left_out = np.isin(label.data, [value for value in segments if value not in kept])
    data = np.where(left_out, 0, label.data).astype(label.data.dtype)
    return replace(label, data=data), Labels(kept, segments.colors)


def check_same_names(cases: Sequence[Case], declared: Mapping[int, str], source: str) -> tuple[tuple[str, str], ...]:
    """Return warnings if 3D Slicer's segmentations, or they and the declared classes, name a value differently.

    Classes are told by value, so that structures would be mixed up if a name is that of another value. A name that is
    merely another one may be a synonym, or that of a patient. Names that say nothing, such as Segment_1, are left
    aside, and so are damaged files, which the check of all files reports.

    Args:
        cases: the cases.
        declared: names of classes and unlabeled values by value; empty if undeclared.
        source: where the classes are declared, for messages.

    Returns:
        Kind and text of each warning, one kind for each value.

    Raises:
        DataError: when a name has two values, or a value means unlabeled, or background, in one place alone.
    """
    place_of_classes = f"{source} (labels)"
    found = [(value, name, place_of_classes) for value, name in declared.items()]
    for path in labels_of(cases):
        try:
            found += [(value, name, path) for value, name in named_segments(path).items()]
        except DataError:
            continue
    found = [(value, name, place) for value, name, place in found if not GENERIC.fullmatch(_key(name))]
    names: dict[int, tuple[str, str]] = {}  # and where each was found
    values: dict[str, tuple[int, str]] = {}
    for value, name, place in found:
        names.setdefault(value, (name, place))
        values.setdefault(_key(name), (value, place))
    warnings = []
    for value, name, place in found:
        key, (other, where) = _key(name), names[value]
        before, elsewhere = values[key]
        has_two_values = before != value and elsewhere != place and key != UNLABELED_NAMES[0]
        pair = {key, _key(other)}
        means_two = UNLABELED_NAMES[0] in pair or (BACKGROUND in pair and where != place_of_classes)
        if len(pair) > 1 and (has_two_values or means_two):
            raise DataError(f"{place}: the value {value} is the segment {name}, but {other} in {where}; {CURE}")
        if has_two_values:
            raise DataError(f"{place}: the segment {name} has the value {value}, but {before} in {elsewhere}; {CURE}")
        if len(pair) > 1:
            text = f"{place}: the value {value} is the segment {name}, but {other} in {where}. {_guess(name, declared)}"
            cure = "Classes are told by value, so both count as one. Check that they are the same structure."
            warnings.append((f"segment names of {value}", text + cure))
    return tuple(warnings)


def _guess(name: str, declared: Mapping[int, str]) -> str:
    """Return which declared name is nearly this one, as a question; empty if none is."""
    by_key = {_key(other): (value, other) for value, other in declared.items() if _key(other) not in SPECIAL}
    near = difflib.get_close_matches(_key(name), by_key, n=1)
    return f"Did you mean {by_key[near[0]][1]} ({by_key[near[0]][0]})? " if near else ""


def labels_of(cases: Sequence[Case]) -> list[str]:
    """Return the different paths of the cases' label maps and references."""
    return list(dict.fromkeys(case[key] for case in cases for key in (LABEL, REFERENCE) if key in case))


def _key(name: str) -> str:
    """Return what is compared of a name: words in lower case; one name for all that means unlabeled."""
    key = re.sub(r"[\s_-]+", " ", name).strip().lower()
    return UNLABELED_NAMES[0] if key in UNLABELED_NAMES else key
