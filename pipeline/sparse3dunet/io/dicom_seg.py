"""DICOM segmentations (SEG), read frame by frame: binary, fractional and label maps, on any slices of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.uid import ImplicitVRLittleEndian

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_encoded import check_encoded
from sparse3dunet.io.dicom_header import UNDEFINED, check_sequences, whole_number
from sparse3dunet.io.dicom_seg_frames import frames_of, positive, segments_of, steps_of
from sparse3dunet.io.volumes import Volume

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, and Label Map Segmentation Storage."""
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
class LeftOut:
    """What lies outside of the image, known once all parts were yielded.

    Attributes:
        slices: slices or contours that are wholly outside.
        pixels: numbers of pixels outside and of all, on other slices, by the number of the segment.
    """

    slices: list[Any] = field(default_factory=list)
    pixels: dict[int, tuple[int, int]] = field(default_factory=dict)

    def clear(self) -> None:
        self.slices.clear()
        self.pixels.clear()

    def count(self, number: int, outside: int, total: int) -> None:
        """Add the pixels of a segment on a slice."""
        before = self.pixels.get(number, (0, 0))
        self.pixels[number] = (before[0] + outside, before[1] + total)

    def notes(self, path: Path, image: Volume) -> Iterator[str]:
        """Yield what a user must know of it."""
        if self.slices:
            yield (
                f"{path}: {len(self.slices)} of its slices or contours are outside of the image ({image.path}), and "
                "were left out. Check that the series is complete."
            )
        cut = [
            f"{outside} of {total} pixels ({100 * outside / total:.2g} %) of number {number}"
            for number, (outside, total) in self.pixels.items()
            if outside
        ]
        if cut:
            yield (
                f"{path}: segments or structures reach beyond the border of the image ({image.path}), where they were "
                f"left out: {', '.join(cut)}. Check that the image is whole, and the one that was annotated."
            )


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
        left_out: what lies outside of the image.
    """

    names: Mapping[int, str]
    parts: Callable[[Sequence[int], Volume], Iterator[Part]]
    frames_of_reference: Mapping[int, str]
    series: set[str]
    notes: tuple[str, ...]
    source: tuple[Path, Dataset]
    left_out: LeftOut


def read(path: Path) -> DicomAnnotation:
    """Read the header of a segmentation.

    Raises:
        DataError: when it is damaged.
    """
    header = read_elements(path, "DICOM segmentation")
    names = {
        number: str(segment.get("SegmentLabel") or "").strip() or f"segment {number}"
        for number, segment in segments_of(path, header).items()
        if number  # 0 is the background of label maps
    }
    notes = []
    if header.get("SegmentationType") == "FRACTIONAL":
        notes.append(
            f"{path}: a fractional segmentation; voxels with at least half of the largest value "
            f"({positive(path, header, 'MaximumFractionalValue')}) count as in the segment."
        )
    uids = {str(item.get("SeriesInstanceUID") or "") for item in header.get("ReferencedSeriesSequence") or []}
    left_out = LeftOut()

    def parts(numbers: Sequence[int], image: Volume) -> Iterator[Part]:
        left_out.clear()
        return _parts(path, header, numbers, image, left_out)

    frames_of_reference = dict.fromkeys(names, str(header.get("FrameOfReferenceUID") or ""))
    return DicomAnnotation(names, parts, frames_of_reference, uids - {""}, tuple(notes), (path, header), left_out)


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


def _parts(path: Path, header: Dataset, numbers: Sequence[int], image: Volume, left_out: LeftOut) -> Iterator[Part]:
    """Yield the part of a segment in each frame, in the order of `numbers`; what is outside of the image is counted."""
    to_voxels = np.linalg.inv(image.affine)
    rank = {number: place for place, number in enumerate(numbers)}
    frames = [frame for frame in frames_of(path, header) if frame.number is None or frame.number in rank]
    frames.sort(key=lambda frame: -1 if frame.number is None else rank[frame.number])
    size = (positive(path, header, "Columns"), positive(path, header, "Rows"))
    steps = [steps_of(path, size, frame, to_voxels, image) for frame in frames]
    is_fractional = header.get("SegmentationType") == "FRACTIONAL"
    largest = positive(path, header, "MaximumFractionalValue") if is_fractional else 1
    listed = [0, whole_number(header, "PixelPaddingValue") or 0, *segments_of(path, header)]
    for frame, step, pixels in zip(frames, steps, _pixels(path, [frame.index for frame in frames])):
        if is_fractional and pixels.max() > largest:
            raise DataError(
                f"{path}: frame {frame.index + 1} has the value {pixels.max()}; expected at most {largest}, as in "
                "MaximumFractionalValue, of which values are fractions. Export the segmentation again."
            )
        inside = pixels >= HALF * largest if is_fractional else pixels > 0
        rows, columns = np.nonzero(inside & (pixels > 0))
        indices = np.column_stack([columns, rows, np.ones_like(rows)]) @ step[:3].T
        values = np.full(len(rows), frame.number) if frame.number is not None else pixels[rows, columns]
        if frame.number is None:
            _check_values(path, values, listed)
        within = ((indices >= 0) & (indices < image.spatial_shape)).all(axis=1)
        axis = int(np.flatnonzero(~step[:3, :2].any(axis=1))[0])
        own = np.isin(values, numbers)
        is_outside = own.any() and not (own & within).any()
        if is_outside and (place := (axis, int(indices[0, axis]))) not in left_out.slices:
            left_out.slices.append(place)
        for number in numbers if frame.number is None else [frame.number]:
            here = values == number
            if not is_outside:
                left_out.count(number, int((here & ~within).sum()), int(here.sum()))
            yield Part(number, axis, indices[within & here])


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
