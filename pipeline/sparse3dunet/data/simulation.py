"""Simulation of sparse label maps from dense ones, for experiments on how much annotation is needed."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable

from sparse3dunet.colors import Labels
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.layouts import SUFFIXES, file_stem, list_volumes
from sparse3dunet.data.names import image_name
from sparse3dunet.data.segment_names import only_chosen
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import all_segments, default_segments
from sparse3dunet.io.dicom_annotation import annotation_file, read_dense
from sparse3dunet.io.folders import hold_folder
from sparse3dunet.io.formats import annotation_path, named_segments, read_grid, read_label, read_named_label
from sparse3dunet.io.json_files import load_json
from sparse3dunet.io.segments import BACKGROUND, UNLABELED_NAMES, check_names, first_of
from sparse3dunet.io.suffixes import (
    NIFTI_SUFFIXES,
    NRRD_SUFFIXES,
    image_suffix,
    is_image_file,
    natural_suffix,
    split,
    suffix_among,
)
from sparse3dunet.io.volumes import Volume, marked, values_found
from sparse3dunet.io.writing import replacing, write_segmentation, write_text
from sparse3dunet.io.written import as_written, is_as_written

LARGEST = 2**24
"""Largest value in label maps: up to it, 32-bit floating-point numbers represent all whole numbers exactly."""
RECORD = ".simulated.json"
"""Name of the file in a folder that tells, by name, which copies this command wrote there, as it left them."""


@dataclass(frozen=True)
class Simulated:
    """Result of :func:`simulate`.

    Attributes:
        files: the copies.
        shares: share of the voxels kept in each.
        ignore_index: value of the others.
        notes: what a user must know of how the label maps were read.
        leaves_out: whether ``--segments`` left a segment out, or gave those in DICOM values of their own.
    """

    files: list[Path]
    shares: list[float]
    ignore_index: int
    notes: list[str]
    leaves_out: bool = False


def simulate(
    source: str | Path,
    output_dir: str | Path,
    keep: Randomizable,
    seed: int = 0,
    ignore_index: int | None = None,
    image: str | Path | None = None,
    overwrite: bool = False,
) -> Simulated:
    """Write a sparse copy of each dense label map, in which voxels that are not kept have the value for unlabeled.

    A copy has the format of its original; of several variants of a format, the one that results are written in.

    Args:
        source: a label map, or a folder of them (subfolders are ignored).
        output_dir: folder of the copies, which have the same names (``a.tiff`` becomes ``a.tif``); former copies are
            replaced, also those that earlier versions named ``a.nrrd`` instead of ``a.seg.nrrd``, but no other files.
        keep: :class:`~sparse3dunet.transforms.KeepSlices` or similar; called with a label map (1, X, Y, Z).
        seed: random seed; the draw depends only on it and the file's name.
        ignore_index: value of unlabeled voxels; default: that of the ``dataset.json`` in the parent folder, otherwise
            one past the largest value in any of the files.
        image: image on whose grid a DICOM annotation is read: needed for structure sets, which have none of their own.
        overwrite: whether to replace also files that this function did not write, or that were changed since.

    Raises:
        DataError: when there is no label map, or one is unreadable or without foreground, when `ignore_index` is a
            value of the label maps, when a segment of ``--segments`` is in none, or when the copies would replace the
            originals, each other, or other files.
    """
    files = _label_files(Path(source).expanduser())
    folder = Path(output_dir).expanduser()
    if folder.resolve() == split(files[0])[0].parent.resolve():
        raise DataError(f"{folder.absolute()} contains the dense label maps; pass another folder for the sparse ones.")
    targets = _targets(files, folder)
    if not overwrite:
        written = _read_record(folder)
        _check_replaceable([*targets, *_former(targets, written)], written)
    used, found = _values_and_names(files, image)
    if found:
        check_names(first_of(files), default_segments(), found)
    unlabeled = _unlabeled_value(split(files[0])[0].parent.parent, used) if ignore_index is None else ignore_index
    _check_values(source, unlabeled, used, bool(found))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder.absolute()}, the folder for the label maps, is a file or cannot be created ({error}). Pass "
            "another folder."
        ) from error
    shares: list[float] = []
    notes: list[str] = []
    leaves_out = bool(default_segments()) and any(map(annotation_file, files))
    for file, copy in zip(files, targets):
        label, names = only_chosen(*(dense := _read_label(file, image)), all_there=False)
        leaves_out |= len(names) < len(dense[1])
        sparse, share = _sparse(label, keep, seed, unlabeled)
        hold_folder(folder)  # now: a first label map that is refused leaves nothing behind
        written = _read_record(folder)
        former = [old for old in _former(targets, written) if _stem(old) == _stem(copy)]
        if not overwrite:
            _check_replaceable([copy, *former], written)
        _write_record(folder, written | {copy.name: None})  # first: a copy of a run that is killed may be replaced
        _write(sparse, label, copy, Labels({0: BACKGROUND, **names, unlabeled: UNLABELED_NAMES[0]}, names.colors))
        for old in former:
            old.unlink(missing_ok=True)
            written.pop(old.name)
        _write_record(folder, written | {copy.name: as_written(copy)})
        shares.append(share)
        notes += label.notes
    return Simulated(targets, shares, unlabeled, notes, leaves_out)


def _values_and_names(files: Sequence[Path], image: str | Path | None) -> tuple[set[float], list[str]]:
    """Return the values of label maps and of segments, and the segments' names: also of segments that are left out."""
    used: set[float] = set()
    found: dict[str, None] = {}
    for file in files:
        label, names = _read_label(file, image)
        used |= {*values_found(label.data), *names}
        found |= dict.fromkeys(names.values())
    return used, list(found)


