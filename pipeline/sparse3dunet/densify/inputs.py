"""Datalists made from a scan and its annotation, in any supported formats."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.data import conventions
from sparse3dunet.data.names import image_name
from sparse3dunet.data.segment_names import only_chosen
from sparse3dunet.densify.dicom_pair import from_dicom, print_notes
from sparse3dunet.densify.made import DATALIST, Converted, Made, Pair, pair_of, settings
from sparse3dunet.densify.segments import IGNORE, check_values, class_labels
from sparse3dunet.errors import DataError
from sparse3dunet.io import is_dicom_folder, read_image
from sparse3dunet.io.dicom_annotation import annotation_file
from sparse3dunet.io.formats import annotation_path, is_dicom_image, read_named_label
from sparse3dunet.io.segments import UNLABELED_NAMES
from sparse3dunet.io.suffixes import (
    MICROSCOPY_SUFFIXES,
    NIFTI_SUFFIXES,
    image_suffix,
    is_image_file,
    same_volume,
)
from sparse3dunet.io.volumes import (
    AFFINE_TOLERANCE,
    MOST_VALUES,
    Volume,
    check_same_grid,
    off_text,
    on_grid_of,
    values_found,
)
from sparse3dunet.io.writing import write_text
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, REFERENCE
from sparse3dunet.missing import PAIR_OR_DATA_SET, no_part_of_pair, no_source

MANY_VALUES = 30
"""Number of values in an annotation above which it may be the scan."""
LABEL_FORMATS = ".nii.gz, .nii, .nrrd, .seg.nrrd, .mha, .tif, .ome.tif, .h5, DICOM SEG, RTSTRUCT, or an OME-Zarr folder"
AS_THEY_ARE = (*NIFTI_SUFFIXES, *MICROSCOPY_SUFFIXES)
"""Formats of files that are not converted: these are read fast, and state no orientation that NIfTI would have to."""


def prepare(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    ignore_index: int | Sequence[int] | None = None,
    annotated_slices: Any = None,
    reference: str | Path | None = None,
    keep_dicom: bool = False,
) -> str:
    """Return the data set to train on: the given one, or the datalist made from a scan and its annotation.

    Args:
        sources: a folder or a JSON datalist; or a scan and its annotation, see :func:`prepare_pair`.
        folder: folder for the datalist and the files that it lists.
        ignore_index: see :func:`prepare_pair`.
        annotated_slices: see :func:`prepare_pair`.
        reference: see :func:`prepare_pair`.
        keep_dicom: see :func:`prepare_pair`.

    Returns:
        Path of the data set.

    Raises:
        DataError: when the sources are neither, or see :func:`prepare_pair`.
    """
    paths = [_absolute(source) for source in sources]
    if len(paths) == 2:
        scan, annotation = paths
        declared = {"ignore_index": ignore_index, "annotated_slices": annotated_slices, "reference": reference}
        return str(prepare_pair(scan, annotation, folder, **declared, keep_dicom=keep_dicom))
    if len(paths) != 1:
        shown = ", ".join(map(str, sources)) or "nothing"
        raise DataError(
            f"found {len(paths)} inputs ({shown[:300]}); expected {PAIR_OR_DATA_SET}. List many scans in a datalist."
        )
    (path,) = paths
    if not (os.path.exists(path) or is_image_file(path)):
        raise no_source(path)
    if is_dicom_folder(path) or (is_image_file(path) and path.suffix != ".json"):
        what = "DICOM series" if is_dicom_folder(path) else "file"
        raise DataError(
            f"{path}: found one {what}, but no annotation; expected {PAIR_OR_DATA_SET}. "
            "Pass the annotation as the second input."
        )
    return str(sources[0])


def prepare_pair(
    scan: str | Path,
    annotation: str | Path,
    folder: str | Path,
    *,
    ignore_index: int | Sequence[int] | None = None,
    annotated_slices: Any = None,
    reference: str | Path | None = None,
    keep_dicom: bool = False,
) -> Path:
    """Write a datalist of one case, named after the scan.

    NIfTI, TIFF, HDF5 and OME-Zarr are listed as they are; others are converted to NIfTI in the folder, and kept there
    until their sources change; DICOM scans only if results need no reference to them. An annotation on a part of the
    scan's grid, to which 3D Slicer crops segmentations, is pasted into the whole grid; outside of it is 0, or its value
    for unlabeled. The segments of a 3D Slicer segmentation give the classes' names and colours. Voxels in no segment
    are unlabeled if a segment is named background; otherwise :func:`~sparse3dunet.data.conventions.infer` decides. For
    DICOM see :func:`~sparse3dunet.densify.dicom_pair.from_dicom`.

    Args:
        scan: any format of :func:`~sparse3dunet.io.formats.read_image`; one or several channels.
        annotation: likewise, or .seg.nrrd, or a DICOM segmentation or structure set.
        folder: folder for the datalist and the converted files; files in it may be replaced.
        ignore_index: values of unlabeled voxels, if set by an option.
        annotated_slices: annotated slices, if set by an option; with either, nothing is inferred from segments.
        reference: a dense label of the whole scan to score results by, with the annotation's values or names.
        keep_dicom: whether to list a DICOM scan as it is.

    Returns:
        Path of the datalist.

    Raises:
        DataError: when a file is missing, damaged or no label map, both are the same, or the annotation's grid is no
            part of the scan's; when segments overlap, or it cannot be inferred which voxels are unlabeled.
    """
    scan, folder = _absolute(scan), _absolute(folder)
    annotation = Path(annotation_path(str(_absolute(annotation))))
    _check_files(scan, annotation)
    given = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index or [])
    read = from_dicom if annotation_file(annotation) else _from_label_map
    image, made_of, declared, labels = read(scan, annotation, given, annotated_slices)
    dense = None if reference is None else _absolute(reference)
    made = Made(folder, (scan, annotation, *([] if dense is None else [dense])))
    made.check_scan(scan)
    name = image_name(scan)
    entry = {IMAGE: str(scan), LABEL: str(annotation)}
    if image_suffix(scan) not in AS_THEY_ARE and not (keep_dicom and is_dicom_image(scan)):
        entry[IMAGE] = made.write(f"{name}.nii", image.data, image, [scan], *settings())
    if made_of is not None:
        more = [made_of.outside, *settings()]
        sources = [scan, annotation_file(annotation) or annotation]
        entry[LABEL] = made.write(f"{name}_annotation.nii.gz", made_of.voxels, image, sources, *more)
    if dense is not None:
        entry[REFERENCE] = _reference(dense, scan, image, labels, made, f"{name}_reference.nii.gz")
    content: dict[str, Any] = {"training": [entry], **declared, "made_from": made.states}
    content |= {"scan": str(scan), "annotation": str(annotation)}
    content |= {} if dense is None else {"reference": str(dense)}
    if labels:
        content["labels"] = {str(value): text for value, text in sorted(labels.items())}
    if labels.colors:
        content["colors"] = {str(value): color for value, color in sorted(labels.colors.items())}
    write_text(folder / DATALIST, json.dumps(content, indent=2) + "\n")  # ASCII: names may be no UTF-8
    return folder / DATALIST


def _from_label_map(scan: Path, annotation: Path, given: list[int], annotated_slices: Any) -> Pair:
    image, label, segments, is_moved = _read(scan, annotation)
    _check_label(label, image, segments, given)
    label, segments = only_chosen(label, segments)
    is_declared = bool(given) or annotated_slices is not None
    is_part = sorted(label.data.shape) != sorted(image.spatial_shape)
    inferred, likely = _unlabeled_in(label) if is_part and not segments and not is_declared else ((), ())
    outside = 0 if segments else next(iter(given or inferred), 0)
    named = [value for value, name in segments.items() if name.lower() in UNLABELED_NAMES]
    placed = _on_grid_of(image, label, outside, (*given, *likely, *named))
    labels = class_labels(segments, given, annotation)
    declared: dict[str, Any] = {"ignore_index": list(inferred)} if inferred else {}
    if labels and not is_declared:
        declared = _infer(placed, annotation, labels)
    is_converted = placed is not label.data or is_moved or image_suffix(annotation) not in AS_THEY_ARE
    return image, Converted(placed, outside) if is_converted else None, declared, labels


def _read(scan: Path, annotation: Path) -> tuple[Volume, Volume, Labels, bool]:
    """Return image, annotation on its grid or a part of it, segments' names, and whether its file states another grid.

    Raises:
        DataError: when one has no place in space, and their shapes differ.
    """
    image, (own, segments) = read_image(scan), read_named_label(annotation)
    print_notes(image)
    print_notes(own, of_size=False)
    label = on_grid_of(own, image)
    if not (image.has_orientation and own.has_orientation) and own.spatial_shape != image.spatial_shape:
        raise DataError(
            f"{annotation}: shape {own.spatial_shape} (x, y, z) differs from the scan's, {image.spatial_shape} "
            f"({scan}), and the format does not tell which part it is; expected the same. Export all of it."
        )
    return image, label, segments, own.has_orientation and label is not own


def _reference(path: Path, scan: Path, image: Volume, labels: Mapping[int, str], made: Made, name: str) -> str:
    """Return the file of a dense label, converted if need be.

    Raises:
        DataError: when it is missing, damaged, no label map of the whole scan, or has other names for its values.
    """
    if not (os.path.exists(path) or is_image_file(path)):
        raise DataError(f"{path} does not exist; expected a dense label of the scan (--reference).")
    if same_volume(scan, path):
        raise DataError(f"{path} is the scan; expected a dense label of it (--reference).")
    if annotation_file(path):
        if not labels:
            raise DataError(
                f"{path}: DICOM segments are matched to classes by name, and the annotation states no names; expected "
                "a label map as dense label (--reference), or an annotation with named segments."
            )
        return str(path)
    if not is_image_file(path):
        raise DataError(f"{path}: expected a label map as dense label (--reference), such as .nii.gz or .nrrd.")
    own, segments = only_chosen(*read_named_label(path), all_there=False)
    others = [v for v, text in segments.items() if labels.get(v, text).lower() != text.lower()]
    if others:
        raise DataError(
            f"{path}: the value {others[0]} is {segments[others[0]]}, but {labels[others[0]]} in the annotation; "
            "expected the same values. Export both in the same order of segments."
        )
    label, shape = on_grid_of(own, image), own.data.shape
    if len(shape) != 3 or (sorted(shape) != sorted(image.spatial_shape) and not segments):
        raise DataError(
            f"{path}: shape {shape} differs from the scan's, {image.spatial_shape}; expected a dense label of the "
            "whole scan (--reference)."
        )
    placed = _on_grid_of(image, label, 0)
    is_moved = own.has_orientation and label is not own
    if placed is label.data and not is_moved and image_suffix(path) in AS_THEY_ARE:
        return str(path)
    return made.write(name, placed, image, [scan, path], *settings())


def annotation_of(datalist: str | Path) -> str | None:
    """Return the annotation file that :func:`prepare_pair` made a datalist from; None for other data sets."""
    content = pair_of(datalist)
    return content["annotation"] if content and is_image_file(content["annotation"]) else None


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


# Checks of the files


def _check_files(scan: Path, annotation: Path) -> None:
    for path, what in ((scan, "scan"), (annotation, "annotation")):
        if not (os.path.exists(path) or is_image_file(path)):
            raise no_part_of_pair(path, what)
        if path.suffix == ".json":
            raise DataError(f"{path} is a JSON file; expected the {what}. Pass a datalist alone, as the only input.")
    if same_volume(scan, annotation):
        raise DataError(
            f"{scan} is given as both the scan and its annotation; expected two files. The order is: SCAN ANNOTATION."
        )
    if annotation.is_dir() and not is_image_file(annotation) and annotation_file(annotation) is None:
        raise DataError(
            f"{annotation} is a folder without a DICOM annotation; expected the annotation in one file "
            f"({LABEL_FORMATS}). The order is: SCAN ANNOTATION."
        )


def _check_label(label: Volume, image: Volume, segments: Mapping[int, str], given: Sequence[int]) -> None:
    """Raise DataError unless an annotation is a label map of the segments' and the given values."""
    if label.data.ndim == 4:
        raise DataError(
            f"{label.path}: found {label.num_channels} channels, shape {label.data.shape}; expected a label map with "
            "one number per voxel. Export it as one label map. The order is: SCAN ANNOTATION."
        )
    values = values_found(label.data)
    check_values(label.path, values, segments, given)
    if len(values) <= MANY_VALUES:
        return
    are_swapped = len(values_found(image.data)) < len(values)
    if len(values) > MOST_VALUES or are_swapped:
        hint = f"{image.path} has fewer: are the two swapped?" if are_swapped else "Look for a mix-up of files."
        raise DataError(
            f"{label.path}: {len(values)} different values of {label.data.dtype}, like those of a scan; expected a "
            f"label map of a few whole numbers. {hint} The order is: SCAN ANNOTATION."
        )


