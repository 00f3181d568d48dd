"""DICOM segmentations (SEG), read frame by frame: binary, fractional and label maps, on any slices of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.uid import ImplicitVRLittleEndian

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_encoded import check_encoded
from sparse3dunet.io.dicom_header import (
    BY_FRAME,
    GROUPS,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SHARED,
    UNDEFINED,
    check_sequences,
    decimals,
    name_with_tag,
    whole_number,
)
from sparse3dunet.io.dicom_stack import slice_axes
from sparse3dunet.io.grid import ras_affine
from sparse3dunet.io.volumes import AFFINE_TOLERANCE, Volume

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, and Label Map Segmentation Storage."""
MOST_SLICES = 10_000
"""Number of slices up to which a segmentation is read on a grid of its own."""
HALF = 0.5
"""Share of the largest value from which a voxel of a fractional segmentation is in the segment."""


@dataclass(frozen=True)
class Part:
    """What a segment covers on one slice of an image.

    Attributes:
        number: number of the segment.
        axis: axis of the image across the slice.
        indices: (N, 3) voxels of the image.
    """

    number: int
    axis: int
    indices: np.ndarray


@dataclass(frozen=True)
class DicomAnnotation:
    """Segmentation or structure set.

    Attributes:
        names: names of the segments by number.
        parts: function of numbers and an image that yields the parts of these segments, one segment after the other.
        frames_of_reference: UID of the frame of reference of each segment, by number; "" if not stated.
        series: UIDs of the image series that it was made on.
        notes: what a user must know.
        source: path and elements.
        outside: number of slices or contours outside of the image, once all parts were yielded.
    """

    names: Mapping[int, str]
    parts: Callable[[Sequence[int], Volume], Iterator[Part]]
    frames_of_reference: Mapping[int, str]
    series: set[str]
    notes: tuple[str, ...]
    source: tuple[Path, Dataset]
    missed: list[Any]

    @property
    def outside(self) -> int:
        return len(self.missed)


def read(path: Path) -> DicomAnnotation:
    """Read the header of a segmentation.

    Raises:
        DataError: when it is damaged.
    """
    header = read_elements(path, "DICOM segmentation")
    names = {
        number: str(segment.get("SegmentLabel") or "").strip() or f"segment {number}"
        for number, segment in _segments(path, header).items()
        if number  # 0 is the background of label maps
    }
    notes = []
    if header.get("SegmentationType") == "FRACTIONAL":
        notes.append(
            f"{path}: a fractional segmentation; voxels with at least half of the largest value "
            f"({_positive(path, header, 'MaximumFractionalValue')}) count as in the segment."
        )
    uids = {str(item.get("SeriesInstanceUID") or "") for item in header.get("ReferencedSeriesSequence") or []}
    missed: list[Any] = []

    def parts(numbers: Sequence[int], image: Volume) -> Iterator[Part]:
        missed.clear()
        return _parts(path, header, numbers, image, missed)

    frames_of_reference = dict.fromkeys(names, str(header.get("FrameOfReferenceUID") or ""))
    return DicomAnnotation(names, parts, frames_of_reference, uids - {""}, tuple(notes), (path, header), missed)


def read_elements(path: Path, what: str) -> Dataset:
    """Read the elements of a DICOM file but its pixels.

    Raises:
        DataError: when it cannot be read; patients' data are not told.
    """
    try:
        with disable_value_validation():
            elements = dcmread(path, stop_before_pixels=True, force=True)  # old files have no preamble
            _check_lengths(elements)
            check_sequences(elements)
            return elements
    except Exception as error:  # pydicom raises a dozen kinds here
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}); expected a whole {what}. It is truncated or damaged; "
            "copy or export it again."
        ) from None


def _check_lengths(elements: Dataset) -> None:
    """Parse all elements now; raise EOFError if one is shorter than stated, of which pydicom returns what there is."""
    for element in elements.elements():
        if isinstance(element, RawDataElement) and len(element.value or b"") < element.length != UNDEFINED:
            raise EOFError
    for parsed in elements:
        for item in parsed.value if parsed.VR == "SQ" else ():
            _check_lengths(item)


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


