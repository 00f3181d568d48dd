"""DICOM structure sets (RTSTRUCT): closed planar contours, filled on the slices of an image.

A voxel is in a structure if its centre is inside of the contour. Of several contours of a structure at one height,
inner ones are holes (even-odd rule), as most planning systems write them; several heights on one slice are united.
Other kinds of contours, such as points, are no areas and are left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_header import name_with_tag, whole_number
from sparse3dunet.io.dicom_seg import DicomAnnotation, LeftOut, Part, read_elements
from sparse3dunet.io.dicom_seg_frames import numbered
from sparse3dunet.io.grid import LPS_TO_RAS
from sparse3dunet.io.volumes import Volume

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Geometric types of contours that bound an area."""
FARTHEST = 1e6
"""Largest coordinate of a contour, in mm."""
PLANE_TOLERANCE = 0.25
"""Distance from the nearest slice, in slices, up to which a contour was drawn on it."""
OUTLINE = 1.0
"""Pixels by which a contour may reach beyond the border of the image: programs draw along it."""
SAME_HEIGHT = 0.02
"""Distance of contours, in slices, up to which they were drawn at one height, where those within others are holes."""


def read(path: Path) -> DicomAnnotation:
    """Read a structure set.

    Raises:
        DataError: when it is damaged.
    """
    elements = read_elements(path, "DICOM structure set")
    rois = numbered(path, "structure", elements.get("StructureSetROISequence") or [], "ROINumber")
    names = {n: str(roi.get("ROIName") or "").strip() or f"ROI {n}" for n, roi in rois.items()}
    frames = {n: str(roi.get("ReferencedFrameOfReferenceUID") or "") for n, roi in rois.items()}
    contours = _contours(path, elements, names)
    others = sum(kind not in AREAS for by_roi in contours.values() for kind, _ in by_roi)
    notes = (f"{path}: {others} contours are points or open lines, and were left out.",) if others else ()
    left_out = LeftOut()

    def parts(numbers: Sequence[int], image: Volume) -> Iterator[Part]:
        left_out.clear()
        areas = {n: [points for kind, points in contours.get(n, []) if kind in AREAS] for n in numbers}
        return _parts(path, names, areas, image, left_out)

    return DicomAnnotation(names, parts, frames, _series(elements), notes, (path, elements), left_out)


def _series(elements: Dataset) -> set[str]:
    """Return the UIDs of the referenced image series."""
    found = set()
    for frame in elements.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                found.add(str(series.get("SeriesInstanceUID") or ""))
    return found - {""}


def _contours(path: Path, elements: Dataset, numbers: Container[int]) -> dict[int, list[tuple[str, np.ndarray]]]:
    """Return kind and points (N, 3), LPS in mm, of each contour by the number of its structure.

    Raises:
        DataError: when they are of no structure, or of no points.
    """
    found: dict[int, list[tuple[str, np.ndarray]]] = {}
    for roi in elements.get("ROIContourSequence") or []:
        number = whole_number(roi, "ReferencedROINumber")
        contours = roi.get("ContourSequence") or []
        if not contours:
            continue
        if number is None or number not in numbers:
            raise DataError(
                f"{path}: {len(contours)} contour(s) are of {'no structure' if number is None else number} by "
                f"{name_with_tag('ReferencedROINumber')}; expected the number of a structure that the file lists. It "
                "is truncated or damaged; copy or export it again."
            )
        for contour in contours:
            try:
                points = np.array(contour.get("ContourData") or [], float, ndmin=1)
            except (TypeError, ValueError):
                points = np.full(1, np.nan)
            if len(points) % 3 or not (np.abs(points) <= FARTHEST).all():
                raise DataError(
                    f"{path}: a contour of structure {number} has {len(points)} coordinates that are no x, y, z of "
                    f"points in mm; expected three numbers for each, at most {FARTHEST:g}. Export the structure set "
                    "again."
                )
            kind = str(contour.get("ContourGeometricType") or "")
            found.setdefault(number, []).append((kind, points.reshape(-1, 3)))
    return found


