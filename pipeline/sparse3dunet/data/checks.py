"""Checks of all files of a data set before a long run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from sparse3dunet.data.background import lowest_is_background, with_background
from sparse3dunet.data.cutting import cut_large, has_parts
from sparse3dunet.data.datalist import Case, DataSet, with_cases
from sparse3dunet.data.doubts import annotation_doubts, image_doubts, notes
from sparse3dunet.data.finished import FINISHED
from sparse3dunet.data.label_and_weight import SparseLabel, equal_to_any, finished_of
from sparse3dunet.data.measurements import measure
from sparse3dunet.data.memory import machine_memory
from sparse3dunet.data.names import case_name
from sparse3dunet.data.partial_labels import looked_for
from sparse3dunet.data.reports import CaseReport, DataReport
from sparse3dunet.data.slices import ALL, find_slices, listed_slices, plane_names, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.formats import count_channels, read_image, read_label
from sparse3dunet.io.volumes import (
    MOST_VALUES,
    NO_VOXEL_SIZE,
    Volume,
    check_channels,
    check_finite,
    check_same_grid,
    on_grid_of,
    value_text,
    values_found,
)
from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, IMAGE, LABEL, REFERENCE, WEIGHT

SHOWN_PROBLEMS = 10
INTENSITY_RATIO = 100
"""Ratio between the largest and the smallest case's intensities above which a warning is given."""
MEMORY_SHARE = 0.7
"""Share of the machine's memory that volumes kept in memory may take without a warning."""


def complete(data_set: DataSet, known: Mapping[str, Any] | None = None, background: int | None = None) -> DataSet:
    """Return the data set with undeclared classes and channels taken from its files.

    The classes are then all values of the label maps that do not mean "unlabeled". Volumes larger than memory are
    replaced by parts of them, see :func:`~sparse3dunet.data.cutting.cut_large`.

    Args:
        data_set: as read.
        known: ``class_names`` and ``class_values`` to use for undeclared classes instead, for example a model's.
        background: value of the background; None: the first declared class, else the lowest value, which is told
            unless it is 0.

    Raises:
        DataError: when the label maps contain fewer than two classes, or far too many; when the value of the background
            is no class.
    """
    data_set = cut_large(data_set)
    if known is not None and not data_set.class_values:
        names, numbers = list(known["class_names"]), list(known["class_values"])
        data_set = replace(data_set, class_names=names, class_values=numbers)
    if not data_set.class_values:
        data_set = _with_found_classes(data_set, background)
    if background is not None:
        data_set = with_background(data_set, background)
    wide = [value for value in data_set.class_values if not -(2**15) <= value < 2**15]
    if wide:
        raise DataError(
            f"{data_set.labels_place}: the class value {wide[0]} is out of range; expected -32768 ... 32767: "
            "segmentations are written in 16 bits. Use another value, or pass it as ignore_index if it means unlabeled."
        )
    if not data_set.num_channels:
        counts = [_channels_of(case) for case in data_set.cases]
        data_set = replace(data_set, num_channels=max(sorted({*counts} - {0}), key=counts.count, default=1))
    return data_set


def _with_found_classes(data_set: DataSet, background: int | None) -> DataSet:
    """Return the data set with the values of its label maps that do not mean "unlabeled" as classes."""
    found = _in_parallel(_label_values, data_set.cases)
    values: set[float] = set().union(*found)
    slices = any(ANNOTATED_SLICES in case for case in data_set.cases)
    classes = sorted({v for v in values if v == int(v)} - set(data_set.ignore_index) | ({0} if slices else set()))
    if background is not None and background not in (*classes, *data_set.ignore_index):
        classes = sorted([background, *classes])
    if len(classes) < 2 or len(values) > MOST_VALUES:
        if not values:
            read_image(data_set.cases[0][LABEL])  # its error is the better message
        shown = ", ".join([value_text(value) for value in sorted(values)[:10]] + ["..."] * (len(values) > 10))
        most = max(range(len(found)), key=lambda number: len(found[number]))
        raise DataError(
            f"{data_set.labels_place}: the label maps of {len(data_set.cases)} case(s) contain {len(values)} value(s), "
            f"{shown}, most of them in {data_set.cases[most][LABEL]}; unlabeled is {list(data_set.ignore_index)}; "
            f"expected 2 to {MOST_VALUES} classes, whole numbers. Check that the labels were exported, and are not "
            "images, or declare the classes in a dataset.json."
        )
    if classes[0] < 0:
        least = value_text(classes[0])
        raise DataError(
            f"{data_set.labels_place}: the label maps contain the value {least}, and no classes are declared; expected "
            f"classes from 0 on. If it means unlabeled, pass it as ignore_index {least}; if it is a class, declare the "
            "classes in a dataset.json."
        )
    if background is None and classes[0] != 0:
        print(lowest_is_background(data_set.labels_place, [int(v) for v in classes]), file=sys.stderr, flush=True)
    first = classes[0] if background is None else background
    names = ["background" if value == first else f"class {value:g}" for value in classes]
    return replace(data_set, class_names=names, class_values=[int(v) for v in classes])


