"""Dice and IoU over annotated voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from monai.metrics import CumulativeIterationMetric

from sparse3dunet.losses.regions import Regions, membership
from sparse3dunet.losses.target import annotated_classes, unpack_target

KINDS = ("dice", "iou")


def overlap_counts(
    pred: torch.Tensor, target: torch.Tensor, num_classes: int, regions: Regions | None = None
) -> torch.Tensor:
    """Count the annotated voxels on which segmentation and label agree and disagree.

    Args:
        pred: (B, 1, ...) the segmentation, classes 0 ... K-1; or (B, K, ...) logits, of which the argmax is taken.
        target: label and weight (:func:`~sparse3dunet.losses.target.pack_target`), or (B, 1, ...) a dense label. Voxels
            of weight 0 are not counted; all others count once. A predicted class that was not looked for in a volume
            counts as background, which it may be there.
        num_classes: K.
        regions: class numbers by the name of the region, to count the background and the regions instead of classes.

    Returns:
        (B, K, 3) int64: for each volume and class, or background and region, the true positives, false positives and
        false negatives.

    Raises:
        ValueError: when there is no volume, shapes differ, a class is out of range or no whole number, or a logit is
            NaN.
    """
    if not len(pred):
        raise ValueError(f"the batch has no volume: segmentation {tuple(pred.shape)}; expected at least one.")
    undefined = pred.isnan().any(dim=1)
    if pred.shape[1] == num_classes and num_classes > 1:
        pred = pred.argmax(dim=1, keepdim=True)
    if pred.shape[1] != 1 or pred.shape[0] != target.shape[0] or pred.shape[2:] != target.shape[2:]:
        raise ValueError(f"segmentation {tuple(pred.shape)} and target {tuple(target.shape)} do not fit.")
    looked_for = annotated_classes(target, num_classes)
    label, weight = unpack_target(target)
    if bool((undefined & (weight > 0)).any()):
        raise ValueError("the segmentation or its logits contain NaN on annotated voxels; expected numbers.")
    counts = []
    for number, (guess, truth, counted) in enumerate(zip(pred[:, 0], label, weight > 0)):
        truth, guess = truth[counted], whole_classes(guess[counted])
        for name, classes in (("label", truth), ("predicted class", guess)):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
                raise ValueError(f"a {name} is outside of 0 ... {num_classes - 1}: {classes.unique().tolist()[:9]}.")
        if looked_for is not None:
            guess = torch.where(looked_for[number][guess], guess, 0)
        pairs = truth * num_classes + guess
        confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
        true_positive, predicted, true = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        if regions:
            inside = torch.cat([torch.eye(1, num_classes), membership(regions)]).to(confusion.device).double()
            true_positive = ((inside @ confusion.double()) * inside).sum(1).long()
            predicted, true = ((inside @ count.double()).long() for count in (predicted, true))
        counts.append(torch.stack([true_positive, predicted - true_positive, true - true_positive], dim=-1))
    return torch.stack(counts)


def whole_classes(classes: torch.Tensor) -> torch.Tensor:
    """Return classes as int64; raise ValueError if they are something else, such as probabilities."""
    odd = classes[classes != classes.round()] if classes.is_floating_point() else classes[:0]
    if odd.numel():
        raise ValueError(
            f"a segmentation of one channel has the value {float(odd[0]):g}; expected classes, whole numbers. Use "
            "a threshold for probabilities, or pass the logits of all classes."
        )
    return classes.long()


def overlap_scores(counts: torch.Tensor, kind: str) -> torch.Tensor:
    """Compute Dice or IoU (..., K) from (..., K, 3) counts; NaN for a class that no annotated voxel has."""
    true_positive, false_positive, false_negative = counts.double().unbind(-1)
    if kind == "dice":
        scores = 2 * true_positive / (2 * true_positive + false_positive + false_negative)
    elif kind == "iou":
        scores = true_positive / (true_positive + false_positive + false_negative)
    else:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")
    return torch.where(true_positive + false_negative > 0, scores, torch.nan)


@dataclass(frozen=True)
class ClassScore:
    """Mean of a class's score over the volumes in which it is annotated; `n` is their number, `mean` None if n = 0."""

    mean: float | None
    n: int


class OverlapMetric(CumulativeIterationMetric):
    """Dice or IoU by class on annotated voxels, averaged over the volumes.

    A class that none of a volume's annotated voxels has is not evaluable there and left out of the mean, as in MONAI's
    ``DiceMetric`` and ``MeanIoU`` with ``ignore_empty=True``, which this equals (but it needs neither one-hot volumes
    nor an ignore value in the label).

    Args:
        num_classes: K.
        kind: ``"dice"`` or ``"iou"``.
        include_background: whether the mean over classes (:meth:`aggregate`) includes class 0.
        regions: see :func:`overlap_counts`; the scores are then those of the background and the regions.

    Shapes: called with a segmentation and a target as :func:`overlap_counts`.
    """

    def __init__(
        self,
        num_classes: int,
        kind: str = "dice",
        include_background: bool = False,
        regions: Regions | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")
        self.num_classes = num_classes
        self.kind = kind
        self.include_background = include_background
        self.regions = regions

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        counts = overlap_counts(torch.as_tensor(y_pred), torch.as_tensor(y), self.num_classes, self.regions)
        return overlap_scores(counts, self.kind).float()

    def by_class(self) -> list[ClassScore]:
        """Return the score of each class 0 ... K-1, not evaluable if no volume has it.

        Raises:
            ValueError: when no volume was scored yet.
        """
        scores = self.get_buffer()
        if scores is None:
            raise ValueError("no volume was scored yet; call the metric with a segmentation and a target first.")
        return class_scores(scores)

    def aggregate(self) -> torch.Tensor:
        """Return the mean over the evaluable classes; NaN only if no class is evaluable."""
        mean = mean_score(self.by_class()[0 if self.include_background else 1 :])
        return torch.tensor(torch.nan if mean is None else mean)


def class_scores(per_volume: torch.Tensor) -> list[ClassScore]:
    """Average (N, K) scores over the rows, where NaN means not evaluable."""
    scores: list[ClassScore] = []
    for column in per_volume.double().unbind(1):
        valid = column[~column.isnan()]
        scores.append(ClassScore(float(valid.mean()) if len(valid) else None, len(valid)))
    return scores


class HasMean(Protocol):
    """Score of a class, such as ClassScore or :class:`~sparse3dunet.metrics.measures.Summary`."""

    @property
    def mean(self) -> float | None: ...


def mean_score(scores: Sequence[HasMean]) -> float | None:
    """Return the mean over the evaluable classes, None if there is none."""
    means = [s.mean for s in scores if s.mean is not None]
    return sum(means) / len(means) if means else None
