"""Trained models, from whatever holds them: a training's folder, a file, a packaged bundle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse3dunet.checkpoints import complete_description
from sparse3dunet.errors import DataError
from sparse3dunet.networks import UNet3D

PLACES = ("model.pt", "models/model.pt", "model.ts", "models/model.ts")
"""Of the weights in a folder or an archive, the first that is there."""
DESCRIPTION = "model.json"
_CURE = "Train one (run training), or name one: its file, or the folder of the training."


@dataclass(frozen=True)
class Model:
    """A trained network, and what prediction must know of it.

    Attributes:
        network: in eval mode, on the CPU; (B, C, X, Y, Z) -> logits.
        description: see :func:`~sparse3dunet.checkpoints.describe_model`.
        digest: of weights and description, in hexadecimal: tells models apart.
        path: that the user named.
    """

    network: nn.Module
    description: dict[str, Any]
    digest: str
    path: str

    @property
    def class_names(self) -> list[str]:
        return self.description["class_names"]

    @property
    def class_values(self) -> list[int]:
        return self.description["class_values"]

    @property
    def patch_size(self) -> list[int]:
        return self.description["patch_size"]

    @property
    def spacing(self) -> list[float] | None:
        return self.description["spacing"]

    @property
    def in_channels(self) -> int:
        return (self.description["network"] or {}).get("in_channels", 1)


class ScriptedNetwork(nn.Module):
    """A TorchScript network that tells, as UNet3D does, which windows it takes.

    Args:
        scripted: the TorchScript module.
        config: of the UNet3D that it was made of.
    """

    def __init__(self, scripted: torch.jit.ScriptModule, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.scripted = scripted
        with torch.device("meta"):
            form = UNet3D(**config)
        self.output_size, self.size_multiple = form.output_size, form.size_multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scripted(x)


def load_model(path: str | Path) -> Model:
    """Load a trained model.

    No pickle is ever loaded: weights are tensors and plain values, TorchScript is a format of its own.

    Args:
        path: ``model.pt`` (or ``last.pt``) of a training, with ``model.json`` beside it; the training's folder; a
            TorchScript file ``.ts``, with ``model.json`` in it or beside it; a packaged bundle, as a folder or
            ``.zip``.

    Raises:
        DataError: when there is no model, or it is damaged, or does not fit its description.
    """
    file, suffix = _weights_file(Path(path).expanduser())
    content = file.read_bytes()
    if suffix == ".ts":
        network, inside = _scripted(content, str(file))
        description = inside if inside is not None else _beside(file)
        _check_description(description, str(file))
        if description["network"]:
            network = ScriptedNetwork(network, description["network"])
    else:
        description = _beside(file)
        _check_description(description, str(file))
        network = _with_weights(description, _state_dict(content, str(file)), str(file))
    told = json.dumps(description, sort_keys=True).encode()
    digest = hashlib.sha256(hashlib.sha256(content).digest() + told).hexdigest()
    return Model(network.eval(), description, digest, str(path))


def _weights_file(path: Path) -> tuple[Any, str]:
    """The weights (a Path, or one in an archive) and their kind."""
    if path.suffix == ".zip" and path.is_file():
        try:
            root: Any = zipfile.Path(path)
            tops = [root, *(entry for entry in root.iterdir() if entry.is_dir())]
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path.absolute()}: no archive that can be read ({error}). Copy it again.") from error
    elif path.is_dir():
        tops = [path]
    elif path.is_file():
        return path, path.suffix
    else:
        raise DataError(f"{path.absolute()}: there is no trained model. {_CURE}")
    found = [top.joinpath(place) for top in tops for place in PLACES if top.joinpath(place).is_file()]
    if not found:
        raise DataError(f"{path.absolute()}: there is no trained model in it, none of {', '.join(PLACES)}. {_CURE}")
    return found[0], "." + found[0].name.rsplit(".", 1)[-1]


def _beside(file: Any) -> dict[str, Any]:
    """The description beside the weights."""
    names = dict.fromkeys((file.name.rsplit(".", 1)[0] + ".json", DESCRIPTION))
    for name in names:
        description = file.parent.joinpath(name) if isinstance(file, Path) else file.parent / name
        if description.is_file():
            return _parsed(description.read_text(encoding="utf-8"), str(description))
    raise DataError(
        f"{file}: {' or '.join(names)} is missing beside it, which says of what classes and for what images the model "
        "is. Copy it along from the training's folder."
    )


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return complete_description(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{where}: describes no model ({error!r}); copy it again from the training's folder."
        ) from error


def _scripted(content: bytes, where: str) -> tuple[Any, dict[str, Any] | None]:
    """The TorchScript module, and the description in its file, if there is one."""
    extra: dict[str, Any] = {DESCRIPTION: ""}
    try:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{where}: no TorchScript that can be loaded ({reason}). Export it again.") from error
    text = extra[DESCRIPTION]
    text = text.decode() if isinstance(text, bytes) else text
    return network, _parsed(text, f"{where}: {DESCRIPTION} in it") if text else None


def _state_dict(content: bytes, where: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
        raise DataError(
            f"{where}: not a model file ({type(error).__name__}): expected tensors by name, as training writes them. "
            "Code in a file (a pickled network) is never run. Copy it again, or train again."
        ) from error
    state = state["network"] if isinstance(state, dict) and isinstance(state.get("network"), dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{where}: not a model file: expected tensors by name, found {type(state).__name__}. {_CURE}")
    return state


def _with_weights(description: Mapping[str, Any], state: dict[str, torch.Tensor], where: str) -> nn.Module:
    if not description["network"]:
        raise DataError(
            f"{where}: was no UNet3D when it was trained. Export it as TorchScript (model.ts), or load it in your code."
        )
    network = UNet3D(**description["network"])
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        off = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        raise DataError(
            f"{where}: its weights are not those of the network that its .json describes: {len(off)} differ, "
            f"{off[0]} for example ({found.get(off[0], 'absent')}, expected {expected.get(off[0], 'absent')}). The "
            ".json belongs to another model; copy both from one training."
        )
    network.load_state_dict(state)
    return network


def _check_description(description: Mapping[str, Any], where: str) -> None:
    """Raise DataError where a field is not what prediction needs."""

    def numbers(value: Any, count: int, kind: Any) -> bool:
        fits = isinstance(value, Sequence) and len(value) == count
        return fits and all(isinstance(n, kind) and not isinstance(n, bool) for n in value)

    names, values = description["class_names"], description["class_values"]
    named = isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
    wrong = {
        "class_names": not named,
        "class_values": not named or not numbers(values, len(names), int) or len(set(values)) < len(names),
        "patch_size": not numbers(description.get("patch_size"), 3, int) or min(description["patch_size"]) < 1,
        "spacing": description["spacing"] is not None
        and (not numbers(description["spacing"], 3, (int, float)) or not min(description["spacing"]) > 0),
        "network": not isinstance(description.get("network", ""), (dict, type(None))),
    }
    for field, bad in wrong.items():
        if bad:
            raise DataError(
                f"the description of {where} has no valid {field}: {description.get(field)!r}. Copy the .json again "
                "from the training's folder."
            )
    if description["network"]:
        try:
            with torch.device("meta"):
                outputs = UNet3D(**description["network"]).head.out_channels
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise DataError(f"the description of {where} has no valid network: {error}") from error
        if outputs != len(names):
            raise DataError(f"the description of {where} has {len(names)} class_names for a network of {outputs}.")