def _positive(path: Path, header: Dataset, keyword: str) -> int:
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


def _segments(path: Path, header: Dataset) -> dict[int, Dataset]:
    return numbered(path, "segment", header.get("SegmentSequence") or [], "SegmentNumber")


@dataclass(frozen=True)
class _Frame:
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


def _frames(path: Path, header: Dataset) -> list[_Frame]:
    """Return all frames.

    Raises:
        DataError: when one has no segment or place, or they are not as many as the header says.
    """
    shared = (header.get(SHARED) or [Dataset()])[0]
    is_label_map = header.get("SegmentationType") == "LABELMAP"
    segments, groups = _segments(path, header), header.get(BY_FRAME) or []
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
        frames.append(_Frame(index, None if is_label_map else int(number[0]), *place.values()))
    if not frames:
        raise DataError(f"{path}: found no frames; expected those of a segmentation. Export it again.")
    return frames


def _group(own: Dataset, shared: Dataset, group: str, keyword: str) -> np.ndarray:
    item = (own.get(group) or shared.get(group) or [Dataset()])[0]
    return decimals(item, keyword)


def _parts(path: Path, header: Dataset, numbers: Sequence[int], image: Volume, missed: list[Any]) -> Iterator[Part]:
    """Yield the part of a segment in each frame, in the order of `numbers`; slices outside of the image are counted."""
    to_voxels = np.linalg.inv(image.affine)
    rank = {number: place for place, number in enumerate(numbers)}
    frames = [frame for frame in _frames(path, header) if frame.number is None or frame.number in rank]
    frames.sort(key=lambda frame: -1 if frame.number is None else rank[frame.number])
    size = (_positive(path, header, "Columns"), _positive(path, header, "Rows"))
    steps = [_steps(path, size, frame, to_voxels, image) for frame in frames]
    is_fractional = header.get("SegmentationType") == "FRACTIONAL"
    threshold = HALF * (_positive(path, header, "MaximumFractionalValue") if is_fractional else 1)
    listed = [0, whole_number(header, "PixelPaddingValue") or 0, *_segments(path, header)]
    for frame, step, pixels in zip(frames, steps, _pixels(path, [frame.index for frame in frames])):
        inside = pixels >= threshold if is_fractional else pixels > 0
        rows, columns = np.nonzero(inside & (pixels > 0))
        indices = np.column_stack([columns, rows, np.ones_like(rows)]) @ step[:3].T
        values = np.full(len(rows), frame.number) if frame.number is not None else pixels[rows, columns]
        if frame.number is None:
            _check_values(path, values, listed)
        within = ((indices >= 0) & (indices < image.spatial_shape)).all(axis=1)
        axis = int(np.flatnonzero(~step[:3, :2].any(axis=1))[0])
        own = np.isin(values, numbers)
        if own.any() and not (own & within).any() and (place := (axis, int(indices[0, axis]))) not in missed:
            missed.append(place)
        for number in numbers if frame.number is None else [frame.number]:
            yield Part(number, axis, indices[within & (values == number)])


def _check_values(path: Path, values: np.ndarray, listed: Sequence[int]) -> None:
    """Raise DataError if a label map has values of segments that are not listed."""
    strays = sorted(set(np.unique(values).tolist()) - set(listed))
    if strays:
        raise DataError(
            f"{path}: voxels have the value {strays[0]}, which is no segment's; expected numbers of segments that the "
            "header lists. Export the segmentation again."
        )


