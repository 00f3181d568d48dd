"""Model description, in the JSON file next to the weights: what a program must know to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser

from sparse3dunet import __version__
from sparse3dunet.data.datalist import Case, DataSet
from sparse3dunet.data.names import case_name
from sparse3dunet.data.regions import output_count
from sparse3dunet.errors import DataError
from sparse3dunet.io.json_files import parse_json
from sparse3dunet.io.payload import check_regular
from sparse3dunet.models.description_checks import (
    CURE,
    DESCRIPTION,
    SCHEMA_VERSION,
    check_fields,
    check_keys,
    migrated,
    required_fields,
)
from sparse3dunet.networks import UNet3D

DESCRIPTION_SUFFIX = ".json"
UNPLANNED = {"channels": [16, 32, 64, 128], "strides": 2, "kernel_sizes": 3}
"""What a plan determines of the network, for voxels that are nearly cubes."""
NO_MODEL = (
    "{path}: there is no trained model. Train one first (run training), pass one (--model_file FILE), or run a "
    "packaged bundle in its folder, or with --bundle_root FOLDER."
)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Description of a trained model, with all that a program must know to use it.

    Attributes:
        class_names: names by class number 0 ... K-1, background first.
        class_values: values on disk by class number.
        class_colors: colours in results by class number, as #rrggbb; "" for the default; empty if all have it.
        patch_size: size of training's patches and prediction's windows, in voxels.
        network: arguments of :class:`~sparse3dunet.networks.UNet3D`; None for another network.
        in_channels: channels of the image.
        spacing: spacing in mm to which volumes are resampled; None for volumes as they are.
        unlabeled: values on disk that meant unlabeled in training.
        ignore_index: such values as set by the user, if any; evaluation uses them again.
        annotated_slices: annotated slices as set by the user, if any; evaluation uses them again.
        normalize: names of the transforms that normalise images; empty for the bundle's own normalisation, see
            :func:`~sparse3dunet.models.normalization.normalization_names`.
        intensity: scale on which the bundle's own normalisation brings images, see
            :class:`~sparse3dunet.transforms.NormalizeImage`; None for each image's z-score.
        regions: class numbers by the name of the region, in the order in which they are written, for a network with a
            sigmoid output for each; None for one with a softmax over classes.
        voxel_size: median voxel size of the data set in mm, before any resampling; None if unknown.
        training: names of the training cases.
        validation: names of the cases by which the best epoch was selected.
        schema_version: version of these fields.
        sparse3dunet_version: version of sparse3dunet that wrote the file; None if unknown.
    """

    class_names: tuple[str, ...]
    class_values: tuple[int, ...]
    patch_size: tuple[int, ...]
    network: Mapping[str, Any] | None
    in_channels: int
    spacing: tuple[float, ...] | None = None
    unlabeled: tuple[int, ...] = ()
    ignore_index: int | tuple[int, ...] | None = None
    annotated_slices: Any = None
    normalize: tuple[str, ...] = ()
    intensity: Mapping[str, float] | None = None
    regions: Mapping[str, Sequence[int]] | None = None
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    class_colors: tuple[str, ...] = field(default=(), compare=False)
    voxel_size: tuple[float, ...] | None = field(default=None, compare=False)
    schema_version: int = SCHEMA_VERSION
    sparse3dunet_version: str | None = field(default=__version__, compare=False)

    def to_json(self) -> str:
        """Return the text of the file, as this version of sparse3dunet writes it."""
        return json.dumps(asdict(replace(self, sparse3dunet_version=__version__)), indent=1) + "\n"

    def settings(self) -> dict[str, Any]:
        """Return all fields that are compared as plain values: what stays the same when resuming."""
        content = json.loads(self.to_json())
        return {entry.name: content[entry.name] for entry in fields(self) if entry.compare}

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> ModelDescription:
        """Read a description, of this schema version or an older one.

        Unknown fields are ignored, so that users can add their own notes, unless they nearly have the name of a field
        that is missing; a field without which a model would be used wrongly comes with a new schema version.

        Args:
            text: text of the file.
            where: name of the file in messages.

        Raises:
            NewerDescriptionError: when a newer version of sparse3dunet wrote it.
            DataError: when it is not a description, or a field is missing or not valid; names the field and its value.
        """
        content = parse_json(text, where, "a model description", CURE)
        if not isinstance(content, dict):
            raise DataError(f"{where}: not a model description: expected a JSON object, found {content!r:.40}. {CURE}")
        check_keys(content, where)
        required = required_fields(content, [entry.name for entry in fields(cls) if entry.default is MISSING])
        content = migrated(content)
        check_fields(content, required, where)
        known = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        description = cls(**{"sparse3dunet_version": None, **_with_tuples(known)})
        _check_classes(description, where)
        return description


