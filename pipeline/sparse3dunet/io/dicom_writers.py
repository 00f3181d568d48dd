"""The objects that results in DICOM are: a segmentation (SEG), made by highdicom, or a structure set (RTSTRUCT)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours

from sparse3dunet import __version__
from sparse3dunet.io.dicom_codes import class_code, code_item
from sparse3dunet.io.dicom_results import common_elements
from sparse3dunet.io.grid import LPS_TO_RAS
from sparse3dunet.io.suffixes import DICOM_SEG_SUFFIX, RTSTRUCT_SUFFIX
from sparse3dunet.io.volumes import Volume

RGB = tuple[int, int, int]
NAME = "sparse3dunet"
SERIES_NUMBERS = {DICOM_SEG_SUFFIX: 7001, RTSTRUCT_SUFFIX: 7002}
DESCRIPTION = f"Segmentation by {NAME}"


def segmentation(
    headers: Sequence[Dataset],
    numbers: np.ndarray,
    frames: Sequence[int],
    classes: Sequence[tuple[str, RGB]],
    like: Volume,
    is_semi_automatic: bool,
) -> Dataset:
    """Return a binary segmentation.

    Args:
        headers: elements of each slice's file, or of the one file.
        numbers: (X, Y, Z) class numbers, 0 for background.
        frames: index of the frame of each slice, if there is one file.
        classes: names and colours of the classes from 1 on.
        like: the image.
        is_semi_automatic: see :func:`~sparse3dunet.io.dicom_results.write_dicom_segmentation`.
    """
    import highdicom

    stored = numbers.transpose(2, 1, 0)
    if frames:
        stored = stored[np.argsort(frames)]
    how = highdicom.AlgorithmIdentificationSequence(NAME, codes.cid7162.ArtificialIntelligence, __version__)
    kind = "SEMIAUTOMATIC" if is_semi_automatic else "AUTOMATIC"
    segments = []
    for number, (name, rgb) in enumerate(classes, 1):
        code = class_code(name)
        color = highdicom.color.CIELabColor.from_rgb(*rgb)
        segment = highdicom.seg.SegmentDescription(
            number, code.label, code.category, code.kind, kind, how, display_color=color
        )
        if code.side is not None:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                code_item(code.side)
            ]
        segments.append(segment)
    result = highdicom.seg.Segmentation(
        headers,
        np.ascontiguousarray(stored),
        "BINARY",
        segments,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBERS[DICOM_SEG_SUFFIX],
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=__version__,
        device_serial_number="1",
        omit_empty_frames=bool(numbers.any()),
        content_label="SEGMENTATION",
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
    )
    return result


def structure_set(
    headers: Sequence[Dataset],
    numbers: np.ndarray,
    frames: Sequence[int],
    classes: Sequence[tuple[str, RGB]],
    like: Volume,
    is_semi_automatic: bool,
) -> Dataset:
    """Return a structure set with closed planar contours half-way between voxels; holes are contours in contours.

    Arguments as for :func:`segmentation`.
    """
    result = _new(headers[0])
    result.ReferencedFrameOfReferenceSequence = [_referenced_series(headers, frames)]
    structures, shapes, observations = [], [], []
    for number, (name, rgb) in enumerate(classes, 1):
        code = class_code(name)
        structures.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=headers[0].FrameOfReferenceUID,
                ROIName=code.label,
                ROIGenerationAlgorithm="SEMIAUTOMATIC" if is_semi_automatic else "AUTOMATIC",
                ROIGenerationDescription=f"{NAME} {__version__}",
            )
        )
        contours = list(_contours(numbers == number, headers, frames, like))
        shape = _item(ReferencedROINumber=number, ROIDisplayColor=list(rgb))
        if contours:
            shape.ContourSequence = contours
        shapes.append(shape)
        observations.append(
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="",
                ROIInterpreter="",
                RTROIIdentificationCodeSequence=[code_item(code.kind)],
            )
        )
    result.StructureSetROISequence, result.ROIContourSequence = structures, shapes
    result.RTROIObservationsSequence = observations
    return result


WRITERS: dict[str, Any] = {DICOM_SEG_SUFFIX: segmentation, RTSTRUCT_SUFFIX: structure_set}
"""Functions that make a result, by suffix."""


def _new(header: Dataset) -> FileDataset:
    """Return a structure set without structures, of the patient and study of an image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    now = datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    elements = {
        **common_elements(header),
        "SOPClassUID": RTStructureSetStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "InstanceCreationDate": date,
        "InstanceCreationTime": time,
        "Modality": "RTSTRUCT",
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": SERIES_NUMBERS[RTSTRUCT_SUFFIX],
        "SeriesDescription": DESCRIPTION,
        "OperatorsName": "",
        "Manufacturer": NAME,
        "ManufacturerModelName": NAME,
        "SoftwareVersions": __version__,
        "FrameOfReferenceUID": header.FrameOfReferenceUID,
        "PositionReferenceIndicator": header.PositionReferenceIndicator,
        "StructureSetLabel": "SEGMENTATION",
        "StructureSetDescription": DESCRIPTION,
        "StructureSetDate": date,
        "StructureSetTime": time,
        "InstanceNumber": 1,
        "ApprovalStatus": "UNAPPROVED",
    }
    for keyword, value in elements.items():
        setattr(result, keyword, value)
    return result


def _referenced_series(headers: Sequence[Dataset], frames: Sequence[int]) -> Dataset:
    images = [_image(headers, frames, k) for k in range(1 if frames else len(headers))]
    for image in images:
        image.pop("ReferencedFrameNumber", None)
    series = _item(SeriesInstanceUID=headers[0].SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # a study
        ReferencedSOPInstanceUID=headers[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=headers[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _image(headers: Sequence[Dataset], frames: Sequence[int], k: int) -> Dataset:
    """Return a reference to the image of a slice."""
    header = headers[0] if frames else headers[k]
    image = _item(ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID)
    if frames:
        image.ReferencedFrameNumber = frames[k] + 1
    return image


def _contours(mask: np.ndarray, headers: Sequence[Dataset], frames: Sequence[int], like: Volume) -> Iterator[Dataset]:
    """Yield the contours of a mask (X, Y, Z), slice by slice."""
    affine = LPS_TO_RAS @ like.affine
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
        for points in find_contours(np.pad(mask[:, :, k], 1).astype(float), 0.5):
            corners = _corners(points[:-1] - 1)
            placed = np.column_stack([corners, np.full(len(corners), k)]) @ affine[:3, :3].T + affine[:3, 3]
            yield _item(
                ContourImageSequence=[_image(headers, frames, int(k))],
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(placed),
                ContourData=[f"{value:.5f}".rstrip("0").rstrip(".") for value in placed.ravel() + 0.0],
            )


def _corners(points: np.ndarray) -> np.ndarray:
    """Return a closed contour without the points on straight lines between others."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
