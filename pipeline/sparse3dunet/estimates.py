"""How good a segmentation is likely to be, by annotated slices that were held out of training.

The model that is scored on held-out slices is not the final one, which learns longer, and from all slices; and a few
slices may be harder, or easier, than the volume. What carries over is by how much a model is better or worse than it
promises. So the final model's promise where nothing is annotated is corrected by the difference between score and
promise on the held-out slices (the difference of confidences: Guillory et al., Predicting with Confidence on Unseen
Distributions, ICCV 2021), after the temperature has been set by these slices.

Two bounds hold it where that is noise: never more than the final model's score on the slices that it learned from, and
never less than that score minus 0.632 of the folds' optimism, by which they are better on the slices that they learned
from than on those held out; not all of it, since they have learned from about that share of the slices alone (Efron,
Estimating the Error Rate of a Prediction Rule, Journal of the American Statistical Association 78(382), 1983, with
folds for the bootstrap).
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

from sparse3dunet.calibration import TEMPERATURES, best_temperature
from sparse3dunet.engines import score_text
from sparse3dunet.metrics import ClassScore, class_scores, mean_score, overlap_scores

OPTIMISM_SHARE = 0.632
"""Of the optimism of the folds' models that the final model is expected to have at most: Efron's."""

MOST_GAINED = 0.1
"""By which, at most, the lower bound takes the final model to be better on its own slices than the folds' models are on
theirs: of models that have hardly learned even their own slices, the optimism cannot be told."""


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
    """What a fold's model did, in the volumes of which slices are held out.

    Attributes:
        held_out: on the slices that it did not learn from.
        learned: on those that it did.
        promised: by volume, (T, K, 3), what it promised of itself on held-out slices, by each of TEMPERATURES.
        likelihoods: of the labels there, over all volumes.
        showing: by class, the number of held-out slices that show it.
    """

    held_out: Counts
    learned: Counts
    promised: Counts
    likelihoods: Sequence[float]
    showing: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_json` makes the counts again."""
        counts = {key: _plain(getattr(self, key)) for key in ("held_out", "learned", "promised")}
        return {**counts, "likelihoods": list(self.likelihoods), "showing": list(self.showing)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FoldCounts:
        counts = {key: _tensors(content[key]) for key in ("held_out", "learned", "promised")}
        return cls(**counts, likelihoods=content["likelihoods"], showing=content["showing"])


@dataclass(frozen=True)
class FinalCounts:
    """What the final model does.

    Attributes:
        learned: on all annotated voxels.
        promised: of itself on all others, by the temperature of the folds; of volumes that have others.
    """

    learned: Counts
    promised: Counts

    def as_json(self) -> dict[str, Any]:
        """Plain values, of which :meth:`from_json` makes the counts again."""
        return {"learned": _plain(self.learned), "promised": _plain(self.promised)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FinalCounts:
        return cls(*(_tensors(content[key]) for key in ("learned", "promised")))


def temperature(folds: Sequence[FoldCounts]) -> float:
    """By which the folds' models are as right on held-out slices as they are sure."""
    return TEMPERATURES[best_temperature([fold.likelihoods for fold in folds])]


EXPLANATION = (
    "The final model learned from all slices, and for longer. What its own probabilities promise where nothing is "
    "annotated is corrected by as much as a model without the held-out slices was better or worse there than it "
    "promised; the result is not above the final model's score on the annotated slices, nor far below it where the "
    "model without them was hardly worse on the held-out slices than on its own."
)
"""How Dice and IoU are told, for people."""


def estimate(
    folds: Sequence[FoldCounts], final: FinalCounts | None, slices: int, class_names: Sequence[str]
) -> Estimate:
    """What is expected of the final model where nothing is annotated.

    Args:
        folds: at least one.
        final: of the final model; None where it is the last fold's model itself, of which held-out slices tell all.
        slices: held out, over all folds.
        class_names: by class number.
    """
    held_out = _added([fold.held_out for fold in folds])
    columns = []
    for kind in ("dice", "iou"):
        honest = _means(_by_volume(held_out, kind))
        columns += [honest if final is None else _expected(folds, final, held_out, kind), honest]
    shown = [sum(column) for column in zip(*(fold.showing for fold in folds))]
    dice, held_out_dice, iou, held_out_iou = columns
    rows = zip(class_names, dice, iou, shown, held_out_dice, held_out_iou)
    return Estimate([ClassEstimate(*row) for row in rows], slices, len(held_out), len(folds))


def _expected(folds: Sequence[FoldCounts], final: FinalCounts, held_out: Counts, kind: str) -> list[float | None]:
    """By class, the final model's promise, corrected and within its bounds; None where no held-out slice shows it."""
    promised = _added([fold.promised for fold in folds])
    learned = _added([fold.learned for fold in folds])
    best = best_temperature([fold.likelihoods for fold in folds])
    scores = _by_volume(held_out, kind)
    # The same volumes for all three; NaN in those that do not show a class
    honest, apparent = _means(scores), _means(_by_volume({name: learned[name] for name in held_out}, kind))
    own = _means(_by_volume({name: final.learned[name] for name in held_out}, kind))
    differences = _means(scores - _by_volume({name: promised[name][best] for name in held_out}, kind))
    pooled = _mean(differences[1:])  # a few slices tell little of a single class; the background is unlike the others
    corrected = [
        None if promise is None or difference is None else promise + difference
        for promise, difference in zip(_promises(final, kind), [differences[0], *[pooled] * (len(honest) - 1)])
    ]
    return [_within(*entry) for entry in zip(corrected, honest, apparent, own)]


def _promises(final: FinalCounts, kind: str) -> list[float | None]:
    """By class, over the volumes whose annotation shows it; in others it may be absent."""
    if not final.promised:
        return [None] * len(next(iter(final.learned.values())))
    known = _by_volume({name: final.learned[name] for name in final.promised}, kind)
    return _means(torch.where(known.isnan(), torch.nan, _by_volume(final.promised, kind)))


def _within(corrected: float | None, honest: float | None, apparent: float | None, own: float | None) -> float | None:
    """The corrected promise within its bounds; the held-out slices' score where a model learned nothing of a class."""
    if honest is None or own is None or apparent is None:
        return honest
    least = min(own, apparent + MOST_GAINED) - OPTIMISM_SHARE * max(apparent - honest, 0.0)
    return max(least if corrected is None else min(max(corrected, least), own), 0.0)


def _added(parts: Sequence[Counts]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, found in part.items():
            total[name] = total.get(name, torch.zeros_like(found)) + found
    return total


def _by_volume(counts: Counts, kind: str) -> torch.Tensor:
    """(V, K) scores of at least one volume; NaN where a volume does not show a class."""
    return overlap_scores(torch.stack(list(counts.values())), kind)


def _means(scores: torch.Tensor) -> list[float | None]:
    """By class, the mean over the volumes that show it."""
    return [score.mean for score in class_scores(scores)]


def _plain(counts: Counts) -> dict[str, Any]:
    return {name: found.tolist() for name, found in counts.items()}


def _tensors(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(rows) for name, rows in content.items()}


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
