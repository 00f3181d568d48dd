"""Settings that depend on the data or the device, or must fit them: voxel size, weights of cases, workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch

from sparse3dunet.data.cutting import has_parts
from sparse3dunet.data.datalist import Case, DataSet
from sparse3dunet.data.finished import FINISHED
from sparse3dunet.data.memory import machine_memory
from sparse3dunet.data.names import case_name
from sparse3dunet.data.partial_labels import never_looked_for
from sparse3dunet.data.reports import DataReport
from sparse3dunet.data.slices import ALL
from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_CLASSES
from sparse3dunet.losses.regions import Regions
from sparse3dunet.metrics import tolerance
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.description_checks import is_number
from sparse3dunet.networks import UNet3D
from sparse3dunet.planning.checks import check_patch_voxels
from sparse3dunet.planning.plan import planned_spacing
from sparse3dunet.planning.sampling import draw_shares
from sparse3dunet.training.budget import check_minutes, is_finite

CHANNEL_BYTES, GRID_BYTES = 4, 24
"""Bytes of a voxel in memory: of a channel, a label map or a weight, and of its coordinates while one is resampled."""
FEWEST = 8
"""Minimum voxels along a resampled volume's longest axis."""
CACHED = 1 / 8
"""Share of the machine's memory for parts of larger volumes that are kept."""


def target_spacing(
    report: DataReport,
    spacing: Any,
    plan: str | Path | None = None,
    minutes: float | None = None,
    patch_voxels: float = 64**3,
) -> list[float] | None:
    """Return the spacing in mm to resample to, by axis (left-right, posterior-anterior, inferior-superior).

    Args:
        report: report on the data set.
        spacing: None not to resample; three sizes; "median" for the median of the cases' spacings; or "auto", see
            :func:`~sparse3dunet.planning.plan.planned_spacing`.
        plan: a plan's file; None for none.
        minutes: duration of the training; None if it is not limited.
        patch_voxels: number of voxels that a patch may have.

    Raises:
        DataError: when `spacing` is none of these, `minutes` no number above 0, or a volume would not fit into memory.
    """
    check_minutes(minutes)
    check_patch_voxels(patch_voxels)
    spacing = planned_spacing(report, spacing, plan, minutes, patch_voxels)
    if spacing is None:
        return None
    if spacing == "median":
        return [float(s) for s in np.median([case.spacing for case in report.cases], axis=0)]
    sizes = spacing if isinstance(spacing, (list, tuple)) else []
    if len(sizes) != 3 or not all(isinstance(s, (int, float)) and 0 < s < np.inf for s in sizes):
        raise DataError(f'spacing must be three sizes in mm (--spacing "[1,1,1]"), median or auto; found {spacing!r}.')
    _check_sizes(report, sizes)
    return [float(s) for s in sizes]


def _check_sizes(report: DataReport, spacing: Sequence[float]) -> None:
    """Raise DataError if a volume would not fit into memory with voxels of this size, or hardly be there."""
    memory, channels = machine_memory(), max(report.data_set.num_channels, 1)
    shown = ",".join(f"{size:g}" for size in spacing)
    for case in report.cases:
        shape = np.array(case.shape, float) * case.spacing / spacing
        needed = (CHANNEL_BYTES * (channels + 2) + GRID_BYTES) * float(np.prod(shape))
        if memory and needed > memory:  # the system would end the run
            raise DataError(
                f"--spacing {shown}: {case.name} would have {np.prod(shape):.3g} voxels, and take "
                f"{needed / 2**30:,.3g} GiB of the machine's {memory / 2**30:,.3g} GiB of memory. Pass larger sizes in "
                "mm, or auto."
            )
        if max(shape) < min(FEWEST, max(case.shape)):
            voxels = " x ".join(str(max(round(n), 1)) for n in shape)
            raise DataError(
                f"--spacing {shown}: {case.name} would have {voxels} voxels; its own are "
                f"{' x '.join(f'{size:g}' for size in case.spacing)} mm. Pass smaller sizes in mm, or auto."
            )


def surface_tolerances(
    setting: Any, class_names: Sequence[str], report: DataReport, spacing: Sequence[float] | None
) -> list[float]:
    """Return the tolerance of the surface Dice in mm by class.

    Args:
        setting: see :func:`~sparse3dunet.metrics.tolerance.surface_tolerances`.
        class_names: names of the classes, or of the regions, background first.
        report: report on the data set.
        spacing: voxel size in mm that volumes are resampled to; None: they are not.
    """
    spacings = [case.spacing for case in report.cases] if spacing is None else [spacing]
    return tolerance.surface_tolerances(setting, class_names, spacings)


def cache_rate(report: DataReport) -> float:
    """Return the share of the cases to keep in memory: all; of parts of larger volumes, as many as have room."""
    memory = machine_memory()
    if not has_parts(report.data_set.cases) or not memory:
        return 1.0
    return float(min(1.0, CACHED * memory / max(report.memory, 1)))


