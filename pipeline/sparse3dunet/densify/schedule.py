"""Schedule of a densification's minutes, its voxel size and folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparse3dunet.data.cutting import has_parts
from sparse3dunet.data.datalist import Case, without_references
from sparse3dunet.data.names import case_name
from sparse3dunet.data.reports import CaseReport, DataReport
from sparse3dunet.data.slices import Slices, crossed, find_slices, runs
from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_SLICES, LABEL, WEIGHT
from sparse3dunet.planning.geometry import coarsened
from sparse3dunet.training.budget import is_positive
from sparse3dunet.training.settings import target_spacing
from sparse3dunet.transforms.holdout import TRAINING, HoldOutSlices, HoldOutSlicesd

AUTO = "auto"
LEAST_MINUTES = 0.001
VOXELS_PER_MINUTE = {"cpu": 2_000_000, "cuda": 60_000_000}
"""Voxels of all volumes together up to which they are not resampled; above, the finest axes become coarser."""
FOLDS = 3
"""Number of parts of the annotated slices that are held out in turn."""
FOLD_SHARE = 0.35
"""Share of the network's time for the training without the first part of the slices, on which it is evaluated."""
KEPT_SHARE = 0.2
"""The same share if that training starts from the former run's model of the same slices."""
LEAST_SHARE = 0.05
"""Minimum share of the whole time for the network, even if propagation took longer than planned."""
LISTED_SLICES = 40
"""Maximum number of annotated slices of a volume that are listed one by one."""
FINAL = "final"


def choose_spacing(
    report: DataReport, spacing: Any, minutes: float | None, device: Any, plan_file: str | None = None
) -> list[float] | None:
    """Return the voxel size in mm to resample to, by axis; None: no resampling.

    Args:
        report: report on the data set.
        spacing: "auto", or as for :func:`~sparse3dunet.training.settings.target_spacing`.
        minutes: duration of the whole run.
        device: device of the network.
        plan_file: a plan's file, which then determines "auto"; None for none.

    Raises:
        DataError: when `spacing` is none of these.
    """
    if spacing != AUTO or plan_file is not None:
        return target_spacing(report, spacing, plan_file)
    sizes = np.array([case.spacing for case in report.cases])
    extents = np.array([case.shape for case in report.cases]) * sizes
    size = np.median(sizes, axis=0)
    most = VOXELS_PER_MINUTE["cuda" if torch.device(device).type == "cuda" else "cpu"] * (minutes or 10)

    chosen = coarsened(extents, size, most)
    return None if report.spacings_agree and chosen == size.tolist() else chosen


def is_own_spacing(spacing: Any, plan_file: str | None) -> bool:
    """Return whether neither a setting nor a plan's file determines the voxel size."""
    return spacing == AUTO and plan_file is None


def check_untrained(pretrained: Any) -> None:
    """Raise DataError for a model to fine-tune: densify goes on from its own former run alone."""
    if pretrained is not None:
        raise DataError(
            f"--pretrained {pretrained}: densify trains further what it trained before in its output folder, and no "
            "other model; fine-tune with: sparse3dunet run training --pretrained MODEL."
        )


def check_minutes(minutes: Any) -> None:
    """Raise DataError unless `minutes` is a number of at least :data:`LEAST_MINUTES`."""
    if not is_positive(minutes) or minutes < LEAST_MINUTES:
        raise DataError(f"minutes must be a number of at least {LEAST_MINUTES}, such as --minutes 5; got {minutes!r}.")


def check_pseudo_weight(weight: Any) -> None:
    """Raise DataError unless `weight` is a number of at least 0."""
    if weight != 0 and not is_positive(weight):
        raise DataError(f"pseudo_weight must be a number of at least 0, for example --pseudo_weight 1; got {weight!r}.")


def check_sparse(report: DataReport) -> None:
    """Raise DataError if every voxel of every case counts as annotated, or not all classes were looked for.

    Also if a volume is larger than memory: its parts would be densified, and not the volume.
    """
    if has_parts(report.data_set.cases):
        raise DataError(
            f"{report.data_set.source}: a volume is larger than memory (--volume-memory); such volumes are densified "
            "one by one. Pass a scan and its annotation: densify SCAN ANNOTATION -o OUT."
        )
    partial = [case for case in report.cases if case.looked_for]
    if partial:
        raise DataError(
            f"{report.data_set.source}: only {', '.join(partial[0].looked_for)} was looked for in {partial[0].name} "
            "(annotated_classes), but densify needs all classes in each volume, since it starts from the annotation "
            "alone. List the volumes with all classes, or train a network, which can learn from both."
        )
    if all(case.is_dense for case in report.cases):
        values = ", ".join(map(str, report.data_set.class_values))
        raise DataError(
            f"{report.data_set.labels_place}: every voxel counts as annotated (the classes are {values}), so that "
            "there is nothing to densify. If a value means unlabeled, pass it: --ignore-index 255; if 0 means "
            "unlabeled outside of some slices, pass --annotated-slices all."
        )


