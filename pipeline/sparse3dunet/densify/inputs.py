"""A scan and its annotation, in whatever formats, as a datalist that can be trained on."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.data import conventions
from sparse3dunet.data.checks import MOST_VALUES
from sparse3dunet.data.datalist import case_name
from sparse3dunet.data.layouts import SUFFIXES, read_json
from sparse3dunet.errors import DataError
from sparse3dunet.io import is_dicom_folder, read_image, write_map
from sparse3dunet.io.itk import itk_header
from sparse3dunet.io.suffixes import NRRD_SUFFIXES, image_suffix, suffix_among
from sparse3dunet.io.volumes import AFFINE_TOLERANCE, Volume, check_same_grid, values_found
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL
from sparse3dunet.models.checkpoints import replace_file

DATALIST = "datalist.json"
IGNORE = "ignore"
"""What data sets name the value of unlabeled voxels."""
BACKGROUND = "background"
UNLABELED_NAMES = (IGNORE, "ignored", "unlabeled", "unlabelled", "unannotated")
"""Of segments that cover what nobody annotated."""
MANY_VALUES = 30
"""In an annotation, more than which make one ask whether it is the scan."""
EXPECTED = (
    "a scan and its annotation (SCAN ANNOTATION: two files, or the folder of a DICOM series and a file), or a data set "
    "(a folder, or a JSON datalist)"
)
LABEL_FORMATS = ".nii.gz, .nii, .nrrd, .seg.nrrd or .mha"


def prepare(
    sources: Sequence[str | Path],
    folder: str | Path,
    *,
    ignore_index: int | Sequence[int] | None = None,
    annotated_slices: Any = None,
) -> str:
    """What to train on: a data set as it is, or the datalist made of a scan and its annotation.

    Args:
        sources: a folder or a JSON datalist; or a scan and its annotation, see :func:`prepare_pair`.
        folder: for the datalist and what it lists.
        ignore_index: see :func:`prepare_pair`.
        annotated_slices: see :func:`prepare_pair`.

    Returns:
        Path of the data set.

    Raises:
        DataError: when the sources are neither, or see :func:`prepare_pair`.
    """
    paths = [_absolute(source) for source in sources]
    if len(paths) == 2:
        scan, annotation = paths
        return str(prepare_pair(scan, annotation, folder, ignore_index=ignore_index, annotated_slices=annotated_slices))
    if len(paths) != 1:
        shown = ", ".join(map(str, sources)) or "nothing"
        raise DataError(
            f"found {len(paths)} inputs ({shown[:300]}); expected {EXPECTED}. List many scans in a datalist."
        )
    (path,) = paths
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist; expected {EXPECTED}.")
    if is_dicom_folder(path) or (path.is_file() and path.suffix != ".json"):
        raise DataError(
            f"{path}: found one {'DICOM series' if path.is_dir() else 'file'}, but no annotation; expected {EXPECTED}. "
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
) -> Path:
    """Write a datalist of one case, whose name is the scan's.

    NIfTI files are listed as they are; others are written as NIfTI into the folder, and kept there for as long as what
    they were made from does not change. An annotation on a part of the scan's grid, to which 3D Slicer crops
    segmentations, is put where it belongs; outside of it is 0, or what means unlabeled in it. Of a segmentation of 3D
    Slicer's, the segments' names become the classes'; what is in no segment is unlabeled where a segment is named
    background, else what :func:`~sparse3dunet.data.conventions.infer` says.

    Args:
        scan: a NIfTI, NRRD, MetaImage or DICOM file, or the folder of a DICOM series; of one or several channels.
        annotation: NIfTI, NRRD, .seg.nrrd or MetaImage.
        folder: for the datalist and the files made; of its own, as files in it may be replaced.
        ignore_index: values that an option says are unlabeled.
        annotated_slices: that an option says; with either, nothing is inferred of segments.

    Returns:
        Path of the datalist.

    Raises:
        DataError: when a file is missing, damaged or no label map, both are one, or the annotation's grid is no part of
            the scan's; when a segmentation has overlapping segments, or does not tell what is unlabeled.
    """
    scan, annotation, folder = _absolute(scan), _absolute(annotation), _absolute(folder)
    _check_files(scan, annotation)
    segments = _segments(annotation)
    image, label = read_image(scan), read_image(annotation)
    _check_label(label, image, segments)
    given = [ignore_index] if isinstance(ignore_index, int) else list(ignore_index or [])
    is_said = bool(given) or annotated_slices is not None
    is_part = sorted(label.data.shape) != sorted(image.spatial_shape)
    told = _unlabeled_in(label) if is_part and not segments and not is_said else ()
    outside = 0 if segments else next(iter(given or told), 0)
    placed = _on_grid_of(image, label, outside)
    labels = _labels(segments, given, annotation)
    declared: dict[str, Any] = {"ignore_index": list(told)} if told else {}
    if labels and not is_said:
        declared = _infer(placed, annotation, labels)
    folder.mkdir(parents=True, exist_ok=True)
    made = _Made(folder, (scan, annotation))
    made.check_scan(scan)
    name = _name(scan)
    entry = {IMAGE: str(scan), LABEL: str(annotation)}
    if not suffix_among(scan, SUFFIXES):
        entry[IMAGE] = made.write(f"{name}.nii", image.data, image, [scan])
    if placed is not label.data or not suffix_among(annotation, SUFFIXES):
        entry[LABEL] = made.write(f"{name}_annotation.nii.gz", placed, image, [scan, annotation], outside)
    content: dict[str, Any] = {"training": [entry], **declared, "made_from": made.states}
    content |= {"scan": str(scan), "annotation": str(annotation)}
    if labels:
        content["labels"] = {str(value): text for value, text in sorted(labels.items())}
    return _write_datalist(folder, content)


def _write_datalist(folder: Path, content: Mapping[str, Any]) -> Path:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / DATALIST, lambda draft: draft.write_text(text, encoding="utf-8"))
    return folder / DATALIST


def annotation_of(datalist: str | Path) -> str | None:
    """The file that :func:`prepare_pair` made a datalist from; None for other data sets."""
    with contextlib.suppress(DataError, AttributeError):
        content = read_json(Path(datalist)) if Path(datalist).name == DATALIST else {}
        annotation = content.get("annotation")
        return annotation if isinstance(annotation, str) and os.path.isfile(annotation) else None
    return None


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _name(scan: Path) -> str:
    """The case's name, whatever letters the file's ending is written in."""
    if scan.is_dir():
        return scan.name
    suffix = image_suffix(scan)
    return scan.name[: -len(suffix)].removesuffix("_0000") if suffix else case_name(scan)


# What is wrong with the files


def _check_files(scan: Path, annotation: Path) -> None:
    for path, what in ((scan, "scan"), (annotation, "annotation")):
        if not os.path.exists(path):
            raise DataError(f"{path} does not exist; expected the {what}. The order is: SCAN ANNOTATION.")
        if path.suffix == ".json":
            raise DataError(f"{path} is a JSON file; expected the {what}. Pass a datalist alone, as the only input.")
    if os.path.samefile(scan, annotation):
        raise DataError(
            f"{scan} is given as both the scan and its annotation; expected two files. The order is: SCAN ANNOTATION."
        )
    if annotation.is_dir():
        raise DataError(
            f"{annotation} is a folder; expected the annotation in one file ({LABEL_FORMATS}). The order is: SCAN "
            "ANNOTATION; export a segmentation in DICOM as one of these, in 3D Slicer for example."
        )


def _check_label(label: Volume, image: Volume, segments: Mapping[int, str]) -> None:
    """Raise DataError unless an annotation is a label map, in one layer."""
    if label.data.ndim == 4 and segments:
        raise DataError(
            f"{label.path}: a segmentation in {label.num_channels} layers, since segments overlap or were once allowed "
            "to; expected one layer. In 3D Slicer, export it as a label map (Data module, right click: Export visible "
            "segments to binary labelmap) and save that as .nii.gz; or set Allow overlap in the Segment Editor's "
            "masking to no, edit it, and save it again."
        )
    if label.data.ndim == 4:
        raise DataError(
            f"{label.path}: holds {label.num_channels} channels, shape {label.data.shape}; expected a label map with "
            "one number per voxel. Export it as one label map. The order is: SCAN ANNOTATION."
        )
    values = values_found(label.data)
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


def _segments(annotation: Path) -> dict[int, str]:
    """The segments' names by their values; empty for what is no segmentation of 3D Slicer's."""
    if image_suffix(annotation) not in NRRD_SUFFIXES:
        return {}
    header = itk_header(annotation, "NrrdImageIO")
    metadata = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    numbers = sorted({int(found[1]) for key in metadata if (found := re.match(r"Segment(\d+)_", key))})
    segments: dict[int, str] = {}
    for number in numbers:
        value = metadata.get(f"Segment{number}_LabelValue", "1").strip()  # older versions write none, each in a layer
        name = metadata.get(f"Segment{number}_Name", "").strip() or f"segment {number + 1}"
        if not value.isdecimal() or not int(value):
            raise DataError(
                f"{annotation}: the segment {name!r} has the value {value!r}; expected a whole number from 1 on. Save "
                "the segmentation again in 3D Slicer."
            )
        segments[int(value)] = name
    return segments


def _labels(segments: Mapping[int, str], ignore_index: Sequence[int], annotation: Path) -> dict[int, str]:
    """The classes' names by value, and those of what is unlabeled, as data sets declare them; empty for no segments."""
    if not segments:
        return {}
    names = {v: IGNORE if name.lower() in UNLABELED_NAMES else name for v, name in segments.items()}
    names = {value: BACKGROUND if name.lower() == BACKGROUND else name for value, name in names.items()}
    labels = {0: IGNORE if BACKGROUND in names.values() else BACKGROUND, **names}
    labels = {value: name for value, name in labels.items() if value not in ignore_index}
    classes = [name for name in labels.values() if name != IGNORE]
    if len(classes) < 2:
        raise DataError(
            f"{annotation}: its segments are {', '.join(segments.values())}; expected two classes at least, of which "
            f"the background may be what is in no segment, found {', '.join(classes) or 'none'}. Add a segment."
        )
    return labels


