"""Segments of 3D Slicer's segmentations (.seg.nrrd)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparse3dunet.colors import Labels
from sparse3dunet.errors import DataError
from sparse3dunet.io.segments import BACKGROUND, UNLABELED_NAMES
from sparse3dunet.io.volumes import value_text

IGNORE = "ignore"
"""Name of the value of unlabeled voxels in data sets."""


def class_labels(segments: Labels, ignore_index: Sequence[int], annotation: Path) -> Labels:
    """Return names and colours of classes and of unlabeled values, as in data sets; empty without segments."""
    if not segments:
        return segments
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
    return Labels(labels, segments.colors)


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
        shown = ", ".join(value_text(value) for value in strays[:5])
        raise DataError(
            f"{path}: {sum(values[value] for value in strays)} voxels have a value that no segment has ({shown}); the "
            f"segments have {', '.join(map(str, segments))}. Save the segmentation again in 3D Slicer; or pass "
            "--ignore-index if the value means unlabeled."
        )
