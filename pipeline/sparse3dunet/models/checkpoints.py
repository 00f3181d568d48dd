"""Model files: written whole or not at all, and described so that inference rebuilds the network that was trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from sparse3dunet.data.datalist import Case, DataSet, case_name
from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE
from sparse3dunet.networks import UNet3D

DESCRIPTION_SUFFIX = ".json"
_NO_MODEL = "{path}: there is no trained model. Train one first (run training), or name one: --model_file FILE."


def save_file(path: str | Path, content: Mapping[str, Any], description: Mapping[str, Any] | None = None) -> None:
    """Write tensors and plain values to a file, which at any moment is the old one or the new one, and whole.

    Neither MONAI's ``CheckpointSaver`` nor Ignite's ``DiskSaver`` gives that for a fixed file name: the former writes
    in place, and both delete the old file before they write the new one.

    Args:
        path: of the file; its folder is made where it is missing.
        content: for ``torch.save``.
        description: written beside the file, as JSON under the same name, before the file itself; a former file with
            another description is removed first. None for none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if description is not None:
        _describe(path, json.dumps(description, indent=1) + "\n")
    replace_file(path, lambda draft: torch.save(content, draft))


def _describe(model_file: Path, text: str) -> None:
    path = model_file.with_suffix(DESCRIPTION_SUFFIX)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    # A former model of another kind: at no moment may it lie beside a description that is not its own.
    model_file.unlink(missing_ok=True)
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that at any moment is the old one or the new one, and whole; `write` gets the path of a draft."""
    draft = path.with_name(path.name + ".part")
    try:
        write(draft)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


class BestModelSaver:
    """Handler of MONAI's *evaluator*: keeps the network's flat state_dict of the best validation so far, or the last.

    Which one is the best, the evaluator says; give it :func:`is_better` as ``metric_cmp_fn``. Among several processes
    (DDP) the first one writes.

    Args:
        network: the network that is trained.
        path: of the file.
        description: see :func:`save_file`.
        keep: ``best`` or ``last``; with the latter, validation chooses nothing.

    Raises:
        DataError: when `keep` is neither.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | Path,
        description: Mapping[str, Any] | None = None,
        keep: str = "best",
    ) -> None:
        if keep not in ("best", "last"):
            raise DataError(f"keep must be best or last, the model of which validation; got {keep!r}.")
        self.keep = keep
        self.network = network
        self.path = Path(path)
        self.description = description

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        if (self.keep == "last" or state.best_metric_epoch == state.epoch) and idist.get_rank() == 0:
            save_file(self.path, self.network.state_dict(), self.description)


def is_better(metric: float, best: float) -> bool:
    """Whether a metric is larger than the best so far; NaN (nothing evaluable) is smaller than any."""
    return finite_score(metric) > finite_score(best)


def finite_score(value: float) -> float:
    """The value, or minus infinity for NaN, so that comparisons of scores are well-defined."""
    return -math.inf if math.isnan(value) else float(value)


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
        ``network``: the arguments of :class:`~sparse3dunet.networks.UNet3D`, None for another network;
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
        raise DataError(_NO_MODEL.format(path=Path(model_file).absolute()))
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


def existing_model(model_file: str | Path) -> str:
    """Return the path, having made sure that it is a model file that can be loaded.

    Raises:
        DataError: when the file is missing or no file of tensors.
    """
    path = Path(model_file)
    if not path.is_file():
        raise DataError(_NO_MODEL.format(path=path.absolute()))
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
        raise DataError(f"{path.absolute()}: not a model file ({type(error).__name__}); train again.") from error
    return str(path)
