"""Results of propagation for each volume of a run, kept on disk to save memory and to resume a killed run."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from sparse3dunet.data.slices import Slices, slices_mask
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.io import read_image
from sparse3dunet.io.payload import check_no_pipe
from sparse3dunet.io.writing import replacing
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import PREVIEW_WORK, WORK, Ensemble, Held, Propagated
from sparse3dunet.propagation.scan import half, log_prob, single, softmax
from sparse3dunet.propagation.shape import distance_from

SECONDS = 60.0
"""Seconds that WORK takes on two cores."""
WHOLE_SECONDS = 0.5e-6
"""Seconds per voxel times (classes + 1) of a volume at full resolution."""
PREVIEW_SECONDS = 0.76e-6
"""Seconds that a preview takes on the two cores of SECONDS, per unit of work."""
PREVIEW_WHOLE = 0.12
"""Share of the seconds at full resolution that a preview takes."""
MEASURABLE = 2 * PREVIEW_WORK
"""Minimum work by whose preview a machine's speed is judged: less takes hardly any time."""
SHARE = 0.7
"""Share of a run's time that propagation may take."""
SLACK = 1.25
"""Factor by which propagation may exceed it on a slow machine."""
LEAST_WORK, MOST_WORK = WORK / 2, 4 * WORK
"""Limits of the work for a single volume: with less, a preview on a finer grid is as good; more improves little."""
COARSEST = WORK / 20
"""Minimum work for one of many volumes."""
PREVIEW, REFINED = "preview", "refined"
LEAST_PROB = 1e-3
CERTAIN = 0.8
"""Minimum probability of a class for the network to learn it."""
_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Outlook:
    """Probabilities of a volume's voxels, and their calibration.

    Attributes:
        propagated: probabilities of the methods without a network.
        calibration: calibration of these.
        share: share of the network, see :func:`mixed`; 0: no network.
    """

    propagated: Propagated
    calibration: Calibration
    share: float = 0.0

    def prob(self, distance: np.ndarray, network: np.ndarray | None = None) -> np.ndarray:
        """Return calibrated probabilities (K, X', Y', Z') within the box; outside of it is background.

        Args:
            distance: (X, Y, Z) distance of each voxel of the volume from annotation.
            network: (K, X, Y, Z) the network's probabilities; None if its share is 0.
        """
        box = self.propagated.box
        inside = None if network is None else network[(slice(None), *box)]
        return mixed(self.calibration, self.propagated.prob, distance[box], inside, self.share)


