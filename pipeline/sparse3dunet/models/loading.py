"""Loading of trained models: from a training's folder, a file, or a packaged bundle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from sparse3dunet.errors import DataError
from sparse3dunet.missing import TRAIN_ONE, no_model
from sparse3dunet.models.description import ModelDescription, content_of, description_text, form_network
from sparse3dunet.models.description_checks import DESCRIPTION
from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.concatenated import additive_weights

PLACES = ("model.pt", "models/model.pt", "model.ts", "models/model.ts")
"""Places of the weights in a folder or an archive; the first that exists is used."""
UNPACKED_BYTES, UNPACKED_RATIO = 2**26, 20
"""Bound of an archive's unpacked size: so many bytes, and so many times its packed size."""
_INTO_SCRIPT = f"torch.jit.save(network, file, _extra_files={{'{DESCRIPTION}': text}})."


@dataclass(frozen=True)
class Model:
    """Trained network with its description.

    Attributes:
        network: network in eval mode, on the CPU, float32; (B, C, X, Y, Z) -> logits.
        description: see :class:`~sparse3dunet.models.description.ModelDescription`.
        digest: digest of weights and description, in hexadecimal, by which models differ.
        path: path given by the user.
    """

    network: nn.Module
    description: ModelDescription
    digest: str
    path: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.description.class_names

    @property
    def class_colors(self) -> dict[int, str]:
        """Colours by value on disk, of classes that have one of their own."""
        values, colors = self.class_values, self.description.class_colors
        return {value: color for value, color in zip(values, colors) if color}

    @property
    def class_values(self) -> tuple[int, ...]:
        return self.description.class_values

    @property
    def patch_size(self) -> tuple[int, ...]:
        return self.description.patch_size

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.description.spacing

    @property
    def voxel_size(self) -> tuple[float, ...] | None:
        """Voxel size in mm that the network was trained at; None if unknown."""
        return self.description.spacing or self.description.voxel_size

    @property
    def in_channels(self) -> int:
        return self.description.in_channels


