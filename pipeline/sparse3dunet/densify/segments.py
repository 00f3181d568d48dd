"""Segments of 3D Slicer's segmentations (.seg.nrrd)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.itk import itk_header
from sparse3dunet.io.nrrd_header import read_nrrd_header
from sparse3dunet.io.suffixes import NRRD_SUFFIXES, image_suffix

IGNORE = "ignore"
"""Name of the value of unlabeled voxels in data sets."""
BACKGROUND = "background"
UNLABELED_NAMES = (IGNORE, "ignored", "unlabeled", "unlabelled", "unannotated")
"""Names of segments that cover unlabeled voxels."""


def read_segments(annotation: Path) -> dict[int, str]:
    """Return segment names by value; empty if the file is not a segmentation of 3D Slicer."""
    if image_suffix(annotation) not in NRRD_SUFFIXES:
        return {}
    read_nrrd_header(annotation)  # checks it, which ITK does not
    header = itk_header(annotation, "NrrdImageIO")
    metadata = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    numbers = sorted({int(found[1]) for key in metadata if (found := re.match(r"Segment(\d+)_", key))})
    segments: dict[int, str] = {}
    for number in numbers:
        value = metadata.get(f"Segment{number}_LabelValue", "1").strip()  # older versions: none, one layer per segment
        name = metadata.get(f"Segment{number}_Name", "").strip() or f"segment {number + 1}"
        if not value.isdecimal() or not int(value):
            raise DataError(
                f"{annotation}: the segment {name!r} has the value {value!r}; expected a positive whole number. Save "
                "the segmentation again in 3D Slicer."
            )
        if int(value) > np.iinfo(np.int16).max:
            raise DataError(
                f"{annotation}: the segment {name!r} has the value {value}; expected at most {np.iinfo(np.int16).max}: "
                "segmentations are written in 16 bits. Number the segments anew in 3D Slicer."
            )
        segments[int(value)] = name
    return segments


def class_labels(segments: Mapping[int, str], ignore_index: Sequence[int], annotation: Path) -> dict[int, str]:
    """Return the names of classes and of unlabeled values, as data sets declare them; empty without segments."""
    if not segments:
        return {}
    names = {v: IGNORE if name.lower() in UNLABELED_NAMES else name for v, name in segments.items()}
    names = {value: BACKGROUND if name.lower() == BACKGROUND else name for value, name in names.items()}
    labels = {0: IGNORE if BACKGROUND in names.values() else BACKGROUND, **names}
    labels = {value: name for value, name in labels.items() if value not in ignore_index}
    classes = [name for name in labels.values() if name != IGNORE]
    if len(classes) < 2:
        raise DataError(
            f"{annotation}: the segments are {', '.join(segments.values())}, which gives the classes "
            f"{', '.join(classes) or '(none)'}; expected at least two (background: all in no segment). Add a segment."
        )
    return labels


def check_values(path: str, values: Mapping[float, int], segments: Mapping[int, str], given: Sequence[int]) -> None:
    """Raise DataError if voxels have a value that is neither 0, nor a segment's, nor given as unlabeled.

    Args:
        path: path of the segmentation.
        values: number of voxels by value.
        segments: names of the segments by value; if there are none, any value is valid.
        given: values of unlabeled voxels.
    """
    strays = [value for value in values if value and value not in {*segments, *given}]
    if segments and strays:
        shown = ", ".join(f"{value:.7g}" for value in strays[:5])
        raise DataError(
            f"{path}: {sum(values[value] for value in strays)} voxels have a value that no segment has ({shown}); the "
            f"segments have {', '.join(map(str, segments))}. Save the segmentation again in 3D Slicer; or pass "
            "--ignore-index if the value means unlabeled."
        )