def _infer(label: np.ndarray, annotation: Path, labels: dict[int, str]) -> dict[str, Any]:
    """Adds to the labels what means unlabeled, and returns what else the datalist declares.

    A segment for what is left out tells only a part: beside annotated slices, what is in no segment is unlabeled, too.
    """
    unlabeled = [value for value, name in labels.items() if name == IGNORE]
    classes = [value for value, name in labels.items() if name != IGNORE]
    if 0 in unlabeled:
        return {}
    try:
        convention = conventions.infer(label, str(annotation), classes, unlabeled)
    except conventions.UndecidedError as error:
        raise DataError(f"{error} Or annotate the background, too, in a segment of the name background.") from error
    print(conventions.announcement(convention, str(annotation)))
    labels.update(dict.fromkeys(convention.ignore_index, IGNORE))
    return {} if convention.annotated_slices is None else {ANNOTATED_SLICES: convention.annotated_slices}


# Grids


def _on_grid_of(image: Volume, label: Volume, outside: int) -> np.ndarray:
    """The label map (X, Y, Z) on the scan's grid, with a value for outside of it; its own array where it lies on it.

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
            f"{label.path}: shape {label.data.shape}, whose grid is no part of the scan's, {image.spatial_shape} "
            f"({image.path}): its voxels lie up to {off:.2g} voxels off; expected the scan's voxel size and "
            f"directions, and at most {AFFINE_TOLERANCE}. Export it on the scan's grid (in 3D Slicer: with the scan as "
            "reference volume), or look for a mix-up of files."
        )
    return _pasted(turned, image, offset.astype(int), outside)


def _turned(label: Volume, image: Volume) -> Volume:
    """The same label map with its axes in the order and the directions of the scan's, as DICOM readers differ in."""
    ours, theirs = (nib.io_orientation(volume.affine) for volume in (image, label))
    if np.array_equal(ours, theirs):
        return label
    turn = nib.orientations.ornt_transform(theirs, ours)
    data = nib.orientations.apply_orientation(label.data, turn)
    return Volume(label.path, data, label.affine @ nib.orientations.inv_ornt_aff(turn, label.data.shape))


