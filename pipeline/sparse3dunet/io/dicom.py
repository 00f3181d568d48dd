"""DICOM series and multi-frame files as volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_decoding import decode, read_pixels
from sparse3dunet.io.dicom_encoded import check_encoded_file
from sparse3dunet.io.dicom_folders import choose_series
from sparse3dunet.io.dicom_frames import grid_without_positions
from sparse3dunet.io.dicom_header import (
    INTERCEPT,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SLOPE,
    TABLE,
    DicomFile,
    name_with_tag,
    read_header,
)
from sparse3dunet.io.dicom_inverted import shown_plainly
from sparse3dunet.io.dicom_rescaling import check_stored, rescaled
from sparse3dunet.io.dicom_stack import stack
from sparse3dunet.io.volumes import Volume, check_affine

COSINE_TOLERANCE = 1e-3
"""Maximum difference of direction cosines within a volume, from the rounding of decimal strings."""


@dataclass(frozen=True)
class DicomSource:
    """Files and frames that the slices of a volume came from; what results in DICOM refer to.

    Attributes:
        files: file of each slice, or the one file with all frames.
        frames: index in that file of each slice; empty if each slice has its own file.
        frame_of_reference: its UID; "" if not stated.
    """

    files: tuple[Path, ...]
    frames: tuple[int, ...]
    frame_of_reference: str


def read_dicom_folder(path: str | Path, pixels: bool = True) -> Volume:
    """Read the one series in a folder, slices sorted by their positions, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Args:
        path: folder of the slices, or, if there are none directly in it, one with sub-folders of any depth.
        pixels: whether to read the voxels; otherwise all are 0, which is fast.

    Raises:
        DataError: unless it contains exactly one series, or that of ``--series``, with equal, aligned and evenly spaced
            slices.
    """
    files = choose_series(path).files
    if len(files) == 1:
        return read_dicom_file(files[0].path)
    _check_alike(files)
    if files[0].shape[2] > 1:
        raise DataError(
            f"{path}: found {len(files)} files of {files[0].shape[2]} frames each, so several volumes; expected one. "
            "Pass one of the files."
        )
    order, affine, notes = stack(
        [file.path for file in files],
        np.stack([file.numbers(POSITION, 3) for file in files]),
        *_plane(files[0]),
    )
    check_affine(path, affine)
    files = tuple(files[i] for i in order)
    data = _read_slices(files) if pixels else np.broadcast_to(np.int8(0), (*files[0].shape[:2], len(files)))
    source = DicomSource(tuple(file.path for file in files), (), files[0].text("FrameOfReferenceUID"))
    return Volume(str(path), data, affine, source, notes=notes + _doubts(path, files))


def read_dicom_file(path: str | Path) -> Volume:
    """Read a multi-frame file to an (X, Y, Z) or (X, Y, Z, C) volume, frames sorted by their positions.

    Raises:
        DataError: when the file is a single slice, has no frame positions, or its frames are not evenly spaced.
    """
    file = read_header(Path(path))
    num_frames = file.shape[2]
    if num_frames == 1:
        raise DataError(
            f"{path}: found one slice, which is not a volume; expected a multi-frame file, or all slices of a series "
            "in one folder. Pass the folder that contains them all."
        )
    check_stored(file)
    _check_frames_alike(file)
    data = _read_pixels(file)
    positions = [position for position in file.by_frame(POSITION) if len(position) == 3]
    order = np.arange(num_frames)
    has_orientation = has_voxel_size = True
    if len(positions) == num_frames:  # GDCM takes them for ascending and even
        names = [Path(f"frame {i + 1}") for i in range(num_frames)]
        order, affine, notes = stack(names, np.array(positions), *_plane(file), f"{path}: ")
    else:
        affine, has_orientation, has_voxel_size, notes = grid_without_positions(file, len(positions))
    check_affine(path, affine)
    data = data if (np.diff(order) == 1).all() else data[:, :, order]
    source = DicomSource((Path(path),), tuple(order.tolist()), file.text("FrameOfReferenceUID"))
    return Volume(str(path), data, affine, source, has_orientation, has_voxel_size, notes + _doubts(path, [file]))


def _doubts(path: str | Path, files: Sequence[DicomFile]) -> tuple[str, ...]:
    """Return notes on what the files of a volume say, without any of the values, which identify a patient."""
    keys = ("PatientID", "FrameOfReferenceUID")
    differing = [key for key in keys if len({file.text(key) for file in files} - {""}) > 1]
    notes = []
    if differing:
        notes.append(
            f"{path}: its slices differ in {' and '.join(map(name_with_tag, differing))}, though they are of one "
            "series; they are read as one volume. Check that they belong together."
        )
    if any(TABLE in file.header for file in files):
        notes.append(
            f"{path}: the table of values in {name_with_tag(TABLE)} is not applied: values are taken as they are "
            "stored. If they must be comparable, such as Hounsfield units, convert the series with a tool that applies "
            "it."
        )
    return tuple(notes)


def _plane(file: DicomFile) -> tuple[np.ndarray, list[float]]:
    """Return the direction cosines (6,) of a slice's first and second axis, and its spacing along them, in mm."""
    return file.numbers(ORIENTATION, 6), file.numbers(PIXEL_SPACING, 2)[::-1].tolist()  # DICOM names rows first


