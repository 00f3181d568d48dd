"""Names of segments in the label maps of data sets: those of ``--segments``, and those of one value in .seg.nrrd."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_segments
from sparse3dunet.io.dicom_annotation import annotation_file
from sparse3dunet.io.formats import named_segments
from sparse3dunet.io.segments import UNLABELED_NAMES, listed
from sparse3dunet.keys import LABEL, REFERENCE

Case = dict[str, Any]
GENERIC = re.compile(r"(segment|segmentation|label|class|region|roi|structure|object|mask|value)?[ \d]*")
"""Names that say nothing, such as 3D Slicer's own, in lower case and with spaces."""
CURE = (
    "expected the same in all label maps of a data set, whose classes are told by value. Export the segments in the "
    "same order everywhere, or rename what is misnamed."
)


def check_named_segments(cases: Sequence[Case]) -> None:
    """Raise DataError if ``--segments`` is set, but the segments of no label have names."""
    chosen = default_segments()
    labels = labels_of(cases)
    if not chosen or any(annotation_file(path) or named_segments(path) for path in labels):
        return
    others = f" and {len(labels) - 1} other annotation(s)" if len(labels) > 1 else ""
    raise DataError(
        f"{labels[0]}{others}: --segments names {listed(chosen)}, but no annotation names its segments; expected "
        "DICOM or .seg.nrrd. Leave the option out."
    )


def check_same_names(cases: Sequence[Case], declared: Mapping[int, str], source: str) -> None:
    """Raise DataError if 3D Slicer's segmentations, or they and the declared classes, name a value differently.

    Classes are told by value, so that two structures would be mixed up. Names that say nothing, such as Segment_1, are
    left aside, and so are damaged files, which the check of all files reports.

    Args:
        cases: the cases.
        declared: names of classes and unlabeled values by value; empty if undeclared.
        source: where the classes are declared, for messages.
    """
    names: dict[int, tuple[str, str]] = {}  # and where each was found
    values: dict[str, tuple[int, str]] = {}
    found = [(value, name, f"{source} (labels)") for value, name in declared.items()]
    for path in labels_of(cases):
        try:
            found += [(value, name, path) for value, name in named_segments(path).items()]
        except DataError:
            continue
    for value, name, place in found:
        key = _key(name)
        if GENERIC.fullmatch(key):
            continue
        other, where = names.setdefault(value, (name, place))
        if _key(other) != key:
            raise DataError(f"{place}: the value {value} is the segment {name}, but {other} in {where}; {CURE}")
        before, where = values.setdefault(key, (value, place))
        if before != value and where != place and key != UNLABELED_NAMES[0]:
            raise DataError(f"{place}: the segment {name} has the value {value}, but {before} in {where}; {CURE}")


def labels_of(cases: Sequence[Case]) -> list[str]:
    """Return the different paths of the cases' label maps and references."""
    return list(dict.fromkeys(case[key] for case in cases for key in (LABEL, REFERENCE) if key in case))


def _key(name: str) -> str:
    """Return what is compared of a name: words in lower case; one name for all that means unlabeled."""
    key = re.sub(r"[\s_-]+", " ", name).strip().lower()
    return UNLABELED_NAMES[0] if key in UNLABELED_NAMES else key
