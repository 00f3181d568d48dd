"""Label and weight in one tensor, for losses and metrics of two arguments.

A target is (B, C, ...) float32. Its channels are the label, the weight and, only if some classes were not looked for in
some volume (partial labels), the set of these classes: a bit for each, 24 bits in a channel, which float32 holds
exactly, and the same at every voxel. So the set is cropped, collated and moved with the label that it is needed to
read: a voxel marked as background may be any class of the set.
"""

from __future__ import annotations

import torch

from sparse3dunet.errors import DataError

BITS = 24
"""Classes in a channel: float32 holds whole numbers of 24 bits exactly."""


def pack_target(
    label: torch.Tensor, weight: torch.Tensor, annotated_classes: torch.Tensor | None = None
) -> torch.Tensor:
    """Join label and weight, both (B, 1, ...), into one target (B, 2, ...) float32.

    Args:
        label: class numbers.
        weight: 0 where unlabeled.
        annotated_classes: (B, K) bool, whether each class was looked for in each volume; the target then has further
            channels. None, or all True: every class was looked for in every volume.

    Raises:
        ValueError: when label and weight differ in shape or have more than one channel, or `annotated_classes` has
            another shape or leaves out the background.

    Example:
        >>> pack_target(torch.zeros(2, 1, 8, 8, 8), torch.ones(2, 1, 8, 8, 8)).shape
        torch.Size([2, 2, 8, 8, 8])
    """
    if label.shape != weight.shape or label.shape[1] != 1:
        raise ValueError(
            f"label and weight must have one shape (B, 1, ...), got {tuple(label.shape)} and {tuple(weight.shape)}."
        )
    channels = [label.to(torch.float32), weight.to(torch.float32)]
    if annotated_classes is not None and not bool(annotated_classes.all()):
        if (
            annotated_classes.ndim != 2
            or len(annotated_classes) != len(label)
            or not bool(annotated_classes[:, 0].all())
        ):
            raise ValueError(
                "annotated_classes must have shape (B, K), with the background, class 0, looked for; got "
                f"{annotated_classes.tolist()} for {len(label)} volumes."
            )
        missing = (~annotated_classes.bool()).to(label.device)
        for part in missing.split(BITS, dim=1):
            bits = (part * 2 ** torch.arange(part.shape[1], device=label.device)).sum(1).to(torch.float32)
            channels.append(bits.view(-1, *[1] * (label.ndim - 1)).expand(label.shape))
    return torch.cat(channels, dim=1)


def unpack_target(target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a target into label (B, ...) int64, 0 where the weight is 0, and weight (B, ...) float32.

    Args:
        target: (B, 2, ...) or more channels from :func:`pack_target`, or (B, 1, ...) a dense label map with weight 1
            everywhere.

    Raises:
        ValueError: when the target has no channel, a negative or infinite weight, or a label that is no whole number
            where the weight is not 0.
    """
    if target.shape[1] < 1:
        raise ValueError(f"a target has 1 channel (label) or 2 (label, weight) or more, got {tuple(target.shape)}.")
    label = target[:, 0]
    weight = target[:, 1].to(torch.float32) if target.shape[1] > 1 else torch.ones_like(label, dtype=torch.float32)
    if not bool(((weight >= 0) & (weight < torch.inf)).all()):  # also for NaN
        raise ValueError("a target has a weight that is negative, NaN or infinite; weights are finite and >= 0.")
    # Values of unlabeled voxels (255, -1, NaN after a warp) must not be used as an index or for one-hot.
    return label_numbers(torch.where(weight > 0, label, torch.zeros_like(label))), weight


def label_numbers(label: torch.Tensor) -> torch.Tensor:
    """Return labels as int64; raise DataError if some are no whole numbers, which would become another class."""
    numbers = label.long()
    if label.is_floating_point() and not torch.equal(numbers.to(label.dtype), label):
        odd = label[numbers != label][0]
        raise DataError(
            f"an annotated voxel has label {float(odd):g}; expected class numbers, whole ones. Resample label maps "
            "by nearest neighbours, and give unlabeled voxels weight 0."
        )
    return numbers


def annotated_classes(target: torch.Tensor, num_classes: int) -> torch.Tensor | None:
    """Return whether each class was looked for in each volume, (B, K) bool; None if the target does not say.

    Args:
        target: see :func:`unpack_target`; at least one voxel of each volume.
        num_classes: K.

    Raises:
        ValueError: when the channels after label and weight are not those of :func:`pack_target` for K classes.
    """
    if target.shape[1] <= 2:
        return None
    channels = target[:, 2:].flatten(2)
    bits = channels[..., 0]
    expected = (num_classes + BITS - 1) // BITS
    whole = bool(((bits >= 0) & (bits < 2**BITS) & (bits == bits.floor())).all())
    if channels.shape[1] != expected or not whole or not bool((channels == bits[..., None]).all()):
        raise ValueError(
            f"a target has 1 channel (label), 2 (label, weight), or {expected} more for partial labels of "
            f"{num_classes} classes (pack_target), got other values or {tuple(target.shape)}."
        )
    steps = torch.arange(BITS, device=target.device)
    missing = (bits.long()[..., None] >> steps & 1).flatten(1).bool()
    if bool(missing[:, num_classes:].any()) or bool(missing[:, 0].any()):
        raise ValueError(f"a target for partial labels of {num_classes} classes leaves out the background or others.")
    return ~missing[:, :num_classes]
