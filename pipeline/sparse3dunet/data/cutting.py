"""Parts of volumes larger than memory, cut around their annotation, as cases of their own.

The annotation is gone through chunk by chunk and divided into cells. A part is the box of a cell's annotated voxels and
a margin around it, of the image, the annotation and whatever belongs to them. Parts overlap, but each annotated voxel
belongs to one of them: in the others it reads as unlabeled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparse3dunet.data.datalist import Case, DataSet
from sparse3dunet.data.large import open_large
from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.data.large_conventions import (
    CURE,
    LargeConvention,
    UndecidedError,
    declared_convention,
    inferred_convention,
)
from sparse3dunet.data.moments import channel_moments, channels_of
from sparse3dunet.data.names import case_name
from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import pieces
from sparse3dunet.io.formats import is_chunked, opened_once
from sparse3dunet.io.parts import Box, Part, part_path, split_part
from sparse3dunet.io.volumes import UNLABELED_VALUE, Volume, check_same_grid, on_grid_of
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, MOMENTS, REFERENCE, WEIGHT

CELL = 128
"""Longest side of a cell in voxels."""
MARGIN = 48
"""Voxels around a cell's annotation: half a patch of 64, turned and stretched."""
MOST_PARTS = 256
"""Number of parts of a volume; of more annotation, as many parts are taken evenly."""
OF_A_CLASS = 8
"""Number of parts that are added for a class which the chosen ones do not show."""
NO_CLASS = -(2**15) - 1
"""Value for unlabeled voxels outside of parts if none is declared: no class can have it, also not in other cases."""


@dataclass
class _Cell:
    """Box of the annotated voxels in a cell, and the values found there."""

    box: Box
    values: frozenset[float] = field(default_factory=frozenset)


def cut_large(data_set: DataSet, infer: bool = False, classes: Sequence[int] = ()) -> DataSet:
    """Return the data set with the cases that are too large for memory replaced by parts of them.

    Which voxels are annotated goes by what is declared: values that mean unlabeled, weights, and annotated slices,
    listed or of one plane. Each part has the mean and standard deviation of its whole volume, for normalisation.

    Args:
        data_set: as read.
        infer: whether to infer what is unlabeled where nothing is declared, or no voxel has the declared value.
        classes: values that are known to be classes.

    Raises:
        DataError: when an annotation is in a format that is read as a whole, is on another grid, or nothing is
            annotated; when it cannot be determined what is unlabeled.
    """
    opened = [open_large(case[IMAGE]) for case in data_set.cases]
    if not any(opened):
        return data_set
    known = tuple(data_set.class_values) or tuple(classes)
    conventions = [
        None if volumes is None else _convention(case, volumes[0], data_set.ignore_index, known, infer)
        for case, volumes in zip(data_set.cases, opened)
    ]
    found = [(case[LABEL], c.ignore_index) for case, c in zip(data_set.cases, conventions) if c is not None]
    _check_alike(data_set, found)
    ignored = tuple(dict.fromkeys((*(v for _, values in found for v in values), *data_set.ignore_index)))
    ignored = ignored or (NO_CLASS,)
    cases: list[Case] = []
    validation: list[str] = []
    for case, volumes, convention in zip(data_set.cases, opened, conventions):
        parts = [case]
        if volumes is not None and convention is not None:
            parts = _parts(case, volumes, replace(convention, ignore_index=ignored))
        cases += parts
        if case_name(case) in data_set.validation:
            validation += [case_name(part) for part in parts]
    return replace(data_set, cases=cases, ignore_index=ignored, validation=tuple(validation))


def cut_and_infer(
    data_set: DataSet, classes: Sequence[int], infer: Callable[[DataSet, Sequence[int]], DataSet]
) -> DataSet:
    """Return the data set with large cases replaced by their parts, and what is unlabeled inferred if undeclared.

    Args:
        data_set: as read.
        classes: values that are known to be classes.
        infer: returns a data set of cases that are read as a whole with what is inferred from them.

    Raises:
        DataError: as :func:`cut_large` and `infer`; when a value means unlabeled in some cases only.
    """
    cut = cut_large(data_set, infer=True, classes=classes)
    small = [case for case in cut.cases if MOMENTS not in case]
    if not small or not has_parts(cut.cases):
        return cut if has_parts(cut.cases) else infer(cut, classes)
    whole = replace(data_set, cases=small)
    with suppress(UndecidedError):  # a dense one, for example
        whole = infer(whole, classes)
    large = next(case[LABEL] for case in cut.cases if MOMENTS in case)
    _check_alike(data_set, [(str(split_part(large)[0]), cut.ignore_index), (small[0][LABEL], whole.ignore_index)])
    rest = iter(whole.cases)
    cases = [case if MOMENTS in case else next(rest) for case in cut.cases]
    return replace(cut, cases=cases, ignore_index=tuple(dict.fromkeys((*cut.ignore_index, *whole.ignore_index))))


