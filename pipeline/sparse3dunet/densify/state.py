"""State of a densification on disk, from which a killed run resumes and the next run starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sparse3dunet import __version__
from sparse3dunet.data.datalist import FILE_KEYS, DataSet
from sparse3dunet.data.slices import Slices
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.json_files import load_json, misfit
from sparse3dunet.io.payload import check_no_pipe
from sparse3dunet.io.suffixes import files_of
from sparse3dunet.io.volumes import marked
from sparse3dunet.io.writing import replacing, write_text
from sparse3dunet.keys import ANNOTATED_CLASSES, ANNOTATED_SLICES, IMAGE
from sparse3dunet.planning import read_plan

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
    "reference_dir",
    "surface_tolerance",
)
"""Settings that may change when a run goes on."""

DECLARED = (ANNOTATED_SLICES, ANNOTATED_CLASSES)
"""What a datalist declares of a case's annotation."""
VERSION = 1
"""Version of the state's fields."""
LARGEST = 2**31
"""Bound of all numbers."""
LEARNED_FILE = re.compile(r"\.?[0-9a-f]{16}\.")
"""Start of the name of a file of :class:`Learned`, or of its draft."""
PART = re.compile(r"final|fold_\d{1,4}")
"""Names of the parts of a training."""

PROPAGATED = "propagation"
"""Folder, among those of a run's work, of what is found without a network."""


@dataclass
class State:
    """State of a run in a folder.

    Attributes:
        digest: digest of data and settings, in hexadecimal; with other data or settings, a new state begins.
        held_out: by fold and case, for each axis the slices that the fold holds out.
        reason: why nothing is held out, if so.
        cleared: whether files of a former run that could be mistaken for this run's were removed.
        anew: whether the run was restarted, using nothing of a former run.
        spent: seconds that the run took so far, over all processes.
        keeps_fold: whether the first fold is that of the former run.
        goes_on: whether the run started from a former run's models.
        seconds: duration of each part (a fold, or the final training) that was started.
        share: share of the network in the result, once it was evaluated.
        learned: iterations of the former runs' network that the run started from.
        trained: whether the final model is complete.
        stopped_early: whether the user ended the training.
        complete: whether all results are complete.
        previews: by file name, the digest of each preview that was written; while one is replaced, both.
        images: by name of a case, its (first) image file.
        templates: by file name, the digest of each template that was written; without those passed as annotation since.
        notes: other facts that a reader of the results must know.
        version: version of these fields.
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
    learned: int = 0
    trained: bool = False
    stopped_early: bool = False
    complete: bool = False
    previews: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    version: int = 1


class StateFile:
    """State file ``work/state.json`` of an output folder."""

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "work" / "state.json"
        self.fault = ""

    def read(self) -> State | None:
        """Read the state; None if there is none.

        A damaged state, or one of a newer version, is as good as none, but tells that a run was here: it is empty then,
        and :attr:`fault` says what is wrong.
        """
        if not self.path.is_file():
            return None
        try:
            content = load_json(self.path, "a state")
            wrong = misfit(content, State) or _odd_field(content)
            if wrong or "digest" not in content or content.get("version", 1) > VERSION:
                raise DataError(f"{self.path}: the field {wrong or 'digest or version'} is not as expected.")
        except (OSError, DataError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{self.path}: ").rstrip(". ")
            self.fault = (
                f"{self.path} is damaged, or of another version ({reason}); what the former run computed is not used, "
                "but for the model beside it."
            )
            return State("")
        known = {entry.name for entry in fields(State)}  # an older version may have had others
        return State(**{name: value for name, value in content.items() if name in known})

    def write(self, state: State) -> None:
        write_text(self.path, json.dumps(asdict(state), indent=1) + "\n")

    def clear(self, state: State) -> None:
        """Remove, once a run, files of a former run that could be mistaken for this run's, and write the state."""
        if state.cleared:
            return
        folder = self.path.parent
        for last in folder.glob("*/last.pt"):
            if PART.fullmatch(last.parent.name):
                last.unlink()
        shutil.rmtree(folder / PROPAGATED, ignore_errors=True)
        if not state.keeps_fold:
            for model in folder.glob("fold_*/model.*"):
                model.unlink()
        state.cleared = True
        self.write(state)


