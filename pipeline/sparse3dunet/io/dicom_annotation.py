"""Annotation in DICOM: segmentations (SEG) and structure sets (RTSTRUCT) as label maps on an image's grid.

Both list the slices that were annotated. A slice on which no segment shows a voxel, or no contour was drawn, is
unlabeled; on the others, all that is in no segment is background. A segment named background changes this: then voxels
in no segment are unlabeled everywhere. One named ignore or unlabeled covers unlabeled voxels.

In a data set, such a label is named by the annotation, the image on whose grid it is read, and the values of its
classes: ``rt.dcm?image=%2Fdata%2Fct&unlabeled=-1&1=liver``, see :class:`LabelOnImage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import numpy as np
from pydicom import dcmread
from pydicom.config import disable_value_validation

from sparse3dunet.colors import color_text
from sparse3dunet.errors import DataError
from sparse3dunet.io import dicom_seg, rtstruct
from sparse3dunet.io.defaults import default_segments
from sparse3dunet.io.dicom_header import is_dicom_file, uid_text
from sparse3dunet.io.dicom_seg import Part
from sparse3dunet.io.dicom_seg_frames import own_grid
from sparse3dunet.io.segments import (
    BACKGROUND,
    SPECIAL,
    UNLABELED_NAMES,
    check_names,
    check_overlaps,
    first_of,
    listed,
    overlap_notes,
    undeclared_note,
)
from sparse3dunet.io.suffixes import image_suffix, split
from sparse3dunet.io.volumes import Volume

UNLABELED = -1
"""Value of unlabeled voxels."""
KINDS = {**dict.fromkeys(dicom_seg.SOP_CLASSES, dicom_seg), rtstruct.SOP_CLASS: rtstruct}
"""Module that reads an object, by its SOP class."""


@dataclass(frozen=True)
class LabelOnImage:
    """Annotation in DICOM, to be read on an image's grid; its text is the path of a label in a data set.

    Attributes:
        annotation: file of the annotation.
        image: path of the image.
        values: value of each segment's voxels by its name, in lower case; other segments are left out.
        unlabeled: value of what is not annotated; that of the background where something else declares what is
            annotated, or in dense labels.
    """

    annotation: Path
    image: str
    values: Mapping[str, int]
    unlabeled: int = UNLABELED

    def __str__(self) -> str:
        segments = [(str(value), name) for name, value in self.values.items()]
        listed = [("image", self.image), ("unlabeled", str(self.unlabeled)), *segments]
        query = urlencode(listed, errors="surrogateescape")
        return f"{self.annotation}?{query}"

    @classmethod
    def parse(cls, path: str | Path) -> LabelOnImage:
        """Return what a text of this kind names, one that ``ON_IMAGE`` matches."""
        file, query = split(path)
        (_, image), (_, unlabeled), *segments = parse_qsl(query[1:], errors="surrogateescape")
        return cls(file, image, {name: int(value) for value, name in segments}, int(unlabeled))


def annotation_file(path: str | Path) -> Path | None:
    """Return the file of a DICOM annotation: the path itself, or the only such file in a folder; None if it is none.

    Raises:
        DataError: when a folder contains several.
    """
    path = Path(path)
    if image_suffix(path):
        return None
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if _module(file)]
        if len(found) > 1:
            raise DataError(
                f"{path}: found {len(found)} DICOM segmentations or structure sets ({found[0].name}, {found[1].name}); "
                "expected one. Pass the file."
            )
        return found[0] if found else None
    return path if _module(path) else None


def segment_names(*paths: Path) -> list[str]:
    """Return the different names of annotations' segments, in their order; those of ``--segments`` if it is set.

    With ``--segments``, those for the background and for unlabeled voxels come first, over which the others count: they
    say what is annotated. Names that differ in upper and lower case alone are the same; the first is returned.

    Raises:
        DataError: when a file is damaged, or has none; or when a name of ``--segments`` is in none of the files.
    """
    found: dict[str, str] = {}
    for path in paths:
        module = _module(path)
        names = module.read(path).names.values() if module else []
        if not names:
            raise DataError(
                f"{path}: found no segment or structure; expected at least one. Export the annotation again."
            )
        for name in names:
            found.setdefault(name.lower(), name)
    chosen = default_segments()
    check_names(first_of(paths), chosen, list(found.values()))
    always = [name for name in found if name in SPECIAL and name not in chosen]
    return [found[name] for name in ([*always, *chosen] if chosen else found)]


def segment_colors(path: Path) -> dict[str, str]:
    """Return the colours of an annotation's segments, as #rrggbb, by their names in lower case, as far as stated."""
    module = _module(path)
    if module is None:
        return {}
    found, colors = module.read(path), {}
    elements = found.source[1]
    for item in elements.get("SegmentSequence") or elements.get("ROIContourSequence") or []:
        try:
            number = item.get("SegmentNumber") or item.get("ReferencedROINumber")
            rgb = item.get("ROIDisplayColor") or _srgb(item.get("RecommendedDisplayCIELabValue"))
            colors[found.names[number].lower()] = color_text([int(n) for n in rgb])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):  # none, or none that can be one
            continue
    return colors


