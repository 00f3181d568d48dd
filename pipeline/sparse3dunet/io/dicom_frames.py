"""Grid of multi-frame DICOM files whose frames state no position each: NM, and secondary captures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_voxel_size
from sparse3dunet.io.dicom_header import (
    DETECTORS,
    GAP,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SLICES,
    TIMES,
    DicomFile,
    decimals,
    name_with_tag,
    whole_number,
)
from sparse3dunet.io.dicom_stack import slice_axes
from sparse3dunet.io.grid import ras_affine


class FrameGrid(NamedTuple):
    """Affine (4, 4), RAS in mm, and what :class:`~sparse3dunet.io.volumes.Volume` says of it."""

    affine: np.ndarray
    has_orientation: bool
    has_voxel_size: bool
    notes: tuple[str, ...]


def grid_without_positions(file: DicomFile, num_positions: int) -> FrameGrid:
    """Return the grid of frames in their order, as far as it is stated for the whole file.

    The distance of slices is negative in NM if they go against the normal of the first one.

    Raises:
        DataError: when the distance of slices is not stated, or the frames are several volumes.
    """
    header, num_frames = file.header, file.shape[2]
    gap = decimals(header, GAP)
    if len(gap) != 1 or not gap[0]:
        raise DataError(
            f"{file.path}: {num_positions} of {num_frames} frames have a position ({name_with_tag(POSITION)}); "
            "expected a position for each frame. Convert the file to NIfTI, and set its voxel size."
        )
    _check_one_volume(file)
    pixel = file.by_frame(PIXEL_SPACING)[0][::-1]  # DICOM names rows first
    if len(pixel) != 2 or not (pixel > 0).all():
        size = default_voxel_size()
        return FrameGrid(ras_affine(np.zeros(3), size or (1.0, 1.0, 1.0), np.eye(3)), False, size is not None, ())
    places = [header, *(header.get(DETECTORS) or [])[:1]]
    origin, cosines = (_first(places, keyword, count) for keyword, count in ((POSITION, 3), (ORIENTATION, 6)))
    if origin is not None and cosines is not None:
        try:
            return FrameGrid(ras_affine(origin, [*pixel, gap[0]], slice_axes(cosines)), True, True, ())
        except ValueError:
            raise DataError(
                f"{file.path}: the orientation is {cosines.tolist()}; expected the cosines of two orthogonal "
                "directions. Export the file again."
            ) from None
    note = (
        f"{file.path}: its frames state no position in the patient; they are taken in their order, {abs(gap[0]):g} mm "
        f"apart as in {GAP}, and no left and right is marked."
    )
    return FrameGrid(ras_affine(np.zeros(3), [*pixel, abs(gap[0])], np.eye(3)), False, True, (note,))


def _first(places: list[Dataset], keyword: str, count: int) -> np.ndarray | None:
    return next((numbers for place in places if len(numbers := decimals(place, keyword)) == count), None)


def _check_one_volume(file: DicomFile) -> None:
    """Raise DataError if a file says that its frames are several volumes, such as those of a gated scan."""
    num_frames, num_slices = file.shape[2], whole_number(file.header, SLICES)
    counts = {keyword: whole_number(file.header, keyword) or 1 for keyword in TIMES}
    several = {SLICES: num_slices} if num_slices else {key: count for key, count in counts.items() if count > 1}
    if several and num_slices != num_frames:
        stated = ", ".join(f"{keyword} {count}" for keyword, count in several.items())
        raise DataError(
            f"{file.path}: {num_frames} frames, which are several volumes ({stated}); expected the slices of one. "
            "Convert the file to NIfTI, with one file for each volume."
        )
