"""How good a segmentation is likely to be, by annotated slices that were held out of training.

The model that is scored on held-out slices is not the final one, which learns longer, and from all slices. What carries
over is the optimism: by how much a model is better on the slices that it learned from than on those held out. The final
model's score on its own slices, less 0.632 of that, is what is expected of it elsewhere: less than all of it, since the
model that shows the optimism has learned from about that share of the slices alone (Efron, Estimating the Error Rate of
a Prediction Rule, Journal of the American Statistical Association 78(382), 1983, with folds for the bootstrap).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparse3dunet.engines import score_text
from sparse3dunet.metrics import ClassScore, class_scores, mean_score, overlap_scores

OPTIMISM_SHARE = 0.632
"""Of the optimism of the folds' models that the final model is expected to have, too: Efron's."""

MOST_GAINED = 0.1
"""By which the final model's score on its own slices counts above that of the folds' models on theirs."""


@dataclass(frozen=True)
class ClassEstimate:
    """Scores of a class; None where no held-out slice shows it (n = 0, not evaluable).

    Each is the mean over the volumes that show the class, in each over all of the voxels in question.

    Attributes:
        name: of the class.
        dice: expected of the final model on voxels that are not annotated.
        iou: likewise.
        slices: n, the held-out slices that show the class.
        held_out_dice: of the folds' models on held-out slices.
        held_out_iou: likewise.
    """

    name: str
    dice: float | None
    iou: float | None
    slices: int
    held_out_dice: float | None = None
    held_out_iou: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What held-out slices tell of the segmentation of the others.

    Attributes:
        classes: by class number; empty where nothing was held out.
        slices: held out, over all folds.
        volumes: of which slices were held out.
        folds: trainings, each without a part of the slices, that the scores are of; 0 where nothing was held out.
        reason: why nothing was.
    """

    classes: list[ClassEstimate] = field(default_factory=list)
    slices: int = 0
    volumes: int = 0
    folds: int = 0
    reason: str = ""

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
        """As :attr:`mean_dice`, of the folds' models on held-out slices."""
        return _mean([c.held_out_dice for c in self.classes[1:]])

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_json` makes the estimate again."""
        return {"mean_dice": self.mean_dice, "mean_iou": self.mean_iou, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Estimate:
        own = {key: content[key] for key in ("slices", "volumes", "folds", "reason")}
        return cls([ClassEstimate(**entry) for entry in content["classes"]], **own)


Counts = Mapping[str, torch.Tensor]
"""By volume, (K, 3) true positives, false positives and false negatives."""


@dataclass(frozen=True)
class FoldCounts:
    """What a fold's model did.

    Attributes:
        held_out: on the slices that it did not learn from.
        learned: on those that it did, of the volumes of which slices are held out.
        showing: by class, the number of held-out slices that show it.
    """

    held_out: Counts
    learned: Counts
    showing: Sequence[int]


def estimate(folds: Sequence[FoldCounts], final: Counts, slices: int, class_names: Sequence[str]) -> Estimate:
    """What is expected of the final model.

    Args:
        folds: at least one.
        final: of the final model, on all annotated voxels; empty where it is the last fold's model itself.
        slices: held out, over all folds.
        class_names: by class number.
    """
    held_out = _added([fold.held_out for fold in folds])
    columns = []
    for kind in ("dice", "iou"):
        honest = _scores(held_out, kind)
        apparent = _scores(_added([fold.learned for fold in folds]), kind)
        own = _scores(final, kind) if final else apparent
        expected = [_less(a, b, c) for a, b, c in zip(own, apparent, honest)] if final else honest
        columns += [expected, honest]
    shown = [sum(column) for column in zip(*(fold.showing for fold in folds))]
    dice, held_out_dice, iou, held_out_iou = columns
    rows = zip(class_names, dice, iou, shown, held_out_dice, held_out_iou)
    return Estimate([ClassEstimate(*row) for row in rows], slices, len(held_out), len(folds))


def _added(parts: Sequence[Counts]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, found in part.items():
            total[name] = total.get(name, torch.zeros_like(found)) + found
    return total


def _scores(counts: Counts, kind: str) -> list[float | None]:
    """By class, the mean over the volumes that show it."""
    return [score.mean for score in class_scores(overlap_scores(torch.stack(list(counts.values())), kind))]


def _less(own: float | None, apparent: float | None, honest: float | None) -> float | None:
    """A score less the optimism; a class that was learned nowhere has none to tell of."""
    if honest is None:
        return None
    if own is None or apparent is None:
        return honest
    # Of a fold's model that has hardly learned even its own slices, the optimism cannot be told.
    believed = min(own, apparent + MOST_GAINED)
    return max(believed - OPTIMISM_SHARE * max(apparent - honest, 0.0), 0.0)


def show(found: Estimate) -> None:
    """Print the estimate as a table."""
    console = Console()
    if not found.classes:
        console.print(f"Quality: not evaluable (n = 0): {escape(found.reason)}", highlight=False, soft_wrap=True)
        return
    table = Table(title=f"Quality, by {found.slices} held-out slice(s)", box=box.SIMPLE_HEAD)
    for heading in ("class", "n", "Dice", "IoU", "held-out Dice"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for entry in found.classes:
        last = entry is found.classes[-1]
        table.add_row(
            escape(entry.name),
            str(entry.slices),
            *map(score_text, (entry.dice, entry.iou, entry.held_out_dice)),
            end_section=last,
        )
    table.add_row("mean", "", *map(score_text, (found.mean_dice, found.mean_iou, found.mean_held_out_dice)))
    table.caption = (
        "n: held-out slices that show the class. Dice, IoU: expected where nothing is annotated. Held-out Dice: of a "
        "model that had not learned those slices, nor for as long. Mean Dice: without background; mean IoU: all."
    )
    console.print(table)


def _mean(scores: Sequence[float | None]) -> float | None:
    return mean_score([ClassScore(score, 0 if score is None else 1) for score in scores])
