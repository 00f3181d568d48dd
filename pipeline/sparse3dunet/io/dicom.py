"""DICOM series and multi-frame files as volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_header import (
    INTERCEPT,
    ORIENTATION,
    PIXEL_SPACING,
    POSITION,
    SLOPE,
    DicomFile,
    decimals,
    is_dicom_file,
    name_with_tag,
    read_header,
)
from sparse3dunet.io.grid import ras_affine
from sparse3dunet.io.itk import itk_affine, itk_array, itk_read, itk_reader
from sparse3dunet.io.volumes import AFFINE_TOLERANCE, Volume, check_affine

COSINE_TOLERANCE = 1e-3
"""Maximum difference of direction cosines within a volume, from the rounding of decimal strings."""


@dataclass(frozen=True)
class DicomSeries:
    """Files of a folder that share a SeriesInstanceUID, sorted by name."""

    uid: str
    files: tuple[DicomFile, ...]

    def __str__(self) -> str:
        # Not the description, in which some write the patient's name: messages are kept in files
        first, slices = self.files[0], sum(file.shape[2] for file in self.files)
        number = f"number {first.text('SeriesNumber')}, " if first.text("SeriesNumber").isdecimal() else ""
        kind = first.text("Modality")
        kind = kind if re.fullmatch(r"[A-Z]{2,16}", kind) else "unknown modality"
        return f"{self.uid or 'without UID'} ({number}{kind}, {slices} slice(s))"


def is_dicom_folder(path: str | Path) -> bool:
    """Return whether a folder contains a DICOM file, by the first bytes of its files; sub-folders are ignored."""
    folder = Path(path)
    return folder.is_dir() and any(is_dicom_file(file) for file in folder.iterdir())


def dicom_series(path: str | Path) -> list[DicomSeries]:
    """Return the series in a folder without sub-folders; files other than DICOM, and a DICOMDIR, are ignored.

    Raises:
        DataError: when one of the DICOM files contains no readable image.
    """
    by_uid: dict[str, list[DicomFile]] = {}
    for file in map(read_header, filter(is_dicom_file, sorted(Path(path).iterdir()))):
        by_uid.setdefault(file.text("SeriesInstanceUID"), []).append(file)
    return [DicomSeries(uid, tuple(files)) for uid, files in by_uid.items()]


def read_dicom_folder(path: str | Path) -> Volume:
    """Read the one series in a folder, slices sorted by their positions, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Raises:
        DataError: unless the folder contains exactly one series, with equal, aligned and evenly spaced slices.
    """
    series = dicom_series(path)
    if not series:
        raise DataError(f"{path}: a folder without DICOM files; expected an image, or a DICOM series.{_inside(path)}")
    if len(series) > 1:
        raise DataError(
            f"{path}: found {len(series)} DICOM series: {'; '.join(map(str, series))}; expected one. Move each one to "
            "its own folder, and pass that of the volume."
        )
    files = series[0].files
    if len(files) == 1:
        return read_dicom_file(files[0].path)
    _check_alike(files)
    if files[0].shape[2] > 1:
        raise DataError(
            f"{path}: found {len(files)} files of {files[0].shape[2]} frames each, so several volumes; expected one. "
            "Pass one of the files."
        )
    order, affine = _stack(
        [file.path for file in files],
        np.stack([file.numbers(POSITION, 3) for file in files]),
        *_plane(files[0]),
    )
    check_affine(path, affine)
    return Volume(str(path), _read_slices([files[i] for i in order]), affine)


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
    _check_frames_alike(file)
    image = _read_image(file)
    data, affine = itk_array(image), itk_affine(image)
    positions = [position for position in file.by_frame(POSITION) if len(position) == 3]
    if len(positions) == num_frames:  # GDCM takes them for ascending and even
        names = [Path(f"frame {i + 1}") for i in range(num_frames)]
        order, affine = _stack(names, np.array(positions), *_plane(file), f"{path}: ")
        data = data if (np.diff(order) == 1).all() else data[:, :, order]
    elif not len(decimals(file.header, "SpacingBetweenSlices")):
        raise DataError(
            f"{path}: {len(positions)} of {num_frames} frames have a position ({name_with_tag(POSITION)}); expected a "
            "position for each frame. Convert the file to NIfTI, and set its voxel size."
        )
    check_affine(path, affine)
    return Volume(str(path), data, affine)


def _plane(file: DicomFile) -> tuple[np.ndarray, list[float]]:
    """Return the direction cosines (6,) of a slice's first and second axis, and its spacing along them, in mm."""
    return file.numbers(ORIENTATION, 6), file.numbers(PIXEL_SPACING, 2)[::-1].tolist()  # DICOM names rows first


