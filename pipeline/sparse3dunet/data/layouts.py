"""Layouts of data sets on disk: the Decathlon's folders, nnU-Net v2's, plain pairs, and MONAI's datalists."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse3dunet.data.mistyped import mistyped_keys
from sparse3dunet.errors import DataError
from sparse3dunet.io.parts import split_part
from sparse3dunet.io.suffixes import IMAGE_SUFFIXES, split, suffix_among

SUFFIXES = IMAGE_SUFFIXES
"""Suffixes of files for training."""
IMAGE_DIRS, LABEL_DIRS = ("images", "imagesTr"), ("labels", "labelsTr")
EXAMPLE = '{"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]}'
LABEL_ENDINGS = ("_seg", "_label", "_labels", "_mask", "_segmentation", "-label", "-seg", ".seg")
"""Endings that a label's name may have after the image's name, in plain folders."""


@dataclass(frozen=True)
class Listing:
    """Cases and declarations of a data set, before any file is read.

    Attributes:
        source: file or folder that lists the cases, for messages.
        root: folder that the listed paths are relative to.
        entries: a dictionary for each case, by the keys of a case; the last `num_validation` are for validation.
        labels: names by value, or values by name; None if undeclared.
        colors: colours by value, as #rrggbb; None if undeclared.
        ignore_index: values of unlabeled voxels; None if undeclared.
        annotated_slices: annotated slices of cases that list none; None if undeclared.
        annotated_classes: classes that were looked for in cases that list none; None for all.
        regions: classes by the name of the region; None if undeclared.
        num_channels: channels of the images; 0 if undeclared.
        modalities: names of the channels, such as CT; empty if undeclared.
        num_validation: number of cases that the source sets apart for validation.
        allows_absolute: whether paths may be absolute and point anywhere.
        is_made: whether this program made it from a scan and its annotation, of which segments were chosen then.
        warnings: kind and text of each warning on what it lists.
    """

    source: Path
    root: Path
    entries: list[Any]
    labels: Any = None
    colors: Any = None
    ignore_index: Any = None
    annotated_slices: Any = None
    annotated_classes: Any = None
    regions: Any = None
    num_channels: int = 0
    modalities: tuple[str, ...] = ()
    num_validation: int = 0
    allows_absolute: bool = False
    is_made: bool = False
    warnings: tuple[tuple[str, str], ...] = ()


def read_listing(path: Path, label_dir: str | None = None) -> Listing:
    """Return the listing of the data set at `path`, a folder or a JSON file.

    Raises:
        DataError: when it is in no known layout, or lists no case.
    """
    if path.is_file():
        if path.suffix != ".json":
            raise DataError(
                f"{path.absolute()} is not a data set: found a file that is not .json, expected a folder or a JSON "
                "datalist. Pass the folder that contains the images and labels."
            )
        return _datalist(path, read_json(path), allows_absolute=True)
    file = path / "dataset.json"
    if not file.is_file():
        return _pairs(path, label_dir)
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: expected a JSON object, as in {EXAMPLE}, found {type(content).__name__}. Correct it; to use a "
            "datalist that is only a list, pass the file itself."
        )
    if "channel_names" in content and not isinstance(content.get("training"), list):
        return _nnunet(file, content)
    return _datalist(file, content, allows_absolute=False)


def _datalist(file: Path, content: Any, allows_absolute: bool) -> Listing:
    """Read MONAI's and the Decathlon's form: ``{"training": [{"image": ..., "label": ...}], "labels": ...}``."""
    content = {"training": content} if isinstance(content, list) else content
    entries = content.get("training") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(
            f'{file}: "training" lists no cases, found {entries!r}; expected a list of image and label, as in '
            f"{EXAMPLE}. List the cases."
        )
    validation = content.get("validation") or []
    if not isinstance(validation, list):
        raise DataError(f'{file}: "validation" must be a list like "training"; found {validation!r}. Correct it.')
    key = "modality" if content.get("modality") else "channel_names"
    images = entries[0].get("image") if isinstance(entries[0], dict) else None
    return Listing(
        source=file,
        root=file.parent,
        entries=[*entries, *validation],
        labels=content.get("labels"),
        colors=content.get("colors"),
        ignore_index=content.get("ignore_index"),
        annotated_slices=content.get("annotated_slices"),
        annotated_classes=content.get("annotated_classes"),
        regions=content.get("regions"),
        num_channels=_declared_channels(file, key, content.get(key) or {})
        or (len(images) if isinstance(images, list) else 0),
        modalities=_modalities(content.get(key)),
        num_validation=len(validation),
        allows_absolute=allows_absolute,
        is_made="made_from" in content,
        warnings=mistyped_keys(file, content, [*entries, *validation]),
    )


def _declared_channels(file: Path, key: str, channels: Any) -> int:
    if not isinstance(channels, (dict, list)):
        raise DataError(
            f'{file}: "{key}" must be like {{"0": "MRI", "1": "CT"}}, one entry for each channel; found {channels!r}. '
            "Correct it."
        )
    return len(channels)


def _modalities(channels: Any) -> tuple[str, ...]:
    return tuple(map(str, channels.values() if isinstance(channels, dict) else channels or ()))


def _nnunet(file: Path, content: dict[str, Any]) -> Listing:
    """Read nnU-Net v2's raw folder: ``channel_names``, ``imagesTr/a_0000.nii.gz`` and ``labelsTr/a.nii.gz``."""
    root, ending = file.parent, content.get("file_ending", ".nii.gz")
    if str(ending).lower() not in SUFFIXES:
        raise DataError(
            f'{file}: "file_ending" is {ending!r}; supported are {", ".join(SUFFIXES)}. Convert the files to NIfTI.'
        )
    num_channels = _declared_channels(file, "channel_names", content["channel_names"] or None)
    entries = _nnunet_entries(file, content, ending, num_channels)
    if content.get("labels") is None:
        raise DataError(
            f'{file}: "labels" is missing; expected {{"background": 0, "tubule": 1, "ignore": 2}}, for example. Add it.'
        )
    return Listing(
        source=file,
        root=root,
        entries=entries,
        labels=content["labels"],
        colors=content.get("colors"),
        ignore_index=content.get("ignore_index"),
        annotated_slices=content.get("annotated_slices"),
        annotated_classes=content.get("annotated_classes"),
        regions=content.get("regions"),
        num_channels=num_channels,
        modalities=_modalities(content["channel_names"]),
        warnings=mistyped_keys(file, content, entries),
    )