def describe_model(
    network: torch.nn.Module,
    data_set: DataSet,
    patch_size: Sequence[int],
    spacing: Sequence[float] | None = None,
    split: Sequence[Sequence[Case]] = ((), ()),
    *,
    ignore_index: int | Sequence[int] | None = None,
    annotated_slices: Any = None,
    normalize: Sequence[str] = (),
    intensity: Mapping[str, float] | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    voxel_sizes: Sequence[Sequence[float]] = (),
) -> ModelDescription:
    """Describe a model that is to be trained.

    Args:
        network: a UNet3D or any other network.
        data_set: data set whose classes, channels and unlabeled values are the model's.
        patch_size: patch size in voxels.
        spacing: spacing in mm to which volumes are resampled.
        split: the cases for training, and for validation.
        ignore_index: see :class:`ModelDescription`.
        annotated_slices: see :class:`ModelDescription`.
        normalize: see :class:`ModelDescription`.
        intensity: see :class:`ModelDescription`.
        regions: see :class:`ModelDescription`.
        voxel_sizes: voxel size of each case in mm.
    """
    content = {
        "class_names": data_set.class_names,
        "class_values": data_set.class_values,
        "class_colors": [data_set.colors.get(value, "") for value in data_set.class_values] if data_set.colors else [],
        "patch_size": [int(n) for n in patch_size],
        "network": network.config if isinstance(network, UNet3D) else None,
        "in_channels": network.in_channels if isinstance(network, UNet3D) else max(data_set.num_channels, 1),
        "spacing": spacing,
        "unlabeled": data_set.ignore_index,
        "ignore_index": ignore_index,
        "annotated_slices": annotated_slices,
        "normalize": normalize,
        "intensity": intensity,
        "regions": regions or None,
        "voxel_size": [float(f"{size:.4g}") for size in np.median(voxel_sizes, axis=0)] if len(voxel_sizes) else None,
        "training": [case_name(case) for case in split[0]],
        "validation": [case_name(case) for case in split[1]],
    }
    return ModelDescription(**_with_tuples(json.loads(json.dumps(content))))


def description_text(model_file: Any, cure: str = "") -> tuple[bytes, str]:
    """Return the text of the description next to a model's weights, and its path.

    Args:
        model_file: the weights: a Path, or one in an archive (``zipfile.Path``).
        cure: further advice for the message if there is no description.

    Raises:
        DataError: when there is none, or it cannot be read.
    """
    names = dict.fromkeys((model_file.name.rsplit(".", 1)[0] + DESCRIPTION_SUFFIX, DESCRIPTION))
    for name in names:
        if (model_file.parent / name).is_file():
            return content_of(model_file.parent / name), str(model_file.parent / name)
    raise DataError(
        f"{model_file}: {' or '.join(names)} is missing next to it, which describes the model's classes and images. "
        f"Copy it from the training's folder. {cure}".rstrip()
    )


def read_description(model_file: str | Path) -> ModelDescription:
    """Read the description next to a model's weights, see :func:`description_text`."""
    return ModelDescription.from_json(*description_text(Path(model_file)))


def description_for_bundle(
    model_file: str | Path, train_config: str | Path, in_channels: int = 1, num_classes: int = 3
) -> ModelDescription:
    """Return the description for the bundle's configs: the one next to `model_file`.

    Before any training, tools that inspect the bundle get the network that `train_config` defines, for `in_channels`
    and `num_classes`, and voxels that are nearly cubes.

    Raises:
        DataError: when there is neither, or the model was trained with a network other than UNet3D.
    """
    path = Path(model_file)
    if path.is_dir():
        raise DataError(f"{path.absolute()} is a folder; pass the model's file in it, as --model_file FOLDER/model.pt.")
    if path.is_file() or path.with_suffix(DESCRIPTION_SUFFIX).is_file():
        description = read_description(model_file)
        if description.network is None:
            raise DataError(
                f"{path} is not a UNet3D, according to its description. The bundle scores and predicts only with "
                "UNet3D; load other networks in your own code."
            )
        return description
    if not Path(train_config).is_file():
        raise DataError(NO_MODEL.format(path=path.absolute()))
    network = {**ConfigParser.load_config_file(str(train_config))["network_def"], **UNPLANNED}
    parser = ConfigParser({"network_def": {**network, "in_channels": in_channels, "out_channels": num_classes}})
    classes = DataSet([], [f"class {i}" for i in range(num_classes)], list(range(num_classes)), (), in_channels)
    return describe_model(parser.get_parsed_content("network_def"), classes, [64, 64, 64])


