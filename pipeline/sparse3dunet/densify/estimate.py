"""How good a segmentation is likely to be where nothing is annotated, by what was held out.

Annotated voxels are held out, in whole slices and in blocks, and judged by methods that did not know them. By these,
probabilities are calibrated for each distance from annotation, and the segmentation's Dice follows from the calibrated
probabilities of the voxels that nobody annotated, each at its own distance, and what is known to be wrong with that: in
stacks it promises too much, with slices in several planes too little. Its interval grows with what is missing to
a Dice of 1, and with the difference between what probabilities promise and what is found on held-out voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparse3dunet.data.slices import Slices
from sparse3dunet.training.engines import score_text

ERROR_SHARE, SLICES_SHARE, GAP_SHARE, LEAST_WIDTH = 0.15, 0.8, 0.25, 0.01
"""Half the 90 % interval: of 1 - Dice, a share and one that falls with the root of the number of slices; of the gap
between promise and finding; and what is always there."""
CLASS_WIDTH = 1.6
"""Times as wide is the interval of a single class."""
OF_STACK, OF_AXES = 1.25, 0.8
"""Times the expected 1 - Dice, where all annotated slices lie in one plane: held-out blocks of these are surrounded by
annotation in their plane, as no voxel between them is. Where they lie in several: what is held out was judged by much
less annotation than there is. Measured on scans of five kinds."""
USELESS = 0.5
"""Expected Dice below which a result is likely to be useless."""
EXPLANATION = (
    "Annotated voxels were held out, in whole slices and in blocks of them, and segmented by methods that did not "
    "know them. By these, probabilities are calibrated for each distance from annotation; the Dice follows from those "
    "of the voxels that are not annotated, each at its own distance, and is corrected for what is known to be wrong "
    "with that: in stacks of slices it promises too much, with slices in several planes too little. The interval is "
    "made to hold the true mean Dice in 9 of 10 cases."
)
"""How Dice and its interval are told, for people."""


@dataclass(frozen=True)
class ClassEstimate:
    """Scores of a class; None where nothing that shows it could be held out (not evaluable).

    Attributes:
        name: of the class.
        dice: expected on voxels that are not annotated, the mean over the volumes that show the class.
        low: lower end of its 90 % interval.
        high: upper end.
        iou: expected likewise.
        slices: n, the annotated slices that show the class.
        held_out_dice: on held-out voxels, which lie farther from annotation.
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
    """What held-out annotation tells of the segmentation of the rest.

    Attributes:
        classes: by class number; empty where nothing could be held out.
        slices: annotated ones, that were held out.
        volumes: of which something was held out.
        folds: parts of whole slices that were held out.
        low: lower end of the 90 % interval of :attr:`mean_dice`.
        high: upper end.
        reason: why nothing was held out.
        warnings: why the result is likely to be useless, and what to do; empty where it is not.
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
        """Over the classes but the background; None where none is evaluable."""
        return _mean([c.dice for c in self.classes[1:]])

    @property
    def mean_iou(self) -> float | None:
        """Over all classes; None where none is evaluable."""
        return _mean([c.iou for c in self.classes])

    @property
    def mean_held_out_dice(self) -> float | None:
        """As :attr:`mean_dice`, on held-out voxels."""
        return _mean([c.held_out_dice for c in self.classes[1:]])

    @property
    def usable(self) -> bool:
        """Whether the result is likely to be of use."""
        return not self.warnings

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_json` makes the estimate again."""
        told = {"mean_dice": self.mean_dice, "mean_dice_interval": [self.low, self.high], "mean_iou": self.mean_iou}
        return {**told, "usable": self.usable, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        own = {key: content[key] for key in ("slices", "volumes", "folds", "low", "high", "reason", "warnings")}
        return cls([ClassEstimate(**entry) for entry in content["classes"]], **own)


@dataclass(frozen=True)
class Expected:
    """What is expected of a volume.

    Attributes:
        dice: (K,) on unlabeled voxels; NaN for a class that is not expected there.
        held_out: (K,) found on held-out voxels; NaN for a class that they don't show.
        promised: (K,) on the same voxels, by calibrated probabilities.
        counts: (K,) voxels of each class in the segmentation.
    """

    dice: np.ndarray
    held_out: np.ndarray
    promised: np.ndarray
    counts: np.ndarray


def corrected(dice: np.ndarray, slices: Slices | None) -> np.ndarray:
    """(K,) what is to be expected, from what calibrated probabilities promise (K,); see :data:`OF_STACK`.

    In between, where few slices cross a stack, the factor is, too.

    Args:
        dice: promised.
        slices: annotated, by axis; None: no whole ones.
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
    """The estimate over some volumes.

    Args:
        found: by name of each volume of which something was held out, at least one.
        counts: (K,) voxels of each class in all segmentations, without the annotated ones.
        slices: by class, the number of annotated slices that show it.
        total: of annotated slices.
        folds: parts of whole slices that were held out.
        class_names: by class number.
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
    """Why a result is likely to be useless."""
    told = []
    if not np.isnan(mean) and mean < USELESS:
        told.append(
            f"the mean Dice to be expected is {mean:.2f}: annotate more slices, those suggested below first, and look "
            "whether the scan shows what was annotated."
        )
    shown = [bool(entry.slices or (not total and entry.held_out_dice is not None)) for entry in classes]  # or scribbles
    lost = [entry.name for entry, count, there in zip(classes, counts, shown) if there and not count]
    if lost:
        told.append(f"annotated, but found nowhere else: {', '.join(lost)}. Annotate more slices that show it.")
    return told


def show(found: Estimate) -> None:
    """Print the estimate as a table, and before it what is wrong."""
    console = Console()
    for warning in found.warnings:
        console.print(f"This result is likely to be useless: {escape(warning)}", style="bold", highlight=False)
    if not found.classes:
        console.print(f"Quality: not evaluable (n = 0): {escape(found.reason)}", highlight=False, soft_wrap=True)
        return
    what = f"{found.slices} annotated slice(s)" if found.slices else "blocks of the annotation"
    table = Table(title=f"Quality, by {what}, held out in turn", box=box.SIMPLE_HEAD)
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
        "n: annotated slices that show the class. Dice, IoU: expected where nothing is annotated. Held-out Dice: on "
        "annotated voxels that were held out, farther from annotation. Mean Dice: without background; mean IoU: all."
    )
    console.print(table)


def interval_text(low: float | None, high: float | None) -> str:
    """As 0.87 to 0.93; empty where there is none."""
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _column(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(K,) means over volumes, of those that are not NaN."""
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