class Propagation:
    """Runner of the methods, which keeps their results on disk.

    Args:
        folder: folder for the results.
        annotation_of: returns the annotation of the case whose (first) image file is given.
        num_classes: K.
        seconds: duration of the whole run.
        cases: number of volumes that share it.
        seed: random seed.
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
        """Return the preview of a case, computed if it is not there."""
        propagated = self._load(case, PREVIEW)
        if propagated is None:
            ensemble = self._fit(case, held_out)
            started = time.perf_counter()
            found = ensemble.preview()
            kept = self._measured(ensemble, time.perf_counter() - started)
            propagated = self._save(case, PREVIEW, found, kept)
            self._last = ensemble if self.keeps_one else None
        return propagated

    def refine(
        self, case: ImageCase, held_out: Sequence[Slices], on_part: Callable[[float], None] = lambda share: None
    ) -> Propagated:
        """Return the best result without a network; the preview if there is no time for more."""
        propagated = self._load(case, REFINED)
        if propagated is None:
            preview = self.preview(case, held_out)
            work, needed = self._affordable(case)
            if needed > self.seconds:
                return preview
            ensemble = None if work else self._last
            self._last = None
            ensemble = ensemble or self._fit(case, held_out, work=work)
            propagated = self._save(case, REFINED, ensemble.refine(on_part))
        return propagated

    def seconds_for(self, case: ImageCase) -> float:
        """Return the seconds of run time needed to refine the preview; 0 if that is done, or is little work."""
        return 0.0 if self._file(case, REFINED).is_file() else self._affordable(case)[1]

    def work_for(self, shape: Sequence[int]) -> float:
        """Return the work, voxels times (classes + 1), for a volume of this shape; see :class:`Ensemble`."""
        seconds = SHARE * self.seconds / self.cases - self._whole_seconds(shape)
        return float(np.clip(WORK * seconds / SECONDS, max(LEAST_WORK / self.cases, COARSEST), MOST_WORK))

    def _measured(self, ensemble: Ensemble, seconds: float) -> dict[str, float]:
        """Return what the preview of a volume tells of the time for more, to be kept with it.

        Args:
            ensemble: the methods.
            seconds: time that the preview took.
        """
        work, whole = ensemble.work_to_do, self._whole_seconds(ensemble.shape)
        expected = PREVIEW_SECONDS * work + PREVIEW_WHOLE * whole
        return {"work": work, "whole": whole, "slowness": seconds / expected if work > MEASURABLE else 1.0}

    def _affordable(self, case: ImageCase) -> tuple[float | None, float]:
        """Return the work that there is time for, None if it is that of the preview's grid, and the seconds it needs.

        These are seconds of run time for as much work on each volume; 0 if it is little. Another machine than that of
        :data:`SECONDS`, or one under load, takes longer, as the preview has shown: then the grid becomes coarser.
        """
        try:
            with _opened(self._file(case, PREVIEW)) as content:
                work, whole, slowness = (float(content[name]) for name in ("work", "whole", "slowness"))
        except _DAMAGED:
            return None, 0.0
        if work <= PREVIEW_WORK / self.cases:
            return None, 0.0
        share, nominal = SHARE * self.seconds / self.cases, SECONDS * work / WORK + whole
        if slowness <= SLACK or slowness * nominal <= SLACK * share:
            return None, self.cases * nominal / SHARE
        least = max(LEAST_WORK / self.cases, COARSEST)
        chosen = min(max(WORK * (share / slowness - whole) / SECONDS, least), work)
        needed = self.cases * slowness * (SECONDS * chosen / WORK + whole) / (SHARE * SLACK)
        return chosen if chosen < work / SLACK else None, needed

    def _whole_seconds(self, shape: Sequence[int]) -> float:
        """Return the seconds for the work at full resolution: borders, results and the report."""
        return WHOLE_SECONDS * float(np.prod(shape)) * (self.num_classes + 1)

    def best(self, case: ImageCase) -> Propagated | None:
        """Return the best stored result of a case; None if there is none."""
        return self._load(case, REFINED) or self._load(case, PREVIEW)

    def method(self, case: ImageCase) -> str:
        """Return a description of the methods that made a case's result."""
        for kind in (REFINED, PREVIEW):
            try:
                with _opened(self._file(case, kind)) as content:
                    return str(content["method"])
            except _DAMAGED:
                continue
        return ""

    def held(self, case: ImageCase) -> Held | None:
        """Return the probabilities on held-out voxels; None if there are none."""
        try:
            with _opened(self._file(case, REFINED)) as content:
                return _held(content)
        except _DAMAGED:
            return None

    def certain_classes(self, case: ImageCase, unseen: Slices | None = None) -> MetaTensor | None:
        """Return the classes (1, X, Y, Z) of probability :data:`CERTAIN`, not calibrated, for the network to learn.

        Elsewhere it is -1. A scan is background outside of the box that is worked on.

        Args:
            case: the case.
            unseen: slices by axis, in RAS order, that a fast preview does not see, so that the network can be judged on
                these; None: the best stored result, which sees all of the annotation, is used if there is one.
        """
        found = self.best(case) if unseen is None else self._fit(case, [], unseen).preview()
        if found is None:
            return None
        volume = read_image(case.files[0])
        # With fewer slices the box may be too small, and what is outside of it is not known to be background
        whole = np.full(volume.data.shape[:3], 0 if unseen is None else -1, np.int16)
        whole[found.box] = np.where(found.prob.max(0) >= CERTAIN, found.prob.argmax(0), -1)
        return MetaTensor(torch.from_numpy(whole)[None], affine=torch.from_numpy(np.asarray(volume.affine, float)))

    def _fit(
        self,
        case: ImageCase,
        held_out: Sequence[Slices],
        unseen: Slices | None = None,
        work: float | None = None,
    ) -> Ensemble:
        """Return the methods fitted to a case; with slices that they do not see, on a grid fit for a preview.

        Args:
            case: the case.
            held_out: slices that each part holds out.
            unseen: slices that are left out of the annotation; None for none.
            work: see :class:`Ensemble`; None: by the minutes.
        """
        volumes = [read_image(file) for file in case.files]
        channels = [c for v in volumes for c in ([v.data] if v.data.ndim == 3 else np.moveaxis(v.data, -1, 0))]
        annotation = self.annotation_of(case.files[0])
        image = np.stack([np.asarray(channel, np.float32) for channel in channels])
        held_out = held_out if any(any(slices) for slices in held_out) else []
        in_file_order = [to_file_order(slices, volumes[0].affine, image.shape[1:]) for slices in held_out]
        seen, work = annotation.annotated, work or self.work_for(image.shape[1:])
        if unseen is not None:
            seen = seen & ~slices_mask(seen.shape, to_file_order(unseen, volumes[0].affine, seen.shape))
            work = max(PREVIEW_WORK / self.cases, COARSEST)
        ensemble = Ensemble(self.num_classes, self.seed, work, in_file_order or None)
        weight = seen.astype(np.float32)
        return ensemble.fit(image, annotation.numbers.astype(np.int64), weight, volumes[0].spacing)

    def _file(self, case: ImageCase, kind: str) -> Path:
        """Return the path of a result, named by a digest as names of cases may contain slashes."""
        return self.folder / f"{hashlib.sha256(os.fsencode(case.name)).hexdigest()[:16]}_{kind}.npz"

    def _save(
        self, case: ImageCase, kind: str, found: Propagated, numbers: Mapping[str, float] | None = None
    ) -> Propagated:
        """Save a result and return it as read back, rounded, so that a resumed run gives the same."""
        arrays: dict[str, Any] = {"prob": half(found.prob), "method": found.method, **(numbers or {})}
        arrays["box"] = [[b.start, b.stop] for b in found.box]
        if found.held is not None:
            arrays |= {f"held_{f.name}": np.asarray(getattr(found.held, f.name)) for f in fields(Held)}
        with replacing(self._file(case, kind)) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)
        return self._load(case, kind) or found

    def _load(self, case: ImageCase, kind: str) -> Propagated | None:
        try:
            with _opened(self._file(case, kind)) as content:
                box = tuple(slice(int(a), int(b)) for a, b in content["box"])
                prob = single(content["prob"])
                return Propagated(prob, box, _held(content), str(content["method"]))  # type: ignore[arg-type]
        except _DAMAGED:
            return None