def case_weights(
    report: DataReport, cases: Sequence[Case], case_balance: float = 0.0, class_balance: float = 0.0
) -> list[float]:
    """Return how likely each of `cases` is drawn for a training patch, up to a common factor.

    Args:
        report: report on a data set that includes the cases.
        cases: cases to draw from.
        case_balance: 0 to draw all cases equally often, however much of each is annotated; 1 in proportion to the
            annotated voxels, so that a case with twice as many is drawn twice as often; in between, their power.
        class_balance: probability with which a class is drawn first, each equally often, and then a case that shows it.

    Raises:
        DataError: when `case_balance` is not in [0, 1].
    """
    if not isinstance(case_balance, (int, float)) or not 0 <= case_balance <= 1:
        raise DataError(
            f"case_balance must be from 0 (cases equally often) to 1 (by annotated voxels), got {case_balance}."
        )
    by_name = {case.name: case for case in report.cases}
    chosen = [by_name[case_name(case)] for case in cases]
    weights = [float(case.annotated) ** case_balance for case in chosen]
    if not class_balance:
        return weights
    return draw_shares([case.class_counts for case in chosen], weights, class_balance).tolist()


def slices_of_cases(dataset_dir: str | Path | None, annotated_slices: Any) -> Any:
    """Return which slices of a case are annotated if it does not say so itself.

    Of cases that another tool lists, as MONAI Label does, these are the finished slices (docs/annotations.md): such
    tools store 0 both for background and for what nobody has looked at.

    Args:
        dataset_dir: the data set; None if another tool lists the cases.
        annotated_slices: the setting.
    """
    return FINISHED if dataset_dir is None and annotated_slices in (None, ALL) else annotated_slices


def slices_of_model(model: ModelDescription) -> Any:
    """Return the annotated slices that were set for a model's training, and print that they are used for scoring.

    They may not be those of another data set, such as one with dense labels, which nothing in its files can tell.
    """
    slices = model.annotated_slices
    if slices is not None and idist.get_rank() == 0:
        print(
            f"Annotated slices: {slices}, as set for the model's training (--annotated_slices). If the labels to score "
            "by are dense, or declare their slices, pass --annotated_slices None.",
            flush=True,
        )
    return slices


def default_workers(device: torch.device | str) -> int:
    """Return the number of processes that load data: 4 for a GPU; none on a CPU, where they would compete for it."""
    return 0 if torch.device(device).type == "cpu" else 4


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raise DataError, naming the setting, unless each value is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DataError(f"{name} must be a whole number of at least 1, such as --{name} 10; got {value!r}.")


def check_rates(learning_rate: Any, num_workers: Any, cache_rate: Any) -> None:
    """Raise DataError, naming the setting, unless each of these is a number in its range."""
    for name, value, fits, expected in (
        ("learning_rate", learning_rate, lambda v: is_finite(v) and v >= 0, "a number of at least 0, such as 0.001"),
        ("num_workers", num_workers, lambda v: is_number(v, int) and v >= 0, "a whole number of at least 0, such as 4"),
        ("cache_rate", cache_rate, lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1, such as 0.5"),
    ):
        if not fits(value):
            raise DataError(f"{name} must be {expected}; got {value!r:.80}.")


def check_looked_for(data_set: DataSet, training: Sequence[Case], like: ModelDescription | None = None) -> None:
    """Raise DataError if a class was looked for in no training case: nothing would tell it from the background.

    Args:
        data_set: the data set.
        training: cases to train on.
        like: description of the model that is trained further; with as many classes, it knows them all.
    """
    names, values = data_set.class_names, data_set.class_values
    if like is not None and not like.regions and len(like.class_names) == len(values):
        return
    for fault in never_looked_for(data_set.cases or training, names, values, data_set.source):
        raise DataError(fault)
    trained = {value for case in training for value in case.get(ANNOTATED_CLASSES, values)}
    for name, value in zip(names, values):
        if value not in trained:
            others = [case_name(case) for case in data_set.cases if value in case[ANNOTATED_CLASSES]]
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise DataError(
                f"{data_set.source}: {name} (value {value}) is in annotated_classes of validation cases only: {shown}; "
                f"expected it in at least one training case, since all background might be {name} otherwise. Put one "
                "there with --split_file, or train on all cases with --val_fraction 0."
            )


def check_loss(loss: torch.nn.Module, regions: Regions | None) -> None:
    """Raise DataError if one of this package's losses is set without the data set's regions."""
    if regions and getattr(loss, "in_region", loss) is None:
        raise DataError(
            f"the data set declares regions ({', '.join(regions)}), but the loss is for classes; set it as regions: "
            '"@regions" in the config of the loss.'
        )


def check_patch_size(network: torch.nn.Module, patch_size: Sequence[int]) -> None:
    """Raise DataError unless a UNet3D accepts patches of this size."""
    if not isinstance(patch_size, (list, tuple)) or len(patch_size) != 3:
        raise DataError(f'patch_size must be three whole numbers (--patch_size "[64,64,64]"); found {patch_size!r}.')
    if not isinstance(network, UNet3D):
        return
    try:
        network.output_size(patch_size)
    except ValueError as error:
        raise DataError(
            f'patch_size {list(patch_size)}: {error} Set --patch_size "[64,64,64]", for example, or other channels.'
        ) from error
