"""Weights of concatenated upsampling with same padding, as there were up to 0.10.0, turned into additive ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F


def additive_weights(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The weights of a UNet3D with additive upsampling that computes exactly what one with concatenated did.

    A 3x3x3 convolution of the skip connection beside the upsampled features is the sum of two, and the latter after a
    transposed convolution, both linear, is a transposed convolution with a kernel longer by two.

    Args:
        state: of a UNet3D with same padding; weights of additive upsampling, and what is no such network's, are
            returned as they are.
    """
    if any(name.startswith("skip.") for name in state):
        return state
    found = dict(state)
    for name in [name for name in state if name.startswith("upsample.")]:
        step = name.split(".")[1]
        former = f"up.{step}.0.weight"
        up, conv = state[name], state.get(former)
        if conv is None or up.ndim != 5 or conv.ndim != 5 or conv.shape[1] <= up.shape[1]:
            continue
        skip, coarse = conv.split([conv.shape[1] - up.shape[1], up.shape[1]], dim=1)  # the order of concatenation
        composed = F.conv3d(up.double(), coarse.double(), padding=2)
        layers = {key: found.pop(key) for key in state if key.startswith(f"up.{step}.")}
        found |= {name: composed.to(up.dtype), f"skip.{step}.weight": skip}
        for key, value in layers.items():
            number, rest = key.removeprefix(f"up.{step}.").split(".", 1)
            if number != "0":
                found[f"up.{step}.{int(number) - 1}.{rest}"] = value
            elif rest != "weight":
                found[f"skip.{step}.{rest}"] = value
    return found
