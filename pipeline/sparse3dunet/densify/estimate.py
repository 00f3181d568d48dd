"""Estimate of a segmentation's quality on unlabeled voxels, from held-out annotation.

Annotated voxels are held out, in whole slices and in blocks, and segmented by methods that did not see them. On these,
probabilities are calibrated for each distance from annotation. The Dice is computed from the calibrated probabilities
of the unlabeled voxels, each at its own distance, and corrected for known bias: it is too high for stacks of slices and
too low for slices in several planes. The width of the interval grows with 1 - Dice, and with the difference between the
Dice that probabilities predict on held-out voxels and the one found there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sparse3dunet.console import Console, Table, box, escape
from sparse3dunet.data.slices import Slices
from sparse3dunet.training.engines import score_text

ERROR_SHARE, SLICES_SHARE, GAP_SHARE, LEAST_WIDTH = 0.12, 0.64, 0.2, 0.008
"""Half width of the 90 % interval: share of 1 - Dice, share of it that falls with the root of the number of slices,
share of the gap between predicted and found Dice, and minimum."""
CLASS_WIDTH = 1.6
"""Factor by which the interval of a single class is wider."""
OF_STACK, OF_AXES = 1.05, 0.8
"""Factors on the expected 1 - Dice for slices in one plane and in several. In one plane, held-out blocks are surrounded
by annotation within their plane, unlike the voxels between slices. In several, held-out voxels are segmented from much
less annotation than there is. Measured, as the widths, by 72 runs on 29 scans of seven kinds."""
USELESS = 0.5
"""Expected Dice below which a result is likely to be useless."""
EXPLANATION = (
    "Annotated voxels were held out, in whole slices and in blocks, and segmented by methods that did not see them. On "
    "these, probabilities are calibrated for each distance from annotation. The Dice is computed from the calibrated "
    "probabilities of the unlabeled voxels, each at its own distance, and corrected for known bias: it is too high for "
    "stacks of slices and too low for slices in several planes. The interval is meant to contain the true mean Dice in "
    "9 of 10 cases."
)
"""Explanation of the estimate for users."""


@dataclass(frozen=True)
class ClassEstimate:
    """Scores of a class; None if no voxel of it could be held out (not evaluable).

    Attributes:
        name: name of the class.
        dice: expected Dice on unlabeled voxels, mean over the volumes that show the class.
        low: lower end of its 90 % interval.
        high: upper end.
        iou: expected IoU on unlabeled voxels.
        slices: number n of annotated slices that show the class.
        held_out_dice: Dice on held-out voxels, which lie farther from annotation.
    """

    name: str
    dice: float | None
    low: float | None
    high: float | None
    iou: float | None
    slices: int
    held_out_dice: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Estimated quality of the segmentation on unlabeled voxels.

    Attributes:
        classes: scores by class number; empty if nothing could be held out.
        slices: number of annotated slices that were held out.
        volumes: number of volumes of which something was held out.
        folds: number of parts of whole slices that were held out.
        low: lower end of the 90 % interval of :attr:`mean_dice`.
        high: upper end.
        reason: why nothing was held out.
        warnings: why the result is likely to be useless, and what to do; empty if it is usable.
    """

    classes: list[ClassEstimate] = field(default_factory=list)
    slices: int = 0
    volumes: int = 0
    folds: int = 0
    low: float | None = None
    high: float | None = None
    reason: str = ""
    warnings: list[str] = field(default_factory=list)

    @property
    def mean_dice(self) -> float | None:
        """Mean over the classes except the background; None if none is evaluable."""
        return _mean([c.dice for c in self.classes[1:]])

    @property
    def mean_iou(self) -> float | None:
        """Mean over all classes; None if none is evaluable."""
        return _mean([c.iou for c in self.classes])

    @property
    def mean_held_out_dice(self) -> float | None:
        """Like :attr:`mean_dice`, on held-out voxels."""
        return _mean([c.held_out_dice for c in self.classes[1:]])

    @property
    def usable(self) -> bool | None:
        """Whether the result is likely to be useful; None if nothing tells: there is no warning, but no estimate."""
        return False if self.warnings else True if self.classes else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which :meth:`from_json` restores the estimate."""
        means = {"mean_dice": self.mean_dice, "mean_dice_interval": [self.low, self.high], "mean_iou": self.mean_iou}
        return {**means, "usable": self.usable, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        own = {key: content[key] for key in ("slices", "volumes", "folds", "low", "high", "reason", "warnings")}
        return cls([ClassEstimate(**entry) for entry in content["classes"]], **own)


@dataclass(frozen=True)
class Expected:
    """Expected quality of a volume.

    Attributes:
        dice: (K,) expected Dice on unlabeled voxels; NaN for a class that is not expected there.
        held_out: (K,) Dice found on held-out voxels; NaN for a class that they don't show.
        promised: (K,) Dice predicted on the same voxels from calibrated probabilities.
        counts: (K,) number of voxels of each class in the segmentation.
    """

    dice: np.ndarray
    held_out: np.ndarray
    promised: np.ndarray
    counts: np.ndarray


def corrected(dice: np.ndarray, slices: Slices | None) -> np.ndarray:
    """Return the Dice (K,) corrected for bias; see :data:`OF_STACK`.

    Where few slices cross a stack, the factor lies in between.

    Args:
        dice: (K,) Dice predicted from calibrated probabilities.
        slices: annotated slices, by axis; None: no whole slices.
    """
    counts = [len(of_axis) for of_axis in slices or []]
    if not any(counts):
        return dice
    crossing = min(2 * (1 - max(counts) / sum(counts)), 1.0)  # 0 in a stack, 1 from half of the slices on
    return np.clip(1 - (OF_STACK + (OF_AXES - OF_STACK) * crossing) * (1 - dice), 0, 1)


def estimate(
    found: Mapping[str, Expected],
    counts: np.ndarray,
    slices: Sequence[int],
    total: int,
    folds: int,
    class_names: Sequence[str],
) -> Estimate:
    """Return the estimate over several volumes.

    Args:
        found: expected quality of each volume of which something was held out, by name; at least one.
        counts: (K,) number of unlabeled voxels of each class in all segmentations.
        slices: by class, the number of annotated slices that show it.
        total: total number of annotated slices.
        folds: number of parts of whole slices that were held out.
        class_names: class names by class number.
    """
    shown = np.array([~np.isnan(e.held_out) for e in found.values()])
    dice = _column([np.where(s, e.dice, np.nan) for e, s in zip(found.values(), shown)])
    held_out = _column([e.held_out for e in found.values()])
    promised = _column([np.where(s, e.promised, np.nan) for e, s in zip(found.values(), shown)])
    gap = np.abs(held_out - promised)
    mean_gap = abs(_nanmean((held_out - promised)[1:]))
    half = _half_width(_nanmean(dice[1:]), mean_gap, total)
    classes = []
    for number, name in enumerate(class_names):
        value = dice[number]
        width = CLASS_WIDTH * _half_width(value, float(np.nan_to_num(gap[number])), total)
        score, low, high, iou = (_plain(x) for x in (value, value - width, value + width, value / (2 - value)))
        low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (low, high))
        classes.append(ClassEstimate(name, score, low, high, iou, int(slices[number]), _plain(held_out[number])))
    mean = _nanmean(dice[1:])
    low, high = (_plain(min(max(mean + sign * half, 0.0), 1.0)) for sign in (-1, 1))
    return Estimate(classes, total, len(found), folds, low, high, warnings=_warnings(counts, classes, mean, total))


def _half_width(value: float, gap: float, slices: int) -> float:
    share = ERROR_SHARE + SLICES_SHARE / max(slices, 1) ** 0.5
    return share * (1 - value) + GAP_SHARE * float(np.nan_to_num(gap)) + LEAST_WIDTH


def _warnings(counts: np.ndarray, classes: Sequence[ClassEstimate], mean: float, total: int) -> list[str]:
    """Return why a result is likely to be useless."""
    warnings = []
    if not np.isnan(mean) and mean < USELESS:
        warnings.append(
            f"the expected mean Dice is {mean:.2f}. Annotate more slices, those suggested below first, and check that "
            "the scan shows what was annotated."
        )
    shown = [bool(entry.slices or (not total and entry.held_out_dice is not None)) for entry in classes]  # or scribbles
    lost = [entry.name for entry, count, there in zip(classes, counts, shown) if there and not count]
    if lost:
        warnings.append(f"annotated, but found nowhere else: {', '.join(lost)}. Annotate more slices that show it.")
    return warnings


def show(found: Estimate) -> None:
    """Print the warnings, then the estimate as a table."""
    console = Console()
    for warning in found.warnings:
        console.print(f"This result is likely to be useless: {escape(warning)}", style="bold", highlight=False)
    if not found.classes:
        console.print(f"Quality: not evaluable (n = 0): {escape(found.reason)}", highlight=False, soft_wrap=True)
        return
    source = f"{found.slices} annotated slice(s)" if found.slices else "the annotation"
    parts = "held out in turn" if found.folds else "held out in blocks"
    table = Table(title=f"Quality estimate from {source}, {parts}", box=box.SIMPLE_HEAD)
    for heading in ("class", "n", "Dice", "90 % interval", "IoU", "held-out Dice"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for entry in found.classes:
        last = entry is found.classes[-1]
        scores = (
            score_text(entry.dice),
            interval_text(entry.low, entry.high),
            *map(score_text, (entry.iou, entry.held_out_dice)),
        )
        table.add_row(escape(entry.name), str(entry.slices) if found.slices else "", *scores, end_section=last)
    means = (score_text(found.mean_dice), interval_text(found.low, found.high), score_text(found.mean_iou))
    table.add_row("mean", "", *means, score_text(found.mean_held_out_dice))
    table.caption = (
        "n: annotated slices that show the class. Dice, IoU: expected on unlabeled voxels. Held-out Dice: on held-out "
        "annotated voxels, which lie farther from annotation. Mean Dice: without background; mean IoU: all classes."
    )
    console.print(table)


def interval_text(low: float | None, high: float | None) -> str:
    """Return the interval as "0.87 to 0.93"; empty if there is none."""
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _column(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return means (K,) over volumes, ignoring NaN."""
    table = np.array(rows)
    there = ~np.isnan(table)
    return np.where(there.any(0), np.nansum(table, 0) / np.maximum(there.sum(0), 1), np.nan)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None
