"""Normalisation of images that a model was trained with: its names, and a function for predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, NormalizeIntensityd, Transform

from sparse3dunet.keys import IMAGE
from sparse3dunet.transforms.normalize import NormalizeImaged

NONE = "no normalisation"


def normalization_names(transforms: Sequence[Any] | None) -> list[str]:
    """Return names and arguments of normalising transforms; empty for the bundle's own normalisation or None.

    The bundle's own is :class:`~sparse3dunet.transforms.NormalizeImaged`, or ``NormalizeIntensityd`` by channel, which
    is the same without an absolute scale. An empty list of transforms means no normalisation.
    """
    if transforms is None or _is_own(transforms):
        return []
    return [_in_words(transform) for transform in transforms] or [NONE]


def intensity_of(transforms: Sequence[Any] | None) -> Mapping[str, float] | None:
    """Return the absolute scale of the bundle's own normalisation; None for any other."""
    own = transforms is not None and len(transforms) == 1 and isinstance(transforms[0], NormalizeImaged)
    return transforms[0].normalize.intensity if own and transforms is not None else None


def _is_own(transforms: Sequence[Any]) -> bool:
    if len(transforms) != 1:
        return False
    if type(transforms[0]) is not NormalizeIntensityd:
        return isinstance(transforms[0], NormalizeImaged)
    inner = transforms[0].normalizer
    return inner.channel_wise and not inner.nonzero and inner.subtrahend is None and inner.divisor is None


def normalizer(transforms: Sequence[Any] | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a function that normalises an image (C, X, Y, Z); None for the bundle's own normalisation."""
    if transforms is None or not normalization_names(transforms):
        return None
    compose = Compose(list(transforms))
    return lambda image: compose({IMAGE: image})[IMAGE]


def _in_words(transform: Any) -> str:
    """Return a transform's name and its arguments that are plain values or transforms."""
    arguments = []
    for name, value in sorted(vars(transform).items()):
        if isinstance(value, (bool, int, float, str, list, tuple, type(None))) and not name.startswith("_"):
            arguments.append(f"{name}={value!r}")
        elif isinstance(value, Transform):
            arguments.append(f"{name}={_in_words(value)}")
    return f"{type(transform).__name__}({', '.join(arguments)})"
