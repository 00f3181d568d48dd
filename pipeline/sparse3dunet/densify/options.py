"""Options of a densification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse3dunet.densify.schedule import AUTO, check_minutes, number_of_folds
from sparse3dunet.errors import DataError
from sparse3dunet.io.suffixes import format_suffix


@dataclass(frozen=True)
class Options:
    """Options of a densification; each is a setting of ``densify.yaml``.

    Attributes:
        output_dir: folder of all results.
        minutes: duration of the whole run.
        folds: see :func:`~sparse3dunet.densify.schedule.number_of_folds`.
        seed: random seed.
        device: device of the network.
        restart: whether to ignore what a former run in the folder learned.
        keep_annotation: whether annotated voxels keep their label in the results.
        suggestions: number of slices of each plane to suggest for annotation.
        format: format of the results, one of OUTPUT_SUFFIXES; None: that of each image.
        probabilities: whether to keep the probabilities of all classes in ``work/probabilities``.
        surface_tolerance: tolerance of the surface Dice, see
            :func:`~sparse3dunet.metrics.tolerance.surface_tolerances`; only for cases with a dense label.
        own_spacing: whether the voxel size was not set by the user, so that a former model's is used.
    """

    output_dir: str | Path
    minutes: float
    folds: int | str = AUTO
    seed: int = 0
    device: Any = "cpu"
    restart: bool = False
    keep_annotation: bool = True
    suggestions: int = 3
    format: str | None = None
    surface_tolerance: Any = AUTO
    own_spacing: bool = True
    probabilities: bool = False

    def __post_init__(self) -> None:
        check_minutes(self.minutes)
        number_of_folds(self.folds)
        if not isinstance(self.suggestions, int) or self.suggestions < 0:
            raise DataError(f"suggestions must be a number of slices, 0 or more; got {self.suggestions!r}.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise DataError(f"seed must be a whole number from 0 to {2**32 - 1}; got {self.seed!r}.")
        format_suffix(self.format)