def _unlabeled_in(label: Volume) -> tuple[int, ...]:
    """The values that mean unlabeled in a label map of a part of the scan, which has fewer of them than a whole one.

    None where 0 does outside of some slices, or where only numbers of voxels tell it, which depend on what was cropped.
    """
    try:
        convention = conventions.infer(label.data, label.path)
    except DataError:
        return ()
    if convention.annotated_slices is not None or convention.is_guess:
        return ()
    print(conventions.announcement(convention, label.path))
    return convention.ignore_index


def _pasted(label: Volume, image: Volume, offset: np.ndarray, outside: int) -> np.ndarray:
    """A label map in the scan's shape, whose first voxel lies at `offset`."""
    shape = np.array(image.spatial_shape)
    start, stop = np.maximum(offset, 0), np.minimum(offset + label.data.shape, shape)
    pasted = np.full(tuple(shape), outside, np.promote_types(label.data.dtype, np.min_scalar_type(outside)))
    if (start < stop).all():
        there = tuple(slice(*ends) for ends in zip(start, stop))
        here = tuple(slice(*ends) for ends in zip(start - offset, stop - offset))
        pasted[there] = label.data[here]
    if not (pasted != outside).any() and (label.data != outside).any():
        raise DataError(
            f"{label.path}: lies outside of the scan ({image.path}), from voxel {offset.tolist()} on, "
            f"where the scan has {image.spatial_shape}; expected the annotation of a part of it. Look for a "
            "mix-up of files."
        )
    return pasted