def _check_alike(files: Sequence[DicomFile]) -> None:
    """Raise DataError unless all slices have the same size, pixel spacing and orientation."""
    spacing = np.stack([file.numbers(PIXEL_SPACING, 2) for file in files])
    for name, values, tolerance in (
        ("size (columns, rows, frames, components)", np.array([file.shape for file in files]), 0),
        ("pixel spacing in mm", spacing, 1e-3 * spacing.max()),
        ("orientation", np.stack([file.numbers(ORIENTATION, 6) for file in files]), COSINE_TOLERANCE),
    ):
        off = np.abs(values - values[0]).max(axis=1)
        odd = int(off.argmax())
        if off[odd] > tolerance:
            raise DataError(
                f"{files[odd].path}: its {name} is {values[odd].tolist()}, that of {files[0].path.name} "
                f"{values[0].tolist()}; expected the same for all slices of a volume. Move slices of other volumes, "
                "such as localizers, to another folder."
            )


def _read_pixels(file: DicomFile) -> np.ndarray:
    """Decode a file's pixels to (X, Y, Z) or (X, Y, Z, C) voxels, Z the frames.

    Raises:
        DataError: when they cannot be decoded, or do not match the header.
    """
    if file.is_compressed:
        check_encoded_file(file.path)
    with shown_plainly(file) as path:
        voxels = (decode if file.is_compressed else read_pixels)(path)
    if voxels.shape[:3] != file.shape[:3]:
        raise DataError(
            f"{file.path}: the pixels decode to {voxels.shape[:3]} columns, rows and frames; expected "
            f"{file.shape[:3]} as in the header. Copy or export it again."
        )
    return rescaled(file, voxels)


def _read_slices(files: Sequence[DicomFile]) -> np.ndarray:
    """Read slices of the same size in the given order, (X, Y, Z) or (X, Y, Z, C), in a type that holds them all."""
    data: Any = None
    for i, file in enumerate(files):
        # One by one: ITK's reader of series would round all to the first one's type, which depends on its slope.
        check_stored(file)
        pixels = _read_pixels(file)[:, :, 0]
        if data is None:
            data = np.empty((*pixels.shape[:2], len(files), *pixels.shape[2:]), pixels.dtype, order="F")
        data = data.astype(np.promote_types(data.dtype, pixels.dtype), copy=False)
        data[:, :, i] = pixels
    return data


def _check_frames_alike(file: DicomFile) -> None:
    """Raise DataError if frames differ in what is taken from the first one: orientation, spacing and rescaling."""
    tolerances = ((ORIENTATION, COSINE_TOLERANCE, 0), (PIXEL_SPACING, 0, 1e-3), (SLOPE, 0, 1e-6), (INTERCEPT, 0, 1e-6))
    for keyword, atol, rtol in tolerances:
        first, *others = file.by_frame(keyword)
        odd = next((v for v in others if len(v) != len(first) or not np.allclose(v, first, rtol, atol)), None)
        if odd is not None:
            raise DataError(
                f"{file.path}: the frames differ in {name_with_tag(keyword)}: {first.tolist()} and {odd.tolist()}; "
                "expected the same for all. Convert the file to NIfTI, with one file for each volume."
            )
