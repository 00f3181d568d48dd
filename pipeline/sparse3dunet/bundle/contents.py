"""The bundle's files, adapted to one model: configs, metadata and README."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparse3dunet import __version__
from sparse3dunet.datasets import mni152
from sparse3dunet.errors import DataError
from sparse3dunet.inference.predictor import smallest_type
from sparse3dunet.models.description import form_network
from sparse3dunet.models.loading import Model
from sparse3dunet.networks import UNet3D
from sparse3dunet.transforms.normalize import scale_text

CODE = Path(__file__).resolve().parents[1]
"""Folder of the package."""
FILES = "bundle/files"
"""Folder in the installed package with what a checkout has in `bundle/`."""
BUILT_IN_CASES = {mni152.FILE_NAME.removesuffix(".nii.gz")}
NO_LICENCE = """\
The licence of the data that this model was trained on was not given when it was packaged. Ask those who trained it
what they allow.
"""


def bundle_folder() -> Path:
    """Find the folder with configs, docs and licence: of the installed package, a packaged bundle, or the checkout."""
    for folder in (CODE / FILES, CODE.parent, CODE.parents[1] / "bundle"):
        if (folder / "configs" / "metadata.json").is_file():
            return folder
    raise DataError(f"{CODE / FILES}: the bundle's configs are missing; install sparse3dunet again.")


def bundle_root() -> str:
    """Find the root of the bundle whose configs are run.

    It is ``bundle`` in a checkout, and the working directory in a bundle. Elsewhere, as for MONAI Deploy, which reads a
    bundle's configs wherever it works, it is the packaged bundle that this code is a part of.

    Returns:
        A path; the working directory if there is no bundle.
    """
    for folder in ("bundle", "."):
        if Path(folder, "configs", "metadata.json").is_file():
            return folder
    return str(CODE.parent) if (CODE.parent / "configs" / "metadata.json").is_file() else "."


def is_built_in(model: Model) -> bool:
    """Return whether a model was trained on the built-in data."""
    cases = {*model.description.training, *model.description.validation}
    return cases == BUILT_IN_CASES and model.class_names == mni152.CLASS_NAMES


def keeps_size(model: Model) -> bool:
    """Return whether a network's output is as large as its input, as MONAI's sliding windows need it."""
    return _network(model)["padding"] == "same"


def config_values(model: Model) -> dict[str, dict[str, Any]]:
    """Return the values that differ from the checkout's configs, by file name and top-level id."""
    description = model.description
    own = {key: value for key, value in _network(model).items() if key not in ("in_channels", "out_channels")}
    unlabeled = description.unlabeled or description.ignore_index
    unlabeled = (max(model.class_values) + 1,) if unlabeled is None else unlabeled
    return {
        "train.yaml": {
            "dataset_dir": None,
            "declared": {
                "class_names": model.class_names,
                "class_values": model.class_values,
                "ignore_index": unlabeled if isinstance(unlabeled, tuple) else (unlabeled,),
                "num_channels": model.in_channels,
            },
            "annotated_slices": description.annotated_slices,
            "spacing": model.spacing,
            "patch_size": model.patch_size,
            "intensity": description.intensity,
            "network_def": {
                "_target_": f"{UNet3D.__module__.rpartition('.')[0]}.{UNet3D.__name__}",
                "in_channels": "@num_channels",
                "out_channels": "@num_outputs",
                **own,
            },
        },
        "inference.yaml": {"dataset_dir": None},
        "standalone.yaml": {
            "num_channels": model.in_channels,
            "class_values": model.class_values,
            "class_dtype": smallest_type(model.class_values).__name__,
            "spacing": model.spacing,
            **_scale(description.intensity),
            "roi_size": model.patch_size,
        },
    }


def _scale(intensity: Mapping[str, float] | None) -> dict[str, Any]:
    """Return the values of standalone.yaml for a normalisation."""
    if intensity is None:
        return {"absolute_scale": False}
    limits = [intensity["lower"], intensity["upper"]]
    scaled = [(limit - intensity["mean"]) / intensity["std"] for limit in limits]
    return {"absolute_scale": True, "clip_range": limits, "scaled_range": scaled}


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace top-level entries in a YAML text, keeping all else, including comments.

    Raises:
        KeyError: when the text has no such entry.
    """
    for key, value in values.items():
        entry = re.search(rf"^{re.escape(key)}:[^#\n]*(.*\n)(?:[ ].*\n)*", text, re.M)
        if entry is None:
            raise KeyError(key)
        nested = isinstance(value, Mapping)
        line = f"{key}:" if nested else f"{key}: {_yaml(value)}"
        if entry[1].strip():  # a comment
            line = f"{line:31} {entry[1].rstrip()}"
        items = [f"  {name}: {_yaml(item)}" for name, item in value.items()] if nested else []
        text = text[: entry.start()] + "\n".join([line, *items, ""]) + text[entry.end() :]
    return text


def _yaml(value: Any) -> str:
    """Format a value in one line of YAML; JSON differs in numbers such as 4e-05, which YAML reads as text."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]