def _check_values(source: str | Path, unlabeled: int, used: set[float], are_named: bool) -> None:
    """Raise DataError if unlabeled voxels have the value of others, or a value cannot be written as it is."""
    if unlabeled in used:
        raise DataError(
            f"ignore_index {unlabeled} is a value of the label maps in {source}; expected one that is none of "
            f"{sorted(used)}. Choose another."
        )
    if are_named and not 0 < unlabeled <= np.iinfo(np.int16).max:
        raise DataError(
            f"ignore_index {unlabeled} cannot be the value of a segment, as unlabeled voxels are in copies of "
            f"{source} (.seg.nrrd); expected 1 to {np.iinfo(np.int16).max}. Choose another."
        )
    wide = [value for value in (unlabeled, *used) if abs(value) > LARGEST]
    if wide:
        raise DataError(
            f"{source}: the value {wide[0]:.0f}, of unlabeled voxels (ignore_index) or in a label map, is too large; "
            f"expected -{LARGEST} ... {LARGEST}, which 32-bit numbers represent exactly. Choose another."
        )


def _targets(files: Sequence[Path], folder: Path) -> list[Path]:
    """Return the paths of the copies; two originals with one are an error."""
    originals: dict[str, Path] = {}
    for file in files:
        other = originals.setdefault(_copy_name(file), file)
        if other is not file:
            raise DataError(
                f"{file} and {other.name}: the sparse copies of both would be {_copy_name(file)}; expected one label "
                "map of a name. Rename one, or move it elsewhere."
            )
    return [folder / name for name in originals]


def _former(targets: Sequence[Path], written: dict[str, Any]) -> list[Path]:
    """Return recorded copies of the same originals by another name: before 0.18, those of .seg.nrrd were .nrrd."""
    names, stems = {target.name for target in targets}, {_stem(target) for target in targets if _is_nrrd(target)}
    folder = targets[0].parent
    others = [folder / name for name in written if name not in names and Path(name).name == name]
    return [path for path in others if _is_nrrd(path) and _stem(path) in stems]


def _is_nrrd(path: Path) -> bool:
    return image_suffix(path) in NRRD_SUFFIXES


def _stem(path: Path) -> str:
    return file_stem(path).removesuffix(".seg")


def _check_replaceable(targets: Sequence[Path], written: dict[str, Any]) -> None:
    """Raise DataError if a file would be replaced that is none of the copies in the record, as they were written."""
    for target in targets:
        stopped = target.name in written and written[target.name] is None
        if os.path.lexists(target) and not stopped and not is_as_written(target, written.get(target.name)):
            raise DataError(
                f"{target.absolute()} exists and is not what this command wrote there: it was changed, or is another "
                "file. Move it, or pass another folder; --overwrite replaces it."
            )


