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

from sparse3dunet.data.datalist import Case, case_name, without_references
from sparse3dunet.densify.propagated import combined
from sparse3dunet.io import read_image
from sparse3dunet.keys import IMAGE
from sparse3dunet.models.checkpoints import file_digest
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.loading import Model, load_model
from sparse3dunet.propagation.calibration import Calibration, dice
from sparse3dunet.propagation.ensemble import Held


@dataclass
class Trained:
    """Network of a part of a run, and how to predict with it."""

    network: torch.nn.Module
    description: ModelDescription
    stopped: bool
    load: Compose
    inferer: Any


SHARES = (0.0, 0.3, 1.0)
"""Shares of the network that are tried."""
BEHIND = 0.1
"""Mean Dice by which the network alone may be worse: one that has hardly learned helps only by chance."""
GAIN = 0.005
"""Mean Dice on held-out slices that a share must add to be chosen: less is noise."""


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
        name = case_name(case[IMAGE])
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
    """Return the network's share that is best on held-out slices; 0 unless it is better by more than noise."""
    if not network:
        return 0.0

    def score(share: float | None) -> float:
        scores = []
        for name, (inside, prob) in network.items():
            of = held[name]
            classes = (prob if share is None else combined(of.prob[:, inside], prob, share)).argmax(0)
            scores.append(dice(classes, of.label[inside], of.weight[inside], num_classes)[1:])
        by_class = np.array(scores)
        return float(np.nanmean(by_class)) if np.isfinite(by_class).any() else 0.0

    scores = {share: score(share) for share in SHARES}
    if score(None) < scores[0.0] - BEHIND:
        return 0.0
    best = max(scores, key=lambda share: scores[share])
    return best if scores[best] > scores[0.0] + GAIN else 0.0


def calibrations(
    held: Mapping[str, Held], network: Mapping[str, tuple[np.ndarray, np.ndarray]], share: float
) -> dict[str, list[float]]:
    """Return by case the calibration of both combined, as plain values; empty if the network has no share."""
    if not share:
        return {}
    found = {}
    for name, (inside, prob) in network.items():
        of = held[name]
        both = combined(of.prob[:, inside], prob, share)
        fitted = Calibration.fit(both, of.label[inside], of.distance[inside], of.weight[inside])
        found[name] = [float(value) for value in (fitted.near, fitted.far, fitted.reach)]
    return found


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
