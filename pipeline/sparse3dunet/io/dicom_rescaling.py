"""From stored values of DICOM to those that they mean: what a file states of it, applied where GDCM does not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_decoding import read_pixels
from sparse3dunet.io.dicom_header import (
    BY_FRAME,
    GROUPS,
    INTERCEPT,
    SHARED,
    SLOPE,
    DicomFile,
    name_with_tag,
    whole_number,
)

LARGEST = 2**16 - 1
"""Value of the brighter pixel of a file on which the rescaling is measured."""
TOLERANCE = 1e-6
"""Relative difference up to which measured and stated rescaling are the same."""


def check_stored(file: DicomFile) -> None:
    """Raise DataError if values are rescaled by what is no number or 0, or if it is not sure which bits they are.

    GDCM reads 0,75 as 0, blanks as anything, and a slope of 0 as 1; it takes the lowest bits if these are not all.
    """
    for keyword in (SLOPE, INTERCEPT):
        file.check_number(keyword)
    if any(len(slope) and not slope[0] for slope in file.by_frame(SLOPE)):
        raise DataError(
            f"{file.path}: {name_with_tag(SLOPE)} is 0, by which all values would be the same; expected a number other "
            "than 0, such as 1. Correct it, or export the series again."
        )
    allocated, stored, high = (whole_number(file.header, key) for key in ("BitsAllocated", "BitsStored", "HighBit"))
    if stored is not None and high is not None and stored != allocated and high != stored - 1:
        raise DataError(
            f"{file.path}: {name_with_tag('HighBit')} is {high}, with {stored} bits stored; expected {stored - 1}, "
            "since it is not sure otherwise which bits are the values. Correct it, or convert the series to NIfTI."
        )


def rescaled(file: DicomFile, voxels: np.ndarray) -> np.ndarray:
    """Return decoded voxels, rescaled as the groups of the first frame state it.

    GDCM looks into these groups in files of some kinds alone. What it applies is measured, whatever the kind.

    Raises:
        DataError: when that cannot be measured.
    """
    slope, intercept = (file.by_frame(keyword)[0] for keyword in (SLOPE, INTERCEPT))
    if not file.is_grouped(SLOPE) or file.shape[3] != 1 or not len(slope) + len(intercept):
        return voxels
    stated = (float(slope[0]) if len(slope) else 1.0, float(intercept[0]) if len(intercept) else 0.0)
    found = _measured(file)
    if np.allclose(found, stated, TOLERANCE, TOLERANCE * abs(stated[0])):
        return voxels
    return (voxels - found[1]) / found[0] * stated[0] + stated[1]


def _measured(file: DicomFile) -> tuple[float, float]:
    """Return the slope and intercept that GDCM applies to a file with the same elements, of two pixels."""
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        path = Path(folder) / "image.dcm"
        try:
            with disable_value_validation():
                _two_pixels(file).save_as(path)
            zero, largest = np.ravel(read_pixels(path), "F").astype(float).tolist()
        except Exception as error:  # of the disk, or a dozen kinds of pydicom's
            raise DataError(
                f"{file.path}: it was not found out whether its {name_with_tag(SLOPE)} is applied, for which a small "
                f"file is written to {tempfile.gettempdir()} ({type(error).__name__}). Make room there, or convert the "
                "series to NIfTI."
            ) from error
    return (largest - zero) / LARGEST, zero


def _two_pixels(file: DicomFile) -> FileDataset:
    """Return a file of values 0 and LARGEST, of the same kind, and with the same rescaling at the same places."""
    header, meta = file.header, FileMetaDataset()
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    if kind:
        meta.MediaStorageSOPClassUID = kind
    meta.FileMetaInformationGroupLength = 0  # set when it is written
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    probe = FileDataset("", {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=False, is_little_endian=True)
    _copy(header, probe, "SOPClassUID", "Modality", SLOPE, INTERCEPT)
    for place in (SHARED, BY_FRAME):
        parts = (header.get(place) or [Dataset()])[0].get(GROUPS[SLOPE])
        if parts:
            item, part = Dataset(), Dataset()
            _copy(parts[0], part, SLOPE, INTERCEPT)
            setattr(item, GROUPS[SLOPE], [part])
            setattr(probe, place, [item])
    probe.Rows, probe.Columns, probe.NumberOfFrames, probe.SamplesPerPixel = 1, 2, 1, 1
    probe.BitsAllocated, probe.BitsStored, probe.HighBit, probe.PixelRepresentation = 16, 16, 15, 0
    probe.PhotometricInterpretation = "MONOCHROME2"
    probe.add_new("PixelData", "OW", np.array([0, LARGEST], "<u2").tobytes())
    return probe


def _copy(source: Dataset, target: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        if keyword in source:
            target[keyword] = source[keyword]
