"""DICOM series and multi-frame files as volumes."""

from __future__ import annotations

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
"""By which directions of slices may differ that belong to one volume: the rounding of decimal strings."""


@dataclass(frozen=True)
class DicomSeries:
    """The files of a folder that share a SeriesInstanceUID, by name."""

    uid: str
    files: tuple[DicomFile, ...]

    def __str__(self) -> str:
        first, slices = self.files[0], sum(file.shape[2] for file in self.files)
        return (
            f'"{first.text("SeriesDescription")}" ({first.text("Modality") or "unknown modality"}, {slices} slice(s))'
        )


def is_dicom_folder(path: str | Path) -> bool:
    """Whether a folder holds a DICOM file, by the first bytes of its files alone; sub-folders do not count."""
    folder = Path(path)
    return folder.is_dir() and any(is_dicom_file(file) for file in folder.iterdir())


def dicom_series(path: str | Path) -> list[DicomSeries]:
    """The series in a folder, without its sub-folders; other files than DICOM's, and a DICOMDIR, are passed over.

    Raises:
        DataError: when one of the DICOM files holds no image that can be read.
    """
    by_uid: dict[str, list[DicomFile]] = {}
    for file in map(read_header, filter(is_dicom_file, sorted(Path(path).iterdir()))):
        by_uid.setdefault(file.text("SeriesInstanceUID"), []).append(file)
    return [DicomSeries(uid, tuple(files)) for uid, files in by_uid.items()]


def read_dicom_folder(path: str | Path) -> Volume:
    """Read the one series in a folder, slices sorted by their positions, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Raises:
        DataError: unless the folder holds exactly one series, whose slices are alike, upright and evenly spaced.
    """
    series = dicom_series(path)
    if not series:
        raise DataError(f"{path}: a folder without DICOM files; expected an image, or a DICOM series.{_inside(path)}")
    if len(series) > 1:
        raise DataError(
            f"{path}: holds {len(series)} DICOM series: {'; '.join(map(str, series))}; expected one. Move each one to "
            "a folder of its own, and pass that of the volume."
        )
    files = series[0].files
    if len(files) == 1:
        return read_dicom_file(files[0].path)
    _check_alike(files)
    if files[0].shape[2] > 1:
        raise DataError(
            f"{path}: holds {len(files)} files of {files[0].shape[2]} frames each, so several volumes; expected one. "
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
        DataError: when the file is a single slice, or does not say where its frames lie, or they are no even stack.
    """
    file = read_header(Path(path))
    num_frames = file.shape[2]
    if num_frames == 1:
        raise DataError(
            f"{path}: holds one slice, which is no volume; expected a multi-frame file, or all slices of a series in "
            "one folder. Pass the folder that holds them all."
        )
    _check_frames_alike(file)
    image = _read_image(file)
    data, affine = itk_array(image), itk_affine(image)
    positions = [position for position in file.by_frame(POSITION) if len(position) == 3]
    if len(positions) == num_frames:  # which GDCM takes for ascending and even
        names = [Path(f"frame {i + 1}") for i in range(num_frames)]
        order, affine = _stack(names, np.array(positions), *_plane(file), f"{path}: ")
        data = data if (np.diff(order) == 1).all() else data[:, :, order]
    elif not len(decimals(file.header, "SpacingBetweenSlices")):
        raise DataError(
            f"{path}: holds {num_frames} frames, of which {len(positions)} say where they lie "
            f"({name_with_tag(POSITION)}); expected a position for each frame. Convert the file to NIfTI, and set its "
            "voxel size."
        )
    check_affine(path, affine)
    return Volume(str(path), data, affine)


def _plane(file: DicomFile) -> tuple[np.ndarray, list[float]]:
    """The direction cosines (6,) of a slice's first axis and of its second, and its spacing along these, in mm."""
    return file.numbers(ORIENTATION, 6), file.numbers(PIXEL_SPACING, 2)[::-1].tolist()  # DICOM names rows first


def _inside(path: str | Path) -> str:
    """A hint at the sub-folders that hold DICOM files."""
    folders = [folder.name for folder in sorted(Path(path).iterdir()) if is_dicom_folder(folder)]
    return f" Pass one of its folders: {', '.join(folders[:10])}." if folders else " Look for a mix-up of folders."


def _check_alike(files: Sequence[DicomFile]) -> None:
    """Raise DataError unless all slices have one size, pixel spacing and orientation."""
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
                f"{values[0].tolist()}; expected one for all slices of a volume. Move slices of other volumes, such as "
                "localizers, to a folder of their own."
            )