# 3D Slicer's segmentations


def _infer(label: np.ndarray, annotation: Path, labels: dict[int, str]) -> dict[str, Any]:
    """Add the unlabeled values to the labels, and return what else the datalist declares.

    A segment for unlabeled voxels need not cover all: next to annotated slices, voxels in no segment are unlabeled too.
    """
    unlabeled = [value for value, name in labels.items() if name == IGNORE]
    classes = [value for value, name in labels.items() if name != IGNORE]
    if 0 in unlabeled:
        return {}
    try:
        convention = conventions.infer(label, str(annotation), classes, unlabeled)
    except conventions.UndecidedError as error:
        raise DataError(f"{error} Or annotate the background too, in a segment named background.") from error
    print(conventions.announcement(convention, str(annotation)))
    labels.update(dict.fromkeys(convention.ignore_index, IGNORE))
    return {} if convention.annotated_slices is None else {ANNOTATED_SLICES: convention.annotated_slices}


# Grids


def _on_grid_of(image: Volume, label: Volume, outside: int, unlabeled: Sequence[int] = ()) -> np.ndarray:
    """Return the label map (X, Y, Z) on the scan's grid, with the value `outside` elsewhere.

    The same array is returned if the label map is on the scan's grid. Voxels that lie outside of the scan are told, but
    for those of `outside` and of `unlabeled`.

    Raises:
        DataError: when its grid is no part of the scan's.
    """
    turned = _turned(label, image)
    if turned.data.shape == image.spatial_shape:
        check_same_grid(turned, image)
        return turned.data
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in turned.data.shape], [1], indexing="ij")).reshape(4, -1)
    places = np.linalg.solve(image.affine, turned.affine @ corners)
    offset = np.round(places[:3, 0])
    off = np.abs(places[:3] - corners[:3] - offset[:, None]).max()
    if off > AFFINE_TOLERANCE:
        raise DataError(
            f"{label.path}: the grid, shape {label.data.shape}, is not a part of the scan's, {image.spatial_shape} "
            f"({image.path}): voxels are up to {off_text(off)} voxels off; expected the scan's voxel size and "
            f"directions, and at most {AFFINE_TOLERANCE} voxels. Export it on the scan's grid (in 3D Slicer: with the "
            "scan as reference volume), or check for a mix-up of files."
        )
    return _pasted(turned, image, offset.astype(int), outside, unlabeled)


