"""Shapes of tensors."""

from __future__ import annotations

import torch


def center_crop(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Crop the centre of `x` (B, C, X, Y, Z) to spatial `size`, as the paper does for skip connections."""
    for axis, n in enumerate(size):
        x = x.narrow(axis + 2, (x.shape[axis + 2] - n) // 2, n)
    return x