def check_model_fits(description: ModelDescription, data_set: DataSet) -> None:
    """Raise DataError unless a model has the classes and number of channels of a data set; print other names."""
    ours, names = description.class_names, data_set.class_names
    if (len(ours), description.in_channels) != (len(names), data_set.num_channels):
        raise DataError(
            f"the model has {len(ours)} classes and takes {description.in_channels} channel(s), but the data set has "
            f"{len(names)} ({', '.join(names)}) and {data_set.num_channels}. Choose another --ckpt_dir or "
            "--dataset_dir."
        )
    if list(description.class_values) != list(data_set.class_values):
        raise DataError(
            f"the model was trained with the class values {list(description.class_values)} ({', '.join(ours)}), but "
            f"the data set has {data_set.class_values} ({', '.join(names)}). Choose another --ckpt_dir or "
            "--dataset_dir, or give the classes the same values."
        )
    renamed = [(before, now) for before, now in zip(ours, names) if before != now]
    moved = [before for before, _ in renamed if before in names]
    if moved:
        raise DataError(
            f"the model was trained with the classes {', '.join(ours)}, in the order of their values, but the data set "
            f"has {', '.join(names)}: {moved[0]} would be scored as another class. Choose another --ckpt_dir or "
            "--dataset_dir, or give the classes the same values."
        )
    if renamed:
        print(f"Classes by value, model and data set: {', '.join(f'{a} -> {b}' for a, b in renamed)}.", flush=True)


def differs(name: str, one: Any, other: Any) -> bool:
    """Return whether a setting differs; of regions the order counts, too, as the network's outputs have it."""
    if name.rsplit("#", 1)[-1] == "regions":
        one, other = (list(value.items()) if isinstance(value, Mapping) else value for value in (one, other))
    return bool(one != other)


def build_network(description: ModelDescription, dropout: float | None = None) -> UNet3D:
    """Build the network of a description, with new weights.

    Args:
        description: description of a UNet3D.
        dropout: probability of dropping a channel, instead of the model's.
    """
    return UNet3D(**{**(description.network or {}), **({} if dropout is None else {"dropout": dropout})})


def form_network(config: Mapping[str, Any]) -> UNet3D:
    """Build a network without weights, which needs neither memory nor time, nor random numbers."""
    with torch.device("meta"):
        return UNet3D(**config)


def content_of(file: Any) -> bytes:
    """Read the bytes of a file, or of one in an archive."""
    try:
        if isinstance(file, Path):
            check_regular(file)
        return file.read_bytes()
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds if an archive is damaged or encrypted
        raise DataError(f"{file}: cannot be read ({error}). Copy it again, without a password.") from error


def _with_tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists into tuples, except for slices, which have a form of their own."""
    return {
        name: tuple(value) if isinstance(value, list) and name != "annotated_slices" else value
        for name, value in content.items()
    }


def _check_classes(description: ModelDescription, where: str) -> None:
    """Raise DataError unless names, values and the network agree in the numbers of classes and channels."""
    count, values, network = len(description.class_names), description.class_values, description.network
    if len(values) != count:
        raise DataError(f"{where}: has no valid class_values: {list(values)} for {count} class_names. {CURE}")
    if description.class_colors and len(description.class_colors) != count:
        raise DataError(f"{where}: has {len(description.class_colors)} class_colors for {count} class_names. {CURE}")
    if description.regions and len(description.regions) != count - 1:
        raise DataError(f"{where}: has {len(description.regions)} regions for {count} class_names. {CURE}")
    if network is None:
        return
    try:
        form = form_network(network)
    except Exception as error:  # what MONAI and PyTorch raise differs by argument
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{where}: has no valid network, {network}: {reason}. {CURE}") from error
    if form.head.out_channels != output_count(description.regions, count):
        kind = f"{len(description.regions)} regions" if description.regions else f"{count} class_names"
        raise DataError(f"{where}: has {kind} for a network of {form.head.out_channels} outputs. {CURE}")
    if form.in_channels != description.in_channels:
        raise DataError(
            f"{where}: has in_channels {description.in_channels} for a network of {form.in_channels}. {CURE}"
        )