def metadata_of(model: Model, base: Mapping[str, Any], name: str, version: str) -> dict[str, Any]:
    """Return the content of the bundle's metadata.json for one model.

    Args:
        model: the model to package.
        base: the checkout's metadata.
        name: name of the bundle.
        version: version of the bundle; an entry for it is added to the changelog if there is none.
    """
    metadata = json.loads(json.dumps(base))
    built_in = is_built_in(model)
    entry = {version: f"The model {name}, packaged by sparse3dunet {__version__}"}
    metadata.update(
        name=name,
        version=version,
        changelog={**entry, **metadata["changelog"]},
        image_classes=f"volume of {model.in_channels} channel(s), "
        + ("in Hounsfield units" if model.description.intensity else "any intensity range"),
        label_classes=", ".join(f"{value}: {name}" for name, value in zip(model.class_names, model.class_values)),
        pred_classes=", ".join(model.class_names),
    )
    if not built_in:
        metadata["data_source"] = "not given; for its licence see docs/data_license.txt"
    data = metadata["network_data_format"]
    shape = spatial_shape(model)
    image, pred = data["inputs"]["image"], data["outputs"]["pred"]
    names = ["image"] if model.in_channels == 1 else [f"channel {i}" for i in range(model.in_channels)]
    image.update(num_channels=model.in_channels, spatial_shape=shape, channel_def=_numbered(names))
    if not built_in:
        image.pop("modality", None)
    pred.update(
        num_channels=len(model.class_names),
        spatial_shape=shape if keeps_size(model) else list(_form(model).output_size(model.patch_size)),
        channel_def=_numbered(model.class_names),
    )
    return metadata


def spatial_shape(model: Model) -> list[Any]:
    """Return the input sizes for metadata.json: "16*n", for each n from 1 on; without padding, the training's size."""
    if not keeps_size(model):
        return list(model.patch_size)
    network = _form(model)
    multiples = network.size_multiple
    try:
        network.output_size(multiples)
    except ValueError:  # too small to be normalised
        multiples = [2 * n for n in multiples]
    return [f"{n}*n" for n in multiples]


def page_of(model: Model, base: str, name: str) -> str:
    """Return the text of docs/README.md for one model."""
    network, description = _network(model), model.description
    channels = ", ".join(map(str, network["channels"]))
    size = "x".join(map(str, model.patch_size))
    spacing = f", resampled to {'x'.join(f'{s:g}' for s in model.spacing)} mm" if model.spacing else ""
    rows = "".join(f"| {i} | {n} | {v} |\n" for i, (n, v) in enumerate(zip(model.class_names, model.class_values)))
    cases = len({*description.training, *description.validation})
    sections = {
        "Data": None
        if is_built_in(model)
        else f"Trained on {cases} volume(s), {len(description.validation)} of them to select the best epoch. For the\n"
        "licence of the data see `data_license.txt`.",
        "Network": f"`sparse3dunet.networks.UNet3D` with {channels} channels and {network['padding']} padding.\n"
        f"Input: windows of {size} voxels with {model.in_channels} channel(s), in RAS order{spacing},\n"
        f"{_normalization_text(description.intensity)}. Output: logits, by channel:\n\n"
        f"| channel | class | value in segmentations |\n| --- | --- | --- |\n{rows.rstrip()}",
    }
    text = re.sub(r"\A# .*", f"# {name}", base)
    for heading, body in sections.items():
        if body is not None:
            start = text.index(f"## {heading}\n") + len(f"## {heading}\n")
            text = text[:start] + body + text[text.index("\n\n## ", start) :]
    return text


def _normalization_text(intensity: Mapping[str, float] | None) -> str:
    if intensity is None:
        return "each channel normalised to mean 0 and standard deviation 1 in each volume"
    return scale_text(intensity)


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def _network(model: Model) -> Mapping[str, Any]:
    """Return the arguments of a model's UNet3D; no other network is packaged."""
    return model.description.network or {}


def _form(model: Model) -> UNet3D:
    return form_network(_network(model))