# Files that are made


class _Made:
    """The NIfTI files made in a folder, and what each was made from.

    Attributes:
        states: of the files made from, by the name of the file made; as the datalist keeps it.
    """

    def __init__(self, folder: Path, sources: Sequence[Path]) -> None:
        self.folder, self.sources = folder, sources
        self.states: dict[str, list[Any]] = {}
        self.former: dict[str, Any] = {}
        self.former_scan: str | None = None
        with contextlib.suppress(DataError, AttributeError, TypeError, ValueError):  # there is none, or it is damaged
            content = read_json(folder / DATALIST)
            self.former, self.former_scan = dict(content.get("made_from")), content.get("scan")

    def check_scan(self, scan: Path) -> None:
        """Raise DataError where the folder is another scan's, whose results would be replaced."""
        if self.former_scan and os.path.exists(self.former_scan) and not os.path.samefile(self.former_scan, scan):
            raise DataError(
                f"{scan}: the results beside {self.folder} are those of {self.former_scan}. Pass another folder (-o) "
                "for this scan; or both scans in one datalist, to learn from them together."
            )

    def write(self, name: str, data: np.ndarray, image: Volume, made_from: Iterable[Path], *settings: int) -> str:
        """Write voxels on an image's grid, unless that was done before, alike, and return the file's path."""
        file = self.folder / name
        if any(file.exists() and os.path.samefile(file, source) for source in self.sources):
            raise DataError(
                f"{file} would be replaced by what is made of it. Move it out of {self.folder}, or rename it."
            )
        states: list[Any] = [*(_state(source) for source in made_from), *settings]
        if not (file.is_file() and states == self.former.get(name)):
            (self.folder / DATALIST).unlink(missing_ok=True)  # which would tell of the former file
            write_map(file, data, image)
        if None not in states:
            self.states[name] = states
        return str(file)


def _state(source: Path) -> list[Any] | None:
    """Path, bytes, and the time of the last change, in ns, of a file or of all files in a folder together.

    None where the voxels are in a file beside this one, which may change alone.
    """
    if source.suffix.lower() in (".nhdr", ".mhd"):
        return None
    files = [entry.stat() for entry in os.scandir(source) if entry.is_file()] if source.is_dir() else [source.stat()]
    return [str(source), len(files), sum(file.st_size for file in files), max(file.st_mtime_ns for file in files)]