def _check_alike(data_set: DataSet, found: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Raise DataError if a value that is usually a class means unlabeled in some label maps only, by file."""
    for (file, values), (other_file, others) in itertools.combinations(found, 2):
        differing = {v for v in {*values} ^ {*others} if 0 <= v != UNLABELED_VALUE} - {*data_set.ignore_index}
        if differing:
            if not differing & {*values}:
                file, other_file = other_file, file
            raise DataError(
                f"{data_set.source}: the label maps seem to mark unlabeled voxels in different ways: "
                f"{min(differing)} means unlabeled in {file}, and not in {other_file}. Mark them alike. {CURE}"
            )


def large_label(case: Case, image: Volume, key: str = LABEL) -> Volume:
    """Open a map on the grid of an opened image."""
    if not is_chunked(case[key]):
        raise DataError(
            f"{case[key]}: the {key} of {image.path}, which is read chunk by chunk, is in a format that is read as a "
            "whole; expected OME-Zarr or HDF5. Convert it."
        )
    label = on_grid_of(opened_once(case[key]), image)
    check_same_grid(label, image)
    return label


def annotation_of_large(data_set: DataSet, classes: Sequence[int], key: Any) -> LargeAnnotation:
    """Return the annotation of the one case of a data set, a volume larger than memory; inferred if not declared.

    Args:
        data_set: as read.
        classes: values that are known to be classes, as for :func:`cut_large`.
        key: plain values that change with the annotation, also with its files.

    Raises:
        DataError: as :func:`cut_large`.
    """
    (case,) = data_set.cases
    image = opened_once(case[IMAGE])
    known = tuple(data_set.class_values) or tuple(classes)
    convention = _convention(case, image, data_set.ignore_index, known, infer=True, tell=False)
    return _annotation(case, image, convention, key)


def _annotation(case: Case, image: Volume, convention: LargeConvention, key: Any = None) -> LargeAnnotation:
    weight = large_label(case, image, WEIGHT) if WEIGHT in case else None
    return LargeAnnotation(large_label(case, image), weight, convention, key)


def _convention(
    case: Case, image: Volume, ignored: tuple[int, ...], classes: tuple[int, ...], infer: bool, tell: bool = True
) -> LargeConvention:
    label, slices = large_label(case, image), case.get(ANNOTATED_SLICES)
    if infer and slices is None and WEIGHT not in case:
        return inferred_convention(label, ignored, classes, tell)
    return declared_convention(label, ignored, slices)


def _parts(case: Case, volumes: Sequence[Volume], convention: LargeConvention) -> list[Case]:
    image, annotation = volumes[0], _annotation(case, volumes[0], convention)
    label, cells = annotation.label, list(_cells(annotation))
    if not cells:
        raise DataError(
            f"{label.path}: no voxel is annotated; all are unlabeled (ignore_index: "
            f"{', '.join(map(str, convention.ignore_index))}). Annotate at least one slice, or remove the case."
        )
    chosen = _evenly(cells)
    more = f", {len(chosen)} of {len(cells)} taken evenly" if len(chosen) < len(cells) else ""
    print(f"{label.path}: read in parts around its annotation{more}: {len(chosen)} part(s).", flush=True)
    moments = [list(m) for m in channel_moments([c for v in volumes for c in channels_of(v.data)], image.path)]
    return [{**_part(case, cell, label.spatial_shape, convention), MOMENTS: moments} for cell in chosen]


def _part(case: Case, cell: _Cell, shape: Sequence[int], convention: LargeConvention) -> Case:
    """Return the case of a part."""
    x, y, z = (slice(max(b.start - MARGIN, 0), min(b.stop + MARGIN, n)) for b, n in zip(cell.box, shape))
    box = (x, y, z)
    plain, outside = Part(box), Part(box, cell.box, convention.ignore_index[0])
    found = {key: value for key, value in case.items() if key != ANNOTATED_SLICES}
    images = case[IMAGE] if isinstance(case[IMAGE], list) else [case[IMAGE]]
    paths = [part_path(path, plain) for path in images]
    found[IMAGE] = paths if isinstance(case[IMAGE], list) else paths[0]
    found[LABEL] = part_path(case[LABEL], outside)
    for key in (WEIGHT, REFERENCE):
        if key in case:
            found[key] = part_path(case[key], plain)
    slices = convention.slices_in(box)
    if slices is not None:
        found[ANNOTATED_SLICES] = slices
    return found


def _cells(annotation: LargeAnnotation) -> Iterator[_Cell]:
    """Yield the cells with annotated voxels, in a fixed order."""
    data: Any = annotation.label.data
    for box in data.boxes():
        found = annotation.read(box)
        if found is None:
            continue
        values, annotated = found
        for cell in _divided(values.shape):
            inside = annotated[cell]
            if not inside.any():
                continue
            ends = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
            starts = [b.start + c.start for b, c in zip(box, cell)]
            x, y, z = (slice(s + int(e[0]), s + int(e[-1]) + 1) for s, e in zip(starts, ends))
            yield _Cell((x, y, z), frozenset(np.unique(values[cell][inside]).tolist()))


def _divided(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    return itertools.product(*(pieces(n, CELL) for n in shape))


def _evenly(cells: Sequence[_Cell]) -> list[_Cell]:
    """Return at most about MOST_PARTS cells, evenly spread, among them some of every value."""
    chosen = _spread(range(len(cells)), MOST_PARTS)
    for value in sorted(frozenset().union(*(cell.values for cell in cells))):
        if not any(value in cells[i].values for i in chosen):
            chosen |= _spread([i for i, cell in enumerate(cells) if value in cell.values], OF_A_CLASS)
    return [cells[i] for i in sorted(chosen)]


def _spread(numbers: Iterable[int], most: int) -> set[int]:
    listed = list(numbers)
    places = np.linspace(0, len(listed) - 1, min(most, len(listed))).round().astype(int)
    return {listed[i] for i in places}


def has_parts(cases: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether there are parts of larger volumes among the cases."""
    return any(MOMENTS in case for case in cases)
