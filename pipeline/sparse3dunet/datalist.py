"""Lists of cases: read from a folder, checked, and split (standard library only).

A case is a dictionary of absolute paths: ``image``, ``label`` (may have unlabeled voxels) and, where there is one,
``reference``, a dense label for scoring alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE

SUFFIXES = (".nii", ".nii.gz")
Case = dict[str, str]


@dataclass(frozen=True)
class DataSet:
    """The training cases of one folder, and what its ``dataset.json`` declares.

    Attributes:
        cases: dictionaries of absolute paths.
        class_names: the class names, by class number 0 ... K-1.
        num_channels: channels of the images.
    """

    cases: list[Case]
    class_names: list[str]
    num_channels: int


def read_decathlon(dataset_dir: str | Path, label_dir: str | None = None, reference_dir: str | None = None) -> DataSet:
    """Read a folder in the Medical Segmentation Decathlon's layout: ``dataset.json``, ``imagesTr/``, ``labelsTr/``.

    Args:
        dataset_dir: the folder.
        label_dir: folder within it to take the labels from, by their file names, instead of the one that
            ``dataset.json`` names.
        reference_dir: folder within it that holds dense labels for scoring; by default the ``reference`` that
            ``dataset.json`` names for a case, if it does.

    Raises:
        DataError: when the folder or a file is missing, empty or unreadable as JSON, or declares no cases or classes.
    """
    root = Path(str(dataset_dir)).expanduser()
    if not root.is_dir():
        raise DataError(
            f"dataset_dir {root.absolute()} does not exist or is no folder. "
            "Pass the folder that holds dataset.json, imagesTr/ and labelsTr/: --dataset_dir FOLDER."
        )
    if not (root / "dataset.json").is_file():
        raise DataError(
            f"{root.absolute()} holds no dataset.json, which lists a data set's cases and classes; "
            "data/README.md of this project shows how to write one."
        )
    description = _read_json(root / "dataset.json")
    entries = description.get("training")
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{root / "dataset.json"}: "training" lists no cases; expected a list of image and label.')
    folders = {key: None if d is None else str(d) for key, d in ((LABEL, label_dir), (REFERENCE, reference_dir))}
    for folder in folders.values():
        if folder is not None and not (root / folder).is_dir():
            raise DataError(f"{root / folder}: no such folder in dataset_dir. Found: {_folders(root)}.")
    cases = [_case(root, entry, number, folders) for number, entry in enumerate(entries)]
    names = [case_name(case[IMAGE]) for case in cases]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"{root / 'dataset.json'}: several cases have one name: {', '.join(twice[:3])}. Splits, labels and results "
            "go by the images' file names; give each case one of its own."
        )
    return DataSet(cases, _class_names(root, description), len(description.get("modality") or {"0": ""}))


def _load_json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path.absolute()} does not exist.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error


def _read_json(path: Path) -> dict[str, Any]:
    content = _load_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def _class_names(root: Path, description: dict[str, Any]) -> list[str]:
    """Names by class number, from ``{"0": "background", "1": "anterior"}``."""
    labels = description.get("labels")
    try:
        names = {int(number): str(name) for number, name in labels.items()}  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        names = {}
    if len(names) < 2 or sorted(names) != list(range(len(names))):
        raise DataError(
            f'{root / "dataset.json"}: "labels" must name the classes 0 ... K-1, background first, as in '
            f'{{"0": "background", "1": "tubule"}}; found {labels!r}.'
        )
    return [names[number] for number in range(len(names))]


def _case(root: Path, entry: Any, number: int, folders: dict[str, str | None]) -> Case:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in (IMAGE, LABEL)):
        raise DataError(
            f"{root / 'dataset.json'}: training case {number} must be like "
            f'{{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}}; found {entry!r}.'
        )
    case = {}
    for key in (IMAGE, LABEL, REFERENCE):
        folder = folders.get(key)
        if folder is not None:
            path = root / folder / Path(entry[LABEL]).name
        elif isinstance(entry.get(key), str):
            path = root / entry[key]
        else:
            continue
        if not path.is_file():
            raise DataError(
                f"{path.absolute()} ({key} of training case {number} in {root / 'dataset.json'}) does not exist. "
                "Put the file there, or take the case out of the list."
            )
        case[key] = str(path.resolve())
    return case


def _folders(root: Path) -> str:
    return ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"


def case_name(path: str | Path) -> str:
    """The name of a case: its file's name without the ending."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def split_cases(
    cases: Sequence[Case], val_fraction: float = 0.2, seed: int = 0, split_file: str | Path | None = None
) -> tuple[list[Case], list[Case]]:
    """Split cases into training and validation.

    A single case is used for both: its annotated slices are learned from, and the rest of it is predicted.

    Args:
        cases: from :func:`read_decathlon`.
        val_fraction: share of the cases, at least one, that validation takes; 0 puts *all* cases into both parts, to
            densify the volumes that were annotated.
        seed: of the random split.
        split_file: JSON file ``{"train": [names], "val": [names]}`` that decides instead.

    Raises:
        DataError: when the split file is unreadable, names an unknown case or leaves a part empty, or the fraction is
            not in [0, 1).
    """
    if split_file is not None:
        return _split_by_file(cases, Path(str(split_file)).expanduser())
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    if len(cases) == 1 or val_fraction == 0:
        return list(cases), list(cases)
    order = list(cases)
    random.Random(seed).shuffle(order)
    count = min(max(round(val_fraction * len(cases)), 1), len(cases) - 1)
    return order[count:], order[:count]


