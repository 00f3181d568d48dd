"""Sparse label maps made from dense ones on disk, for experiments on how much annotation is needed."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable

from sparse3dunet.data.datalist import case_name, read_data_set
from sparse3dunet.data.layouts import SUFFIXES, list_volumes
from sparse3dunet.errors import DataError
from sparse3dunet.io.suffixes import suffix_among
from sparse3dunet.io.volumes import Volume, read_volume, values_found
from sparse3dunet.io.writing import replacing

LARGEST = 2**24
"""Whole number up to which the 32-bit floating-point numbers that label maps are read as tell all apart."""


@dataclass(frozen=True)
class Simulated:
    """What :func:`simulate` wrote: the files, the share of the voxels kept in each, and the value of the others."""

    files: list[Path]
    shares: list[float]
    ignore_index: int


def simulate(
    source: str | Path, output_dir: str | Path, keep: Randomizable, seed: int = 0, ignore_index: int | None = None
) -> Simulated:
    """Write a sparse copy of each dense label map: what is not kept gets the value of unlabeled voxels.

    Args:
        source: a label map, or a folder of them (its subfolders are not looked into).
        output_dir: the copies go here under the same names; a former copy is replaced.
        keep: :class:`~sparse3dunet.transforms.KeepSlices` or its like; called with a label map (1, X, Y, Z).
        seed: a file's draw depends on the seed and on the file's name alone.
        ignore_index: of unlabeled voxels; by default what the ``dataset.json`` of a folder `source` in it declares or
            implies, else one past the largest value in any of the files.

    Raises:
        DataError: when there is no label map or one is unreadable or without foreground, when `ignore_index` is a value
            that they use, or when the copies would replace the originals.
    """
    files = _label_files(Path(source).expanduser())
    folder = Path(output_dir).expanduser()
    if folder.resolve() == files[0].parent.resolve():
        raise DataError(
            f"{folder.absolute()} is where the dense label maps are; pass another folder for the sparse ones."
        )
    used = {value for file in files for value in values_found(_read_label(file).data)}
    unlabeled = _unlabeled_value(files[0].parent.parent, used) if ignore_index is None else ignore_index
    if unlabeled in used:
        raise DataError(
            f"ignore_index {unlabeled} is a value of the label maps in {source}, which have {sorted(used)}; expected "
            "one that is none of these. Choose another."
        )
    wide = [value for value in (unlabeled, *used) if abs(value) > LARGEST]
    if wide:
        raise DataError(
            f"{source}: the value {wide[0]:.0f}, of unlabeled voxels (ignore_index) or in a label map, is too large; "
            f"expected -{LARGEST} ... {LARGEST}, which 32-bit numbers tell apart. Choose another."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder.absolute()}, to which label maps should go, is a file or cannot be made ({error}); expected a "
            "folder. Pass another."
        ) from error
    shares = [_write_sparse(_read_label(file), folder / file.name, keep, seed, unlabeled) for file in files]
    return Simulated([folder / file.name for file in files], shares, unlabeled)


def _unlabeled_value(root: Path, used: set[float]) -> int:
    """The value that training takes for unlabeled; a class that no file shows must not be mistaken for it."""
    try:
        declared = read_data_set(root).ignore_index if (root / "dataset.json").is_file() else ()
    except DataError:  # another matter than the label maps
        declared = ()
    return declared[0] if declared else int(max(used)) + 1


def _label_files(path: Path) -> list[Path]:
    files = [path] if os.path.isfile(path) and suffix_among(path, SUFFIXES) else list_volumes(path)
    if not files:
        raise DataError(
            f"{path.absolute()} is no label map and no folder of label maps; expected {' or '.join(SUFFIXES)}. Pass a "
            "dense label map, or the folder that holds them, labelsTr/ for example."
        )
    return files


def _read_label(file: Path) -> Volume:
    volume = read_volume(file)
    if volume.data.ndim != 3 or not (np.isfinite(volume.data) & (volume.data == np.round(volume.data))).all():
        raise DataError(
            f"{file}: expected a label map, three-dimensional with whole numbers; found shape {volume.data.shape} of "
            f"{volume.data.dtype}. Pass the folder of labels, not of images."
        )
    return volume


def _write_sparse(label: Volume, target: Path, keep: Randomizable, seed: int, unlabeled: int) -> float:
    """Write the sparse copy, whole or not at all, and return the share of the voxels that it keeps."""
    keep.set_random_state(seed=zlib.crc32(f"{case_name(label.path)}/{seed}".encode()))
    numbers = np.unique(label.data, return_inverse=True)[1].reshape(label.data.shape).astype(np.int16)
    dense = MetaTensor(torch.from_numpy(numbers[None]), meta={"filename_or_obj": label.path})
    kept = np.asarray(keep(dense)[0]) > 0  # type: ignore[operator]
    dtype = np.result_type(np.min_scalar_type(int(label.data.min())), np.min_scalar_type(int(label.data.max())),
                           np.min_scalar_type(unlabeled))  # fmt: skip
    sparse = np.where(kept, label.data, unlabeled).astype(dtype)
    with replacing(target, suffix_among(target, SUFFIXES)) as draft:
        nib.save(nib.Nifti1Image(sparse, label.affine), draft)
    return float(kept.mean())
