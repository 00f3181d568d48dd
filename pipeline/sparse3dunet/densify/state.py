"""What a densification has done so far: on disk, so that a killed run goes on, and a next one begins with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sparse3dunet import __version__
from sparse3dunet.data.datalist import FILE_KEYS, DataSet
from sparse3dunet.data.slices import Slices
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import read_volume
from sparse3dunet.keys import IMAGE
from sparse3dunet.models.checkpoints import replace_file
from sparse3dunet.models.description import DESCRIPTION_SUFFIX, ModelDescription, read_description
from sparse3dunet.models.description_checks import NewerDescriptionError

NOT_OF_THE_RUN = (
    "minutes",
    "output_dir",
    "device",
    "num_workers",
    "anew",
    "restart",
    "resume",
    "suggestions",
    "format",
)
"""Settings that may change when a run goes on."""


@dataclass
class State:
    """Of a run in a folder.

    Attributes:
        digest: of the data and the settings, in hexadecimal: a run of others begins a new state.
        held_out: by fold and case, for each axis the slices that the fold holds out.
        reason: why nothing is held out, if so.
        cleared: whether what a former run left in the folder, and would be taken for this run's, is gone.
        anew: whether nothing of a former run is used.
        spent: seconds that the run took so far, over all processes.
        keeps_fold: whether the first fold begins with the former run's.
        goes_on: whether the run began with a former one's models.
        seconds: by part (a fold, or the final training) that was begun, how long it trains.
        share: of the network in the result, once it was judged.
        calibrations: by case, of propagation and the network together: the fields of Calibration.
        trained: whether the final model is there.
        stopped_early: whether the user ended the training.
        complete: whether all results are there.
        previews: by file name, the digest of each preview that was written.
        templates: by file name, the digest of each template that was written; without those that the user passed since.
        notes: what else a reader of the results must know.
    """

    digest: str
    held_out: list[dict[str, Slices]] = field(default_factory=list)
    reason: str = ""
    cleared: bool = False
    anew: bool = False
    spent: float = 0.0
    keeps_fold: bool = False
    goes_on: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    share: float | None = None
    calibrations: dict[str, list[float]] = field(default_factory=dict)
    trained: bool = False
    stopped_early: bool = False
    complete: bool = False
    previews: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class StateFile:
    """Reads and writes the state in ``work/state.json`` of an output folder."""

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "work" / "state.json"

    def read(self) -> State | None:
        """The state; None where there is none, or another version's."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            known = {entry.name for entry in fields(State)}  # of an older version's, what there still is
            return State(**{name: value for name, value in content.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write(self, state: State) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(state), indent=1) + "\n"
        replace_file(self.path, lambda draft: draft.write_text(text, encoding="utf-8"))


def digest(data_set: DataSet, config: Mapping[str, Any], chosen: Sequence[Any] = ()) -> str:
    """Of the annotation's voxels, the images' files, the settings, what was chosen by itself, our version; in hex."""
    found = hashlib.sha256()
    for case in data_set.cases:
        for key in FILE_KEYS[:-1]:
            paths = case[key] if isinstance(case.get(key), list) else [case[key]] if key in case else []
            for path in paths:
                if key == IMAGE:
                    status = Path(path).stat()
                    found.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
                else:
                    found.update(np.ascontiguousarray(read_volume(path).data).tobytes())
    settings = {key: value for key, value in config.items() if key not in NOT_OF_THE_RUN}
    classes = [data_set.class_names, data_set.class_values, data_set.ignore_index]
    told = [settings, classes, list(chosen), __version__]
    found.update(json.dumps(told, sort_keys=True, default=str).encode())
    return found.hexdigest()


class Learned:
    """The annotation that a model learned, in ``work/learned`` of an output folder, by the name of the case.

    That of a run in which it is still being learned is in ``work/learning``.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "work" / "learned"
        self.pending = self.folder.with_name("learning")

    def start(self, goes_on: bool) -> None:
        """Nothing is being learned yet; and nothing is known of a former model's unless the run goes on with it."""
        for folder in (self.pending, *([] if goes_on else [self.folder])):
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, numbers: np.ndarray, annotated: np.ndarray) -> None:
        """Write a case's class numbers, which count where it is annotated; both (X, Y, Z)."""
        self.pending.mkdir(parents=True, exist_ok=True)

        def write(draft: Path) -> None:
            with draft.open("wb") as file:  # by a name, NumPy would add an ending to it
                np.savez_compressed(file, numbers=np.where(annotated, numbers, -1).astype(np.int16))

        replace_file(self.pending / _file(name), write)

    def finish(self) -> None:
        """There is a model that has learned what was added."""
        if self.pending.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.pending, self.folder)

    def changed(self, name: str, numbers: np.ndarray, annotated: np.ndarray) -> int:
        """How many voxels that were learned are annotated otherwise by now, or no more; 0 where nothing is known."""
        try:
            with np.load(self.folder / _file(name)) as content:
                before = content["numbers"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return 0
        if before.shape != numbers.shape:
            return 0
        return int(((before >= 0) & (before != np.where(annotated, numbers, -1))).sum())


def _file(name: str) -> str:
    """By a digest: names of cases may have slashes."""
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.npz"


def former_description(model_file: Path) -> ModelDescription | None:
    """The description of a former run's model; None where the model, or its description, is not there or damaged.

    Raises:
        NewerDescriptionError: when a newer version wrote it, whose model must not be replaced.
    """
    try:
        return read_description(model_file) if model_file.is_file() else None
    except NewerDescriptionError:
        raise
    except DataError:
        return None


def differences(before: ModelDescription, now: ModelDescription) -> list[str]:
    """What keeps a model from being learned further, in words; empty where nothing does."""
    # Of a network that is no UNet3D, nothing is known by which it could be told from another one
    differing = {
        "another network": before.network != now.network or now.network is None,
        "other classes": before.class_values != now.class_values,
        "other names of classes": before.class_names != now.class_names,
        "another voxel size": before.spacing != now.spacing,
        "another normalisation": before.normalize != now.normalize,
    }
    return [words for words, differs in differing.items() if differs]


def keep_aside(model_file: str | Path) -> Path:
    """Rename a model, and its description, that a new one would replace; returns its new path."""
    path = Path(model_file)
    names = (path.with_name(f"{path.stem}_before{number or ''}{path.suffix}") for number in (0, *range(2, 10_000)))
    aside = next(name for name in names if not name.exists())
    os.replace(path, aside)
    os.replace(path.with_suffix(DESCRIPTION_SUFFIX), aside.with_suffix(DESCRIPTION_SUFFIX))
    return aside
