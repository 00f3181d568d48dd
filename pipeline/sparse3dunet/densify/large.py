"""Densify for a scan larger than memory: train on parts around its annotation, then predict it chunk by chunk.

There is no propagation and no estimate of the quality: both see a whole volume.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparse3dunet import __version__
from sparse3dunet.bundle import running
from sparse3dunet.data.cutting import annotation_of_large
from sparse3dunet.data.datalist import DataSet, read_data_set
from sparse3dunet.data.large import open_large
from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.data.set_conventions import known_values
from sparse3dunet.densify.schedule import check_minutes
from sparse3dunet.densify.state import NOT_OF_THE_RUN
from sparse3dunet.inference import run
from sparse3dunet.inference.batch import Output
from sparse3dunet.inference.inputs import find_images
from sparse3dunet.inference.processes import default_device
from sparse3dunet.inference.records import CaseRecord, check_summary, results_in
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import check_output
from sparse3dunet.io.chunked_results import check_suffix
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.formats import annotation_path, is_chunked, opened_once
from sparse3dunet.io.suffixes import format_suffix, is_image_file, split, state_of
from sparse3dunet.io.writing import write_text
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT
from sparse3dunet.missing import no_part_of_pair
from sparse3dunet.models.loading import load_model
from sparse3dunet.progress import minutes_text
from sparse3dunet.training.resume import STATE

WITHOUT = ("folds", "suggestions")
"""Options of densify that need the whole volume, and are left out."""
NOT_OF_THE_TRAINING = (*WITHOUT, "keep_annotation", "restart", "format", "spacing")
OF_THE_ANNOTATION = ("ignore_index", "annotated_slices", "weight_dir", "label_dir")
"""Settings that say which voxels are annotated."""
DIGEST = "large.txt"
"""File in ``work`` with the digest of what the training started from."""


def is_large_pair(sources: Sequence[str]) -> bool:
    """Return whether densify is given a scan and its annotation, of which the scan is larger than memory."""
    if len(sources) != 2 or not is_chunked(sources[0]) or not is_image_file(Path(sources[0]).expanduser()):
        return False
    return open_large(str(Path(sources[0]).expanduser().absolute())) is not None


def densify_large(
    sources: Sequence[str], output_dir: Path, minutes: float, settings: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Train a model in ``output_dir/model`` and write the segmentation to ``output_dir``; continue if it was stopped.

    With another scan, annotation or setting than the former run's, the training starts again.

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
        raise no_part_of_pair(annotation, "annotation")
    _check_results(scan, output_dir, settings.get("format"))
    print(
        f"{scan} is larger than memory: a network is trained for {minutes_text(minutes)} on parts around the "
        "annotation, then the scan is segmented chunk by chunk; without a preview, an estimate of the quality and "
        "suggestions.",
        flush=True,
    )
    device = torch.device(settings.get("device") or default_device())
    model = output_dir / "model"
    given = {name: value for name, value in settings.items() if name not in NOT_OF_THE_TRAINING}
    names = given.pop("given_names", None)
    given |= {
        "dataset_dir": str(_datalist(scan, annotation, output_dir)),
        "output_dir": str(output_dir / "work" / "training"),
        "ckpt_dir": str(model),
        "minutes": minutes,
        "device": str(device),
        "data_set#infer_unlabeled": True,
        **({} if names is None else {"data_set#class_names": names}),
    }
    if settings.get("spacing") != "auto":
        given["spacing"] = settings.get("spacing")
    data_set = _data_set({**given, **extra})
    digest = _digest(data_set, {**given, **extra})
    kept = _annotation(data_set, {**given, **extra}, digest) if settings.get("keep_annotation", True) else None
    given["resume"] = _goes_on(output_dir, digest) and not settings.get("restart", False)
    running.run_quietly("training", {**given, **extra}, running.preset(device))
    _predict(model, scan, output_dir, device, settings.get("format"), kept)


def _data_set(settings: Mapping[str, Any]) -> DataSet:
    """Return the scan and its annotation as the training reads them."""
    chosen = {name: value for name, value in settings.items() if name in OF_THE_ANNOTATION}
    return read_data_set(settings["dataset_dir"], **chosen)


def _annotation(data_set: DataSet, settings: Mapping[str, Any], digest: str) -> LargeAnnotation:
    classes = known_values(settings.get("known_classes"), settings.get("background"))
    return annotation_of_large(data_set, classes, digest)


def _check_results(scan: Path, output_dir: Path, format: str | None) -> None:
    """Raise DataError if the results cannot be written, before anything is trained."""
    check_summary(output_dir)
    (case,) = find_images([scan], leave_out=results_in(output_dir))
    names = list(
        Output(output_dir, [], [], format_suffix(format), pictures=False).names(case, confidence=True).values()
    )
    image = opened_once(scan)
    for name in names:
        check_suffix(name)
        check_output(name, image)
    CaseRecord(output_dir, case, {}).check(names)


def _digest(data_set: DataSet, settings: Mapping[str, Any]) -> str:
    """Return a hexadecimal digest of what the model depends on; of the files, number, size and time of change."""
    places = (*NOT_OF_THE_RUN, "dataset_dir", "ckpt_dir")
    kept = {name: value for name, value in settings.items() if name not in places}
    (case,) = data_set.cases
    files = [state_of(split(case[name])[0])[1:] for name in (IMAGE, LABEL, WEIGHT) if name in case]
    values = [files, kept, __version__, as_key()]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _goes_on(output_dir: Path, digest: str) -> bool:
    """Return whether the former run in the folder started from the same; if not, its training cannot be continued."""
    file, model = output_dir / "work" / DIGEST, output_dir / "model"
    if file.is_file() and file.read_text(encoding="utf-8", errors="replace").strip() == digest:
        return True
    if model.is_dir():
        print(
            "The scan, the annotation, a setting or the version changed since the former run: training starts again. "
            f"To train the former model further, pass --pretrained {model}.",
            flush=True,
        )
    # Before the new digest: a run that is killed in between must not be continued from this
    (model / STATE / "last.pt").unlink(missing_ok=True)
    write_text(file, digest + "\n")
    return False


def _datalist(scan: Path, annotation: Path, output_dir: Path) -> Path:
    path = output_dir / "work" / "inputs" / "datalist.json"
    content = {"training": [{IMAGE: str(scan), LABEL: annotation_path(str(annotation))}]}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _predict(
    model: Path,
    scan: Path,
    output_dir: Path,
    device: torch.device,
    format: str | None,
    annotation: LargeAnnotation | None,
) -> None:
    trained = load_model(model)
    inferer = SlabInferer(trained.patch_size)
    outcome = run.predict(
        trained, [scan], output_dir, inferer, device=device, format=format, confidence=True, annotation=annotation
    )
    run.report(outcome, output_dir)
