"""Fine-tuning a trained model, also for other classes or channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from torch import nn

from sparse3dunet.errors import DataError
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D


def description_of(pretrained: str | Path | None) -> ModelDescription | None:
    """Return the description of a model to fine-tune, as for :func:`load_pretrained`; None for none."""
    return None if pretrained is None else load_model(pretrained).description


def load_pretrained(network: nn.Module, pretrained: str | Path | None, description: ModelDescription) -> None:
    """Load the weights of a trained model into a network, in place, and print what was loaded and what is new.

    From a model with the same number of classes everything is loaded, whatever their names; with another number of
    classes, or regions instead of classes, the head stays new, with another number of channels the first convolution.

    Args:
        network: the network to be trained.
        pretrained: the model, as for :func:`~sparse3dunet.models.loading.load_model`; None to load nothing.
        description: description of the model to be trained.

    Raises:
        DataError: when there is no such model, or its network has another form.
    """
    if pretrained is None:
        return
    model = load_model(pretrained)
    if not isinstance(network, UNet3D) or not isinstance(model.network, UNet3D):
        raise DataError(f"{pretrained}: only the model.pt of a UNet3D can be trained further (a .ts only predicts).")
    _check_same_form(network.config, model.network.config, str(pretrained))
    own, others = network.state_dict(), model.network.state_dict()
    # Outputs for regions and for classes mean different things, even if there are equally many.
    kept_head = bool(model.description.regions) == bool(description.regions)
    fitting = {name for name in others if kept_head or not name.startswith("head.")}
    loaded = {name: tensor for name, tensor in others.items() if name in fitting and own[name].shape == tensor.shape}
    network.load_state_dict({**own, **loaded})
    if idist.get_rank() == 0:
        count = f"{len(loaded)} of {len(own)} tensors loaded."
        print(f"Training further from {pretrained}: {count} {_news(model.description, description)}".rstrip())


def _check_same_form(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    """Raise DataError unless two networks differ at most in channels, classes and dropout."""
    ours, theirs = (_with_defaults(config) for config in (ours, theirs))
    free = {"in_channels", "out_channels", "dropout"}
    differing = [key for key in ours if key not in free and _plain(ours[key]) != _plain(theirs.get(key))]
    if differing:
        listed = ", ".join(f"{key} {theirs.get(key)} (here {ours[key]})" for key in differing)
        options = " ".join(f'--network_def#{key} "{_plain(theirs.get(key))}"' for key in differing)
        raise DataError(f"{where}: its network differs in {listed}. Train one of the same form: {options}")


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a UNet3D: those that configs name only if they are not the defaults, too."""
    own = {"halved": True, "kernel_sizes": [[3, 3, 3]] * len(config["channels"])}
    return {**config, **{name: config.get(name, default) for name, default in own.items()}}


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _news(before: ModelDescription, now: ModelDescription) -> str:
    """Describe which layers are new, and what else differs from the model."""
    news = []
    classes, names = ((*(d.regions or d.class_names),) for d in (before, now))
    if bool(before.regions) != bool(now.regions):
        kinds = ["regions" if description.regions else "classes" for description in (now, before)]
        news.append(f"The head is new: {kinds[0]} ({', '.join(names)}) instead of {kinds[1]}.")
    elif len(classes) != len(names):
        news.append(f"The head is new: {len(names)} classes ({', '.join(names)}) instead of {len(classes)}.")
    elif classes != names:
        news.append(f"Classes by number: {', '.join(f'{a} -> {b}' for a, b in zip(classes, names))}.")
    if before.in_channels != now.in_channels:
        news.append(f"The first convolution is new: {now.in_channels} channel(s) instead of {before.in_channels}.")
    for then, today, words in (
        (before.spacing, now.spacing, "voxel size"),
        (before.normalize, now.normalize, "normalisation"),
        (before.intensity, now.intensity, "scale of intensities"),
    ):
        if then != today:
            news.append(f"It was trained with another {words}: {_plain(then)}, now {_plain(today)}.")
    return " ".join(news)
