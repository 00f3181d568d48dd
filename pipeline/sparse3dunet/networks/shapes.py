"""Shapes of tensors."""

from __future__ import annotations

import torch


def center_crop(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The centre of `x` (B, C, X, Y, Z), of spatial `size`: the paper's copy-and-crop of skip connections."""
    for axis, n in enumerate(size):
        x = x.narrow(axis + 2, (x.shape[axis + 2] - n) // 2, n)
    return x