def _label_values(case: Case) -> set[float]:
    """Return the values of a label map, of its annotated slices if they are listed.

    None if the file is bad, which the check of all files reports, as it does slices that are not there.
    """
    try:
        label = read_label(case[LABEL])
    except DataError:
        return set()
    data, shape = label.data, label.spatial_shape
    with suppress(DataError):
        slices = listed_slices(case.get(ANNOTATED_SLICES, ALL), shape, label.affine, label.path)
        data = data if slices is None else data[slices_mask(shape, slices)]
    return set(values_found(data))


def _channels_of(case: Case) -> int:
    """Return the number of channels of an image; 0 if the file is bad, which the check of all files reports."""
    return len(case[IMAGE]) if isinstance(case[IMAGE], list) else count_channels(case[IMAGE])


def inspect(data_set: DataSet) -> DataReport:
    """Read every file of a data set and return a report with all errors, without raising."""
    report = DataReport(data_set, _in_parallel(lambda case: inspect_case(case, data_set), data_set.cases))
    report.warnings += data_set.warnings
    _inspect_classes(report)
    _inspect_images(report)
    return report


def check_data(data_set: DataSet) -> DataReport:
    """Read every file of a data set and return a report.

    Raises:
        DataError: when anything is wrong; the message lists each bad case.
    """
    report = inspect(data_set)
    _raise_problems(report.all_errors, f"{len(data_set.cases)} cases")
    return report


def check_cases(
    data_set: DataSet, training: Sequence[Case], validation: Sequence[Case] = (), annotated_slices: Any = None
) -> DataReport:
    """Like :func:`check_data`; for a data set without cases, the training and validation cases are read.

    Args:
        data_set: the data set.
        training: see :func:`~sparse3dunet.data.datalist.with_cases`, as for the others.
        validation: the same.
        annotated_slices: the same.

    Raises:
        DataError: when there is no case at all, or anything is wrong.
    """
    return check_data(with_cases(data_set, training, validation, annotated_slices))


def inspect_case(case: Case, data_set: DataSet) -> CaseReport:
    """Read all files of a case and return a report with all errors."""
    report = CaseReport(case_name(case))
    image = None
    try:
        image = _read_image(case, data_set.num_channels)
        _describe_image(report, image)
    except DataError as error:
        report.errors.append(str(error))
    try:
        label = read_label(case[LABEL])
        images = [] if image is None else [image.path]
        report.warnings += notes(label, *images)
        report.dtypes = (*report.dtypes, str(label.data.dtype))
        report.values = values_found(label.data)
        weight = read_image(case[WEIGHT]) if WEIGHT in case else None
        if image is not None:
            label, weight = on_grid_of(label, image), weight and on_grid_of(weight, image)
            for volume in filter(None, (label, weight)):
                check_same_grid(volume, image)
        _describe_annotation(report, image, label, weight, case, data_set)
        if REFERENCE in case:
            reference = read_label(case[REFERENCE])
            own = notes(reference, *images)
            report.warnings += [(f"reference: {kind}", text) for kind, text in own]  # not another case of the label's
            _check_reference(on_grid_of(reference, label), label, data_set.class_values)
    except DataError as error:
        report.errors.append(str(error))
    return report


def _read_image(case: Case, num_channels: int) -> Volume:
    """Read the image and check its channels; return the first file if there is one per channel."""
    paths = case[IMAGE] if isinstance(case[IMAGE], list) else [case[IMAGE]]
    volumes = [read_image(path) for path in paths]
    check_channels(volumes, num_channels)
    for volume in volumes:
        check_finite(volume)
    return volumes[0]


