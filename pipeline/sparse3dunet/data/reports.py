"""Reports on a data set and its cases, as the check of all files makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.measurements import Measurements

SPACING_RATIO = 1.5
"""Ratio between the largest and the smallest spacing along an axis up to which voxel sizes count as the same."""


@dataclass
class CaseReport:
    """Report on one case; "by axis" means left-right, posterior-anterior, inferior-superior.

    Attributes:
        name: name of the case.
        errors: errors that make the case unusable; what could not be read because of them is left empty.
        warnings: kind and text of each warning.
        shape: voxels by axis.
        spacing: voxel size by axis, mm.
        dtypes: number types on disk of image and label.
        intensity: 0.5th and 99.5th percentile of the image.
        values: number of voxels by value of the label map.
        voxels: number of voxels of the volume.
        annotated: number of annotated voxels.
        class_counts: number of annotated voxels of each class.
        slices: annotated slices by plane; None if the annotation is not made of slices (scribbles, for example),
            empty lists if all voxels are annotated.
        measurements: further measurements, for a plan; None if a file could not be read.
        convention: what 0 means, if that was found by finished slices.
        looked_for: names of the classes that were looked for, without background; empty if all were.
    """

    name: str
    errors: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    dtypes: tuple[str, ...] = ()
    intensity: tuple[float, ...] = ()
    values: dict[float, int] = field(default_factory=dict)
    voxels: int = 0
    annotated: int = 0
    class_counts: list[int] = field(default_factory=list)
    slices: dict[str, list[int]] | None = None
    measurements: Measurements | None = field(default=None, repr=False)
    convention: str = ""
    looked_for: list[str] = field(default_factory=list)

    @property
    def is_dense(self) -> bool:
        """Whether every voxel is annotated."""
        return 0 < self.voxels == self.annotated


@dataclass
class DataReport:
    """Report on a data set.

    Attributes:
        data_set: the data set.
        cases: reports on the cases, in the data set's order.
        errors: errors of the data set as a whole; each makes it unusable.
        warnings: kind and text of each warning on the data set as a whole.
    """

    data_set: DataSet
    cases: list[CaseReport]
    errors: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def all_errors(self) -> list[str]:
        """Errors of all cases and of the data set."""
        return [error for case in self.cases for error in case.errors] + self.errors

    @property
    def class_counts(self) -> list[int]:
        """Number of annotated voxels of each class in the whole data set."""
        counts = [case.class_counts for case in self.cases if case.class_counts]
        return [sum(column) for column in zip(*counts)] if counts else [0] * len(self.data_set.class_names)

    @property
    def spacings_agree(self) -> bool:
        """Whether all cases have about the same voxel size along each axis; cases that were not read do not count."""
        spacings = np.array([case.spacing for case in self.cases if case.spacing] or [(1, 1, 1)])
        return bool((spacings.max(axis=0) <= SPACING_RATIO * spacings.min(axis=0)).all())

    @property
    def memory(self) -> int:
        """Bytes of all volumes as kept for training: image, label, weight, and indices of annotated voxels."""
        bytes_per_voxel = 4 * max(self.data_set.num_channels, 1) + 2 + 4
        return sum(case.voxels * bytes_per_voxel + 8 * case.annotated for case in self.cases)

    def warning_lines(self) -> list[str]:
        """Return all warnings; of a kind that several cases share, the first, with the number of the others."""
        by_kind: dict[str, list[str]] = {}
        for kind, text in [w for case in self.cases for w in case.warnings] + self.warnings:
            by_kind.setdefault(kind, []).append(text)
        return [
            texts[0] + (f" The same in {len(texts) - 1} more case(s)." if len(texts) > 1 else "")
            for texts in by_kind.values()
        ]
