"""What is stored beside a model's weights: made, read, completed and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from sparse3dunet.data.datalist import Case, DataSet, case_name
from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE
from sparse3dunet.models.checkpoints import DESCRIPTION_SUFFIX, NO_MODEL
from sparse3dunet.networks import UNet3D


def describe_model(
    network: torch.nn.Module,
    data_set: DataSet,
    patch_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    split: Sequence[Sequence[Case]] = ((), ()),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What inference must know of a trained model, as plain values.

    Returns:
        ``network``: the arguments of :class:`~sparse3dunet.networks.UNet3D`, None for another network, whose
        ``in_channels`` are then told apart;
        ``class_names`` and ``class_values`` (on disk): by class number; ``patch_size``: in voxels; ``spacing``: in mm
        by axis, None where volumes are not resampled; ``unlabeled``: the values on disk that mean it; `options` as they
        are (how the annotation was marked: evaluating takes them over); ``training`` and ``validation``: the cases'
        names.
    """
    description = {
        "network": network.config if isinstance(network, UNet3D) else None,
        "class_names": list(data_set.class_names),
        "class_values": list(data_set.class_values),
        "patch_size": [int(n) for n in patch_size],
        "spacing": spacing,
        "unlabeled": list(data_set.ignore_index),
        **({} if isinstance(network, UNet3D) else {"in_channels": max(data_set.num_channels, 1)}),
        **(options or {}),
        "training": [case_name(case[IMAGE]) for case in split[0]],
        "validation": [case_name(case[IMAGE]) for case in split[1]],
    }
    return json.loads(json.dumps(description))


def read_description(
    model_file: str | Path, train_config: str | Path, in_channels: int = 1, num_classes: int = 3
) -> dict[str, Any]:
    """The description that training wrote beside `model_file`.

    Before any training, tools that look at the bundle get the network that `train_config` defines, for an image of
    `in_channels` and `num_classes`.

    Raises:
        DataError: when the description is unreadable, or the model was trained with a network other than UNet3D.
    """
    path = Path(model_file).with_suffix(DESCRIPTION_SUFFIX)
    if path.is_file():
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not readable as JSON ({error}); train again, or restore the file.") from error
    elif Path(model_file).is_file():
        raise DataError(f"{path} is missing, which describes {model_file}; copy it along with the model.")
    elif Path(train_config).is_file():
        config = ConfigParser.load_config_file(str(train_config))
        parser = ConfigParser(
            {"network_def": {**config["network_def"], "in_channels": in_channels, "out_channels": num_classes}}
        )
        description = {
            "network": parser.get_parsed_content("network_def").config,
            "class_names": [f"class {i}" for i in range(num_classes)],
            "patch_size": config["largest_patch_size"],
        }
    else:
        raise DataError(NO_MODEL.format(path=Path(model_file).absolute()))
    if not description.get("network"):
        raise DataError(
            f"{path}: describes no UNet3D. The bundle scores and predicts with UNet3D alone; load yours yourself."
        )
    return complete_description(description)


def complete_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """A model's description with what older ones lack."""
    absent: dict[str, Any] = {
        "training": [],
        "validation": [],
        "spacing": None,
        "ignore_index": None,
        "annotated_slices": None,
    }
    return {**absent, "class_values": list(range(len(description["class_names"]))), **description}


def check_model_fits(description: Mapping[str, Any], data_set: DataSet) -> None:
    """Raise DataError unless a model has the classes of a data set, and takes images of as many channels."""
    network, names = description["network"], data_set.class_names
    found = (network["out_channels"], network["in_channels"])
    if found != (len(names), data_set.num_channels):
        raise DataError(
            f"the model has {found[0]} classes and takes {found[1]} channel(s), but the data set has "
            f"{len(names)} ({', '.join(names)}) and {data_set.num_channels}. Choose another --ckpt_dir or "
            "--dataset_dir."
        )
    if list(description["class_values"]) != list(data_set.class_values):
        raise DataError(
            f"the model was trained with the class values {description['class_values']} "
            f"({', '.join(description['class_names'])}), but the data set has {data_set.class_values} "
            f"({', '.join(names)}). Choose another --ckpt_dir or --dataset_dir, or give the classes the same values."
        )


def form_network(config: Mapping[str, Any]) -> UNet3D:
    """The network without its weights, which takes neither memory nor time, nor random numbers."""
    with torch.device("meta"):
        return UNet3D(**config)


def check_description(description: Mapping[str, Any], where: str) -> None:
    """Raise DataError where a field is not what prediction needs."""

    def numbers(value: Any, count: int, kind: Any) -> bool:
        fits = isinstance(value, Sequence) and len(value) == count
        return fits and all(isinstance(n, kind) and not isinstance(n, bool) and math.isfinite(n) for n in value)

    names, values = description["class_names"], description["class_values"]
    channels = description.get("in_channels", 1)
    named = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
    named = named and len(set(names)) == len(names)
    wrong = {
        "class_names": not named,
        "class_values": not named or not numbers(values, len(names), int) or len(set(values)) < len(names),
        "patch_size": not numbers(description.get("patch_size"), 3, int) or min(description["patch_size"]) < 1,
        "spacing": description["spacing"] is not None
        and (not numbers(description["spacing"], 3, (int, float)) or not min(description["spacing"]) > 0),
        "network": not isinstance(description.get("network", ""), (dict, type(None))),
        "in_channels": not numbers([channels], 1, int) or channels < 1,
    }
    for field, bad in wrong.items():
        if bad:
            raise DataError(
                f"the description of {where} has no valid {field}: {description.get(field)!r}. Copy the .json again "
                "from the training's folder."
            )
    if description["network"]:
        try:
            outputs = form_network(description["network"]).head.out_channels
        except Exception as error:  # what MONAI and PyTorch raise differs by argument
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(
                f"the description of {where} has no valid network, {description['network']}: {reason}. Copy the .json "
                "again from the training's folder."
            ) from error
        if outputs != len(names):
            raise DataError(f"the description of {where} has {len(names)} class_names for a network of {outputs}.")