def _inside(path: str | Path) -> str:
    """Return a hint at the sub-folders that contain DICOM files."""
    folders = [folder.name for folder in sorted(Path(path).iterdir()) if is_dicom_folder(folder)]
    return f" Pass one of its folders: {', '.join(folders[:10])}." if folders else " Check for a mix-up of folders."


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


def _stack(
    names: Sequence[Path], positions: np.ndarray, orientation: np.ndarray, spacing: Sequence[float], where: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Sort slices along their normal.

    Args:
        names: names of N slices, for messages.
        positions: (N, 3) positions of each slice's first voxel, LPS in mm.
        orientation: (6,) direction cosines of a slice's first and second axis.
        spacing: voxel size along these, in mm.
        where: prefix of messages.

    Returns:
        Order of the slices, and affine (4, 4) of the volume, RAS.

    Raises:
        DataError: when a slice is missing or duplicated, or the stack is sheared.
    """
    first = orientation[:3] / max(float(np.linalg.norm(orientation[:3])), 1e-12)
    normal = np.cross(first, orientation[3:])
    if not abs(np.linalg.norm(normal) - 1) < 0.01:
        raise DataError(
            f"{where}{names[0]}: the orientation is {orientation.tolist()}; expected the cosines of two orthogonal "
            "directions. Export the series again."
        )
    normal /= np.linalg.norm(normal)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    names, positions, heights = [names[i] for i in order], positions[order], heights[order]
    _check_gaps(names, heights, where)
    _check_upright(names, positions - positions[0], normal, min(spacing), where)
    gap = (heights[-1] - heights[0]) / (len(names) - 1)
    axes = np.column_stack([first, np.cross(normal, first), normal])
    return order, ras_affine(positions[0], [*spacing, gap], axes)


def _check_gaps(names: Sequence[Path], heights: np.ndarray, where: str) -> None:
    """Raise DataError unless the ascending heights of slices, in mm, are evenly spaced."""
    gaps = np.diff(heights)
    narrow = int(gaps.argmin())
    if gaps[narrow] <= 0.01 * gaps.max():
        raise DataError(
            f"{where}{names[narrow]} and {names[narrow + 1].name} are at the same position, {heights[narrow]:.3f} mm "
            "along the slices' normal; expected one slice at each. Remove the duplicate, or move each of several "
            "volumes (time points, echoes, phases) to its own folder."
        )
    usual = float(np.median(gaps))
    odd = int(np.abs(gaps - usual).argmax())
    if abs(gaps[odd] - usual) > max(0.01 * usual, min(0.01, 0.25 * usual)):
        raise DataError(
            f"{where}{names[odd]} and {names[odd + 1].name} are {gaps[odd]:.3f} mm apart, other slices "
            f"{usual:.3f} mm; expected equal distances. "
            + ("A slice is missing: copy" if gaps[odd] > 1.5 * usual else "Copy")
            + " or export the series again, or resample it to even slices."
        )


def _check_upright(names: Sequence[Path], offsets: np.ndarray, normal: np.ndarray, pixel: float, where: str) -> None:
    """Raise DataError if slices are shifted sideways: a tilted gantry, which would give a sheared volume.

    Args:
        names: names of the slices, for messages.
        offsets: (N, 3) offsets from the first slice, in mm.
        normal: normal of the slices.
        pixel: spacing to which the shift is compared, in mm.
        where: prefix of messages.
    """
    drift = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    worst = int(drift.argmax())
    if drift[worst] > AFFINE_TOLERANCE * pixel + 1e-6:
        angle = np.degrees(np.arctan2(drift[worst], offsets[worst] @ normal))
        raise DataError(
            f"{where}{names[worst]} is {drift[worst]:.2f} mm off the normal of the slices through {names[0].name}: the "
            f"stack is tilted by {angle:.2f} degrees (gantry tilt); expected a rectangular volume. Convert the series "
            "with a tool that corrects the tilt, such as dcm2niix, and use its result."
        )


def _read_image(file: DicomFile) -> sitk.Image:
    """Decode a file's pixels.

    Raises:
        DataError: when they cannot be decoded, or do not match the header.
    """
    image = itk_read(itk_reader(file.path, "GDCMImageIO"), file.path)
    if image.GetSize() != file.shape[:3]:
        raise DataError(
            f"{file.path}: the pixels decode to {image.GetSize()} columns, rows and frames; expected {file.shape[:3]} "
            "as in the header. Copy or export it again."
        )
    return image


def _read_slices(files: Sequence[DicomFile]) -> np.ndarray:
    """Read slices of the same size in the given order, (X, Y, Z) or (X, Y, Z, C), in a type that holds them all."""
    data: Any = None
    for i, file in enumerate(files):
        # One by one: ITK's reader of series would round all to the first one's type, which depends on its slope.
        pixels = itk_array(_read_image(file))[:, :, 0]
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