def _opened(file: Path) -> Any:
    """Open a file of arrays; raise DataError for a named pipe, which would never be read to its end."""
    check_no_pipe(file)
    return np.load(file)


def _held(content: Mapping[str, Any]) -> Held | None:
    if "held_prob" not in content:
        return None
    held = Held(**{f.name: content[f"held_{f.name}"] for f in fields(Held)})
    return replace(held, slices=tuple(int(i) for i in held.slices), judged=int(held.judged))


def combined(prob: np.ndarray, network: np.ndarray | None, share: float) -> np.ndarray:
    """Return the product of propagation's probabilities (K, ...) and the network's to the power of its share."""
    if network is None or share == 0:
        return prob
    return softmax(log_prob(prob, LEAST_PROB) + share * log_prob(network, LEAST_PROB))


def mixed(
    calibration: Calibration, prob: np.ndarray, distance: np.ndarray, network: np.ndarray | None, share: float
) -> np.ndarray:
    """Return the mean of propagation's probabilities and of those combined with the network, both calibrated.

    The final network learned from more slices than the one that was measured, and is surer of itself, by how much is
    not known. In the mean, it cannot make the result surer than propagation and it are together; a product can.

    Args:
        calibration: that of propagation.
        prob: (K, ...) propagation's probabilities.
        distance: (...) distance of each voxel from annotation.
        network: (K, ...) the network's probabilities; None if its share is 0.
        share: power of the network's probabilities in the product, see :func:`combined`; 0: propagation alone.
    """
    alone = calibration(prob, distance)
    if network is None or share == 0:
        return alone
    return (alone + calibration(combined(prob, network, share), distance)) / 2


def own_calibration(held: Held | None) -> Calibration:
    """Return the calibration of propagation's probabilities by its held-out voxels; none changes nothing."""
    if held is None:
        return Calibration()
    return Calibration.fit(held.prob, held.label, held.distance, held.weight)


def to_file_order(slices: Slices, affine: np.ndarray, shape: Sequence[int]) -> Slices:
    """Convert slices by axis in RAS order to slices by axis of the file."""
    result: Slices = []
    for axis, (world, direction) in enumerate(nib.io_orientation(affine).astype(int)):
        last = shape[axis] - 1
        result.append(sorted(i if direction > 0 else last - i for i in slices[world]))
    return result


def distance_of(annotated: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance (X, Y, Z) of each voxel from annotation, in mm."""
    return distance_from(torch.from_numpy(np.ascontiguousarray(annotated)), np.asarray(spacing, float))