def _nnunet_entries(file: Path, content: dict[str, Any], ending: str, num_channels: int) -> list[Any]:
    """Return the cases listed in nnU-Net's ``dataset``, otherwise those of the files in ``labelsTr/``."""
    root = file.parent
    listed = content.get("dataset")
    if listed:
        if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
            raise DataError(
                f'{file}: "dataset" must be like {{"a": {{"images": ["imagesTr/a_0000.nii.gz"], "label": '
                f'"labelsTr/a.nii.gz"}}}}; found {listed!r}. Correct it.'
            )
        return [{**entry, "image": entry.get("images")} for entry in listed.values()]
    names, images = (
        {file_stem(p) for p in list_volumes(root / folder) if suffix_among(p, SUFFIXES) == ending.lower()}
        for folder in ("labelsTr", "imagesTr")
    )
    lonely = sorted({re.sub(r"_\d{4}$", "", image) for image in images} - names)
    if lonely:
        raise DataError(
            f"{root / 'labelsTr' / (lonely[0] + ending)}, the label of the image {lonely[0]}_0000{ending}, does not "
            f"exist ({len(lonely)} of the images have none). Put it there, or move the image to imagesTs/."
        )
    entries = [
        {
            "image": [f"imagesTr/{name}_{channel:04d}{ending}" for channel in range(num_channels)],
            "label": f"labelsTr/{name}{ending}",
        }
        for name in sorted(names)
    ]
    declared = {file_stem(image) for entry in entries for image in entry["image"]}
    undeclared = [image for image in sorted(images - declared) if re.search(r"_[0-9]{4}$", image)]
    if undeclared:
        raise DataError(
            f"{root / 'imagesTr' / (undeclared[0] + ending)} is none of the {num_channels} channel(s) that {file} "
            f'declares; expected numbers up to {num_channels - 1:04d}. Correct "channel_names", or move the file away.'
        )
    if not entries:
        raise DataError(
            f"{root / 'labelsTr'} contains no label (*{ending}); expected nnU-Net's layout, as declared in {file}. Put "
            'the labels there, or correct "file_ending".'
        )
    number = content.get("numTraining")
    if not isinstance(number, int | float | None):
        raise DataError(f'{file}: "numTraining" is {number!r}; expected a whole number, as {len(entries)}. Correct it.')
    if number not in (None, len(entries)):
        raise DataError(
            f'{file}: "numTraining" is {number}, but labelsTr/ contains {len(entries)} labels. '
            "Copy the missing files, or correct the number."
        )
    return entries