def _odd_field(content: Mapping[str, Any]) -> str:
    """Return the first field whose value no run writes; empty if there is none."""
    state = State(**{"digest": "", **{name: content[name] for name in _RANGES if name in content}})
    return next((name for name, fits in _RANGES.items() if not fits(getattr(state, name))), "")


def _are_slices(slices: Slices) -> bool:
    return len(slices) == 3 and all(0 <= index < LARGEST for indices in slices for index in indices)


_RANGES: dict[str, Callable[[Any], bool]] = {
    "held_out": lambda folds: all(map(_are_slices, (slices for fold in folds for slices in fold.values()))),
    "spent": lambda seconds: 0 <= seconds < LARGEST,  # false for NaN, too
    "seconds": lambda parts: all(PART.fullmatch(part) and 0 <= parts[part] < LARGEST for part in parts),
    "share": lambda share: share is None or 0 <= share <= 1,
    "learned": lambda count: 0 <= count < LARGEST,
}
"""By field, a check of its value."""


def digest(data_set: DataSet, config: Mapping[str, Any], chosen: Sequence[Any] = ()) -> str:
    """Return a hexadecimal digest of all that a run depends on.

    That is: annotation voxels and what is declared of them, image files, settings, planned values, package version.
    """
    result = hashlib.sha256()
    for case in data_set.cases:
        for key in FILE_KEYS[:-1]:
            paths = case[key] if isinstance(case.get(key), list) else [case[key]] if key in case else []
            for path in paths:
                if key == IMAGE:
                    for status in map(os.stat, files_of(path)):
                        result.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape"))
                else:
                    result.update(np.ascontiguousarray(read_image(path).data).tobytes())
    settings = {key: value for key, value in config.items() if key not in NOT_OF_THE_RUN}
    classes = [data_set.class_names, data_set.class_values, data_set.ignore_index]
    declared: list[Any] = [[case.get(key) for key in DECLARED] for case in data_set.cases]
    declared += [data_set.modalities, list(data_set.regions.items())]
    values = [settings, classes, declared, list(chosen), _plan_text(config.get("plan")), __version__, *as_key().items()]
    result.update(json.dumps(values, sort_keys=True, default=str).encode())
    return result.hexdigest()


def _plan_text(path: str | None) -> str:
    """Return the content of a plan's file for a digest; empty if there is none."""
    return "" if path is None else read_plan(path).to_json()


class Learned:
    """Annotation that a model was trained on, in ``work/learned`` of an output folder, by the name of the case.

    While the training runs, it is in ``work/learning``.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / "work" / "learned"
        self.pending = self.folder.with_name("learning")

    def start(self, goes_on: bool) -> None:
        """Remove pending annotation; and that of a former model unless the run trains it further."""
        for folder in (self.pending, *([] if goes_on else [self.folder])):
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, numbers: np.ndarray, annotated: np.ndarray) -> None:
        """Write a case's class numbers, which count where it is annotated; both (X, Y, Z)."""
        # NumPy would add a suffix to a file name
        with replacing(self.pending / _file(name)) as draft, draft.open("wb") as file:
            np.savez_compressed(file, numbers=marked(numbers, annotated, -1, np.int16))

    def finish(self) -> None:
        """Make the pending annotation that of the model."""
        if self.pending.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.pending, self.folder)

    def changed(self, name: str, numbers: np.ndarray, annotated: np.ndarray) -> int:
        """Return how many learned voxels have another label now, or none; 0 if nothing is stored.

        All of them, if the scan has another shape now.
        """
        try:
            check_no_pipe(self.folder / _file(name))
            with np.load(self.folder / _file(name)) as content:
                before = content["numbers"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return 0
        if before.shape != numbers.shape:
            return int((before >= 0).sum())
        return int(((before >= 0) & (before != marked(numbers, annotated, -1, np.int16))).sum())


def _file(name: str) -> str:
    """Return a file name by a digest, as names of cases may contain slashes."""
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.npz"
