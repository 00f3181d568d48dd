"""A scan and its annotation in DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse3dunet.colors import Labels
from sparse3dunet.densify.made import Converted, Pair
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.defaults import default_series, set_defaults
from sparse3dunet.io.dicom_annotation import (
    UNLABELED,
    annotation_file,
    class_values,
    read_on_grid,
    referenced_series,
    segment_colors,
    segment_names,
)
from sparse3dunet.io.dicom_folders import dicom_series
from sparse3dunet.io.segments import BACKGROUND
from sparse3dunet.io.volumes import NO_VOXEL_SIZE, Volume


def from_dicom(scan: Path, annotation: Path, given: list[int], annotated_slices: Any) -> Pair:
    """Read a scan of any format, and its annotation, a DICOM segmentation or structure set, on the scan's grid.

    The names and colours of segments become those of the classes. Slices without a segment are unlabeled, see
    :mod:`~sparse3dunet.io.dicom_annotation`. Of several series in the scan's folder, that is read which the annotation
    was made on.

    Raises:
        DataError: when a file is damaged, or the annotation does not fit the scan.
    """
    file = annotation_file(annotation) or annotation
    use_series_of(file, scan)
    image = read_image(scan)
    print_notes(image)
    values = class_values(segment_names(file))
    unlabeled = given[0] if given else UNLABELED if annotated_slices is None else 0
    label = read_on_grid(file, image, values, unlabeled)
    print_notes(label)
    own = segment_colors(file)
    colors = {value: own[name.lower()] for name, value in values.items() if name.lower() in own}
    labels = Labels({0: BACKGROUND, **{value: name for name, value in values.items() if value > 0}}, colors)
    if len(labels) < 2:
        raise DataError(f"{file}: no segment but {', '.join(values)}; expected a structure, too. Add a segment.")
    declared = {"ignore_index": [unlabeled]} if not given and annotated_slices is None else {}
    return image, Converted(label.data, unlabeled), declared, labels


def use_series_of(annotation: Path, scan: Path) -> None:
    """Have the series read that a DICOM annotation was made on, if the scan is a folder of several; this is told."""
    if not scan.is_dir() or default_series():
        return
    series = dicom_series(scan)
    made_on = [one for one in series if one.uid in referenced_series(annotation)]
    if len(series) > 1 and len(made_on) == 1:
        set_defaults(series=made_on[0].uid)
        print(f"note: {scan}: of {len(series)} series, that of the annotation is read: {made_on[0]}.")


def print_notes(volume: Volume, of_size: bool = True) -> None:
    """Print what a user must know of how a volume was read; a label map without voxel size has its image's."""
    if of_size and not volume.has_voxel_size:
        print(f"note: {volume.path} {NO_VOXEL_SIZE}")
    for text in volume.notes:
        print(f"note: {text}")
