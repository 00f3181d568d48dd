"""Cross-entropy and Dice over annotated voxels; unlabeled ones affect neither the loss nor any gradient.

Partial labels, in which a voxel marked as background may be a class that was not looked for in its volume, are learned
by the marginal loss (Fang & Yan 2020; Shi et al. 2021): the probabilities of these classes are added to that of the
background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from sparse3dunet.losses.regions import Regions, membership
from sparse3dunet.losses.target import annotated_classes, unpack_target
from sparse3dunet.networks.shapes import center_crop


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes that then compute the same loss, whose gradients DistributedDataParallel averages.

    The gradient is multiplied by the number of processes, by which the average divides again.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * dist.get_world_size()


class _MaskedLoss(nn.Module):
    """Base of both losses, with class weights or regions, and checked logits, labels and weights."""

    class_weight: torch.Tensor | None
    ce_class_weight: torch.Tensor | None
    in_region: torch.Tensor | None

    def __init__(
        self,
        class_weight: Sequence[float] | torch.Tensor | None = None,
        distributed: bool = False,
        regions: Regions | None = None,
        ce_class_weight: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.distributed = distributed
        weights = _checked(class_weight, "class_weight")
        if weights is not None and regions:
            raise ValueError("class_weight is for classes, and cannot be combined with regions.")
        self.register_buffer("class_weight", weights, persistent=False)
        self.register_buffer("ce_class_weight", _checked(ce_class_weight, "ce_class_weight"), persistent=False)
        self.register_buffer("in_region", membership(regions) if regions else None, persistent=False)

    def _prepare(
        self, pred: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits (B, K, ...), labels (B, ...) and weights (B, ...) of the prediction's size; classes looked for.

        Logits of unlabeled voxels become 0 before the softmax, so that not even an infinite one causes NaN. Those of
        classes that were not looked for are merged into the background's. The last is (B, K) bool. With regions, logits
        are (B, R, ...), and the last is (B, R).
        """
        _check_shapes(tuple(pred.shape), tuple(target.shape))
        num_classes = pred.shape[1] if self.in_region is None else self.in_region.shape[1]
        if self.in_region is not None and pred.shape[1] != len(self.in_region):
            raise ValueError(f"the network has {pred.shape[1]} outputs, but there are {len(self.in_region)} regions.")
        looked_for = annotated_classes(target, num_classes)
        label, weight = unpack_target(center_crop(target, list(pred.shape[2:])))
        for name, factors in (("class_weight", self.class_weight), ("ce_class_weight", self.ce_class_weight)):
            if factors is not None and len(factors) != num_classes:
                raise ValueError(f"{name} has {len(factors)} entries for {num_classes} classes.")
        if label.numel() and (label.max() >= num_classes or label.min() < 0):
            raise ValueError(
                f"an annotated voxel has label {int(label.max() if label.max() >= num_classes else label.min())}, "
                f"but the network has {num_classes} classes (0 ... {num_classes - 1})."
            )
        annotated = (weight > 0).unsqueeze(1)
        logits = torch.where(annotated, pred.float(), torch.zeros((), device=pred.device))
        if looked_for is None:
            return logits, label, weight, torch.ones(pred.shape[:2], dtype=torch.bool, device=pred.device)
        if not bool(looked_for.gather(1, label.flatten(1)).all()):
            raise ValueError("an annotated voxel has the label of a class that was not looked for in its volume.")
        if self.in_region is not None:
            raise ValueError("partial labels cannot be combined with regions.")
        return _merge_into_background(logits, looked_for), label, weight, looked_for

    def _cross_entropy(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Compute PyTorch's weighted mean over the annotated voxels; a differentiable 0 if there are none."""
        for factors in (self.class_weight, self.ce_class_weight):
            weight = weight if factors is None else weight * factors.to(label.device)[label]
        if self.in_region is None:
            loss = F.cross_entropy(logits, label, reduction="none")
        else:
            truth = self._truth(label, logits.shape[1]).float()
            loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        weights = self._of_all(weight.sum()).clamp(min=torch.finfo(torch.float32).tiny)
        return self._of_all((loss * weight).sum()) / weights

    def _truth(self, label: torch.Tensor, num_classes: int) -> torch.Tensor:
        """Return (B, K, ...), 1 in the channel of the label and 0 in others; with regions (B, R, ...), 1 inside."""
        if self.in_region is None:
            return F.one_hot(label, num_classes).movedim(-1, 1)
        return self.in_region.to(label.device)[:, label].movedim(0, 1).long()

    def _of_all(self, part: torch.Tensor) -> torch.Tensor:
        """Return the differentiable sum over all processes; `part` if there is only one."""
        several = self.distributed and dist.is_initialized() and dist.get_world_size() > 1
        return _SumOverProcesses.apply(part) if several else part


def _check_shapes(pred: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise ValueError unless a target (B, C, ...) is for a prediction (B, K, ...), and at least as large."""
    if len(pred) == len(target) and pred[0] == target[0] and all(p <= t for p, t in zip(pred[2:], target[2:])):
        return
    expected = f"expected a target ({', '.join(map(str, (pred[0], 'channels', *pred[2:])))}), or a larger one"
    if target == (pred[0], *pred[2:]):
        expected = "its channel is missing: use target.unsqueeze(1), or pack_target for label and weight"
    raise ValueError(f"prediction {pred} and target {target} do not fit: {expected}.")


def _checked(factors: Sequence[float] | torch.Tensor | None, name: str) -> torch.Tensor | None:
    """Return factors by class as a tensor (K,), checked."""
    values = None if factors is None else torch.as_tensor(factors, dtype=torch.float32)
    if values is not None and (values.ndim != 1 or not torch.isfinite(values).all() or (values < 0).any()):
        raise ValueError(f"{name} must be a list of finite numbers >= 0, got {factors}.")
    return values


def _merge_into_background(logits: torch.Tensor, looked_for: torch.Tensor) -> torch.Tensor:
    """Add the probabilities of the classes that were not looked for to the background's, as logits (B, K, ...)."""
    classes = looked_for.view(*looked_for.shape, *[1] * (logits.ndim - 2))
    others = classes.clone()
    others[:, 0] = False
    background = logits.masked_fill(others, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits.masked_fill(~classes, -torch.inf)[:, 1:]], dim=1)


class MaskedCrossEntropyLoss(_MaskedLoss):
    """Softmax with weighted cross-entropy, the loss of Çiçek et al. 2016 (page 5).

    The mean is over the weights, not over the voxels, so that the loss does not depend on how sparse the annotation
    is. With all weights 1 it equals ``torch.nn.CrossEntropyLoss(weight=class_weight)``; without an annotated voxel it
    is a differentiable zero. Classes that were not looked for in a volume count as its background. With regions it is
    the mean binary cross-entropy over the regions.

    Args:
        class_weight: one factor >= 0 per class, multiplied with the voxels' weights.
        distributed: with DistributedDataParallel, whether the mean is over the annotated voxels of all processes, as
            if one had the whole batch. With a mean in each process, a voxel would count more the fewer its process has.
            All processes must call the loss equally often.
        regions: class numbers by the name of the region (:mod:`~sparse3dunet.losses.regions`), for a network with a
            sigmoid output for each instead of a softmax over classes; None or empty for classes.

    Shapes:
        pred: (B, K, X, Y, Z) logits of the classes, or (B, R, X, Y, Z) of the regions.
        target: (B, 2, X', Y', Z'), label and weight, or more channels for partial labels
            (:func:`~sparse3dunet.losses.target.pack_target`), or (B, 1, X', Y', Z'), a dense label.
            If it is larger than `pred`, as with valid convolutions, its centre is used.

    Raises:
        ValueError: when the shapes do not fit, or an annotated voxel's label is not a class.

    Example:
        Two voxels, of which the second is unlabeled; its label and its logits do not matter.

        >>> from sparse3dunet.losses.target import pack_target
        >>> logits = torch.tensor([0.0, 9.0, 1.0, -9.0]).view(1, 2, 1, 1, 2)
        >>> label, weight = torch.tensor([1, 255]).view(1, 1, 1, 1, 2), torch.tensor([1, 0]).view(1, 1, 1, 1, 2)
        >>> round(MaskedCrossEntropyLoss()(logits, pack_target(label, weight)).item(), 4)
        0.3133
    """

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self._cross_entropy(*self._prepare(pred, target)[:3])


class MaskedDiceCELoss(_MaskedLoss):
    """Soft Dice plus cross-entropy over annotated voxels.

    The mask is applied after the softmax: on the logits it would turn every unlabeled voxel into a uniform prediction.
    With all weights 1 it equals ``monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)`` with the same arguments;
    without an annotated voxel it is a differentiable zero. In Dice, a class that was not looked for in a volume has no
    term there; its probability is the background's. With regions, it equals ``DiceLoss(sigmoid=True)`` plus
    ``BCEWithLogitsLoss``, by region. Shapes and errors as in :class:`MaskedCrossEntropyLoss`.

    Args:
        include_background: whether the Dice term includes class 0; regions have no background.
        batch: whether to sum over the whole batch in Dice; otherwise it is the mean over the volumes that have an
            annotated voxel.
        smooth_nr: added to Dice's numerator.
        smooth_dr: added to Dice's denominator.
        class_weight: one factor >= 0 per class, for both terms.
        ce_class_weight: one more factor >= 0 per class, for the voxels of the cross-entropy alone: in it a class of few
            voxels hardly counts, while Dice has a term for each class.
        lambda_dice: factor of the Dice term.
        lambda_ce: factor of the cross-entropy term.
        distributed: whether all sums are over all processes, see :class:`MaskedCrossEntropyLoss`.
        regions: see :class:`MaskedCrossEntropyLoss`.

    Example:
        >>> from sparse3dunet.losses.target import pack_target
        >>> label = torch.tensor([0, 1, 1, 255]).view(1, 1, 1, 2, 2)
        >>> target = pack_target(label, label < 255)
        >>> right = 20.0 * torch.stack([label == 0, label == 1], 1)[:, :, 0]  # sure, and right where annotated
        >>> round(MaskedDiceCELoss()(right, target).item(), 4)
        0.0
    """

    def __init__(
        self,
        include_background: bool = True,
        batch: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        class_weight: Sequence[float] | torch.Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        distributed: bool = False,
        regions: Regions | None = None,
        ce_class_weight: Sequence[float] | torch.Tensor | None = None,
    ) -> None:
        super().__init__(class_weight, distributed, regions, ce_class_weight)
        if lambda_dice < 0 or lambda_ce < 0:
            raise ValueError(f"lambda_dice and lambda_ce must be >= 0, got {lambda_dice} and {lambda_ce}.")
        self.include_background = include_background
        self.batch = batch
        self.smooth_nr = smooth_nr
        self.smooth_dr = smooth_dr
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        prepared = self._prepare(pred, target)
        return self.lambda_dice * self._dice(*prepared) + self.lambda_ce * self._cross_entropy(*prepared[:3])

    def _dice(
        self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor, looked_for: torch.Tensor
    ) -> torch.Tensor:
        prob = logits.softmax(dim=1) if self.in_region is None else logits.sigmoid()
        onehot = self._truth(label, prob.shape[1])
        factor = None if self.class_weight is None else self.class_weight.to(label.device)
        if not self.include_background and self.in_region is None:
            prob, onehot, looked_for = prob[:, 1:], onehot[:, 1:], looked_for[:, 1:]
            factor = None if factor is None else factor[1:]
        axes = tuple(range(2, prob.ndim))
        counted = weight.unsqueeze(1)
        overlap = (counted * prob * onehot).sum(axes)
        total = (counted * (prob + onehot)).sum(axes)
        # How much annotation the term of a class has in a volume, or in the batch; without any, there is no term.
        annotated = weight.flatten(1).sum(1, keepdim=True) * looked_for
        if self.batch:
            overlap, total, annotated = (self._of_all(part.sum(0, True)) for part in (overlap, total, annotated))
        counted_terms = (annotated > 0).sum(1).clamp(min=1)
        loss = 1 - (2 * overlap + self.smooth_nr) / (total + self.smooth_dr)
        if factor is not None:
            loss = loss * factor
        of_volumes = (loss * (annotated > 0)).sum(1) / counted_terms
        count = (annotated > 0).any(1).sum()
        value = of_volumes.sum()
        if not self.batch:
            value, count = self._of_all(value), self._of_all(count)
        return value / count.clamp(min=1)
