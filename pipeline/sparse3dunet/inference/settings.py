"""Settings of a prediction, apart from the images: what is made of each by a model, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparse3dunet.errors import DataError
from sparse3dunet.inference.predictor import Predictor
from sparse3dunet.inference.processes import default_device
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.models.loading import Model
from sparse3dunet.models.normalization import normalization_names, normalizer


@dataclass(frozen=True)
class Settings:
    """Settings of a prediction; see :func:`~sparse3dunet.inference.run.predict`, whose arguments they are."""

    inferer: SlabInferer
    device: torch.device | str | None = None
    normalize: Sequence[Any] | None = None
    confidence: bool = False
    probabilities: bool = False
    largest: bool | Sequence[str | int] = ()
    min_ml: float | Mapping[str, float] = 0.0

    def predictor(self, model: Model) -> Predictor:
        """Return the predictor of a model with these settings.

        Raises:
            DataError: when the model has no class of a name, or a volume in ml is none.
        """
        device = torch.device(self.device or default_device())
        return Predictor(
            model.network.to(device),
            self.inferer,
            model.class_values,
            model.in_channels,
            model.spacing,
            device,
            normalizer(self.normalize),
            self.confidence,
            self.probabilities,
            _class_numbers(self.largest, model.class_names),
            _minimum_sizes(self.min_ml, model.class_names),
            model.description.intensity,
            model.description.regions,
            model.voxel_size,
        )

    def key(self, model: Model, predictor: Predictor) -> dict[str, Any]:
        """Return what results depend on besides the image; cases done with the same key are skipped."""
        inferer = predictor.inferer
        return {
            "model": model.digest,
            **{name: getattr(inferer, name) for name in ("roi_size", "overlap", "border", "mirror_axes")},
            "bfloat16": inferer.uses_bfloat16(predictor.device),
            "normalize": normalization_names(self.normalize),
            "largest": predictor.largest,
            "min_ml": predictor.min_ml,
        }


def _class_numbers(named: bool | Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Return the numbers of foreground classes that are given by name or number."""
    if named is True:
        return list(range(1, len(class_names)))
    return sorted({_class_number(name, class_names) for name in named or ()})


def _minimum_sizes(min_ml: float | Mapping[str, float], class_names: Sequence[str]) -> dict[int, float]:
    if not isinstance(min_ml, Mapping):
        min_ml = dict.fromkeys(class_names[1:], min_ml)
    sizes = {_class_number(name, class_names): ml for name, ml in min_ml.items()}
    for number, ml in sizes.items():
        if isinstance(ml, bool) or not isinstance(ml, (int, float)) or not 0 <= ml < float("inf"):
            raise DataError(f"min_ml of {class_names[number]} is {ml!r}; expected a volume in ml, 0 or more.")
    return {number: float(ml) for number, ml in sorted(sizes.items()) if ml > 0}


def _class_number(name: str | int, class_names: Sequence[str]) -> int:
    number = class_names.index(str(name)) if str(name) in class_names else -1
    if number < 0 and str(name).isdecimal():
        number = int(name)
    if not 0 < number < len(class_names):
        raise DataError(
            f"{name!r} is not a foreground class; the model has {', '.join(class_names[1:])} "
            f"(or their numbers, 1 to {len(class_names) - 1})."
        )
    return number
