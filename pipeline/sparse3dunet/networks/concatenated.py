"""Conversion of weights of concatenated upsampling with same padding, as up to 0.10.0, into additive ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F


def additive_weights(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return weights of a UNet3D with additive upsampling that computes exactly the same as with concatenated.

    A 3x3x3 convolution of the skip connection concatenated with the upsampled features is the sum of two convolutions.
    The one of the upsampled features and the transposed convolution before it, both linear, are together a transposed
    convolution with a kernel longer by two.

    Args:
        state: weights of a UNet3D with same padding; weights of additive upsampling, and those of other networks, are
            returned unchanged.
    """
    if any(name.startswith("skip.") for name in state):
        return state
    result = dict(state)
    for name in [name for name in state if name.startswith("upsample.")]:
        step = name.split(".")[1]
        former = f"up.{step}.0.weight"
        up, conv = state[name], state.get(former)
        if conv is None or up.ndim != 5 or conv.ndim != 5 or conv.shape[1] <= up.shape[1]:
            continue
        skip, coarse = conv.split([conv.shape[1] - up.shape[1], up.shape[1]], dim=1)  # the order of concatenation
        composed = F.conv3d(up.double(), coarse.double(), padding=2)
        layers = {key: result.pop(key) for key in state if key.startswith(f"up.{step}.")}
        result |= {name: composed.to(up.dtype), f"skip.{step}.weight": skip}
        for key, value in layers.items():
            number, rest = key.removeprefix(f"up.{step}.").split(".", 1)
            if number != "0":
                result[f"up.{step}.{int(number) - 1}.{rest}"] = value
            elif rest != "weight":
                result[f"skip.{step}.{rest}"] = value
    return result
