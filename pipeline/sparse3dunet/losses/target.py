"""Label and weight in one tensor, for losses and metrics of two arguments."""

from __future__ import annotations

import torch


def pack_target(label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Join label and weight, both (B, 1, ...), into one target (B, 2, ...) float32.

    Raises:
        ValueError: when the two differ in shape or have more than one channel.
    """
    if label.shape != weight.shape or label.shape[1] != 1:
        raise ValueError(
            f"label and weight must have one shape (B, 1, ...), got {tuple(label.shape)} and {tuple(weight.shape)}."
        )
    return torch.cat([label.to(torch.float32), weight.to(torch.float32)], dim=1)


def unpack_target(target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split a target into label (B, ...) int64, 0 where the weight is 0, and weight (B, ...) float32.

    Args:
        target: (B, 2, ...) from :func:`pack_target`, or (B, 1, ...) a dense label map with weight 1 everywhere.

    Raises:
        ValueError: when the target has another number of channels, or a negative or infinite weight.
    """
    if target.shape[1] not in (1, 2):
        raise ValueError(f"a target has 1 channel (label) or 2 (label, weight), got {tuple(target.shape)}.")
    label = target[:, 0]
    weight = target[:, 1].to(torch.float32) if target.shape[1] == 2 else torch.ones_like(label, dtype=torch.float32)
    if bool((weight < 0).any()) or not bool(torch.isfinite(weight).all()):
        raise ValueError("a target has a weight that is negative, NaN or infinite; weights are finite and >= 0.")
    # Values of unlabeled voxels (255, -1, NaN after a warp) must not be used as an index or for one-hot.
    return torch.where(weight > 0, label, torch.zeros_like(label)).long(), weight