def channels(device: Any) -> list[int]:
    """Return the network's channels by level: a size that learns most in a few minutes."""
    return [32, 64, 128, 256] if torch.device(device).type == "cuda" else [16, 32, 64, 128]


def batch_size(device: Any) -> int:
    """Return the patches per iteration: few, for many iterations per minute."""
    return 4 if torch.device(device).type == "cuda" else 1


def patch_voxels(device: Any) -> int:
    """Return the maximum number of voxels of a patch."""
    return 96**3 if torch.device(device).type == "cuda" else 64**3


@dataclass(frozen=True)
class Schedule:
    """Schedule of the run time after propagation.

    Attributes:
        seconds: duration of the whole run.
        judged: whether the network is first trained without some slices, to be evaluated on them.
        keeps_fold: whether that training starts from the former run's model.
    """

    seconds: float
    judged: bool
    keeps_fold: bool = False

    def fold(self, spent: float) -> float:
        """Return the seconds for the network that is evaluated, including reading and predicting."""
        share = (KEPT_SHARE if self.keeps_fold else FOLD_SHARE) if self.judged else 0.0
        return share * max(self.seconds - spent - self.reserve, LEAST_SHARE * self.seconds)

    @property
    def reserve(self) -> float:
        """Seconds reserved for the prediction and the report."""
        return min(5 + 0.05 * self.seconds, 0.3 * self.seconds)

    def final(self, spent: float, prediction: float = 0.0) -> float:
        """Return the seconds left for the final training.

        Args:
            spent: seconds spent so far.
            prediction: seconds that predicting all volumes is likely to take; 0 if unknown.
        """
        reserve = max(self.reserve, min(5 + prediction, 0.3 * self.seconds))
        return max(self.seconds - spent - reserve, LEAST_SHARE * self.seconds)


def number_of_folds(folds: Any) -> int:
    """Return the number of folds: the given one, or three for "auto".

    Raises:
        DataError: when `folds` is neither "auto" nor a number from 0 on.
    """
    if folds == AUTO:
        return FOLDS
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 0:
        raise DataError(f"folds must be auto, or a whole number from 0 (no quality estimate); got {folds!r}.")
    return folds


def items_of(cases: Sequence[Case], load: Callable[[Any], Any]) -> dict[str, dict[str, Any]]:
    """Return label and weight of each case, as the network sees them, by its name."""
    items = {}
    for case in without_references(cases):
        item = load(case)
        items[case_name(case)] = {key: item[key] for key in (LABEL, WEIGHT)}
    return items


