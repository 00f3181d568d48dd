"""Share of the network in the result, chosen on slices that neither it nor propagation saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import Inferer
from monai.transforms import Compose

from sparse3dunet.data.datalist import Case, without_references
from sparse3dunet.data.names import case_name
from sparse3dunet.densify.propagated import mixed, own_calibration
from sparse3dunet.io import read_image
from sparse3dunet.io.written import file_digest
from sparse3dunet.keys import IMAGE
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.loading import Model, load_model
from sparse3dunet.propagation.calibration import dice
from sparse3dunet.propagation.ensemble import Held


@dataclass
class Trained:
    """Network of a part of a run, and how to predict with it."""

    network: torch.nn.Module
    description: ModelDescription
    stopped: bool
    load: Compose
    inferer: Any


SHARE = 0.5
"""Share of a network that does no harm. To choose among several by few held-out slices would be to fit their noise."""
LOSS = 0.01
"""Mean Dice on held-out slices that a share may cost: the final network learns from all slices, and for longer."""
BEHIND, GAIN = 0.1, 0.005
"""Mean Dice by which the network alone may be worse without having to add this much to be chosen: one that has hardly
learned helps mostly by chance."""


def network_on_held_out(
    network: torch.nn.Module,
    cases: Sequence[Case],
    held: Mapping[str, Held],
    device: Any,
    load: Callable[[Any], Any],
    inferer: Inferer,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return by case the mask of the :class:`Held` voxels on the first part of slices, and the network's prob (K, n).

    Cases whose volume the network sees on another grid are left out: their voxels cannot be matched.
    """
    network.eval()
    by_case = {}
    for case in without_references(cases):
        name = case_name(case)
        if name not in held or held[name].judged < 0:  # the network may have learned its slices
            continue
        item = load(case)
        logits = inferer(item[IMAGE][None].to(device), network)[0].float().cpu()
        prob = np.asarray(torch.softmax(torch.as_tensor(logits), 0))
        inside = held[name].part == held[name].judged
        affine = _file_affine(case)
        prob = _to_file_order(prob, affine)
        places = held[name].place[inside]
        if (places < prob.shape[1:]).all():
            by_case[name] = (inside, prob[(slice(None), *places.T)])
    return by_case


def choose_share(
    held: Mapping[str, Held], network: Mapping[str, tuple[np.ndarray, np.ndarray]], num_classes: int
) -> float:
    """Return the network's share: :data:`SHARE` if it does no harm on held-out slices beyond noise, else 0."""
    alone: list[np.ndarray] = []
    together: list[np.ndarray] = []
    only_network: list[np.ndarray] = []
    for name, (inside, prob) in network.items():
        of = held[name]
        label, weight = of.label[inside], of.weight[inside]
        calibration, known, distance = own_calibration(of), of.prob[:, inside], of.distance[inside]
        for scores, mixture in (
            (alone, mixed(calibration, known, distance, prob, 0.0)),
            (together, mixed(calibration, known, distance, prob, SHARE)),
            (only_network, prob),
        ):
            scores.append(dice(mixture.argmax(0), label, weight, num_classes)[1:])
    without = _mean(alone)
    least = without - LOSS if _mean(only_network) >= without - BEHIND else without + GAIN
    return SHARE if _mean(together) >= least else 0.0


def _mean(scores: Sequence[np.ndarray]) -> float:
    """Return the mean of Dice by volume and class, without NaN; NaN, which no share is chosen by, if there is none."""
    by_class = np.array(scores)
    return float(np.nanmean(by_class)) if np.isfinite(by_class).any() else float("nan")


def trained_model(path: Path, description: ModelDescription, form: Callable[[], torch.nn.Module]) -> Model:
    """Load the model of a run; a network other than UNet3D is built by `form`, as its file does not describe it."""
    if description.network is not None:
        return load_model(path)
    network = form().cpu()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Model(network.float().eval(), description, file_digest(path), str(path))


def _file_affine(case: Case) -> np.ndarray:
    first = case[IMAGE][0] if isinstance(case[IMAGE], list) else case[IMAGE]
    return read_image(first).affine


def _to_file_order(prob: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Reorder (K, X, Y, Z) from RAS order to the file's."""
    from_ras = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), nib.io_orientation(affine))
    back = nib.orientations.apply_orientation(np.moveaxis(prob, 0, -1), from_ras)
    return np.moveaxis(back, -1, 0)
