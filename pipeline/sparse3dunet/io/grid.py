"""Conversion of grids between NIfTI (affine to RAS) and ITK and DICOM (origin, spacing and directions, LPS)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
SHEAR_TOLERANCE = 1e-4
"""Cosine between two axes of a grid up to which they count as orthogonal."""


def ras_affine(origin: Sequence[float] | np.ndarray, spacing: Sequence[float], axes: np.ndarray) -> np.ndarray:
    """Return the affine (4, 4) to RAS of a grid in LPS: origin and spacing in mm, axis directions as columns."""
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spacing)
    affine[:3, 3] = origin
    return _turned(affine)


def lps_geometry(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return origin, spacing and directions (columns) of a grid without shear: the inverse of :func:`ras_affine`."""
    lps = _turned(affine)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3], spacing, lps[:3, :3] / spacing


def shear(affine: np.ndarray) -> float:
    """Return the largest cosine between two axes of a grid."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _turned(affine: np.ndarray) -> np.ndarray:
    """Convert from RAS to LPS, or back, without negative zeros, which look odd in headers."""
    return LPS_TO_RAS @ affine + 0.0
