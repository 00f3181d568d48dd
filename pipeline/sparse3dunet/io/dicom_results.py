"""Results in DICOM: segmentations (SEG) with highdicom, and structure sets (RTSTRUCT), that refer to their source.

They belong to the patient and study of the image, as archives (PACS) need it. For this, only the elements IDENTITY are
copied; no free text, such as comments or descriptions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import generate_uid
from pydicom.valuerep import PersonName

from sparse3dunet.colors import colors_of
from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom import DicomSource
from sparse3dunet.io.dicom_codes import class_code
from sparse3dunet.io.dicom_header import BY_FRAME, ORIENTATION, PIXEL_SPACING, POSITION, SHARED
from sparse3dunet.io.microscopy import package
from sparse3dunet.io.suffixes import DICOM_SEG_SUFFIX
from sparse3dunet.io.volumes import Volume

IDENTITY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "SpecificCharacterSet"),
)
"""Elements of patient and study that are copied into results, texts in UTF-8."""
EMPTY_ALLOWED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)
"""Elements that must be there, but may be empty."""
REFERENCES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality")
"""Elements without which nothing can refer to an image."""
PLACES = (
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "NumberOfFrames", "Rows", "Columns", "SliceThickness"),
    *("SpacingBetweenSlices", "DimensionOrganizationType", POSITION, ORIENTATION, PIXEL_SPACING, BY_FRAME, SHARED),
)
UNICODE = "ISO_IR 192"
"""Character set of results."""
LONGEST_NAME = 64
"""Number of letters that the name of a segment or structure may have (LO)."""


def check_dicom_output(path: str | Path, like: Volume, class_names: Mapping[int, str], suffix: str) -> None:
    """Check that a result in DICOM can be written, by writing one of a few slices to nowhere.

    Raises:
        DataError: when the image is not DICOM, a name of a class is too long, elements are missing in the image's
            files, or the package that writes segmentations is not installed.
    """
    if not isinstance(like.header, DicomSource):
        raise DataError(
            f"{path}: results in DICOM refer to the series that they were made from, but {like.path} is not DICOM. "
            "Write to .nii.gz or .nrrd, or pass the DICOM series."
        )
    if not like.has_orientation:
        raise DataError(
            f"{path}: results in DICOM are placed in the patient, but {like.path} states no position. Write to .nii.gz "
            "or .nrrd."
        )
    if suffix == DICOM_SEG_SUFFIX:
        package("highdicom", path, "dicom")
    labels = [class_code(name).label for name in list(class_names.values())[1:]]
    bad = [label for label in labels if len(label) > LONGEST_NAME or "\\" in label or not label.isprintable()]
    if bad or len({label.lower() for label in labels}) < len(labels):
        shown = repr(bad[0]) if bad else "twice the same"
        raise DataError(
            f"{path}: the name of a class is {shown}; expected different names of at most {LONGEST_NAME} letters, "
            "without backslashes, for DICOM. Pass others with --class-names."
        )
    headers = source_headers(like.header, few=True)
    if like.header.frames:
        return
    from sparse3dunet.io.dicom_writers import WRITERS

    empty = np.zeros((*like.spatial_shape[:2], len(headers)), np.uint8)
    with readable(path, like):
        WRITERS[suffix](headers, empty, (), [(label, (0, 0, 0)) for label in labels or ["x"]], like, False)


def write_dicom_segmentation(
    path: Path,
    labels: np.ndarray,
    like: Volume,
    class_names: Mapping[int, str],
    is_semi_automatic: bool,
    writer: Callable[..., Dataset],
) -> None:
    """Write a label map (X, Y, Z) as a segment or structure for each class but the first.

    Each file is an instance of its own, with a new UID and the time of writing.

    Args:
        path: path of the file.
        labels: the label map.
        like: the image, read from DICOM.
        class_names: class names by value in `labels`, background first.
        is_semi_automatic: whether a person annotated a part of this very image.
        writer: one of ``dicom_writers.WRITERS``.
    """
    numbers = np.zeros(labels.shape, np.uint16 if len(class_names) > 255 else np.uint8)
    for number, value in enumerate(list(class_names)[1:], 1):
        numbers[labels == value] = number
    source: DicomSource = like.header
    with readable(path, like):
        names = list(zip(class_names.values(), colors_of(class_names)))[1:]
        content = writer(source_headers(source), numbers, source.frames, names, like, is_semi_automatic)
        content.save_as(path, enforce_file_format=True)


def source_headers(source: DicomSource, few: bool = False) -> list[Dataset]:
    """Read the elements of a volume's files that results need, by slice or of the one file.

    Args:
        source: the files.
        few: whether two files suffice.

    Raises:
        DataError: when a file has no UIDs.
    """
    headers: list[Dataset] = []
    for file in source.files[:2] if few else source.files:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they may quote the patient's data
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*IDENTITY, *REFERENCES, *PLACES])
            missing = [keyword for keyword in REFERENCES if not header.get(keyword)]
            if missing:
                raise DataError(
                    f"{file}: {', '.join(missing)} is missing, so nothing can refer to it; expected a DICOM image with "
                    "UIDs. Write to .nii.gz instead, or export the series again."
                )
            for keyword in EMPTY_ALLOWED:
                if keyword not in header:
                    setattr(header, keyword, "")
            if not header.get("FrameOfReferenceUID"):
                header.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", str(header.SeriesInstanceUID)])
            _to_unicode(header)
        headers.append(header)
    return headers


def _to_unicode(header: Dataset) -> None:
    """Have texts written in UTF-8: names of classes may have letters that the series' character set does not have."""
    for keyword in IDENTITY:
        value = header.get(keyword)  # decoded by the series' character set
        if isinstance(value, PersonName):
            setattr(header, keyword, str(value))
    header.SpecificCharacterSet = UNICODE


@contextmanager
def readable(path: str | Path, like: Volume) -> Iterator[None]:
    """Context that turns errors into a DataError, and hides warnings: both may quote the patient's data."""
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError, OSError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, AttributeError) else type(error).__name__
        raise DataError(
            f"{path}: cannot be written with a reference to {like.path} ({reason}); expected a DICOM series that is "
            "complete. Write to .nii.gz instead, or export the series again."
        ) from None


def common_elements(header: Dataset) -> dict[str, Any]:
    """Return the elements of patient and study of a result, by keyword."""
    return {keyword: header[keyword].value for keyword in IDENTITY if keyword in header}
