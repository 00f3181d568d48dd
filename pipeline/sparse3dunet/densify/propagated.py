"""What propagation makes of each volume of a run: on disk, for memory, and so that a killed run goes on."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
import torch

from sparse3dunet.data.slices import Slices
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.io import read_image
from sparse3dunet.models.checkpoints import replace_file
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import PREVIEW_WORK, WORK, Ensemble, Held, Propagated
from sparse3dunet.propagation.scan import log_prob, softmax
from sparse3dunet.propagation.shape import distance_from

SECONDS = 90.0
"""That WORK takes on two cores."""
WHOLE_SECONDS = 0.5e-6
"""For each voxel times (classes + 1) of a volume as it is."""
SHARE = 0.7
"""Of a run's time that propagation may take."""
LEAST_WORK, MOST_WORK = WORK / 2, 4 * WORK
"""Of a volume alone: on coarser grids, a preview on a finer one is as good; on finer ones nothing is much better."""
COARSEST = WORK / 20
"""Of one among many."""
PREVIEW, REFINED = "preview", "refined"
LEAST_PROB = 1e-3
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Outlook:
    """What is known of a volume's voxels, and how far that can be relied on.

    Attributes:
        propagated: by methods without a network.
        own: calibration of these alone.
        calibration: with the network's share.
        share: of the network's logarithms of probabilities that is added; 0: none.
    """

    propagated: Propagated
    own: Calibration
    calibration: Calibration
    share: float = 0.0

    def prob(self, distance: np.ndarray, network: np.ndarray | None = None) -> np.ndarray:
        """(K, X', Y', Z') calibrated, within the box outside of which is background.

        Args:
            distance: (X, Y, Z) of each voxel of the volume from annotation.
            network: (K, X, Y, Z) its probabilities; None where its share is 0.
        """
        box = self.propagated.box
        inside = None if network is None else network[(slice(None), *box)]
        return self.calibration(beside(self.propagated.prob, inside, self.share), distance[box])