class ScriptedNetwork(nn.Module):
    """TorchScript network with the methods of UNet3D that give the sizes of windows.

    Args:
        scripted: the TorchScript module.
        config: arguments of the UNet3D that it was made from.
    """

    def __init__(self, scripted: torch.jit.ScriptModule, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.scripted = scripted
        form = form_network(config)
        self.output_size, self.size_multiple = form.output_size, form.size_multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scripted(x)


def load_model(path: str | Path) -> Model:
    """Load a trained model.

    No pickle is ever loaded: weights are tensors and plain values, TorchScript is a format of its own.

    Args:
        path: ``model.pt`` of a training, or a copy of its ``state/last.pt``, with ``model.json`` next to it; the
            training's folder; a TorchScript file ``.ts``, with ``model.json`` in it or next to it; a packaged bundle,
            as a folder or ``.zip``. The description of a TorchScript network that is not a UNet3D has None for
            ``network``, and the number of channels as ``in_channels``.

    Raises:
        DataError: when there is no model, or it is damaged, or does not fit its description; names the file, what was
            found, and what to do.
    """
    file, suffix = _weights_file(Path(path).expanduser())
    content = content_of(file)
    _check_whole(content, str(file))
    network: Any
    if suffix == ".ts":
        network, inside = _scripted(content, str(file))
        how = "Or write it into the file: " + _INTO_SCRIPT
        text, where = (inside, f"{file}: {DESCRIPTION} in it") if inside else description_text(file, how)
        description = ModelDescription.from_json(text, where)
        if description.network is not None:
            network = ScriptedNetwork(network, description.network)
    else:
        text, where = description_text(file)
        description = ModelDescription.from_json(text, where)
        network = _with_weights(description, _state_dict(content, str(file)), str(file))
    # With the description as it is in the file, so that the digest is the same in a new version of this package
    described = json.dumps(json.loads(text), sort_keys=True).encode()
    digest = hashlib.sha256(hashlib.sha256(content).digest() + described).hexdigest()
    return Model(network.float().eval(), description, digest, str(path))


def _weights_file(path: Path) -> tuple[Any, str]:
    """Return the weights (a Path, or one in an archive) and their suffix."""
    if path.suffix.lower() == ".zip" and path.is_file():
        try:
            root: Any = zipfile.Path(path)
            _check_sizes(root.root.infolist(), str(path.absolute()))
            tops = [root, *(entry for entry in root.iterdir() if entry.is_dir())]
        except DataError:
            raise
        except Exception as error:  # many kinds, if it is damaged
            raise DataError(f"{path.absolute()}: not a readable archive ({error}). Copy it again.") from error
    elif path.is_dir():
        tops = [path]
    elif path.is_file():
        return path, path.suffix.lower()
    else:
        raise no_model(path.absolute())
    found = [top.joinpath(place) for top in tops for place in PLACES if top.joinpath(place).is_file()]
    if not found:
        raise DataError(f"{path.absolute()}: there is no trained model in it, none of {', '.join(PLACES)}. {TRAIN_ONE}")
    return found[0], "." + found[0].name.rsplit(".", 1)[-1]


def _check_whole(content: bytes, where: str) -> None:
    """Raise DataError if the checksums that PyTorch writes, but does not check, show damage."""
    if damaged := damaged_entry(io.BytesIO(content), where):
        raise DataError(
            f"{where}: damaged model file, its checksums differ at {damaged}. Copy it again, or train again; if it "
            "was saved with torch.serialization.set_crc32_options(False), save it again without that."
        )


def damaged_entry(file: Path | IO[bytes], where: str) -> str:
    """Return the entry of a file of PyTorch's whose checksum differs; empty if none does, or if it is another file.

    Raises:
        DataError: when it would unpack to far more than it is.
    """
    if not zipfile.is_zipfile(file):
        return ""  # loading reports what it is
    try:
        with zipfile.ZipFile(file) as archive:
            _check_sizes(archive.infolist(), where)
            return archive.testzip() or ""
    except DataError:
        raise
    except Exception as error:  # many kinds, as above
        return str(error)


def _check_sizes(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Raise DataError if an archive would unpack to far more than it is: a zip bomb."""
    packed, unpacked = sum(e.compress_size for e in entries), sum(e.file_size for e in entries)
    if unpacked > UNPACKED_BYTES + UNPACKED_RATIO * packed:
        raise DataError(
            f"{where}: {packed} bytes would unpack to {unpacked}, which no model does. Copy it again from its source."
        )


def _scripted(content: bytes, where: str) -> tuple[Any, bytes | str]:
    """Return the TorchScript module, and the text of the description in its file; empty if there is none."""
    extra: dict[str, Any] = {DESCRIPTION: ""}
    try:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise DataError(f"{where}: not loadable as TorchScript ({reason}). Export it again.") from error
    return network, extra[DESCRIPTION]


def _state_dict(content: bytes, where: str) -> dict[str, torch.Tensor]:
    """Return the network's tensors by name, also from a training's state."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
        raise DataError(
            f"{where}: not a model file ({type(error).__name__}): expected tensors by name, as training writes them. "
            "Code in a file (a pickled network) is never run. Copy it again, or train again; rename TorchScript to .ts."
        ) from error
    state = state["network"] if isinstance(state, dict) and isinstance(state.get("network"), dict) else state
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state, state.values())):
        raise DataError(
            f"{where}: not a model file: expected real tensors by name, found {_summary(state)}. {TRAIN_ONE}"
        )
    return state


def _summary(state: Any) -> str:
    """Describe in a few words what a file contains instead of weights."""
    if not isinstance(state, dict):
        return type(state).__name__
    others = [f"{name!r}: {type(value).__name__}" for name, value in state.items() if not _is_weight(name, value)]
    return f"a dict with {', '.join(others[:3])}" if others else "an empty dict"


def _is_weight(name: Any, value: Any) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_complex()
    return plain and isinstance(name, str)


def _with_weights(description: ModelDescription, state: dict[str, torch.Tensor], where: str) -> nn.Module:
    """Build the described network with the given weights."""
    if description.network is None:
        raise DataError(
            f"{where} is not a UNet3D. Export the network as TorchScript (model.ts), or load it in your own code."
        )
    form = form_network(description.network)
    state = dict(additive_weights(state)) if form.additive else state
    expected = {name: tuple(tensor.shape) for name, tensor in form.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        off = sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        few = [f"{name} ({found.get(name, 'absent')}, expected {expected.get(name, 'absent')})" for name in off[:3]]
        raise DataError(
            f"{where}: its weights do not fit the network that its .json describes: {len(off)} differ, for example "
            f"{', '.join(few)}. The .json belongs to another model; copy both from the same training."
        )
    network = UNet3D(**description.network)
    network.load_state_dict(state)
    return network