def _parts(
    path: Path, names: dict[int, str], areas: dict[int, list[np.ndarray]], image: Volume, left_out: LeftOut
) -> Iterator[Part]:
    """Yield the area of each structure on each slice; what is outside of the image is counted."""
    to_voxels = np.linalg.inv(image.affine) @ LPS_TO_RAS
    voxels = {n: [points @ to_voxels[:3, :3].T + to_voxels[:3, 3] for points in areas[n]] for n in areas}
    everything = [points for listed in voxels.values() for points in listed if len(points)]
    if not everything:
        return
    axis = int(np.sum([np.ptp(points, axis=0) for points in everything], axis=0).argmin())
    plane = [a for a in range(3) if a != axis]
    shape = (image.spatial_shape[plane[0]], image.spatial_shape[plane[1]])
    for number, listed in voxels.items():
        slices: dict[int, list[np.ndarray]] = {}
        for points in filter(len, listed):
            index = _slice(path, names[number], points[:, axis], image)
            low, high = points[:, plane].min(axis=0), points[:, plane].max(axis=0)
            is_beside = (high < -0.5).any() or (low > np.array(shape) - 0.5).any()
            if is_beside or not 0 <= index < image.spatial_shape[axis]:
                left_out.slices.append(number)
                continue
            slices.setdefault(index, []).append(points)
        for index, on_slice in slices.items():
            area, outside = _within(on_slice, axis, plane, shape)
            left_out.count(number, outside, outside + int(area.sum()))
            indices = np.insert(np.argwhere(area), axis, index, axis=1)
            yield Part(number, axis, indices)


def _within(contours: list[np.ndarray], axis: int, plane: list[int], shape: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Return the mask of a structure on a slice, and its number of pixels outside, up to an image's size away.

    Of contours that reach beyond the border by no more than OUTLINE, no pixel counts as outside.
    """
    points, size = np.concatenate(contours)[:, plane], np.array(shape)
    beyond = np.array([-0.5 - points.min(axis=0), points.max(axis=0) - size + 0.5])
    if (beyond <= OUTLINE).all():
        return _area(contours, axis, plane, shape), 0
    before, behind = np.ceil(beyond).clip(0, size).astype(int)
    offset = np.zeros(3)
    offset[plane] = before
    height, width = (size + before + behind).tolist()
    whole = _area([points + offset for points in contours], axis, plane, (height, width))
    area = whole[before[0] : before[0] + shape[0], before[1] : before[1] + shape[1]]
    return area, int(whole.sum()) - int(area.sum())


def _area(contours: list[np.ndarray], axis: int, plane: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of a structure on a slice: holes are cut at each height, and the heights are united.

    A contour that is there twice, from whichever point and in whichever direction, counts once.
    """
    area, here = np.zeros(shape, bool), np.zeros(shape, bool)
    height, seen = -np.inf, set[bytes]()
    for points in sorted(contours, key=lambda points: float(points[:, axis].mean())):
        if points[:, axis].mean() - height > SAME_HEIGHT:
            area, here, height, seen = area | here, np.zeros(shape, bool), points[:, axis].mean(), set()
        key = (np.unique(np.round(points, 2), axis=0) + 0.0).tobytes()  # -0 is 0
        if key not in seen:
            here ^= filled(points[:, plane], shape)
        seen.add(key)
    return area | here


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask of the voxels whose centres are inside of a polygon (N, 2), by the even-odd rule.

    Row by row, from where its edges cross the row: a hundred times as fast for an organ as a test of each voxel, as in
    ``skimage.draw.polygon``. Of a border through centres, the side towards 0 is inside.
    """
    rows, columns = np.round(points, 4).T  # a border through centres is not left to rounding errors
    next_rows, next_columns = np.roll(rows, -1), np.roll(columns, -1)
    first = np.ceil(np.minimum(rows, next_rows)).clip(0, shape[0]).astype(int)
    counts = np.ceil(np.maximum(rows, next_rows)).clip(0, shape[0]).astype(int) - first  # rows that each edge crosses
    edge = np.repeat(np.arange(len(rows)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (row - rows[edge]) / (next_rows - rows)[edge]
    column = np.ceil(np.round(columns[edge] + share * (next_columns - columns)[edge], 6)).clip(0, shape[1]).astype(int)
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def _slice(path: Path, name: str, heights: np.ndarray, image: Volume) -> int:
    """Return the slice that a contour was drawn on.

    Raises:
        DataError: when it lies on none.
    """
    index = round(float(heights.mean()))
    off = float(np.abs(heights - index).max())
    if off > PLANE_TOLERANCE:
        raise DataError(
            f"{path}: a contour of {name} is up to {off:.2f} slices off the nearest slice of the image ({image.path}); "
            f"expected contours on its slices, at most {PLANE_TOLERANCE} off. Pass the series that was drawn on, or "
            "export the structures on the image's slices."
        )
    return index
