"""Data sets, read from a folder or a datalist in any of the usual layouts.

A case is a dictionary: ``image``, an absolute path or the list of its channels' paths; ``label``, the path of the
annotation; and optionally ``weight``, the path of a weight image, ``annotated_slices`` as in the datalist,
``annotated_classes``, the values of the classes that were looked for, and ``reference``, the path of a dense label used
only for scoring.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparse3dunet.colors import is_color
from sparse3dunet.data.dicom_labels import with_dicom_labels
from sparse3dunet.data.layouts import SUFFIXES, Listing, read_listing
from sparse3dunet.data.names import case_name, named
from sparse3dunet.data.partial_labels import with_annotated_classes
from sparse3dunet.data.regions import declared_regions
from sparse3dunet.data.segment_names import check_named_segments, check_same_names
from sparse3dunet.data.slices import check_specification
from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_annotation import annotation_file
from sparse3dunet.io.formats import annotation_path, is_dicom_image
from sparse3dunet.io.segments import names_fault
from sparse3dunet.io.suffixes import is_image_file, split, suffix_among
from sparse3dunet.io.volumes import LARGEST_VALUE
from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, IMAGE, LABEL, REFERENCE, WEIGHT
from sparse3dunet.missing import broken_link, no_data_set

Case = dict[str, Any]
FILE_KEYS = (IMAGE, LABEL, WEIGHT, REFERENCE)


@dataclass(frozen=True)
class DataSet:
    """Training cases of one source, and its declarations.

    Attributes:
        cases: see the module's docstring.
        class_names: class names by class number 0 ... K-1, background first; empty if undeclared.
        class_values: values of the classes on disk, by class number; empty if undeclared.
        ignore_index: values of unlabeled voxels on disk.
        num_channels: channels of the images; 0 if undeclared.
        validation: names of the cases that the source itself sets apart for validation.
        source: file or folder that lists the cases, for messages.
        modalities: names of the channels, such as CT; empty if undeclared.
        regions: class numbers by the name of the region, in the order in which they are written; empty if undeclared.
        colors: colours by value on disk, as #rrggbb, of classes that have one of their own.
        warnings: kind and text of each warning on what its files state.
    """

    cases: list[Case]
    class_names: list[str]
    class_values: list[int]
    ignore_index: tuple[int, ...]
    num_channels: int
    validation: tuple[str, ...] = ()
    source: str = "the data set"
    modalities: tuple[str, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def labels_place(self) -> str:
        """What a message about the labels names: the label map, if there is only one."""
        return str(self.cases[0][LABEL]) if len(self.cases) == 1 else str(self.source)


def read_data_set(
    source: str | Path,
    *,
    label_dir: str | None = None,
    weight_dir: str | None = None,
    reference_dir: str | None = None,
    ignore_index: int | Sequence[int] | None = None,
    annotated_slices: Any = None,
) -> DataSet:
    """Read a data set: a Decathlon folder, an nnU-Net v2 raw folder, a folder of pairs, or a JSON datalist.

    Args:
        source: the folder, or the JSON file.
        label_dir: folder within it with labels of the same file names to use instead of the listed ones; declared
            slices and weights belong to the listed labels, and are then ignored (but not ``annotated_classes``).
        weight_dir: folder within it with a weight image (>= 0) for each label, by the labels' file names.
        reference_dir: folder within it with dense labels, used only for scoring, by the labels' file names.
        ignore_index: values of unlabeled voxels; default: as the source declares ("ignore_index", or a label "ignore"),
            otherwise one past the last class.
        annotated_slices: annotated slices of cases that list none, see :class:`~sparse3dunet.transforms.SparseLabel`;
            default: as the source declares.

    Raises:
        DataError: when the source or a file is missing, empty, unreadable as JSON, or lists no cases.
    """
    path = Path(str(source)).expanduser()
    if not os.path.exists(path):  # unlike Path.exists, false for a name that is too long
        raise no_data_set(path.absolute())
    listing = read_listing(path, label_dir)
    folders = {LABEL: label_dir, WEIGHT: weight_dir, REFERENCE: reference_dir}
    _check_folders(listing, folders.values())
    cases = [_case(listing, entry, number, folders) for number, entry in enumerate(listing.entries)]
    cases = named(cases, str(listing.source))
    _check_files(listing, cases)
    declared = None if label_dir is not None else listing.annotated_slices
    slices = declared if annotated_slices is None else annotated_slices
    if slices is not None:
        check_specification(slices, str(listing.source) + ("" if annotated_slices is None else " (set by an option)"))
        cases = [{ANNOTATED_SLICES: slices, **case} for case in cases]
    declared_ignore = _whole_numbers(listing.ignore_index, f"{listing.source}: ignore_index")
    ignore = declared_ignore if ignore_index is None else _whole_numbers(ignore_index, "ignore_index")
    class_names, class_values, named_ignore = _classes(listing)
    ignore = tuple(dict.fromkeys((*ignore, *named_ignore)))
    if not listing.is_made:
        check_named_segments(cases)
    after = [max(class_values) + 1] if class_values and not ignore else []  # the default
    stated = {**dict(zip(class_values, class_names)), **dict.fromkeys((*named_ignore, *after), "ignore")}
    warnings = (*listing.warnings, *check_same_names(cases, stated, str(listing.source)))
    cases, class_names, class_values, ignore = with_dicom_labels(cases, class_names, class_values, ignore)
    if not ignore and class_values:
        ignore = (max(class_values) + 1,)
    _check_classes(listing, class_names, class_values, ignore)
    cases = with_annotated_classes(cases, listing.annotated_classes, class_names, class_values, str(listing.source))
    regions = declared_regions(listing.regions, class_names, class_values, str(listing.source))
    _check_regions(listing, regions, cases)
    validation = tuple(case_name(case) for case in cases[len(cases) - listing.num_validation :])
    source = str(listing.source.absolute())
    declared = (listing.num_channels, validation, source, listing.modalities, regions, _colors(listing), warnings)
    return DataSet(cases, class_names, class_values, ignore, *declared)


def _check_regions(listing: Listing, regions: Mapping[str, Any], cases: Iterable[Case]) -> None:
    if regions and any(ANNOTATED_CLASSES in case for case in cases):
        raise DataError(
            f"{listing.source}: regions and annotated_classes are both declared; expected one of them, since a region "
            "is not known where a class of it was not looked for. Remove one."
        )


def _check_folders(listing: Listing, folders: Iterable[str | None]) -> None:
    for folder in folders:
        if folder is not None and not os.path.isdir(listing.root / str(folder)):
            raise DataError(
                f"{listing.root / str(folder)}: no such folder in dataset_dir; expected one of: {_folders(listing)}. "
                "Pass one of these."
            )


def declared_data_set(declared: Mapping[str, Any] | None) -> DataSet:
    """Return a data set with declared classes but without cases, which are added by :func:`with_cases`.

    Args:
        declared: ``class_names``, ``class_values``, ``ignore_index`` (values) and ``num_channels``.

    Raises:
        DataError: when `declared` is None.
    """
    if declared is None:
        raise DataError("no data set is given: pass --dataset_dir FOLDER.")
    return DataSet(
        cases=[],
        class_names=list(declared["class_names"]),
        class_values=list(declared["class_values"]),
        ignore_index=tuple(declared["ignore_index"]),
        num_channels=declared["num_channels"],
    )


def with_cases(
    data_set: DataSet, training: Sequence[Case], validation: Sequence[Case] = (), annotated_slices: Any = None
) -> DataSet:
    """Return the data set; if it has no cases, with the training and validation cases, each once.

    Args:
        data_set: data set with the classes.
        training: ``image`` and ``label`` of each case, as MONAI Label lists them.
        validation: the same.
        annotated_slices: annotated slices of cases that list none.

    Raises:
        DataError: when there is no case at all, or two have the same name.
    """
    if data_set.cases:
        return data_set
    by_image = {str(case[IMAGE]): case for case in (*training, *validation)}
    if not by_image:
        raise DataError("there is no case to train on: pass --dataset_dir FOLDER, or list cases as train#dataset#data.")
    slices = {} if annotated_slices is None else {ANNOTATED_SLICES: annotated_slices}
    cases = named([{**slices, **case} for case in by_image.values()], "cases to train on")
    return replace(data_set, cases=cases)


def without_references(cases: Sequence[Case]) -> list[Case]:
    """Return the cases without their dense labels, which must not be used for training."""
    return [{key: case[key] for key in case if key != REFERENCE} for case in cases]


def _case(listing: Listing, entry: Any, number: int, folders: Mapping[str, str | None]) -> Case:
    where = f"training case {number} in {listing.source}"
    named = isinstance(entry, Mapping) and all(_paths(entry.get(key)) for key in (IMAGE, LABEL))
    if not named or isinstance(entry[LABEL], list):
        raise DataError(
            f"{where} must have an image (or the list of its channels) and a label, as in "
            f'{{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}}; found {entry!r}. Correct the list.'
        )
    case: Case = {}
    for key in FILE_KEYS:
        folder = folders.get(key)
        if key in (WEIGHT, REFERENCE) and not isinstance(entry.get(key) or "", str):
            raise DataError(f"{key} of {where} must be one path; found {entry[key]!r}. Correct the list.")
        if folder is not None:
            file, place = split(entry[LABEL])
            files = [listing.root / str(folder) / file.name / place]
        else:
            listed = [] if key == WEIGHT and folders[LABEL] is not None else _paths(entry.get(key))
            files = [_inside(listing, name, f"{key} of {where}") for name in listed]
        if key in (LABEL, REFERENCE):
            files = [Path(annotation_path(str(file))) for file in files]
        for file in files:
            if not (annotation_file(file) if key in (LABEL, REFERENCE) else is_dicom_image(file)):
                _check_file(file, f"{key} of {where}")
        absolute = [str(file.absolute()) for file in files]  # links are not resolved: targets may have other names
        if absolute:
            case[key] = absolute[0] if len(absolute) == 1 else absolute
    if entry.get(ANNOTATED_SLICES) is not None and folders[LABEL] is None:
        check_specification(entry[ANNOTATED_SLICES], where)
        case[ANNOTATED_SLICES] = entry[ANNOTATED_SLICES]
    if entry.get(ANNOTATED_CLASSES) is not None:
        case[ANNOTATED_CLASSES] = entry[ANNOTATED_CLASSES]
    return case


def _check_file(file: Path, what: str) -> None:
    """Raise DataError unless the file exists and has the suffix of a format."""
    if not is_image_file(file):  # unlike Path.is_file, false for a name that is too long
        found = "is a folder without a DICOM image or annotation" if os.path.isdir(file) else "does not exist"
        found = broken_link(file) or found
        raise DataError(
            f"{file.absolute()} ({what}) {found}; expected an image file. Put the file there, or remove the case from "
            "the list."
        )
    if not suffix_among(file, SUFFIXES):
        raise DataError(
            f"{file.absolute()} ({what}) does not have the suffix of an image; expected one of {', '.join(SUFFIXES)}, "
            "or DICOM (images: the folder of a series; labels: SEG or RTSTRUCT). Export it as NIfTI."
        )


def _paths(value: Any) -> list[str]:
    """Return a path, or a list of paths, as a list; empty for anything else."""
    listed = value if isinstance(value, list) else [value]
    return listed if all(isinstance(name, str) and name for name in listed) else []


def _inside(listing: Listing, name: str, what: str) -> Path:
    """Return the path of a listed file: relative to the list's folder and within it; absolute only in a datalist."""
    file = listing.root / name
    if Path(name).is_absolute() and listing.allows_absolute:
        return file
    root = listing.root.absolute()
    steps = 0
    for part in Path(name).parts:
        steps += {"..": -1, ".": 0}.get(part, 1)
        if steps < 0:
            break
    if steps < 0 or (Path(name).is_absolute() and not file.is_relative_to(root)):
        raise DataError(
            f"{name} ({what}) lies outside of the data set's folder {root}. Move the file into the folder; or list the "
            "cases in a datalist of your own, with absolute paths, and pass that JSON file."
        )
    return file


