"""Conventions that mark unlabeled voxels, inferred from the label maps of a data set that does not declare them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sparse3dunet.data import checks
from sparse3dunet.data.conventions import (
    MOST_CANDIDATES,
    OPTIONS,
    Convention,
    announcement,
    infer,
    listed,
    slices_around,
)
from sparse3dunet.data.cutting import cut_and_infer, large_label
from sparse3dunet.data.datalist import Case, DataSet
from sparse3dunet.data.large import open_large
from sparse3dunet.data.large_conventions import UndecidedError, marked_values
from sparse3dunet.errors import DataError
from sparse3dunet.io.formats import read_label
from sparse3dunet.io.itk_snap import read_label_descriptions
from sparse3dunet.io.segments import BACKGROUND, names_fault
from sparse3dunet.io.volumes import UNLABELED_VALUE, values_found
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, WEIGHT


def complete(
    data_set: DataSet,
    class_names: Sequence[str] | str | None = None,
    known: Mapping[str, Any] | None = None,
    background: int | None = None,
) -> DataSet:
    """Return the data set with undeclared unlabeled values, classes and channels taken from its files.

    The convention for unlabeled voxels is inferred if neither values nor slices nor weights are declared, or if classes
    are declared, but no voxel has the value that would mean unlabeled; this is printed. Label maps from which it cannot
    be inferred, such as one without foreground, follow the others.

    Args:
        data_set: as read.
        class_names: names to use instead of the declared ones, by class number, background first; or the path of
            ITK-SNAP's label descriptions, which name classes by their values.
        known: see :func:`sparse3dunet.data.checks.complete`, as for `background`.
        background: value of the background.

    Raises:
        DataError: when the convention cannot be inferred, or the label maps differ in it, or the classes are wrong.
    """
    classes = known_values(known, background)
    data_set = checks.complete(cut_and_infer(data_set, classes, _with_convention), known, background)
    if class_names is None:
        return data_set
    values = data_set.class_values
    if isinstance(class_names, str):
        described = read_label_descriptions(class_names)
        data_set = replace(data_set, colors={**data_set.colors, **described.colors})
        class_names = [described.get(value, name) for value, name in zip(values, data_set.class_names)]
    if len(names := list(class_names)) != len(values) or names_fault(names):
        is_without = len(names) == len(values) - 1 and not any(_means_background(name) for name in names)
        cure = "Correct them, or pass other values as --ignore-index."
        if is_without:
            cure = f"The background is missing: {shlex.join(['--class-names', ','.join([BACKGROUND, *names])])}"
        raise DataError(
            f"--class-names gives {len(names)} name(s) ({', '.join(names)}) for {len(values)} "
            f"classes, values {', '.join(map(str, values))} ({', '.join(data_set.class_names)}); expected a different "
            f"name for each, none of them blank, in this order. {cure}"
        )
    return replace(data_set, class_names=names)


def _means_background(name: str) -> bool:
    return name.strip().lower() in ("", "bg", "bkg", "back", "none", "outside", "rest", "other", "0") or (
        BACKGROUND in name.lower()
    )


def with_marks(data_set: DataSet, known: Mapping[str, Any] | None = None, background: int | None = None) -> DataSet:
    """Return the data set with the values that clearly mark unlabeled voxels, if it declares nothing; this is printed.

    Clear are values around whole slices, and 255 and negative values that most voxels have, beside classes; all label
    maps with the value must show it. Other values than 255 and negative ones must be in all label maps. That 0 means
    unlabeled is never taken for granted, as it is by :func:`complete`: the labels of a training may be dense.

    Args:
        data_set: as read.
        known: as for :func:`complete`.
        background: as for :func:`complete`.
    """
    if _declares_voxels(data_set) or data_set.ignore_index or data_set.class_values:
        return data_set
    with ThreadPoolExecutor(max_workers=2) as pool:
        marks = list(pool.map(partial(_marks, classes=tuple(known_values(known, background))), data_set.cases))
    readable = [mark for mark in marks if mark is not None]
    values = sorted({value for mark in readable for value in mark.clear if _is_agreed(value, readable)})
    if not values:
        return data_set
    showing = [mark for mark in readable if mark.clear & {*values}]
    reason = f"{listed(values)} unlabeled, as {len(showing)} of {len(marks)} label map(s) show"
    print(announcement(Convention(tuple(values), None, reason), showing[0].file))
    return replace(data_set, ignore_index=tuple(values))


def known_values(known: Mapping[str, Any] | None, background: int | None) -> list[int]:
    """Return the values that are known to be classes, by the arguments of :func:`complete`."""
    return (known or {}).get("class_values") or ([] if background is None else [background])


@dataclass(frozen=True)
class _Inferred:
    """What was inferred from one label map.

    Attributes:
        file: the label map.
        is_declared: whether it contains the value declared for unlabeled voxels.
        convention: its convention; None if it could not be inferred.
        error: why not.
        zeros_last: whether 0 can mean unlabeled: the other voxels are whole slices, or there is no 0.
    """

    file: str
    is_declared: bool = False
    convention: Convention | None = None
    error: DataError | None = None
    zeros_last: bool = False


def _with_convention(data_set: DataSet, known: Sequence[int]) -> DataSet:
    if _declares_voxels(data_set) or not data_set.cases or (data_set.ignore_index and not data_set.class_values):
        return data_set
    inferred = _inferred(data_set, tuple(data_set.class_values or known))
    if any(entry.is_declared for entry in inferred):
        return data_set
    try:
        convention, file = _agreed(inferred, data_set.source)
    except DataError as error:
        if not data_set.class_values:
            raise
        if isinstance(error, UndecidedError):
            print(
                f"{data_set.labels_place}: every voxel counts as annotated; no voxel has a value for unlabeled "
                f"({', '.join(map(str, data_set.ignore_index))}). If this is wrong, pass --ignore-index or "
                "--annotated-slices."
            )
        return data_set
    print(announcement(convention, file))
    cases = data_set.cases
    if convention.annotated_slices is not None:
        cases = [{**case, ANNOTATED_SLICES: convention.annotated_slices} for case in cases]
    ignored = tuple(dict.fromkeys((*convention.ignore_index, *data_set.ignore_index)))
    return replace(data_set, cases=cases, ignore_index=ignored)


def _declares_voxels(data_set: DataSet) -> bool:
    """Return whether a case says itself which of its voxels are annotated."""
    return any(key in case for case in data_set.cases for key in (ANNOTATED_SLICES, WEIGHT))


def _inferred(data_set: DataSet, classes: tuple[int, ...]) -> list[_Inferred]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(partial(_infer, declared=data_set.ignore_index, classes=classes), data_set.cases))


def _infer(case: Case, declared: tuple[int, ...], classes: tuple[int, ...]) -> _Inferred:
    file = case[LABEL]
    try:
        label = read_label(file).data
        if declared and np.isin(label, declared).any():
            return _Inferred(file, is_declared=True)
        return _Inferred(file, convention=infer(label, file, classes))
    except UndecidedError as error:
        zeros_last = not (label == 0).any() or slices_around(label, 0, None) is not None
        return _Inferred(file, error=error, zeros_last=zeros_last)
    except DataError as error:
        return _Inferred(file, error=error)


def _agreed(inferred: Sequence[_Inferred], source: str) -> tuple[Convention, str]:
    """Return the convention of all label maps, and a file that shows it; bad files are left to the check of all files.

    Raises:
        DataError: when they differ, or none shows it; in the latter case the first bad file's error, if there is one.
    """
    decided = [(entry.convention, entry.file) for entry in inferred if entry.convention is not None]
    errors = [entry.error for entry in inferred if entry.error is not None]
    if not decided:
        raise min(errors, key=lambda error: isinstance(error, UndecidedError))
    first, file = decided[0]
    for other, other_file in decided[1:]:
        if _kind(other) != _kind(first):
            raise DataError(
                f"{source}: the label maps seem to mark unlabeled voxels in different ways. {file}: {first.reason}; "
                f"{other_file}: {other.reason}. Expected the same way in all: mark them alike, or pass {OPTIONS}."
            )
    for entry in inferred:
        if isinstance(entry.error, UndecidedError) and 0 in first.ignore_index and not entry.zeros_last:
            raise DataError(
                f"{source}: the label maps seem to mark unlabeled voxels in different ways. {file}: {first.reason}; "
                f"{entry.file} does not show it, and may be dense. Mark them alike, or pass {OPTIONS}."
            )
    ignored = dict.fromkeys(value for convention, _ in decided for value in convention.ignore_index)
    return replace(first, ignore_index=tuple(ignored)), file


def _kind(convention: Convention) -> tuple[Any, ...]:
    """Return what must be the same in all label maps; 255 and negative values may be missing in some."""
    return convention.annotated_slices, {value for value in convention.ignore_index if _may_be_class(value)}


def _may_be_class(value: int) -> bool:
    return 0 <= value != UNLABELED_VALUE


@dataclass(frozen=True)
class _Marks:
    """Values of one label map: all, those that clearly mark unlabeled voxels, and those around whole slices."""

    file: str
    present: frozenset[float]
    clear: frozenset[int]
    around: frozenset[int] = frozenset()


def _is_agreed(value: int, marks: Sequence[_Marks]) -> bool:
    """Return whether all label maps with a value show that it marks unlabeled voxels; all else may be background."""
    holding = [mark for mark in marks if value in mark.present]
    return all(value in mark.clear | mark.around for mark in holding) and (
        len(holding) == len(marks) or not _may_be_class(value)
    )


def _marks(case: Case, classes: tuple[int, ...]) -> _Marks | None:
    """Return the marks of a case's label map; None if it cannot be read, which is left to the check of all files."""
    file = case[LABEL]
    try:
        if (volumes := open_large(case[IMAGE])) is not None:
            present, clear = marked_values(large_label(case, volumes[0]), classes)
            return _Marks(file, frozenset(present), frozenset(clear))
        label = read_label(file).data
        convention = infer(label, file, classes)
    except UndecidedError:
        convention = None
    except DataError:
        return None
    counts = values_found(label)
    often = sorted((v for v in counts if v == int(v) and v != 0 and v not in classes), key=lambda v: -counts[v])
    around = frozenset(int(v) for v in often[:MOST_CANDIDATES] if slices_around(label, int(v), None) is not None)
    clear = set()
    if convention is not None and convention.is_mark:
        usual = {v for v in convention.ignore_index if not _may_be_class(v) and 2 * counts.get(v, 0) > label.size}
        clear = {*convention.ignore_index} & {*around, *usual}
    return _Marks(file, frozenset(counts), frozenset(clear), around)
