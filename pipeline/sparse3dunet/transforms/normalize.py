"""Normalisation of images: by each image's own mean and deviation, or on an absolute scale, as for CT."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, NormalizeIntensity, ScaleIntensityRange, Transform
from monai.utils import convert_to_tensor

from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE, MOMENTS

ABSOLUTE = ("lower", "upper", "mean", "std")


def is_intensity(value: Any) -> bool:
    """Return whether a value is a normalisation: None, or four numbers with lower < upper and std above 0."""
    if value is None:
        return True
    if not isinstance(value, Mapping) or set(value) != set(ABSOLUTE):
        return False
    numbers = [isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in value.values()]
    return all(numbers) and value["lower"] < value["upper"] and value["std"] > 0


def scale_text(intensity: Mapping[str, float]) -> str:
    """Return an absolute scale in words."""
    return "clipped to {lower:g} ... {upper:g}, less {mean:g}, divided by {std:g}".format(**intensity)


class NormalizeImage(Transform):
    """Normalise an image, by MONAI's own transforms.

    Args:
        intensity: None for ``NormalizeIntensity``: each channel of each image to mean 0 and standard deviation 1. Or,
            for scanners with an absolute scale such as CT, ``lower``, ``upper``, ``mean`` and ``std`` of the training
            data's foreground: values are clipped to lower ... upper, less mean, divided by std, as nnU-Net's for CT
            (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).

    Shapes: (C, X, Y, Z) -> (C, X, Y, Z) float32.

    Raises:
        DataError: when `intensity` is none of these.
    """

    def __init__(self, intensity: Mapping[str, float] | None = None) -> None:
        if not is_intensity(intensity):
            raise DataError(
                f"intensity must have the numbers {', '.join(ABSOLUTE)}, with lower < upper and std above 0, or "
                f"be null for the z-score of each image; found {intensity!r}."
            )
        self.intensity = None if intensity is None else dict(intensity)
        self.normalize: Transform = NormalizeIntensity(channel_wise=True)
        if intensity is not None:
            lower, upper, mean, std = (float(intensity[name]) for name in ABSOLUTE)
            self.normalize = ScaleIntensityRange(lower, upper, (lower - mean) / std, (upper - mean) / std, clip=True)

    def __call__(self, image: Any) -> torch.Tensor:
        return _normalized(self.normalize, image)


class NormalizeImaged(MapTransform):
    """Dictionary version of :class:`NormalizeImage`.

    The z-score of a part of a larger volume is that of the whole, whose moments are in the dictionary (``MOMENTS``).

    Args:
        keys: keys of the images.
        intensity: see :class:`NormalizeImage`.
        allow_missing_keys: whether keys may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        intensity: Mapping[str, float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalize = NormalizeImage(intensity)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        whole = d.pop(MOMENTS, None)
        normalize: Transform = self.normalize.normalize
        if whole is not None and self.normalize.intensity is None:
            means, deviations = whole
            normalize = NormalizeIntensity(means, deviations, channel_wise=True)
        for key in self.key_iterator(d):
            d[key] = _normalized(normalize, d[key])
        return d


def _normalized(normalize: Any, image: Any) -> torch.Tensor:
    # NormalizeIntensity writes into an image of floats that it is given; the caller's must stay as it is
    return normalize(convert_to_tensor(image, track_meta=get_track_meta()).clone())
