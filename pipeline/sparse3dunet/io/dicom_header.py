"""Header of a DICOM file, and a check that its pixels match it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sparse3dunet.errors import DataError
from sparse3dunet.io.text_header import without_texts

try:
    from pydicom.pixels.utils import get_expected_length, get_nr_frames
except ImportError:  # pydicom 2, to which MONAI Label is bound
    from pydicom.pixel_data_handlers.util import get_expected_length, get_nr_frames  # type: ignore[no-redef]


POSITION, ORIENTATION, PIXEL_SPACING = "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"
SLOPE, INTERCEPT = "RescaleSlope", "RescaleIntercept"
GROUPS = {
    POSITION: "PlanePositionSequence",
    ORIENTATION: "PlaneOrientationSequence",
    PIXEL_SPACING: "PixelMeasuresSequence",
    SLOPE: "PixelValueTransformationSequence",
    INTERCEPT: "PixelValueTransformationSequence",
}
"""Sequence that contains an element in a multi-frame file, for each frame or for all."""
BY_FRAME, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
PIXELS = ("Rows", "Columns", "BitsAllocated", "PixelData")
"""Elements without which there is no image."""
USUAL = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
"""Defaults for files without these elements."""
GAP, DETECTORS, SLICES = "SpacingBetweenSlices", "DetectorInformationSequence", "NumberOfSlices"
TIMES = ("NumberOfTimeSlots", "NumberOfRRIntervals", "NumberOfPhases", "NumberOfTimeSlices", "NumberOfEnergyWindows")
"""Numbers of volumes in a file, of NM and PET."""
TABLE = "ModalityLUTSequence"
"""Table from stored values to those that they mean."""
KEYWORDS = (
    *("SeriesInstanceUID", "SeriesNumber", "Modality", "NumberOfFrames", "FrameOfReferenceUID", "PatientID"),
    *("SOPClassUID", "BitsStored", "HighBit", TABLE, GAP, DETECTORS, SLICES, *TIMES),
    *(BY_FRAME, SHARED, *GROUPS, *USUAL, *PIXELS),
)
"""Elements that are read."""
READ = frozenset(
    [
        *("SegmentSequence", "SegmentIdentificationSequence", "ReferencedSeriesSequence", "StructureSetROISequence"),
        *("ROIContourSequence", "ContourSequence", "ReferencedFrameOfReferenceSequence", "RTReferencedStudySequence"),
        *("RTReferencedSeriesSequence", BY_FRAME, SHARED, *GROUPS.values()),
    ]
)
"""Sequences of images and annotation that are read."""
NOT_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "PLAN", "FID", "SMR")
"""Modalities of objects that lie next to images."""
MOST_UNPACKED, LARGEST_RATIO = 2**28, 1000
"""Bytes up to which compressed pixels may unpack in any case; to how many times their bytes, otherwise."""
UNDEFINED = 0xFFFFFFFF
"""Stated length of elements that end with a delimiter, such as compressed pixels."""


@dataclass(frozen=True)
class DicomFile:
    """DICOM file with an image.

    Attributes:
        path: path of the file.
        shape: columns, rows, frames, and components of a pixel.
        header: the elements KEYWORDS, without the pixels.
        is_compressed: whether the pixels are compressed.
    """

    path: Path
    shape: tuple[int, int, int, int]
    header: Dataset
    is_compressed: bool

    def text(self, keyword: str) -> str:
        """Return an element as text; empty if it is missing or malformed."""
        try:
            with disable_value_validation():
                return str(self.header.get(keyword) or "")
        except Exception:  # see decimals
            return ""

    def numbers(self, keyword: str, count: int) -> np.ndarray:
        """Return the `count` decimal numbers of an element, in a multi-frame file those of the first frame.

        Raises:
            DataError: when the file does not have them.
        """
        numbers = self.by_frame(keyword)[0]
        if len(numbers) != count:
            found = "malformed" if keyword in self.header else "missing"
            raise DataError(
                f"{self.path}: {name_with_tag(keyword)} is {numbers.tolist() or found}; expected {count} numbers, "
                "which place the slices in space. Export the series again, or convert it to NIfTI and set its voxel "
                "size."
            )
        return numbers

    def by_frame(self, keyword: str) -> list[np.ndarray]:
        """Return the decimal numbers of an element for each frame: its own, or the shared ones; empty if missing."""
        return [decimals(place, keyword) for place in self._places(keyword)]

    def is_grouped(self, keyword: str) -> bool:
        """Return whether an element of the first frame is looked for in its group, not in the whole file's elements."""
        return self._places(keyword)[0] is not self.header

    def check_number(self, keyword: str) -> None:
        """Raise DataError if an element is not empty, but is not one number."""
        for place in self._places(keyword):
            value = getattr(place.get_item(keyword), "value", None)
            value = value.strip(b"\0") if isinstance(value, bytes) else value
            if value not in (None, b"", "") and len(decimals(place, keyword)) != 1:
                raise DataError(
                    f"{self.path}: {name_with_tag(keyword)} is no number such as 0.75 or -1024, and values cannot be "
                    "computed from stored ones. Correct it, or export the series again."
                )

    def _places(self, keyword: str) -> list[Dataset]:
        """Return the elements that an element is among, for each frame."""
        group = GROUPS[keyword]
        shared = (self.header.get(SHARED) or [Dataset()])[0].get(group) or [self.header]
        frames = self.header.get(BY_FRAME) or [Dataset()]
        return [(frame.get(group) or shared)[0] for frame in frames]


