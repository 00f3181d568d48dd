"""By which normalisation a model learned, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.transforms import NormalizeIntensityd, Transform


def normalization_names(transforms: Sequence[Any]) -> list[str]:
    """The transforms that normalise, in words; none for the bundle's own: each channel to mean 0 and deviation 1."""
    if len(transforms) == 1 and type(transforms[0]) is NormalizeIntensityd:
        inner = transforms[0].normalizer
        if inner.channel_wise and not inner.nonzero and inner.subtrahend is None and inner.divisor is None:
            return []
    return [_in_words(transform) for transform in transforms]


def _in_words(transform: Any) -> str:
    """A transform's name and its arguments, as far as they are plain values, or transforms themselves."""
    told = []
    for name, value in sorted(vars(transform).items()):
        if isinstance(value, (bool, int, float, str, list, tuple, type(None))) and not name.startswith("_"):
            told.append(f"{name}={value!r}")
        elif isinstance(value, Transform):
            told.append(f"{name}={_in_words(value)}")
    return f"{type(transform).__name__}({', '.join(told)})"