def _turned(label: Volume, image: Volume) -> Volume:
    """Return the label map with its axes in the order and directions of the scan's, in which DICOM readers differ."""
    ours, theirs = (nib.io_orientation(volume.affine) for volume in (image, label))
    if np.array_equal(ours, theirs):
        return label
    turn = nib.orientations.ornt_transform(theirs, ours)
    data = nib.orientations.apply_orientation(label.data, turn)
    return Volume(label.path, data, label.affine @ nib.orientations.inv_ornt_aff(turn, label.data.shape))


def _unlabeled_in(label: Volume) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the unlabeled values in a label map of a part of the scan, and all that likely are.

    The former are empty if 0 is unlabeled only outside of some slices, or if it would be a guess by voxel counts, which
    depend on the cropping.
    """
    try:
        convention = conventions.infer(label.data, label.path)
    except DataError:
        return (), ()
    if convention.annotated_slices is not None or convention.is_guess:
        return (), convention.ignore_index
    print(conventions.announcement(convention, label.path))
    return convention.ignore_index, convention.ignore_index


def _pasted(label: Volume, image: Volume, offset: np.ndarray, outside: int, unlabeled: Sequence[int]) -> np.ndarray:
    """Return an array of the scan's shape with the label map pasted at `offset`."""
    shape = np.array(image.spatial_shape)
    start, stop = np.maximum(offset, 0), np.minimum(offset + label.data.shape, shape)
    pasted = np.full(tuple(shape), outside, np.promote_types(label.data.dtype, np.min_scalar_type(outside)))
    if (start < stop).all():
        there = tuple(slice(*ends) for ends in zip(start, stop))
        here = tuple(slice(*ends) for ends in zip(start - offset, stop - offset))
        pasted[there] = label.data[here]
    if not (pasted != outside).any() and (label.data != outside).any():
        raise DataError(
            f"{label.path}: the annotation lies outside of the scan ({image.path}): it starts at voxel "
            f"{offset.tolist()} of {image.spatial_shape}; expected the annotation of a part of the scan. Check for a "
            "mix-up of files."
        )
    in_all, left = (int((~np.isin(data, [outside, *unlabeled])).sum()) for data in (label.data, pasted))
    lost = in_all - left
    if lost:
        print(
            f"note: {label.path}: {lost} annotated voxels are outside of the scan ({image.path}), and were left out. "
            "Check that the scan is complete."
        )
    return pasted