def _check_files(listing: Listing, cases: Sequence[Case]) -> None:
    """Raise DataError if a file is listed twice."""
    users: dict[str, str] = {}
    for case in cases:
        for key in (IMAGE, LABEL):
            for path in _paths(case[key]):
                file = os.path.realpath(path)
                user = f"{key} of {case_name(case)}"
                if file in users:
                    raise DataError(
                        f"{listing.source}: {file} is both the {users[file]} and the {user}. Each image, channel and "
                        "label needs its own file; correct the list."
                    )
                users[file] = user


def _classes(listing: Listing) -> tuple[list[str], list[int], tuple[int, ...]]:
    """Return declared names and values by class number, and the values of labels named "ignore"."""
    if listing.labels is None:
        return [], [], ()
    values: dict[int, str] = {}
    try:
        for key, value in listing.labels.items():
            # {"0": "background"} as in the Decathlon, or {"background": 0} as in nnU-Net v2.
            number, name = (int(value), key) if not isinstance(value, str) else (int(key), value)
            if number in values or isinstance(value, (bool, float)) or abs(number) > LARGEST_VALUE:
                raise ValueError(f"{value!r} twice, or not a whole number")
            values[number] = str(name)
    except (AttributeError, TypeError, ValueError, OverflowError):
        values = {}
    unlabeled = tuple(number for number, name in values.items() if name.lower() == "ignore")
    classes = {number: name for number, name in sorted(values.items()) if number not in unlabeled}
    if len(classes) < 2:
        raise DataError(
            f'{listing.source}: "labels" must name at least two classes by their values, background first, as in '
            '{"0": "background", "1": "tubule"} or {"background": 0, "tubule": 1, "ignore": 2}, with a different whole '
            f'number for each (regions of several values are declared apart, in "regions"); found {listing.labels!r}. '
            "Correct them."
        )
    fault = names_fault(list(classes.values()))
    if fault:
        raise DataError(
            f'{listing.source}: "labels" must give each value a name of its own, in one line; {fault}: '
            f"{listing.labels!r}. Correct them."
        )
    # The background is class 0 even where its value is not the smallest, as in the paper's data.
    order = sorted(classes, key=lambda number: (classes[number].lower() != "background", number))
    return [classes[number] for number in order], order, unlabeled