def is_dicom_file(path: Path) -> bool:
    """Return whether a file begins like DICOM; old files without a preamble begin with the first group."""
    if not path.is_file() or path.name == "DICOMDIR" or path.name.startswith("."):
        return False
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or re.match(rb"[\x02\x08]\0.\0", head, re.DOTALL) is not None


def is_dicom_image(path: Path) -> bool:
    """Return whether a file is DICOM, but none of the objects that go with images; damaged files count as images."""
    if not is_dicom_file(path):
        return False
    try:
        with disable_value_validation():
            header = dcmread(path, specific_tags=["Modality"], stop_before_pixels=True, force=True)
            return str(header.get("Modality") or "") not in NOT_IMAGES
    except Exception:  # told by who reads it
        return True


def read_header(path: Path) -> DicomFile:
    """Read a file's header, and check that its pixels match it.

    Raises:
        DataError: when the file contains no readable image.
    """
    shape = (0, 0, 0, 0)
    try:
        with disable_value_validation():
            header = dcmread(path, defer_size="4 MB", specific_tags=list(KEYWORDS), force=True)
            missing = [keyword for keyword in PIXELS if keyword not in header]
            fault = f"no {', '.join(missing)}" if len(header) else "it ends too early"
            if not missing:
                for keyword, value in USUAL.items():
                    if header.get(keyword) is None:
                        setattr(header, keyword, value)
                components = 3 if header.PhotometricInterpretation == "PALETTE COLOR" else header.SamplesPerPixel
                shape = (header.Columns, header.Rows, int(get_nr_frames(header, warn=False)), components)
                _check_groups(header)
                fault = _pixel_fault(path, header)
    except Exception as error:  # pydicom raises a dozen kinds here
        fault = without_texts(" ".join(f"{type(error).__name__}: {error}".split()))
    if fault:
        raise DataError(
            f"{path}: a DICOM file without a readable image ({fault}); it is truncated, damaged, or not an image (a "
            "report, contours). Copy or export it again, or move it elsewhere."
        )
    pixels: Any = header.get_item("PixelData", keep_deferred=True)
    del header.PixelData
    return DicomFile(path, shape, header, pixels.length == UNDEFINED)


def _check_groups(header: Dataset) -> None:
    """Raise an error unless what places the frames are sequences of elements."""
    for keyword in (BY_FRAME, SHARED, DETECTORS):
        for item in header.get(keyword) or ():
            for group in set(GROUPS.values()):
                if not all(isinstance(part, Dataset) for part in item.get(group) or ()):
                    raise ValueError(f"{group} is no sequence")


def _pixel_fault(path: Path, header: Dataset) -> str:
    """Return how pixels differ from the header; empty if they match. GDCM would invent missing ones.

    Of compressed ones only whether they would unpack to far more than they are.
    """
    pixels: Any = header.get_item("PixelData", keep_deferred=True)
    found, expected = pixels.length, get_expected_length(header)
    size = (
        f"{expected}: {header.Columns} columns x {header.Rows} rows x {get_nr_frames(header, warn=False)} frame(s) x "
        f"{header.SamplesPerPixel} sample(s) of {header.BitsAllocated} bits"
    )
    if found == UNDEFINED:
        packed = path.stat().st_size
        is_bomb = expected > max(MOST_UNPACKED, LARGEST_RATIO * packed)
        return f"a file of {packed} bytes for compressed pixels of {size}" if is_bomb else ""
    if header.file_meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        found = min(found, path.stat().st_size - pixels.value_tell)
    if 0 <= found - expected < expected // max(header.Rows, header.Columns, 1):  # less than a row or column too many
        return ""
    return f"{found} bytes of pixels, expected {size}"


def name_with_tag(keyword: str) -> str:
    """Return an element's keyword and tag, for messages."""
    tag = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag >> 16:04x}|{tag & 0xFFFF:04x})"


def uid_text(uid: str) -> str:
    """Return a UID for messages; of other text, in which there may be names, its length alone."""
    return uid if re.fullmatch(r"[\d.]{1,64}", uid) else f"no UID but text of {len(uid)} character(s)"


def check_sequences(elements: Dataset) -> None:
    """Raise ValueError if an element is a sequence, at any depth, and in the standard none, or one of READ is none.

    Others may be something else: programs keep long sequences that they do not know as bytes.
    """
    for element in elements:
        is_sequence = element.VR == "SQ"
        is_other = is_sequence and dictionary_has_tag(element.tag) and dictionary_VR(element.tag) != "SQ"
        if is_other or (element.keyword in READ and not is_sequence and not element.is_empty):
            raise ValueError(f"{element.keyword} is {'a' if is_sequence else 'no'} sequence")
        for item in element.value if is_sequence else ():
            check_sequences(item)


def decimals(elements: Dataset, keyword: str) -> np.ndarray:
    """Return the numbers of an element; empty if it is missing or malformed."""
    try:
        with disable_value_validation():  # decimals may be longer than in the standard
            numbers = np.array(elements.get(keyword), float, ndmin=1)
    except Exception:  # pydicom converts elements when they are asked for, and raises a dozen kinds here
        return np.empty(0)
    return numbers if np.isfinite(numbers).all() else np.empty(0)


def whole_number(elements: Dataset, keyword: str) -> int | None:
    """Return the whole number of an element; None if it is missing or malformed."""
    found = decimals(elements, keyword)
    return int(found[0]) if len(found) == 1 and found[0].is_integer() else None