def _split_by_file(cases: Sequence[Case], path: Path) -> tuple[list[Case], list[Case]]:
    split = _read_json(path)
    by_name = {case_name(case[IMAGE]): case for case in cases}
    parts = []
    for part in ("train", "val"):
        names = split.get(part)
        if not isinstance(names, list) or not names:
            raise DataError(f'{path}: expected a list of case names under "{part}", found {names!r}.')
        unknown = [str(name) for name in names if str(name) not in by_name]
        if unknown:
            raise DataError(f'{path}: "{part}" names cases that the data set lacks: {", ".join(unknown[:5])}.')
        parts.append([by_name[str(name)] for name in names])
    both = [case_name(case[IMAGE]) for case in parts[0] if case in parts[1]]
    if both:
        raise DataError(
            f"{path}: in both parts: {', '.join(both[:5])}. Validation on what is trained on tells nothing of new "
            "volumes; to densify all volumes, pass --val_fraction 0 instead of a split file."
        )
    return parts[0], parts[1]


def cases_to_score(cases: Sequence[Case], training: Sequence[str], validation: Sequence[str]) -> list[Case]:
    """The cases by which to judge a model, given the names of those that it was trained and validated on.

    Those that it was validated on, if the data set has them all; otherwise, for another data set, all cases. Prints
    which, and says so where they were trained on too.
    """
    held_out = [case for case in cases if case_name(case[IMAGE]) in set(validation)]
    chosen = held_out if held_out and len(held_out) == len(set(validation)) else list(cases)
    names = [case_name(case[IMAGE]) for case in chosen]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if set(names) & set(training):
        note = "all or some of which the model was trained on: scores on annotated voxels tell nothing of others"
    else:
        note = "which the model was not trained on"
    print(f"Scoring {len(names)} volume(s), {note}: {shown}")
    return chosen


def list_images(source: str | Path) -> list[Case]:
    """Images to predict, as ``[{"image": path}, ...]``.

    Args:
        source: a folder (its subfolders are not looked into), a single image, or a JSON file: a list of paths or of
            ``{"image": path}``, by itself or under "testing" as in MONAI's datalists; relative to the JSON file.

    Raises:
        DataError: when `source` does not exist, names a missing file, or holds no image.
    """
    path = Path(str(source)).expanduser()
    if path.suffix == ".json":
        files = _listed_images(path)
    elif path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))
    else:
        raise DataError(f"dataset_dir {path.absolute()} does not exist. Pass a folder of images: --dataset_dir FOLDER.")
    if not files:
        raise DataError(
            f"dataset_dir {path.absolute()} holds no image ({', '.join('*' + s for s in SUFFIXES)}). "
            "Pass the folder that holds the images themselves."
        )
    names = [case_name(file) for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: several images are named {twice[0]}, so that their results would overwrite each other."
        )
    return [{IMAGE: str(file.resolve())} for file in files]


def _listed_images(path: Path) -> list[Path]:
    content = _load_json(path)
    entries = content.get("testing") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise DataError(f'{path}: expected a list of images, by itself or under "testing".')
    files = []
    for number, entry in enumerate(entries):
        name = entry.get(IMAGE) if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not (path.parent / name).is_file():
            raise DataError(f"{path}: entry {number} names no existing image: {entry!r}.")
        files.append(path.parent / name)
    return files