def _srgb(stored: Sequence[int]) -> np.ndarray:
    """Return red, green and blue, 0 to 255, of CIELab as stored in DICOM (PS3.3, C.10.7.1.1)."""
    from skimage.color import lab2rgb

    light, a, b = stored
    return np.rint(255 * lab2rgb([light / 655.35, a / 257 - 128, b / 257 - 128]))


def class_values(names: Sequence[str]) -> dict[str, int]:
    """Return values by names of segments, all different: background 0, UNLABELED, others 1, 2, ... in their order."""
    values: dict[str, int] = {}
    for name in names:
        special = 0 if name.lower() == BACKGROUND else UNLABELED if name.lower() in UNLABELED_NAMES else None
        values[name] = max([0, *values.values()]) + 1 if special is None else special
    return values


def read_on_grid(path: Path, grid: Volume, values: Mapping[str, int], unlabeled: int = UNLABELED) -> Volume:
    """Read an annotation as a label map (X, Y, Z), int16 if that holds the values, on the grid of an image.

    Args:
        path: the file.
        grid: the image; only its grid counts.
        values: see :class:`LabelOnImage`, but in upper or lower case.
        unlabeled: see :class:`LabelOnImage`.

    Returns:
        The label map; its notes say which slices are annotated.

    Raises:
        DataError: when the file is damaged; has none of the segments; lies in another frame of reference, or on no
            slices of the image; or when segments overlap, and no order was given by ``--segments``.
    """
    painted = _paint(path, grid, values, unlabeled)
    painted.check()
    return Volume(str(path), painted.label(), grid.affine, notes=tuple(painted.notes()))


def _paint(path: Path, grid: Volume, values: Mapping[str, int], unlabeled: int) -> _Painted:
    module = _module(path)
    if module is None:
        raise DataError(f"{path}: no DICOM segmentation or structure set; expected one. Export the annotation again.")
    annotation = module.read(path)
    values = {name.lower(): value for name, value in values.items()}
    numbers = {number: values[name.lower()] for number, name in annotation.names.items() if name.lower() in values}
    if not numbers:
        raise DataError(
            f"{path}: none of {listed(list(values))} is a segment; found {listed(list(annotation.names.values()))}. "
            "Correct the names (--segments, or labels in the datalist)."
        )
    numbers, notes = _in_frame_of_reference(path, annotation, numbers, grid)
    others = [name for name in dict.fromkeys(annotation.names.values()) if name.lower() not in values]
    if others and not default_segments():  # which says itself what is left out
        there = {name.lower() for name in annotation.names.values()}
        classes = [name for name in values if name not in SPECIAL]
        notes.append(undeclared_note(path, others, classes, [name for name in classes if name not in there]))
    annotation = replace(annotation, notes=(*annotation.notes, *notes))
    order = {value: place for place, value in enumerate(values.values())}
    ordered = sorted(numbers, key=lambda number: order[numbers[number]])
    painted = _Painted(path, grid, annotation, numbers, values.get(BACKGROUND, 0), unlabeled)
    for part in annotation.parts(ordered, grid):
        painted.add(part)
    return painted


def read_result(path: Path, image: Volume, values: Mapping[str, int]) -> np.ndarray:
    """Read a result on its image's grid, (X, Y, Z); segments may be empty, see :func:`read_on_grid`."""
    background = values[BACKGROUND]
    return _paint(path, image, values, background).label()


def read_alone(path: Path) -> Volume:
    """Read a segmentation on the grid of its own frames, 0 where no segment is: as a dense label map.

    Raises:
        DataError: see :func:`read_on_grid`; also when it is a structure set, which has no grid.
    """
    if _module(path) is rtstruct:
        raise DataError(
            f"{path}: contours (RTSTRUCT) have no grid of their own; expected a label map here. Pass them "
            "together with their image: densify IMAGE ANNOTATION, simulate --image IMAGE, or a datalist."
        )
    grid = own_grid(*dicom_seg.read(path).source)
    label = read_dense(path, grid)
    return replace(label, notes=(*grid.notes, *label.notes))


def read_dense(path: Path, grid: Volume) -> Volume:
    """Read an annotation on the grid of an image, 0 where no segment is: as a dense label map.

    Raises:
        DataError: see :func:`read_on_grid`.
    """
    return read_on_grid(path, grid, class_values(segment_names(path)), 0)


def referenced_series(path: Path) -> set[str]:
    """Return the UIDs of the image series that an annotation says it was made on."""
    module = _module(path)
    return module.read(path).series if module else set()


def _module(path: Path):
    if not is_dicom_file(path):
        return None
    try:
        with disable_value_validation():
            header = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True, force=True)
            return KINDS.get(str(header.get("SOPClassUID") or ""))
    except Exception:  # pydicom raises a dozen kinds; whoever reads it as an image says what is wrong
        return None


