"""Fingerprint of a data set: what a plan depends on, measured in its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse3dunet.data.measurements import Measurements
from sparse3dunet.data.reports import DataReport
from sparse3dunet.transforms.normalize import is_intensity

CT, OTHER = "CT", "other"
AIR = (-3100.0, -500.0)
"""Range of the darkest voxels' intensities in Hounsfield units: air, or what scanners write outside of their circle."""
SIDE = re.compile(r"(^|[\W_])(left|right|l|r|lh|rh)([\W_]|$)", re.IGNORECASE)
"""Names of classes of one side, such as "left kidney" or "kidney_l"."""
SIDEWAYS = 2.0
"""How much farther two classes must lie apart left to right than along other axes to be each other's mirror image."""


@dataclass(frozen=True)
class Fingerprint:
    """What a plan depends on; lengths by axis: left-right, posterior-anterior, inferior-superior.

    Attributes:
        cases: number of cases.
        shape: 90th percentile of the volumes' voxels.
        extent: 90th percentile of the volumes' lengths, mm.
        spacing: median voxel size, mm.
        spacing_range: smallest and largest voxel size, mm.
        modality: "CT" if declared so, or if the images are in Hounsfield units; "other" otherwise.
        intensity: ``lower`` and ``upper`` (0.5th and 99.5th percentile), ``mean`` and ``std`` of annotated foreground
            voxels of all cases, first channel; None without such voxels, or if all have one intensity.
        class_names: names of the classes.
        class_voxels: number of annotated voxels of each class.
        class_cases: number of cases that show each class.
        slices: number of annotated slices by plane; empty if the annotation is dense or not made of slices.
        lateral: names of the classes that differ by side: pairs that mirror each other in every case, or so named.
    """

    cases: int
    shape: tuple[float, ...]
    extent: tuple[float, ...]
    spacing: tuple[float, ...]
    spacing_range: tuple[tuple[float, ...], tuple[float, ...]]
    modality: str
    intensity: dict[str, float] | None
    class_names: tuple[str, ...]
    class_voxels: tuple[int, ...]
    class_cases: tuple[int, ...]
    slices: dict[str, int]
    lateral: tuple[str, ...]


def fingerprint(report: DataReport) -> Fingerprint:
    """Summarise the report on a data set whose files were all read without error."""
    shapes, spacings = (np.array([getattr(case, name) for case in report.cases]) for name in ("shape", "spacing"))
    measured = [case.measurements for case in report.cases if case.measurements is not None]
    names = report.data_set.class_names
    shown = np.array([case.class_counts for case in report.cases]) > 0
    return Fingerprint(
        cases=len(report.cases),
        shape=_rounded(np.percentile(shapes, 90, axis=0)),
        extent=_rounded(np.percentile(shapes * spacings, 90, axis=0)),
        spacing=_rounded(np.median(spacings, axis=0)),
        spacing_range=(_rounded(spacings.min(axis=0)), _rounded(spacings.max(axis=0))),
        modality=_modality(report),
        intensity=_intensity(measured),
        class_names=tuple(names),
        class_voxels=tuple(report.class_counts),
        class_cases=tuple(int(n) for n in shown.sum(axis=0)),
        slices=_slices(report),
        lateral=lateral_classes(names, measured),
    )


def lateral_classes(names: Sequence[str], measured: Sequence[Measurements]) -> tuple[str, ...]:
    """Return the foreground classes that differ by side, which a left-right flip would confuse.

    Such are pairs that lie left and right of each other in every case that shows both, apart from each other, and
    little displaced along the other axes; and classes so named.

    Args:
        names: names of the classes, background first.
        measured: measurements of each case.
    """
    found = {name for name in names[1:] if SIDE.search(name)}
    for first in range(1, len(names)):
        for second in range(first + 1, len(names)):
            if _mirrored(measured, first, second):
                found |= {names[first], names[second]}
    return tuple(name for name in names if name in found)


def _mirrored(measured: Sequence[Measurements], first: int, second: int) -> bool:
    apart = np.array([case.centers[first] - case.centers[second] for case in measured])
    wide = np.array([case.spreads[first] + case.spreads[second] for case in measured])
    shown = np.isfinite(apart).all(axis=1) if len(apart) else np.zeros(0, bool)
    if not shown.any():
        return False
    apart, wide = apart[shown], wide[shown]
    same_side = (np.sign(apart[:, 0]) == np.sign(apart[0, 0])).all()
    sideways = np.abs(apart[:, 0]) > SIDEWAYS * np.abs(apart[:, 1:]).max(axis=1)
    return bool(same_side and (sideways & (np.abs(apart[:, 0]) > wide[:, 0])).all())


def _modality(report: DataReport) -> str:
    declared = report.data_set.modalities
    if declared:
        return CT if all(name.strip().upper() == CT for name in declared) else OTHER
    darkest = [case.intensity[0] for case in report.cases if case.intensity]
    is_air = bool(darkest) and AIR[0] < float(np.median(darkest)) < AIR[1]
    return CT if is_air and report.data_set.num_channels == 1 else OTHER


def _intensity(measured: Sequence[Measurements]) -> dict[str, float] | None:
    values = np.concatenate([case.foreground for case in measured] or [np.zeros(0, np.float32)])
    if not len(values):
        return None
    lower, upper = np.percentile(values, (0.5, 99.5))
    found = {"lower": lower, "upper": upper, "mean": values.mean(), "std": values.std()}
    intensity = {name: float(f"{value:.6g}") for name, value in found.items()}
    return intensity if is_intensity(intensity) else None


def _slices(report: DataReport) -> dict[str, int]:
    counts: dict[str, int] = {}
    for case in report.cases:
        for plane, indices in (case.slices or {}).items():
            counts[plane] = counts.get(plane, 0) + len(indices)
    return {plane: count for plane, count in counts.items() if count}


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in values)  # also of voxels of nanometres