def _stack(
    names: Sequence[Path], positions: np.ndarray, orientation: np.ndarray, spacing: Sequence[float], where: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Sort slices along their normal.

    Args:
        names: of N slices, for messages.
        positions: (N, 3), of each slice's first voxel, LPS in mm.
        orientation: (6,) direction cosines of a slice's first axis and of its second.
        spacing: of the voxels along these, in mm.
        where: put before messages.

    Returns:
        The slices' order, and the affine (4, 4) of the volume they make, RAS.

    Raises:
        DataError: when a slice is missing or double, or the stack is sheared.
    """
    first = orientation[:3] / max(float(np.linalg.norm(orientation[:3])), 1e-12)
    normal = np.cross(first, orientation[3:])
    if not abs(np.linalg.norm(normal) - 1) < 0.01:
        raise DataError(
            f"{where}{names[0]}: its orientation is {orientation.tolist()}, expected the cosines of two orthogonal "
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
            f"{where}{names[narrow]} and {names[narrow + 1].name} lie at one position, {heights[narrow]:.3f} mm along "
            "the slices' normal; expected one slice at each. Remove the double, or move each of several volumes (time "
            "points, echoes, phases) to a folder of its own."
        )
    usual = float(np.median(gaps))
    odd = int(np.abs(gaps - usual).argmax())
    if abs(gaps[odd] - usual) > max(0.01 * usual, min(0.01, 0.25 * usual)):
        raise DataError(
            f"{where}{names[odd]} and {names[odd + 1].name} lie {gaps[odd]:.3f} mm apart, slices elsewhere "
            f"{usual:.3f} mm; expected one distance throughout. "
            + ("A slice is missing: copy" if gaps[odd] > 1.5 * usual else "Copy")
            + " or export the series again, or resample it to even slices."
        )


def _check_upright(names: Sequence[Path], offsets: np.ndarray, normal: np.ndarray, pixel: float, where: str) -> None:
    """Raise DataError where slices drift sidewards: a tilted gantry, by which a volume would be sheared.

    Args:
        names: of the slices, for messages.
        offsets: (N, 3) from the first slice, in mm.
        normal: of the slices.
        pixel: the spacing that the drift is measured by, in mm.
        where: put before messages.
    """
    drift = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    worst = int(drift.argmax())
    if drift[worst] > AFFINE_TOLERANCE * pixel + 1e-6:
        angle = np.degrees(np.arctan2(drift[worst], offsets[worst] @ normal))
        raise DataError(
            f"{where}{names[worst]} lies {drift[worst]:.2f} mm beside the line through {names[0].name} that is upright "
            f"on the slices: the stack is tilted by {angle:.2f} degrees (gantry tilt); expected a rectangular volume. "
            "Convert the series with a tool that corrects the tilt (dcm2niix does), and use its result."
        )


def _read_image(file: DicomFile) -> sitk.Image:
    """Decode a file's pixels.

    Raises:
        DataError: when they cannot be decoded, or do not make what the header says.
    """
    image = itk_read(itk_reader(file.path, "GDCMImageIO"), file.path)
    if image.GetSize() != file.shape[:3]:
        raise DataError(
            f"{file.path}: its pixels decode to {image.GetSize()} columns, rows and frames, expected {file.shape[:3]} "
            "by its header. Copy or export it again."
        )
    return image


def _read_slices(files: Sequence[DicomFile]) -> np.ndarray:
    """Slices of one size in the given order, (X, Y, Z) or (X, Y, Z, C), in a type that holds all of theirs."""
    data: Any = None
    for i, file in enumerate(files):
        # One by one: ITK's reader of series would round all to the first one's type, which goes by its slope.
        pixels = itk_array(_read_image(file))[:, :, 0]
        if data is None:
            data = np.empty((*pixels.shape[:2], len(files), *pixels.shape[2:]), pixels.dtype, order="F")
        data = data.astype(np.promote_types(data.dtype, pixels.dtype), copy=False)
        data[:, :, i] = pixels
    return data


def _check_frames_alike(file: DicomFile) -> None:
    """Raise DataError where frames differ in what is taken from the first one: orientation, spacing and rescaling."""
    tolerances = ((ORIENTATION, COSINE_TOLERANCE, 0), (PIXEL_SPACING, 0, 1e-3), (SLOPE, 0, 1e-6), (INTERCEPT, 0, 1e-6))
    for keyword, atol, rtol in tolerances:
        first, *others = file.by_frame(keyword)
        odd = next((v for v in others if len(v) != len(first) or not np.allclose(v, first, rtol, atol)), None)
        if odd is not None:
            raise DataError(
                f"{file.path}: its frames differ in {name_with_tag(keyword)}: {first.tolist()} and {odd.tolist()}; "
                "expected one for all. Convert the file to NIfTI, a file for each volume."
            )