def _in_frame_of_reference(
    path: Path, annotation: dicom_seg.DicomAnnotation, numbers: Mapping[int, int], grid: Volume
) -> tuple[dict[int, int], list[str]]:
    """Return those of the segments whose frame of reference is the image's, if both state one; and notes.

    Raises:
        DataError: when there are none.
    """
    uids = annotation.frames_of_reference
    own = getattr(grid.header, "frame_of_reference", "")
    kept = {n: value for n, value in numbers.items() if not own or uids[n] in ("", own)}
    if not kept:
        found = ", ".join(dict.fromkeys(uid_text(uids[n]) for n in numbers))
        raise DataError(
            f"{path}: its frame of reference is {found}, that of the image {uid_text(own)} ({grid.path}); expected the "
            "same, since positions are comparable only within one. Pass the series that it was drawn on."
        )
    notes = []
    others = [f"{annotation.names[n]} ({uid_text(uids[n])})" for n in numbers if n not in kept]
    if others:
        notes.append(
            f"{path}: left out, in other frames of reference than the image ({uid_text(own)}): {listed(others)}."
        )
    if not own and len({uids[n] for n in kept} - {""}) > 1:
        notes.append(
            f"{path}: the segments are in several frames of reference, and the image ({grid.path}) states none; all "
            "are used. Pass the DICOM series to use only those that were drawn on it."
        )
    return kept, notes


def _dtype(values: Sequence[int]) -> type[np.signedinteger]:
    """Return the smallest signed type from int16 on that holds the values, and a smaller one."""
    fits = (t for t in (np.int16, np.int32) if np.iinfo(t).min < min(values) and max(values) <= np.iinfo(t).max)
    return next(fits, np.int64)


class _Painted:
    """Label map to which the parts of segments are added one by one."""

    def __init__(
        self,
        path: Path,
        grid: Volume,
        annotation: dicom_seg.DicomAnnotation,
        values: Mapping[int, int],
        background: int,
        unlabeled: int,
    ) -> None:
        self.path, self.grid, self.names, self.values = path, grid, annotation.names, values
        self.annotation = annotation
        self.background, self.unlabeled = background, unlabeled
        dtype = _dtype([background, unlabeled, *values.values()])
        self.nowhere = int(np.iinfo(dtype).min)  # of voxels in no segment, while segments are added
        self.voxels = np.full(grid.spatial_shape, self.nowhere, dtype)
        self.planes: set[tuple[int, int]] = set()  # axis and index of each annotated slice
        self.seen: set[int] = set()
        self.overlaps: dict[tuple[str, str], int] = {}

    def add(self, part: Part) -> None:
        if not len(part.indices):
            return
        value, where = self.values[part.number], tuple(part.indices.T)
        before = self.voxels[where]
        for other in np.unique(before[(before != self.nowhere) & (before != value)]):
            name = next(self.names[number] for number, v in self.values.items() if v == other)
            pair = (name, self.names[part.number])
            self.overlaps[pair] = self.overlaps.get(pair, 0) + int((before == other).sum())
        self.voxels[where] = value
        self.seen.add(part.number)
        self.planes.add((part.axis, int(part.indices[0, part.axis])))

    def check(self) -> None:
        """Raise DataError if nothing was added, or segments overlap and their order was not given."""
        outside = len(self.annotation.left_out.slices)
        if not self.planes:
            where = f"all {outside} are outside of it" if outside else "they are empty"
            raise DataError(
                f"{self.path}: no voxel of the image ({self.grid.path}) is in a segment: {where}. Pass the image that "
                "was annotated, or annotate some slices."
            )
        order = default_segments()
        check_overlaps(self.path, {pair: n for pair, n in self.overlaps.items() if pair[1].lower() not in order})

    def label(self) -> np.ndarray:
        """Return the label map."""
        nowhere = self.voxels == self.nowhere
        self.voxels[nowhere] = self.unlabeled
        if self._is_sparse() and BACKGROUND not in self._names():
            for axis, index in self.planes:
                plane = (slice(None),) * axis + (index,)
                self.voxels[plane][nowhere[plane]] = self.background
        return self.voxels

    def notes(self) -> Iterator[str]:
        """Yield what a user must know of the label map."""
        yield from self.annotation.notes
        if self._is_sparse():
            yield f"{self.path}: {self._rule()}"
        yield from self.annotation.left_out.notes(self.path, self.grid)
        yield from overlap_notes(self.path, self.overlaps)
        missing = [self.names[number] for number in self.values if number not in self.seen]
        if missing:
            yield f"{self.path}: no voxel of the image is in {listed(missing)}."
        absent = sorted(set(default_segments()) - {name.lower() for name in self.names.values()})
        if absent:
            yield f"{self.path}: no segment is named {listed(absent)} (--segments)."

    def _rule(self) -> str:
        if BACKGROUND in self._names():
            return "voxels in no segment are unlabeled, since a segment is named background."
        axes = sorted({axis for axis, _ in self.planes})
        total = " + ".join(str(self.grid.spatial_shape[axis]) for axis in axes)
        return (
            f"annotated are {len(self.planes)} of {total} slices, those on which a segment or contour is; on these, "
            "all else is background. Other slices are unlabeled."
        )

    def _is_sparse(self) -> bool:
        return self.unlabeled != self.background

    def _names(self) -> set[str]:
        return {self.names[number].lower() for number in self.values}
