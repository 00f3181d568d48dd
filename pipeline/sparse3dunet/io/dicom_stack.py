"""Slices of a DICOM volume, sorted along their normal, and checks that they are a rectangular grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.grid import ras_affine
from sparse3dunet.io.volumes import AFFINE_TOLERANCE

LARGEST_UNEVENNESS = 0.02
"""Share of the mean distance by which distances of slices may differ, if their positions stay close to even ones."""


def slice_axes(orientation: np.ndarray) -> np.ndarray:
    """Return the directions (3, 3), LPS as columns, of columns, rows and slices from direction cosines (6,).

    Raises:
        ValueError: when these are not of two orthogonal directions.
    """
    first = orientation[:3] / max(float(np.linalg.norm(orientation[:3])), 1e-12)
    normal = np.cross(first, orientation[3:])
    if not abs(np.linalg.norm(normal) - 1) < 0.01:
        raise ValueError("not orthogonal")
    normal /= np.linalg.norm(normal)
    return np.column_stack([first, np.cross(normal, first), normal])


def stack(
    names: Sequence[Path], positions: np.ndarray, orientation: np.ndarray, spacing: Sequence[float], where: str = ""
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Sort slices along their normal.

    Args:
        names: names of N slices, for messages.
        positions: (N, 3) positions of each slice's first voxel, LPS in mm.
        orientation: (6,) direction cosines of a slice's first and second axis.
        spacing: voxel size along these, in mm.
        where: prefix of messages.

    Returns:
        Order of the slices, affine (4, 4) of the volume, RAS, and notes on what was accepted.

    Raises:
        DataError: when a slice is missing or duplicated, or the stack is sheared.
    """
    try:
        axes = slice_axes(orientation)
    except ValueError:
        raise DataError(
            f"{where}{names[0]}: the orientation is {orientation.tolist()}; expected the cosines of two orthogonal "
            "directions. Export the series again."
        ) from None
    normal = axes[:, 2]
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    names, positions, heights = [names[i] for i in order], positions[order], heights[order]
    notes = _check_gaps(names, heights, where)
    _check_upright(names, positions - positions[0], normal, min(spacing), where)
    gap = (heights[-1] - heights[0]) / (len(names) - 1)
    return order, ras_affine(positions[0], [*spacing, gap], axes), notes


def _check_gaps(names: Sequence[Path], heights: np.ndarray, where: str) -> tuple[str, ...]:
    """Check that the ascending heights of slices, in mm, are evenly spaced; return a note if only nearly.

    Raises:
        DataError: when they are not.
    """
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
    even = np.linspace(heights[0], heights[-1], len(heights))
    off = float(np.abs(heights - even).max())
    tolerance = max(0.01 * usual, min(0.01, 0.25 * usual))
    if abs(gaps[odd] - usual) <= tolerance:
        return ()
    mean = float(gaps.mean())  # where they alternate, the median is one of the two
    if np.abs(gaps - mean).max() <= LARGEST_UNEVENNESS * mean * (1 + 1e-6) and off <= AFFINE_TOLERANCE * mean:
        return (
            f"{where}{names[0].parent if not where else 'frames'}: the slices are {gaps.min():.3f} to "
            f"{gaps.max():.3f} mm apart; they count as evenly spaced, and are at most {off:.3f} mm off.",
        )
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
