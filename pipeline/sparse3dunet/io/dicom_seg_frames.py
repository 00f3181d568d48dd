"""Frames of DICOM segmentations: their segments and places, and the grid that they span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_header import (
    BY_FRAME,
    GAP,
    GROUPS,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SHARED,
    decimals,
    name_with_tag,
    whole_number,
)
from sparse3dunet.io.dicom_stack import slice_axes
from sparse3dunet.io.grid import ras_affine
from sparse3dunet.io.volumes import AFFINE_TOLERANCE, Volume, check_affine

MOST_SLICES = 10_000
"""Number of slices up to which a segmentation is read on a grid of its own."""
MOST_EMPTY = 100
"""How many times as many slices as have frames a grid may have by the stated distance of slices."""


def numbered(path: Path, what: str, items: Sequence[Dataset], keyword: str) -> dict[int, Dataset]:
    """Return the items of a sequence by their number, which is the element `keyword`.

    Raises:
        DataError: when one has none, or two have the same, so that the voxels of one would be the other's.
    """
    found: dict[int, Dataset] = {}
    for place, item in enumerate(items, 1):
        number = whole_number(item, keyword)
        if number is None or number in found:
            fault = "has no number" if number is None else f"has the number {number} of another one"
            raise DataError(
                f"{path}: {what} {place} of {len(items)} {fault}, {name_with_tag(keyword)}; expected different whole "
                "numbers. Export it again."
            )
        found[number] = item
    return found


def positive(path: Path, header: Dataset, keyword: str) -> int:
    """Return a positive whole number; 1 if it is not stated.

    Raises:
        DataError: when it is something else.
    """
    number = 1 if header.get(keyword) is None else whole_number(header, keyword)
    if number is None or number < 1:
        raise DataError(
            f"{path}: {name_with_tag(keyword)} is no positive whole number; expected one. The segmentation is damaged; "
            "export it again."
        )
    return number


def segments_of(path: Path, header: Dataset) -> dict[int, Dataset]:
    """Return the segments by their number, see :func:`numbered`."""
    return numbered(path, "segment", header.get("SegmentSequence") or [], "SegmentNumber")


@dataclass(frozen=True)
class Frame:
    """Frame of a segmentation: index in the file, segment's number (None in label maps), position, axes, spacing."""

    index: int
    number: int | None
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray

    def affine(self, gap: float = 1.0) -> np.ndarray:
        """Return the affine (4, 4), RAS, of column, row and slice numbers."""
        spacing = [self.spacing[1], self.spacing[0], gap]  # DICOM names rows first
        return ras_affine(self.position, spacing, slice_axes(self.orientation))