def deal_slices(
    items: Mapping[str, Mapping[str, Any]],
    folds: int,
    seed: int,
    former: Mapping[str, Slices] | None = None,
    learned: Sequence[str] = (),
) -> tuple[list[dict[str, Slices]], str]:
    """Return the slices that each fold holds out, by case, and the reason if there are none.

    A fold holds out a third of the slices if few are annotated, a fifth if there are many. Adjacent slices go into the
    same fold. A case of which no slice can be held out is used for training with all its slices.

    Args:
        items: ``label`` and ``weight`` of each case as the network sees them, (1, X, Y, Z).
        folds: number of folds.
        seed: random seed.
        former: slices that a former run held out, if its model is trained further. The first fold holds them out again,
            as far as they are still annotated, with slices annotated next to them since: the model learned all others.
        learned: names of the cases that this model was trained on.
    """
    if folds == 0:
        return [], "--folds 0 was set"
    dealt: list[dict[str, Slices]] = [{} for _ in range(folds)]
    reason = ""
    for name, item in items.items():
        annotated = item[WEIGHT][0] > 0
        try:
            if former is not None and (name in former or name in learned):
                again = _again(former.get(name, [[], [], []]), annotated)
                for chosen, slices in zip(dealt, [again, *_others(again, annotated, folds - 1)]):
                    chosen[name] = slices
                continue
            units = sum(len(runs(indices)) for indices in _slices_of(annotated) or [])
            parts = max(min(3, units), min(5, units // 3), min(folds, units), 2)
            for fold, chosen in enumerate(dealt):
                hold = HoldOutSlices(fold, parts, TRAINING, seed, adjacent_together=True)
                chosen[name] = hold.held_out(annotated, name)
        except DataError as error:
            reason = str(error).split(". ")[0]
    dealt = [{name: slices for name, slices in fold.items() if any(slices)} for fold in dealt]
    if former is not None and not dealt[0]:
        dealt = []  # the former run's model learned all that is left
    dealt = [fold for fold in dealt if fold]
    return dealt, "" if dealt else reason or "none of the slices held out before is still annotated"


def are_within(dealt: Sequence[Mapping[str, Slices]], items: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether dealt slices are slices of the cases; see :func:`deal_slices`."""
    return all(
        name in items and all(i < n for n, indices in zip(items[name][WEIGHT].shape[1:], slices) for i in indices)
        for fold in dealt
        for name, slices in fold.items()
    )


def _slices_of(annotated: torch.Tensor) -> Slices | None:
    return None if bool(annotated.all()) else find_slices(annotated.cpu().numpy())


def _others(again: Slices, annotated: torch.Tensor, folds: int) -> list[Slices]:
    """Distribute all slices except those of the first fold to the other folds."""
    dealt: list[Slices] = [[[], [], []] for _ in range(folds)]
    for axis, indices in enumerate(_slices_of(annotated) or []):
        rest = [run for run in runs(indices) if not set(run) & set(again[axis])]
        for number, run in enumerate(rest, axis):
            if folds:
                dealt[number % folds][axis] += run
    return dealt


def _again(former: Slices, annotated: torch.Tensor) -> Slices:
    """Return the annotated slices that were held out before, with those adjacent to them now."""
    now = _slices_of(annotated)
    if now is None:  # for example if there are scribbles as well
        shares = [annotated.float().mean(dim=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        now = [torch.nonzero(share > 0.5).flatten().tolist() for share in shares]
    return [[i for run in runs(indices) if set(run) & set(before) for i in run] for indices, before in zip(now, former)]


def hold_out(held_out: Mapping[str, Slices] | Sequence[tuple[str, Slices]] | None, part: str, *then: Any) -> list[Any]:
    """Return the transforms that remove held-out slices from the weight, or keep only these, for a config.

    Args:
        held_out: by case, for each axis the slices' indices; in a config as pairs, since a config would take a dict
            with a case named _target_ for a component.
        part: "training" or "validation".
        then: transforms that follow; None, for a transform that the config disables, is left out.
    """
    held = [HoldOutSlicesd(WEIGHT, part=part, listed=dict(held_out))] if held_out else []
    return [*held, *(transform for transform in then if transform is not None)]


def cases_of(cases: Sequence[Case], held_out: Mapping[str, Slices] | Sequence[tuple[str, Slices]] | None) -> list[Case]:
    """Return the cases with held-out slices, without dense labels; if there are none, the first case."""
    chosen = [case for case in cases if case_name(case) in dict(held_out or {})]
    return without_references(chosen or cases[:1])


def slices_showing(annotated: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[int]:
    """Return by class the number of annotated slices that show it.

    Args:
        annotated: class numbers and annotation mask of each volume, (X, Y, Z) in the order of the file.
        num_classes: K.
    """
    counts = [0] * num_classes
    for numbers, known in annotated:
        slices = None if known.all() else find_slices(known)
        for axis, indices in enumerate(slices or [[], [], []]):
            for number in range(num_classes):
                counts[number] += int(crossed((numbers == number) & known, axis)[indices].sum()) if indices else 0
    return counts


def annotated_text(cases: Sequence[CaseReport]) -> str:
    """Return a description of how much is annotated; for a single volume also which slices."""
    counts = [sum(map(len, case.slices.values())) for case in cases if case.slices]
    share = sum(case.annotated for case in cases) / max(sum(case.voxels for case in cases), 1)
    slices = f"{sum(counts)} annotated slice(s), " if counts else ""
    which = ""
    if len(cases) == 1 and cases[0].slices and sum(counts) <= LISTED_SLICES:
        planes = (f"{plane} {', '.join(map(str, found))}" for plane, found in cases[0].slices.items() if found)
        which = f": {'; '.join(planes)}"
    return f"{slices}{share:.1%} of the voxels of {len(cases)} volume(s){which}"


def unlabeled_text(report: DataReport) -> str:
    """Return a description of what marks unlabeled voxels: values that occur, slices, weights."""
    data_set = report.data_set
    found = [value for value in data_set.ignore_index if any(value in case.values for case in report.cases)]
    ways = [f"the value{'s'[: len(found) > 1]} {', '.join(map(str, found))}"] if found else []
    if any(ANNOTATED_SLICES in case for case in data_set.cases):
        ways.append("all voxels outside of the annotated slices")
    if any(WEIGHT in case for case in data_set.cases):
        ways.append("where the weight is 0")
    return " and ".join(ways)
