"""Labels of a data set that are DICOM segmentations or structure sets, named so that they are read on their images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sparse3dunet.data.segment_names import labels_of
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_segments
from sparse3dunet.io.dicom_annotation import UNLABELED, LabelOnImage, annotation_file, class_values, segment_names
from sparse3dunet.io.segments import BACKGROUND, SPECIAL, UNLABELED_NAMES, listed
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, REFERENCE

Case = dict[str, Any]


def with_dicom_labels(
    cases: Sequence[Case], names: Sequence[str], values: Sequence[int], ignore_index: Collection[int]
) -> tuple[list[Case], list[str], list[int], tuple[int, ...]]:
    """Return the cases with DICOM labels on their images' grids, and class names, values and unlabeled values.

    Segments are matched to classes by their names, not by their numbers, which differ from case to case. Undeclared
    classes are the segments of all cases, in the order in which they appear. Slices without a segment are unlabeled,
    unless the case declares its slices.

    Args:
        cases: the cases.
        names: declared class names, background first; empty if undeclared.
        values: their values.
        ignore_index: declared values of unlabeled voxels.

    Raises:
        DataError: when an annotation is damaged, or has no segments; when a name of ``--segments`` is in none, or
            is no declared class; or when declared names differ in upper and lower case alone.
    """
    files = {path: annotation_file(path) for path in labels_of(cases)}
    dicom = {path: file for path, file in files.items() if file is not None}
    if not dicom:
        return list(cases), list(names), list(values), tuple(ignore_index)
    if not values:
        numbered = class_values(segment_names(*dicom.values()))
        classes = {BACKGROUND: 0, **{name: value for name, value in numbered.items() if value > 0}}
        names, values = list(classes), list(classes.values())
    elif default_segments():
        segment_names(*dicom.values())  # raises if none has one of them
    after = max(values) + 1  # the default of label maps
    if not ignore_index and any(case.get(LABEL) in dicom for case in cases):
        ignore_index = (UNLABELED,) if all(case.get(LABEL) in dicom for case in cases) else (UNLABELED, after)
    unlabeled = next(iter(ignore_index), after)
    by_name = _by_name(names, values, unlabeled)
    placed = [_placed(case, dicom, by_name, unlabeled) for case in cases]
    return placed, list(names), list(values), tuple(ignore_index)


def _by_name(names: Sequence[str], values: Sequence[int], unlabeled: int) -> dict[str, int]:
    """Return the values of segments by their names in lower case; those of ``--segments`` in its order, if it is set.

    Those for the background and for unlabeled voxels are always among them, and come first.
    """
    if len({name.lower() for name in names}) < len(names):
        raise DataError(
            f"labels: {', '.join(names)}; expected names that differ in more than upper and lower case, since segments "
            "in DICOM are matched by them. Rename one."
        )
    by_name = {**dict.fromkeys(UNLABELED_NAMES, unlabeled), BACKGROUND: values[0]}
    by_name |= {name.lower(): value for name, value in zip(names, values)}
    chosen = default_segments()
    if not chosen:
        return by_name
    others = [name for name in chosen if name not in by_name]
    if others:
        raise DataError(
            f"--segments names {listed(others)}, but labels declares no such class; expected some of "
            f"{listed(names)}. Declare it, or leave it out."
        )
    always = [name for name in SPECIAL if name not in chosen]
    return {name: by_name[name] for name in (*always, *chosen)}


def _placed(case: Case, dicom: dict[str, Path], by_name: dict[str, int], unlabeled: int) -> Case:
    image = case[IMAGE][0] if isinstance(case[IMAGE], list) else case[IMAGE]
    placed = dict(case)
    for key in (LABEL, REFERENCE):
        if case.get(key) in dicom:
            is_dense = key == REFERENCE or ANNOTATED_SLICES in case
            outside = by_name[BACKGROUND] if is_dense else unlabeled
            placed[key] = str(LabelOnImage(dicom[case[key]], image, by_name, outside))
    return placed
