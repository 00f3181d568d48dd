"""What the MONAI Label app has done in a process of its own: python -m sparse3dunet.annotate.label_jobs JOB.

JOB is JSON: the arguments of :func:`densify` or :func:`train`, and ``"job": "densify"`` or ``"job": "train"``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.annotate.submitted import ANNOTATION, check_classes, update_annotation
from sparse3dunet.bundle import running
from sparse3dunet.errors import DataError, show_readable_errors
from sparse3dunet.inference.processes import default_device
from sparse3dunet.io import read_image
from sparse3dunet.io.segments import check_structures
from sparse3dunet.io.volumes import UNLABELED_VALUE
from sparse3dunet.io.writing import write_text


def densify(
    scan: str, label: str, folder: str, minutes: float, names: Sequence[str], device: str | None = None
) -> None:
    """Segment a scan from the label map that was submitted, into its folder.

    Args:
        scan: the image.
        label: the label map.
        folder: the scan's folder.
        minutes: duration.
        names: names of the classes of values 1, 2, ...
        device: cpu, cuda ...; None for a GPU if there is one.

    Raises:
        DataError: when nothing is annotated, or nothing is left to segment.
    """
    place = Path(folder)
    dataset = _data_set([(scan, label, place)], place / "dataset.json", names)
    if not (_annotation(place) == UNLABELED_VALUE).any():
        raise DataError(f"{label}: every voxel is annotated; nothing is left to segment.")
    settings = {"dataset_dir": str(dataset), "output_dir": str(place / "densified"), "minutes": minutes}
    running.run_quietly("densify", {**settings, "format": "nii.gz", "device": device or str(default_device())})


def train(
    cases: Sequence[Sequence[str]], folder: str, minutes: float, names: Sequence[str], device: str | None = None
) -> None:
    """Train on all label maps that were submitted, further from the present model if there is one.

    Args:
        cases: scan, label map and folder of each.
        folder: folder of the model.
        minutes: duration.
        names: see :func:`densify`.
        device: see :func:`densify`.

    Raises:
        DataError: when nothing is annotated.
    """
    place = Path(folder)
    listed = [(scan, label, Path(own)) for scan, label, own in cases]
    settings: dict[str, Any] = {
        "dataset_dir": str(_data_set(listed, place / "dataset.json", names, every=True)),
        "ckpt_dir": str(place),
        "output_dir": str(place / "eval"),
        "minutes": minutes,
        "device": device or str(default_device()),
    }
    if (place / "model.pt").is_file():
        settings["pretrained"] = str(place)
    running.run_quietly("training", settings, running.preset(settings["device"]))


def _data_set(cases: Sequence[tuple[str, str, Path]], file: Path, names: Sequence[str], every: bool = False) -> Path:
    """Write a datalist of the annotation in submitted label maps, and return its path.

    Args:
        cases: scan, label map and folder of each.
        file: path of the datalist.
        names: names of the classes of values 1, 2, ...
        every: whether to declare all classes, not only those that are annotated.

    Raises:
        DataError: when nothing is annotated, or a label map has other classes.
    """
    found: set[int] = set()
    annotated = []
    for scan, label, folder in cases:
        print(f"{Path(scan).name}: {update_annotation(scan, label, folder, names)}.", flush=True)
        values = {int(v) for v in np.unique(_annotation(folder))} - {UNLABELED_VALUE}
        check_classes(label, dict.fromkeys(values - {0}, ""), names)  # of an app with fewer classes than before, too
        annotated += [(scan, folder)] if values else []
        found |= values - {0}
    if not annotated:
        raise DataError(
            "only segmentations were submitted in which nothing was corrected. Correct whole slices, and submit again."
        )
    check_structures(names, "the app's settings.json")  # in apps of version 0.15.0, too
    labels = {number: name for number, name in enumerate(names, 1) if every or number in found}
    content = {
        "labels": {"0": "background", **{str(number): name for number, name in labels.items()}},
        "ignore_index": UNLABELED_VALUE,
        "training": [{"image": scan, "label": str((folder / ANNOTATION).absolute())} for scan, folder in annotated],
    }
    write_text(file, json.dumps(content, indent=1) + "\n")
    return file


def _annotation(folder: Path) -> np.ndarray:
    return np.asarray(read_image(folder / ANNOTATION).data)


def main(arguments: Sequence[str]) -> None:
    """Run the job that the first argument describes."""
    show_readable_errors()
    job = json.loads(arguments[0])
    jobs: dict[str, Callable[..., None]] = {"densify": densify, "train": train}
    jobs[job.pop("job")](**job)


if __name__ == "__main__":
    main(sys.argv[1:])