class Propagation:
    """Runs the methods, and keeps what they say.

    Args:
        folder: for what is kept.
        annotation_of: of the case whose (first) image file is given.
        num_classes: K.
        seconds: of the whole run.
        cases: how many volumes share them.
        seed: of what is random.
    """

    def __init__(
        self,
        folder: Path,
        annotation_of: Callable[[str], Any],
        num_classes: int,
        seconds: float,
        cases: int,
        seed: int,
    ) -> None:
        self.folder, self.annotation_of, self.num_classes, self.seed = folder, annotation_of, num_classes, seed
        self.seconds, self.cases = seconds, max(cases, 1)
        self.keeps_one = cases == 1
        self._last: Ensemble | None = None

    def preview(self, case: ImageCase, held_out: Sequence[Slices]) -> Propagated:
        """What can be told at once."""
        found = self._load(case, PREVIEW)
        if found is None:
            ensemble = self._fit(case, held_out)
            found = self._save(case, PREVIEW, ensemble.preview(), self._needed(ensemble))
            self._last = ensemble if self.keeps_one else None
        return found

    def refine(
        self, case: ImageCase, held_out: Sequence[Slices], on_part: Callable[[float], None] = lambda share: None
    ) -> Propagated:
        """All that can be told without a network; the preview, where the minutes don't suffice for more."""
        found = self._load(case, REFINED)
        if found is None:
            preview = self.preview(case, held_out)
            if self.seconds_for(case) > self.seconds:
                return preview
            ensemble = self._last or self._fit(case, held_out)
            self._last = None
            found = self._save(case, REFINED, ensemble.refine(on_part))
        return found

    def seconds_for(self, case: ImageCase) -> float:
        """Of the run, that more than the preview that is there takes; 0 where that is there, or is small."""
        if self._file(case, REFINED).is_file():
            return 0.0
        try:
            with np.load(self._file(case, PREVIEW)) as content:
                return float(content["needed"])
        except _DAMAGED:
            return 0.0

    def work_for(self, shape: Sequence[int]) -> float:
        """Voxels times (classes + 1) of the grid that a volume of this shape is worked on; see :class:`Ensemble`."""
        seconds = SHARE * self.seconds / self.cases - self._whole_seconds(shape)
        return float(np.clip(WORK * seconds / SECONDS, max(LEAST_WORK / self.cases, COARSEST), MOST_WORK))

    def _needed(self, ensemble: Ensemble) -> float:
        """Seconds of the run that suffice for as much work on each volume; 0 for what is small."""
        work = ensemble.work_to_do
        if work <= PREVIEW_WORK / self.cases:
            return 0.0
        return self.cases * (SECONDS * work / WORK + self._whole_seconds(ensemble.shape)) / SHARE

    def _whole_seconds(self, shape: Sequence[int]) -> float:
        """For what is done at full resolution: borders, results and the report."""
        return WHOLE_SECONDS * float(np.prod(shape)) * (self.num_classes + 1)

    def best(self, case: ImageCase) -> Propagated | None:
        """What is there of a case."""
        return self._load(case, REFINED) or self._load(case, PREVIEW)

    def method(self, case: ImageCase) -> str:
        """By what it was made, in words."""
        for kind in (REFINED, PREVIEW):
            try:
                with np.load(self._file(case, kind)) as content:
                    return str(content["method"])
            except _DAMAGED:
                continue
        return ""

    def held(self, case: ImageCase) -> Held | None:
        """On held-out voxels alone."""
        try:
            with np.load(self._file(case, REFINED)) as content:
                return _held(content)
        except _DAMAGED:
            return None

    def _fit(self, case: ImageCase, held_out: Sequence[Slices]) -> Ensemble:
        volumes = [read_image(file) for file in case.files]
        channels = [c for v in volumes for c in ([v.data] if v.data.ndim == 3 else np.moveaxis(v.data, -1, 0))]
        annotation = self.annotation_of(case.files[0])
        image = np.stack([np.asarray(channel, np.float32) for channel in channels])
        held_out = held_out if any(any(slices) for slices in held_out) else []
        in_file_order = [to_file_order(slices, volumes[0].affine, image.shape[1:]) for slices in held_out]
        ensemble = Ensemble(self.num_classes, self.seed, self.work_for(image.shape[1:]), in_file_order or None)
        weight = annotation.annotated.astype(np.float32)
        return ensemble.fit(image, annotation.numbers.astype(np.int64), weight, volumes[0].spacing)

    def _file(self, case: ImageCase, kind: str) -> Path:
        """By a digest: names of cases may have slashes."""
        return self.folder / f"{hashlib.sha256(os.fsencode(case.name)).hexdigest()[:16]}_{kind}.npz"

    def _save(self, case: ImageCase, kind: str, found: Propagated, needed: float = 0.0) -> Propagated:
        """Returns what is read again, rounded, so that a run that goes on gives the same."""
        arrays: dict[str, Any] = {"prob": found.prob.astype(np.float16), "method": found.method, "needed": needed}
        arrays["box"] = [[b.start, b.stop] for b in found.box]
        if found.held is not None:
            arrays |= {f"held_{f.name}": np.asarray(getattr(found.held, f.name)) for f in fields(Held)}
        self.folder.mkdir(parents=True, exist_ok=True)

        def write(draft: Path) -> None:
            with draft.open("wb") as file:
                np.savez(file, **arrays)

        replace_file(self._file(case, kind), write)
        return self._load(case, kind) or found

    def _load(self, case: ImageCase, kind: str) -> Propagated | None:
        try:
            with np.load(self._file(case, kind)) as content:
                box = tuple(slice(int(a), int(b)) for a, b in content["box"])
                prob = content["prob"].astype(np.float32)
                return Propagated(prob, box, _held(content), str(content["method"]))  # type: ignore[arg-type]
        except _DAMAGED:
            return None


def _held(content: Mapping[str, Any]) -> Held | None:
    if "held_prob" not in content:
        return None
    held = Held(**{f.name: content[f"held_{f.name}"] for f in fields(Held)})
    return replace(held, slices=tuple(int(i) for i in held.slices), judged=int(held.judged))


def beside(prob: np.ndarray, network: np.ndarray | None, share: float) -> np.ndarray:
    """Propagation's probabilities (K, ...), and a share of the network's, multiplied."""
    if network is None or share == 0:
        return prob
    return softmax(log_prob(prob, LEAST_PROB) + share * log_prob(network, LEAST_PROB))


def to_file_order(slices: Slices, affine: np.ndarray, shape: Sequence[int]) -> Slices:
    """Slices by axis in RAS order, as by axis of the file."""
    found: Slices = []
    for axis, (world, direction) in enumerate(nib.io_orientation(affine).astype(int)):
        last = shape[axis] - 1
        found.append(sorted(i if direction > 0 else last - i for i in slices[world]))
    return found


def distance_of(annotated: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(X, Y, Z) of each voxel from annotation, in mm."""
    return distance_from(torch.from_numpy(np.ascontiguousarray(annotated)), np.asarray(spacing, float))