def _read_record(folder: Path) -> dict[str, Any]:
    """Return what the copies in a folder were when they were written; empty if that is not known."""
    try:
        content = load_json(folder / RECORD, "a record")
    except (OSError, DataError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_record(folder: Path, written: dict[str, Any]) -> None:
    write_text(folder / RECORD, json.dumps(written, indent=1) + "\n")


def _copy_name(file: Path) -> str:
    """Return the name of the copy of a label map: the same, or with the suffix of results in this format."""
    if image_suffix(file) in NIFTI_SUFFIXES:
        return file.name
    return _stem(file) + (".seg.nrrd" if named_segments(file) else natural_suffix(file))


def _unlabeled_value(root: Path, used: set[float]) -> int:
    """Return the value that training uses for unlabeled, so that it is not a declared class that no file contains."""
    try:
        with all_segments():  # data sets leave out none of .seg.nrrd
            declared = read_data_set(root).ignore_index if (root / "dataset.json").is_file() else ()
    except DataError:  # unrelated to the label maps
        declared = ()
    return declared[0] if declared else int(max(used)) + 1


def _label_files(path: Path) -> list[Path]:
    if is_image_file(path) and (suffix_among(path, SUFFIXES) or annotation_file(path)):
        files = [path]
    else:
        folder = sorted(path.iterdir()) if path.is_dir() else []
        files = sorted([*list_volumes(path), *(file for file in folder if file.is_file() and annotation_file(file))])
    if not files:
        raise DataError(
            f"{path.absolute()} is neither a label map nor a folder of label maps; expected "
            f"{', '.join(SUFFIXES)}, DICOM SEG, or RTSTRUCT. Pass a dense label map, or the folder that "
            "contains them, for example labelsTr/."
        )
    return files


def _read_label(file: Path, image: str | Path | None) -> tuple[Volume, Labels]:
    """Return a label map and 3D Slicer's segments by value, all of them; of DICOM, those that ``--segments`` names."""
    names, annotation = Labels({}), annotation_file(file)
    if image is None and annotation is not None:
        volume = read_label(file)
    elif image is None:
        volume, names = read_named_label(annotation_path(str(file)))
        if not names and volume.data.any():
            only_chosen(volume, names)  # raises: what to leave out is unknown
    elif annotation is None:
        raise DataError(f"{file}: no DICOM annotation, and has a grid of its own. Leave out --image.")
    else:
        volume = replace(read_dense(annotation, read_grid(Path(image).expanduser())), path=str(file))
    if volume.data.ndim != 3 or not (np.isfinite(volume.data) & (volume.data == np.round(volume.data))).all():
        raise DataError(
            f"{file}: expected a three-dimensional label map of whole numbers; found shape {volume.data.shape} of "
            f"{volume.data.dtype}. Pass the folder of labels, not of images."
        )
    return volume, names


def _sparse(label: Volume, keep: Randomizable, seed: int, unlabeled: int) -> tuple[np.ndarray, float]:
    """Return the voxels of the sparse copy, and the share of voxels that it keeps."""
    keep.set_random_state(seed=zlib.crc32(f"{image_name(label.path)}/{seed}".encode(errors="surrogateescape")))
    numbers = np.unique(label.data, return_inverse=True)[1].reshape(label.data.shape).astype(np.int16)
    dense = MetaTensor(torch.from_numpy(numbers[None]), meta={"filename_or_obj": label.path})
    kept = np.asarray(keep(dense)[0]) > 0  # type: ignore[operator]
    types = [np.min_scalar_type(int(value)) for value in (label.data.min(), label.data.max(), unlabeled)]
    dtype = np.result_type(*types)
    dtype = np.dtype(np.int32) if dtype.itemsize > 4 else dtype  # holds up to LARGEST; formats have no 64-bit integers
    return marked(label.data, kept, unlabeled, dtype), float(kept.mean())


def _write(sparse: np.ndarray, label: Volume, target: Path, names: Labels) -> None:
    """Write a sparse copy atomically; with the names of its segments if the format is that of 3D Slicer's."""
    suffix = suffix_among(target, SUFFIXES)
    if suffix not in NIFTI_SUFFIXES:
        write_segmentation(target, sparse, label, names if target.name.endswith(".seg.nrrd") else {})
        return
    with replacing(target, suffix) as draft:
        nib.save(nib.Nifti1Image(sparse, label.affine), draft)
