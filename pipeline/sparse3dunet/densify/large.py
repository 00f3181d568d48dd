"""Densify for a scan larger than memory: train on parts around its annotation, then predict it chunk by chunk.

There is no propagation and no estimate of the quality: both see a whole volume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparse3dunet.bundle import running
from sparse3dunet.data.large import open_large
from sparse3dunet.densify.schedule import check_minutes
from sparse3dunet.errors import DataError
from sparse3dunet.inference import run
from sparse3dunet.inference.processes import default_device
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io.formats import annotation_path, is_chunked
from sparse3dunet.io.suffixes import is_image_file
from sparse3dunet.io.writing import write_text
from sparse3dunet.keys import IMAGE, LABEL
from sparse3dunet.models.loading import load_model

WITHOUT = ("folds", "suggestions", "keep_annotation")
"""Options of densify that need the whole volume, and are left out."""


def is_large_pair(sources: Sequence[str]) -> bool:
    """Return whether densify is given a scan and its annotation, of which the scan is larger than memory."""
    if len(sources) != 2 or not is_chunked(sources[0]) or not is_image_file(Path(sources[0]).expanduser()):
        return False
    return open_large(str(Path(sources[0]).expanduser().absolute())) is not None


def densify_large(
    sources: Sequence[str], output_dir: Path, minutes: float, settings: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Train a model in ``output_dir/model`` and write the segmentation to ``output_dir``; continue if it was stopped.

    Args:
        sources: the scan and its annotation.
        output_dir: folder of all results.
        minutes: duration of the training; the prediction takes as long as it takes.
        settings: densify's settings by name.
        extra: further settings of the training's config.

    Raises:
        DataError: when a file or a setting is wrong, or the prediction fails.
    """
    check_minutes(minutes)
    scan, annotation = (Path(source).expanduser().absolute() for source in sources)
    if not is_image_file(annotation):
        raise DataError(f"{annotation} does not exist; expected the annotation. The order is: SCAN ANNOTATION.")
    print(
        f"{scan} is larger than memory: a network is trained for {minutes:g} minutes on parts around the annotation, "
        "then the scan is segmented chunk by chunk; without a preview, an estimate of the quality and suggestions.",
        flush=True,
    )
    device = torch.device(settings.get("device") or default_device())
    model = output_dir / "model"
    given = {name: value for name, value in settings.items() if name not in (*WITHOUT, "restart", "format", "spacing")}
    names = given.pop("given_names", None)
    given |= {
        "dataset_dir": str(_datalist(scan, annotation, output_dir)),
        "output_dir": str(output_dir / "work" / "training"),
        "ckpt_dir": str(model),
        "minutes": minutes,
        "device": str(device),
        "resume": not settings.get("restart", False),
        "data_set#infer_unlabeled": True,
        **({} if names is None else {"data_set#class_names": names}),
    }
    if settings.get("spacing") != "auto":
        given["spacing"] = settings.get("spacing")
    running.run_quietly("training", {**given, **extra}, ["cpu" if device.type == "cpu" else "gpu"])
    _predict(model, scan, output_dir, device, settings.get("format"))


def _datalist(scan: Path, annotation: Path, output_dir: Path) -> Path:
    path = output_dir / "work" / "inputs" / "datalist.json"
    content = {"training": [{IMAGE: str(scan), LABEL: annotation_path(str(annotation))}]}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _predict(model: Path, scan: Path, output_dir: Path, device: torch.device, format: str | None) -> None:
    trained = load_model(model)
    inferer = SlabInferer(trained.patch_size)
    outcome = run.predict(trained, [scan], output_dir, inferer, device=device, format=format, confidence=True)
    run.report(outcome, output_dir)
