"""The normalisation of images that a model learns with: in words, and as a function for its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.transforms import Compose, NormalizeIntensityd, Transform

from sparse3dunet.keys import IMAGE

NONE = "no normalisation"


def normalization_names(transforms: Sequence[Any] | None) -> list[str]:
    """The transforms that normalise, in words; none for the bundle's own: each channel to mean 0 and deviation 1.

    None is the bundle's own, too; without any transform, there is no normalisation.
    """
    if transforms is None:
        return []
    if len(transforms) == 1 and type(transforms[0]) is NormalizeIntensityd:
        inner = transforms[0].normalizer
        if inner.channel_wise and not inner.nonzero and inner.subtrahend is None and inner.divisor is None:
            return []
    return [_in_words(transform) for transform in transforms] or [NONE]


def normalizer(transforms: Sequence[Any] | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What normalises an image (C, X, Y, Z) as dictionary transforms do; None for the bundle's own normalisation."""
    if transforms is None or not normalization_names(transforms):
        return None
    compose = Compose(list(transforms))
    return lambda image: compose({IMAGE: image})[IMAGE]


def _in_words(transform: Any) -> str:
    """A transform's name and its arguments, as far as they are plain values, or transforms themselves."""
    told = []
    for name, value in sorted(vars(transform).items()):
        if isinstance(value, (bool, int, float, str, list, tuple, type(None))) and not name.startswith("_"):
            told.append(f"{name}={value!r}")
        elif isinstance(value, Transform):
            told.append(f"{name}={_in_words(value)}")
    return f"{type(transform).__name__}({', '.join(told)})"
