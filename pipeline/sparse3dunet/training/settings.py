"""Settings that depend on the data or the device, or must fit them: patch size, spacing, weights of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparse3dunet.data.checks import DataReport
from sparse3dunet.data.datalist import Case, case_name
from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE
from sparse3dunet.losses.regions import Regions
from sparse3dunet.networks import UNet3D


def target_spacing(report: DataReport, spacing: Any) -> list[float] | None:
    """Return the spacing in mm to resample to, by axis (left-right, posterior-anterior, inferior-superior).

    Args:
        report: report on the data set.
        spacing: None not to resample; three sizes; or "median" for the median of the cases' spacings.

    Raises:
        DataError: when `spacing` is none of these.
    """
    if spacing is None:
        return None
    if spacing == "median":
        return [float(s) for s in np.median([case.spacing for case in report.cases], axis=0)]
    sizes = spacing if isinstance(spacing, (list, tuple)) else []
    if len(sizes) != 3 or not all(isinstance(s, (int, float)) and 0 < s < np.inf for s in sizes):
        raise DataError(f'spacing must be three sizes in mm (--spacing "[1,1,1]"), or median; found {spacing!r}.')
    return [float(s) for s in sizes]


def network_shapes(report: DataReport, spacing: Sequence[float] | None = None) -> list[tuple[int, ...]]:
    """Return the volumes' spatial shapes as the network sees them: in RAS order, resampled to `spacing` if given."""
    shapes = []
    for case in report.cases:
        sizes = zip(case.shape, case.spacing, spacing or case.spacing)
        shapes.append(tuple(max(round(n * old / new), 1) for n, old, new in sizes))
    return shapes


def case_weights(report: DataReport, cases: Sequence[Case], case_balance: float = 0.0) -> list[float]:
    """Return how likely each of `cases` is drawn for a training patch, up to a common factor.

    Args:
        report: report on a data set that includes the cases.
        cases: cases to draw from.
        case_balance: 0 to draw all cases equally often, however much of each is annotated; 1 in proportion to the
            annotated voxels, so that a case with twice as many is drawn twice as often; in between, their power.

    Raises:
        DataError: when `case_balance` is not in [0, 1].
    """
    if not isinstance(case_balance, (int, float)) or not 0 <= case_balance <= 1:
        raise DataError(
            f"case_balance must be from 0 (cases equally often) to 1 (by annotated voxels), got {case_balance}."
        )
    annotated = {case.name: case.annotated for case in report.cases}
    return [float(annotated[case_name(case[IMAGE])]) ** case_balance for case in cases]


def fit_patch_size(
    shapes: Sequence[Sequence[int]], largest: Sequence[int], multiple_of: Sequence[int] | int = 8
) -> list[int]:
    """Return the patch size for volumes of the given shapes: `largest`, or less if most volumes are smaller.

    Args:
        shapes: spatial shapes of the volumes.
        largest: upper bound per axis.
        multiple_of: factor that each length must be a multiple of, for the network.

    Returns:
        Per axis the 90th percentile of the volumes' lengths, rounded up to a multiple, but no more than `largest`,
        rounded down to one (and at least one multiple).
    """
    factors = np.broadcast_to(multiple_of, 3)
    typical = np.ceil(np.percentile(np.asarray(shapes), 90, axis=0) / factors)
    bound = np.maximum(np.asarray(largest) // factors, 1)
    return [int(n) for n in np.minimum(typical, bound) * factors]


def patch_size(
    report: DataReport, spacing: Sequence[float] | None, largest: Sequence[int], network: torch.nn.Module
) -> list[int]:
    """Return the patch size by axis for a data set and a network.

    Args:
        report: report on the data set.
        spacing: spacing in mm to resample to; None for volumes as they are.
        largest: upper bound by axis, in voxels.
        network: its ``size_multiple`` is what the patch size must be a multiple of; 8 if it has none.
    """
    return fit_patch_size(network_shapes(report, spacing), largest, getattr(network, "size_multiple", 8))


def default_workers(device: torch.device | str) -> int:
    """Return the number of processes that load data: 4 for a GPU; none on a CPU, where they would compete for it."""
    return 0 if torch.device(device).type == "cpu" else 4


def check_counts(counts: Mapping[str, Any]) -> None:
    """Raise DataError, naming the setting, unless each value is a whole number of at least 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise DataError(f"{name} must be a whole number of at least 1, such as --{name} 10; got {value!r}.")


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
