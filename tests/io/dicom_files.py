"""DICOM series, segmentations and structure sets for tests, written with pydicom and highdicom."""

from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset
from pydicom.dataset import FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

LPS = np.diag([-1.0, -1, 1, 1])
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "axial, feet first": (1, 0, 0, 0, -1, 0),
    "axial, face down": (-1, 0, 0, 0, -1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "sagittal, mirrored": (0, -1, 0, 0, 0, 1),
    "oblique": (0.96, 0.28, 0, -0.168, 0.576, 0.8),
}
"""Direction cosines of rows and columns."""
SPACING, GAP, ORIGIN = (1.3, 0.7), 2.5, np.array([10.0, -20, 5])
"""Of rows and columns, and of slices, in mm; position of the first voxel, LPS."""


def file_with(path, sop_class, **elements):
    """A DICOM file with the elements, and a new UID unless one is given."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    elements = {"SOPInstanceUID": generate_uid(), **elements}
    meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID = sop_class
    for keyword, value in elements.items():
        setattr(file, keyword, value)
    file.save_as(path, enforce_file_format=True)
    return path


def lps_axes(plane):
    cosines = np.array(PLANES[plane], float)
    return np.column_stack([cosines[:3], cosines[3:], np.cross(cosines[:3], cosines[3:])])


def series_affine(plane="axial"):
    """The affine (4, 4), RAS, of columns, rows and slices."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = lps_axes(plane) * [SPACING[1], SPACING[0], GAP], ORIGIN
    return LPS @ affine


def write_series(folder, voxels, plane="axial", heights=None, name=None, **elements):
    """Write a CT series, a file for each slice of (X, Y, Z) voxels, in shuffled names; return its elements by slice.

    Elements may be functions of the slice's number.
    """
    axes = lps_axes(plane)
    count = voxels.shape[2]
    names = np.random.default_rng(5).permutation(count)
    heights = GAP * np.arange(count) if heights is None else heights
    common = {
        **{"PatientName": "Test^A", "PatientID": "7", "PatientBirthDate": "", "PatientSex": "O"},
        **{"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.9"},
        **{
            "StudyDate": "20260102",
            "StudyTime": "",
            "StudyID": "1",
            "AccessionNumber": "",
            "ReferringPhysicianName": "",
        },
        **{"Modality": "CT", "SeriesNumber": 4, "Manufacturer": "", "PositionReferenceIndicator": ""},
        **{"ImageOrientationPatient": list(PLANES[plane]), "PixelSpacing": list(SPACING), "SliceThickness": GAP},
        **{"Rows": voxels.shape[1], "Columns": voxels.shape[0], "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        **{"PixelRepresentation": 1, "RescaleIntercept": 0, "RescaleSlope": 1},
        **elements,
    }
    for k in range(count):
        own = {key: value(k) if callable(value) else value for key, value in common.items()}
        own |= {
            "ImagePositionPatient": [f"{v:.10g}"[:16] for v in ORIGIN + axes[:, 2] * heights[k]],
            "SOPInstanceUID": f"{own['SeriesInstanceUID']}.{k + 1}",
            "InstanceNumber": k + 1,
            "PixelData": voxels[:, :, k].T.astype(np.int16).tobytes(),
        }
        file_with(folder / (f"IM{names[k]}" if name is None else f"{name}{k}"), CTImageStorage, **own)
    return Path(folder)


def sources(folder):
    """The elements of a series' files, by height."""
    from pydicom import dcmread

    read = [dcmread(path) for path in sorted(Path(folder).iterdir())]
    cosines = np.array(read[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    return sorted(read, key=lambda elements: float(np.dot(np.array(elements.ImagePositionPatient, float), normal)))


def write_seg(path, folder, masks, kind="BINARY", order=None, **options):
    """Write (X, Y, Z) masks by name as a segmentation of a series, with highdicom."""
    import highdicom as hd

    images = sources(folder)
    stacked = np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], -1)
    if kind == "LABELMAP":
        stacked = (stacked * np.arange(1, len(masks) + 1)).max(-1).astype(np.uint8)
    order = np.arange(len(images)) if order is None else order
    segments = [
        hd.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number, name in enumerate(masks, 1)
    ]
    seg = hd.seg.Segmentation(
        [images[k] for k in order],
        stacked[order].astype(float) if kind == "FRACTIONAL" else stacked[order].astype(np.uint8),
        kind,
        segments,
        generate_uid(),
        *(1, generate_uid(), 1, "test", "test", "1", "1"),
        **options,
    )
    seg.save_as(path)
    return path


def write_rtstruct(path, contours, series="1.2.3.4", frame_of_reference="1.2.3.9", kind="CLOSED_PLANAR"):
    """Write points (N, 3), LPS in mm, of contours by the name of their structure."""
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = [referenced]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = frame_of_reference, [study]
    structures, shapes = [], []
    for number, (name, listed) in enumerate(contours.items(), 11):
        roi, shape = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame_of_reference
        shape.ReferencedROINumber, shape.ContourSequence = number, []
        for points in listed:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.8g}" for value in np.ravel(points)]
            shape.ContourSequence.append(contour)
        structures.append(roi)
        shapes.append(shape)
    return file_with(
        path,
        RTStructureSetStorage,
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(),
        ReferencedFrameOfReferenceSequence=[frame],
        StructureSetROISequence=structures,
        ROIContourSequence=shapes,
    )