def _describe_image(report: CaseReport, image: Volume) -> None:
    report.shape = image.in_ras_order(image.spatial_shape)
    report.spacing = image.in_ras_order(image.spacing)
    report.dtypes = (str(image.data.dtype),)
    report.voxels = int(np.prod(image.spatial_shape))
    sample = image.data.reshape(-1)[:: max(image.data.size // 100_000, 1)]  # a percentile needs no more
    report.intensity = tuple(float(v) for v in np.percentile(sample.astype(np.float64), (0.5, 99.5)))
    report.warnings += image_doubts(image)
    report.warnings += notes(image)
    if not image.has_voxel_size:
        report.warnings.append(("voxel size", f"{image.path} {NO_VOXEL_SIZE}"))


def as_tensor(volume: Volume) -> MetaTensor:
    """Return a tensor (1, X, Y, Z), float32, with the volume's affine and path."""
    values = torch.as_tensor(np.ascontiguousarray(volume.data, dtype=np.float32))
    return MetaTensor(values[None], affine=torch.from_numpy(volume.affine), meta={"filename_or_obj": volume.path})


def _describe_annotation(
    report: CaseReport, image: Volume | None, label: Volume, weight: Volume | None, case: Case, data_set: DataSet
) -> None:
    names, values = data_set.class_names, data_set.class_values
    split = SparseLabel(values, data_set.ignore_index)
    slices = case.get(ANNOTATED_SLICES)
    values_on_disk = as_tensor(label)
    classes, weights = split(values_on_disk, None if weight is None else as_tensor(weight), slices)
    if slices == FINISHED:
        plain = values_on_disk.as_tensor()
        unlabeled = equal_to_any(plain, data_set.ignore_index)
        part = finished_of(plain, unlabeled, data_set.ignore_index, values_on_disk.affine)
        report.convention = part.reason if part else "unlabeled by its value; 0 is background elsewhere"
    if ANNOTATED_CLASSES in case:
        mask = looked_for(classes, weights, case[ANNOTATED_CLASSES], values, label.path, names)
        report.looked_for = [] if mask.all() else [name for name, found in zip(names[1:], mask[1:]) if found]
    annotated = weights[0].numpy() > 0
    numbers = np.asarray(classes[0])[annotated]
    report.voxels, report.annotated = annotated.size, int(annotated.sum())
    report.class_counts = np.bincount(numbers, minlength=len(data_set.class_names)).tolist()
    found = [[], [], []] if report.is_dense else find_slices(annotated)
    report.slices = None if found is None else dict(sorted(zip(plane_names(label.affine), found)))
    if image is not None:
        report.measurements = measure(image, np.asarray(classes[0]), annotated, len(data_set.class_names))
    report.warnings += annotation_doubts(label, annotated, report.class_counts, data_set, slices is not None)


def _check_reference(reference: Volume, label: Volume, class_values: Sequence[int]) -> None:
    """Raise DataError unless the reference has a class in every voxel."""
    check_same_grid(reference, label)
    found = values_found(reference.data)
    bad = reference.data.size - sum(count for value, count in found.items() if value in class_values)
    if bad:
        shown = ", ".join(value_text(v) for v in found if v not in class_values)[:100] or "NaN or infinity"
        raise DataError(
            f"{reference.path}: label value {shown} in {bad} of {reference.data.size} voxels is not a class; expected "
            f"a dense label for scoring, with only {', '.join(map(str, class_values))}. Correct it, or leave it out."
        )


def _inspect_classes(report: DataReport) -> None:
    if any(not case.class_counts for case in report.cases):
        return  # the counts of a bad case are missing
    data_set, counts = report.data_set, report.class_counts
    total = sum(counts)
    for number, (name, value, count) in enumerate(zip(data_set.class_names, data_set.class_values, counts)):
        if count:
            continue
        if number == 0:
            report.errors.append(
                f"{data_set.labels_place}: no voxel of any case is labelled {name} (value {value}); "
                "expected background on every annotated slice. Without it, the network learns foreground everywhere. "
                f"Label the background as {value}, and unlabeled voxels with another value (ignore_index)."
            )
            for case in report.cases:
                case.warnings = [warning for warning in case.warnings if warning[0] != "no background"]
        else:
            text = f"no voxel is annotated as {name} (value {value}); it cannot be learned."
            report.warnings.append((f"class {number}", text))
    if len(counts) > 2 and counts[-1] > max(total / 2, counts[0]) and all(case.is_dense for case in report.cases):
        report.warnings.append(
            (
                "majority",
                f"{data_set.class_names[-1]} covers {counts[-1] / total:.0%} of the voxels. If the value "
                f"{data_set.class_values[-1]} means unlabeled, set ignore_index {data_set.class_values[-1]}.",
            )
        )


def _inspect_images(report: DataReport) -> None:
    cases = [case for case in report.cases if case.spacing]
    scales = {case.name: max(map(abs, case.intensity)) for case in cases if any(case.intensity)}
    if scales and max(scales.values()) > INTENSITY_RATIO * min(scales.values()):
        low, high = min(scales, key=scales.__getitem__), max(scales, key=scales.__getitem__)
        report.warnings.append(
            (
                "intensity",
                f"intensities differ by orders of magnitude, up to {scales[low]:.4g} in {low} and {scales[high]:.4g} "
                f"in {high}. Each image is normalised by itself, unless it is CT, which must be in Hounsfield units.",
            )
        )
    if not report.spacings_agree:
        spacings = np.array([case.spacing for case in cases])
        low, high = ("x".join(f"{s:.3g}" for s in f(spacings, axis=0)) for f in (np.min, np.max))
        text = (
            f"voxel sizes differ, along the axes from {low} to {high} mm; trainings resample to their median unless "
            "--spacing is set."
        )
        report.warnings.append(("spacing", text))
    memory = machine_memory()
    if memory and report.memory > MEMORY_SHARE * memory and not has_parts(report.data_set.cases):
        text = (
            f"keeping all volumes in memory takes about {report.memory / 1e9:.1f} GB of {memory / 1e9:.1f} GB: lower "
            f"cache_rate to {MEMORY_SHARE * memory / report.memory:.2g}."
        )
        report.warnings.append(("memory", text))


def _in_parallel(function: Callable, cases: Iterable[Case]) -> list:
    """Apply a function to all cases, two at a time (decompression releases the interpreter lock)."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(function, cases))


def _raise_problems(problems: Sequence[str], of_what: str) -> None:
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        listed = "\n  ".join(problems[:SHOWN_PROBLEMS])
        raise DataError(f"{len(problems)} problems in {of_what}:\n  {listed}{more}")