def _pairs(root: Path, label_dir: str | None) -> Listing:
    """Read a folder of ``images/`` and ``labels/``, or of images with labels named after them (``a_seg.nii.gz``)."""
    image_dir = next((name for name in IMAGE_DIRS if (root / name).is_dir()), None)
    label_dir = label_dir or next((name for name in LABEL_DIRS if (root / name).is_dir()), None)
    if image_dir and label_dir:
        images, labels = list_volumes(root / image_dir), list_volumes(root / str(label_dir))
    else:
        files = list_volumes(root)
        labels = [file for file in files if file_stem(file).endswith(LABEL_ENDINGS)]
        images = [file for file in files if file not in labels]
    if not images or not labels:
        raise DataError(
            f"{root.absolute()} is not a data set: it contains no dataset.json, no images in images/ (or imagesTr/) "
            "with labels in labels/ (or labelsTr/), and no images next to labels (a.nii.gz and a_seg.nii.gz). "
            "data/README.md of this project shows each layout."
        )
    by_name = _labels_by_name(labels)
    # If each file has its own label, a number at the end is the scan's, not a channel's.
    own = all(file_stem(file) in by_name for file in images)
    groups = {file_stem(file): [file] for file in images} if own else group_channels(images)
    for name, group in groups.items():
        if fault := channel_fault(name, group):
            raise DataError(fault)
    lonely = [name for name in groups if name not in by_name]
    if lonely:
        raise DataError(
            f"{groups[lonely[0]][0]}: this image has no label ({len(lonely)} of {len(groups)} images have none). Name "
            "the label like the image, or move the image elsewhere: images without a label are for prediction."
        )
    more = [name for name in by_name if name not in groups]
    if more:
        raise DataError(
            f"{by_name[more[0]]}: this label has no image ({len(more)} of {len(by_name)} labels have none). Name the "
            "image like the label, or move the label elsewhere."
        )
    entries = [
        {"image": [str(f.relative_to(root)) for f in files], "label": str(by_name[name].relative_to(root))}
        for name, files in groups.items()
    ]
    channels = {len(files) for files in groups.values()}
    return Listing(source=root, root=root, entries=entries, num_channels=max(channels) if channels != {1} else 0)


def group_channels(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Group files by case: those with nnU-Net's channel numbers (``a_0000``, ``a_0001``) are one case."""
    names = {file.name for file in files}
    groups: dict[str, list[Path]] = {}
    for file in files:
        stem = file_stem(file)
        base, _, number = stem.rpartition("_")
        first = f"{base}_0000{file.name[len(stem) :]}"
        numbered = re.fullmatch("[0-9]{4}", number) is not None and first in names
        groups.setdefault(base if numbered else stem, []).append(file)
    return groups


def channel_fault(name: str, group: Sequence[Path]) -> str:
    """Return what is wrong with the files of a case: their numbers are not 0, 1, 2 ... each once; empty if nothing.

    A file would be taken for another channel.
    """
    expected = [f"{name}_{channel:04d}" for channel in range(len(group))]
    stems = sorted(map(file_stem, group))
    if stems in (expected, [name]):
        return ""
    missing = next((channel for channel in expected if channel not in stems), "")
    return (
        f"{group[0].parent}: the channels of {name} are {', '.join(file.name for file in group[:5])}; expected "
        f"{', '.join(expected[:5])}{f' ({missing} is missing)' if missing else ''}, each once. Add the file, or "
        "correct the names."
    )


def _labels_by_name(labels: Sequence[Path]) -> dict[str, Path]:
    """Return labels by the name of their image."""
    by_name: dict[str, Path] = {}
    for file in labels:
        name = _without_label_ending(file)
        if name in by_name:
            raise DataError(
                f"{file}: a second label of {name}, besides {by_name[name].name}; expected one. Move one elsewhere, or "
                "list the labels in a dataset.json."
            )
        by_name[name] = file
    return by_name


def _without_label_ending(file: Path) -> str:
    stem = file_stem(file)
    return next((stem.removesuffix(ending) for ending in LABEL_ENDINGS if stem.endswith(ending)), stem)


def list_volumes(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Return the volumes in a folder, sorted; empty if there is no such folder."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, false for a name that is too long
        return []
    return sorted(p for p in folder.iterdir() if suffix_among(p, suffixes) and not p.name.startswith("."))


def file_stem(path: str | Path) -> str:
    """Return a file's name without its suffix; that of a part of a volume ends with its place."""
    path, part = split_part(path)
    file = split(path)[0]
    name, suffix = file.name, suffix_among(path, IMAGE_SUFFIXES)
    if not suffix and not os.path.isdir(file):  # folders of DICOM are named 1.2.840...
        suffix = file.suffix
    return name[: len(name) - len(suffix)] + ("" if part is None else f"_{part.name}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if a key is there twice, of which Python would take the last one."""
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise ValueError(f"the key {key!r} is there {times} times")
    return dict(pairs)


def read_json(path: Path) -> Any:
    """Return a JSON file's content.

    Raises:
        DataError: when it does not exist, is not JSON, or has a key twice.
    """
    if not path.is_file():
        raise DataError(f"{path.absolute()} does not exist.")
    try:
        # Programs on Windows begin files with a byte order mark
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as JSON ({error}); expected text as in {EXAMPLE}. Correct it, or export it again."
        ) from error