def _pixels(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    if not indices:
        return
    try:
        with disable_value_validation():
            elements = dcmread(path, force=True)
            if "TransferSyntaxUID" not in elements.file_meta:
                elements.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default
            is_compressed = elements.file_meta.TransferSyntaxUID.is_encapsulated
            (check_encoded if is_compressed else _check_size)(path, elements)
            if elements.BitsAllocated == 1 and not is_compressed:
                yield from _bits(elements, indices)
            else:
                from pydicom.pixels import iter_pixels  # absent from pydicom 2, which MONAI Label's environment has

                yield from iter_pixels(elements, indices=list(indices), raw=True)
    except DataError:
        raise
    except Exception as error:  # pydicom and the decoders raise a dozen kinds here
        raise DataError(
            f"{path}: its pixels cannot be read ({type(error).__name__}); expected a whole DICOM segmentation. It is "
            "truncated, damaged, or compressed in a way that needs another package; copy or export it again."
        ) from error


def _check_size(path: Path, elements: Dataset) -> None:
    """Raise DataError unless the pixels are as many bytes as the header says, and one more if that is odd."""
    frames = whole_number(elements, "NumberOfFrames") or 1
    bits = elements.Rows * elements.Columns * frames * elements.BitsAllocated
    found, expected = len(elements.PixelData), -(-bits // 8)
    if not 0 <= found - expected <= expected % 2:
        raise DataError(
            f"{path}: its pixels cannot be read ({found} bytes); expected {expected}: {elements.Columns} columns x "
            f"{elements.Rows} rows x {frames} frame(s) of {elements.BitsAllocated} bit(s). It is truncated or damaged; "
            "copy or export it again."
        )


def _bits(elements: Dataset, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of one bit for each pixel, which begin within a byte unless their size is a multiple of 8."""
    size = elements.Rows * elements.Columns
    content = np.frombuffer(elements.PixelData, np.uint8)
    for index in indices:
        start, stop = index * size, (index + 1) * size
        bits = np.unpackbits(content[start // 8 : -(-stop // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(elements.Rows, elements.Columns)


def _steps(path: Path, shape: tuple[int, int], frame: _Frame, to_voxels: np.ndarray, image: Volume) -> np.ndarray:
    """Return the integer matrix (3, 3) from (column, row, 1) of a frame to voxels of the image.

    Raises:
        DataError: when the frame's pixels are no voxels of a slice of the image.
    """
    plane = to_voxels @ frame.affine()[:, [0, 1, 3]]
    steps = np.round(plane[:3]).astype(int)
    size = np.array([shape[0] - 1, shape[1] - 1, 1])
    off = (np.abs(plane[:3] - steps) * np.maximum(size, 1)).sum(axis=1).max()
    units = np.abs(steps[:, :2])
    if off > AFFINE_TOLERANCE or units.sum() != 2 or (units.sum(axis=0) != 1).any() or (units.sum(axis=1) > 1).any():
        raise DataError(
            f"{path}: frame {frame.index + 1} is not on a slice of the image ({image.path}): its pixels, "
            f"{frame.spacing[1]:.4g} x {frame.spacing[0]:.4g} mm, are up to {off:.2g} voxels off the image's, "
            f"{' x '.join(f'{s:.4g}' for s in image.spacing)} mm; expected at most {AFFINE_TOLERANCE}. Pass the image "
            "that was annotated, or export the segmentation on the image's grid."
        )
    return steps


def own_grid(segmentation: DicomAnnotation) -> Volume:
    """Return a volume without content on the grid of a segmentation's frames.

    Raises:
        DataError: when the frames lie on no common grid.
    """
    path, header = segmentation.source
    frames = _frames(path, header)
    first = frames[0]
    normal = slice_axes(first.orientation)[:, 2]
    heights = np.array([frame.position @ normal for frame in frames])
    lowest, places = frames[int(heights.argmin())], np.unique(np.round(heights, 3))
    thickness = _group(header[BY_FRAME][0], header[SHARED][0] if SHARED in header else Dataset(),
                       "PixelMeasuresSequence", "SpacingBetweenSlices")  # fmt: skip
    gap = float(np.diff(places).min()) if len(places) > 1 else float(thickness[0]) if len(thickness) else 1.0
    gap = float(thickness[0]) if len(thickness) and 0 < thickness[0] < 1.01 * gap else gap
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
    shape = (_positive(path, header, "Columns"), _positive(path, header, "Rows"), int(counts[-1].round()) + 1)
    return Volume(str(path), np.broadcast_to(np.int8(0), shape), lowest.affine(gap))