def _colors(listing: Listing) -> dict[int, str]:
    """Return declared colours by value."""
    colors = {} if listing.colors is None else listing.colors
    fits = isinstance(colors, Mapping) and all(re.fullmatch(r"-?\d{1,10}", str(value)) for value in colors)
    odd = [color for color in colors.values() if not is_color(color)] if fits else [colors]
    if odd:
        raise DataError(
            f'{listing.source}: "colors" must be like {{"1": "#e69f00"}}, a colour for each value; found {odd[0]!r}. '
            "Correct it."
        )
    return {int(value): color.lower() for value, color in colors.items()}


def _check_classes(listing: Listing, names: Sequence[str], values: Sequence[int], ignore: Sequence[int]) -> None:
    """Raise DataError if the declared classes lack the background, or one has a value of unlabeled voxels."""
    if values and 0 not in (*values, *ignore) and names[0].lower() != "background":
        raise DataError(
            f'{listing.source}: "labels" has no background, found {listing.labels!r}; expected for example '
            '{"0": "background", "1": "tubule"}. Add it, or rename the background class to "background".'
        )
    clash = [value for value in ignore if value in values]
    if clash:
        raise DataError(
            f"{listing.source}: ignore_index {clash[0]} is also a class, {names[list(values).index(clash[0])]}; "
            f"expected a value other than {', '.join(map(str, sorted(values)))}. Choose another for unlabeled "
            f"voxels, for example {max(values) + 1}."
        )


def _whole_numbers(value: Any, what: str) -> tuple[int, ...]:
    listed = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(n, int) and not isinstance(n, bool) and abs(n) <= LARGEST_VALUE for n in listed):
        raise DataError(
            f"{what} must be a whole number of 32 bits or a list of them, such as 255 or [4, 255]; found {value!r}. "
            "Correct it."
        )
    return tuple(listed)


def _folders(listing: Listing) -> str:
    return ", ".join(sorted(p.name for p in listing.root.iterdir() if p.is_dir())) or "none"