def frames_of(path: Path, header: Dataset) -> list[Frame]:
    """Return all frames.

    Raises:
        DataError: when one has no segment or place, or they are not as many as the header says.
    """
    shared = (header.get(SHARED) or [Dataset()])[0]
    is_label_map = header.get("SegmentationType") == "LABELMAP"
    segments, groups = segments_of(path, header), header.get(BY_FRAME) or []
    if groups and len(groups) != (whole_number(header, "NumberOfFrames") or 1):
        raise DataError(
            f"{path}: {len(groups)} frames have a place, but {name_with_tag('NumberOfFrames')} is "
            f"{whole_number(header, 'NumberOfFrames')}; expected the same. Export the segmentation again."
        )
    frames = []
    for index, own in enumerate(groups):
        place = {key: _group(own, shared, GROUPS[key], key) for key in (POSITION, ORIENTATION, PIXEL_SPACING)}
        number = _group(own, shared, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        sizes = [len(numbers) for numbers in place.values()]
        if sizes != [3, 6, 2] or (len(number) != 1 and not is_label_map):
            raise DataError(
                f"{path}: frame {index + 1} has no segment, position, orientation or pixel spacing; expected all of "
                "them, which place it in space. Export the segmentation again."
            )
        if not is_label_map and number[0] not in segments:
            raise DataError(
                f"{path}: frame {index + 1} is of segment {number[0]:g}, which the header does not list; expected one "
                f"of {', '.join(map(str, segments))}. Export the segmentation again."
            )
        _check_place(path, index, place)
        frames.append(Frame(index, None if is_label_map else int(number[0]), *place.values()))
    if not frames:
        raise DataError(f"{path}: found no frames; expected those of a segmentation. Export it again.")
    return frames


def _check_place(path: Path, index: int, place: Mapping[str, np.ndarray]) -> None:
    """Raise DataError unless a frame's pixels lie on a plane."""
    try:
        slice_axes(place[ORIENTATION])
        is_plane = bool((place[PIXEL_SPACING] > 0).all())
    except ValueError:
        is_plane = False
    if not is_plane:
        raise DataError(
            f"{path}: frame {index + 1} has the pixel spacing {place[PIXEL_SPACING].tolist()} and the orientation "
            f"{place[ORIENTATION].tolist()}; expected two positive numbers, in mm, and the cosines of two orthogonal "
            "directions. The segmentation is damaged; export it again."
        )


def _group(own: Dataset, shared: Dataset, group: str, keyword: str) -> np.ndarray:
    item = (own.get(group) or shared.get(group) or [Dataset()])[0]
    return decimals(item, keyword)


def steps_of(path: Path, shape: tuple[int, int], frame: Frame, to_voxels: np.ndarray, image: Volume) -> np.ndarray:
    """Return the integer matrix (3, 3) from (column, row, 1) of a frame to voxels of the image.

    Raises:
        DataError: when the frame's pixels are no voxels of a slice of the image.
    """
    plane = to_voxels @ frame.affine()[:, [0, 1, 3]]
    steps = np.round(plane[:3]).astype(int)
    size = np.array([shape[0] - 1, shape[1] - 1, 1])
    off = (np.abs(plane[:3] - steps) * np.maximum(size, 1)).sum(axis=1).max()
    units = np.abs(steps[:, :2])
    is_along_axes = units.sum() == 2 and (units.sum(axis=0) == 1).all() and (units.sum(axis=1) <= 1).all()
    if not (off <= AFFINE_TOLERANCE and is_along_axes):
        raise DataError(
            f"{path}: frame {frame.index + 1} is not on a slice of the image ({image.path}): its pixels, "
            f"{frame.spacing[1]:.4g} x {frame.spacing[0]:.4g} mm, are up to {off:.2g} voxels off the image's, "
            f"{' x '.join(f'{s:.4g}' for s in image.spacing)} mm; expected at most {AFFINE_TOLERANCE}. Pass the image "
            "that was annotated, or export the segmentation on the image's grid."
        )
    return steps


def own_grid(path: Path, header: Dataset) -> Volume:
    """Return a volume without content on the grid of a segmentation's frames; its notes say how that was found.

    Raises:
        DataError: when the frames lie on no common grid.
    """
    frames = frames_of(path, header)
    normal = slice_axes(frames[0].orientation)[:, 2]
    heights = np.array([frame.position @ normal for frame in frames])
    lowest, places = frames[int(heights.argmin())], np.unique(np.round(heights, 3))
    gap, notes = _gap(path, header, places - places[0])
    extent = float(places[-1] - places[0])
    if gap <= 0 or extent > MOST_SLICES * gap:
        raise DataError(
            f"{path}: the frames are {gap:.3g} mm apart along the slices' normal, the outermost {extent:.3g} mm; "
            f"expected a positive distance, and at most {MOST_SLICES} slices. Pass it together with its image."
        )
    counts = (places - places[0]) / gap
    if np.abs(counts - np.round(counts)).max() > AFFINE_TOLERANCE:
        raise DataError(
            f"{path}: the frames are at uneven distances along the slices' normal, at least {gap:.3f} mm; expected "
            "multiples of one distance. Pass it together with its image."
        )
    affine = lowest.affine(gap)
    check_affine(path, affine)
    shape = (positive(path, header, "Columns"), positive(path, header, "Rows"), int(counts[-1].round()) + 1)
    return Volume(str(path), np.broadcast_to(np.int8(0), shape), affine, notes=notes)


def _gap(path: Path, header: Dataset, heights: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Return the distance of slices, in mm, and notes: the least one of frames, or the stated one, if these fit it.

    Args:
        path: path of the file.
        header: its elements.
        heights: different heights of frames above the lowest one, ascending.

    Raises:
        DataError: when nearly all slices would be without a frame by the stated distance.
    """
    shared = (header.get(SHARED) or [Dataset()])[0]
    numbers = _group(header[BY_FRAME][0], shared, GROUPS[PIXEL_SPACING], GAP)
    stated = float(numbers[0]) if len(numbers) else None
    if len(heights) == 1:
        return 1.0 if stated is None else stated, ()
    least = float(np.diff(heights).min())
    if stated is None or not 0 < stated < 1.01 * least:
        return least, ()
    counts = heights / stated
    if not np.abs(counts - np.round(counts)).max() <= AFFINE_TOLERANCE:
        return least, (
            f"{path}: {GAP} is {stated:.4g} mm, of which the distances of the frames are no multiples; slices count as "
            f"{least:.4g} mm apart, as the frames are.",
        )
    if counts[-1] + 1 > MOST_EMPTY * len(heights):
        raise DataError(
            f"{path}: {GAP} is {stated:.4g} mm, by which {counts[-1] + 1:.0f} slices would have frames on "
            f"{len(heights)} alone, at least {least:.4g} mm apart; expected at most {MOST_EMPTY} times as many slices. "
            "Correct it, or pass the segmentation together with its image."
        )
    return stated, ()
