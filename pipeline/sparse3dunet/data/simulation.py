"""Simulation of sparse label maps from dense ones, for experiments on how much annotation is needed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable

from sparse3dunet.data.datalist import case_name, read_data_set
from sparse3dunet.data.layouts import SUFFIXES, file_stem, list_volumes
from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_annotation import annotation_file, read_dense
from sparse3dunet.io.formats import annotation_path, read_grid, read_label
from sparse3dunet.io.suffixes import NIFTI_SUFFIXES, image_suffix, is_image_file, natural_suffix, split, suffix_among
from sparse3dunet.io.volumes import Volume, values_found
from sparse3dunet.io.writing import replacing, write_segmentation

LARGEST = 2**24
"""Largest value in label maps: up to it, 32-bit floating-point numbers represent all whole numbers exactly."""


@dataclass(frozen=True)
class Simulated:
    """Result of :func:`simulate`: the files, the share of voxels kept in each, and the value of the others."""

    files: list[Path]
    shares: list[float]
    ignore_index: int


def simulate(
    source: str | Path,
    output_dir: str | Path,
    keep: Randomizable,
    seed: int = 0,
    ignore_index: int | None = None,
    image: str | Path | None = None,
) -> Simulated:
    """Write a sparse copy of each dense label map, in which voxels that are not kept have the value for unlabeled.

    A copy has the format of its original; of several variants of a format, the one that results are written in.

    Args:
        source: a label map, or a folder of them (subfolders are ignored).
        output_dir: folder of the copies, which have the same names (``a.tiff`` becomes ``a.tif``); former copies are
            replaced.
        keep: :class:`~sparse3dunet.transforms.KeepSlices` or similar; called with a label map (1, X, Y, Z).
        seed: random seed; the draw depends only on it and the file's name.
        ignore_index: value of unlabeled voxels; default: that of the ``dataset.json`` in the parent folder, otherwise
            one past the largest value in any of the files.
        image: image on whose grid a DICOM annotation is read: needed for structure sets, which have none of their own.

    Raises:
        DataError: when there is no label map, or one is unreadable or without foreground, when `ignore_index` is a
            value of the label maps, or when the copies would replace the originals.
    """
    files = _label_files(Path(source).expanduser())
    folder = Path(output_dir).expanduser()
    if folder.resolve() == split(files[0])[0].parent.resolve():
        raise DataError(f"{folder.absolute()} contains the dense label maps; pass another folder for the sparse ones.")
    used = {value for file in files for value in values_found(_read_label(file, image).data)}
    unlabeled = _unlabeled_value(split(files[0])[0].parent.parent, used) if ignore_index is None else ignore_index
    if unlabeled in used:
        raise DataError(
            f"ignore_index {unlabeled} is a value of the label maps in {source}; expected one that is none of "
            f"{sorted(used)}. Choose another."
        )
    wide = [value for value in (unlabeled, *used) if abs(value) > LARGEST]
    if wide:
        raise DataError(
            f"{source}: the value {wide[0]:.0f}, of unlabeled voxels (ignore_index) or in a label map, is too large; "
            f"expected -{LARGEST} ... {LARGEST}, which 32-bit numbers represent exactly. Choose another."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder.absolute()}, the folder for the label maps, is a file or cannot be created ({error}). Pass "
            "another folder."
        ) from error
    targets = [folder / _copy_name(file) for file in files]
    shares = [
        _write_sparse(_read_label(file, image), copy, keep, seed, unlabeled) for file, copy in zip(files, targets)
    ]
    return Simulated(targets, shares, unlabeled)


def _copy_name(file: Path) -> str:
    """Return the name of the copy of a label map: the same, or with the suffix of results in this format."""
    if image_suffix(file) in NIFTI_SUFFIXES:
        return file.name
    return file_stem(file).removesuffix(".seg") + natural_suffix(file)


def _unlabeled_value(root: Path, used: set[float]) -> int:
    """Return the value that training uses for unlabeled, so that it is not a declared class that no file contains."""
    try:
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


def _read_label(file: Path, image: str | Path | None) -> Volume:
    if image is None:
        volume = read_label(annotation_path(str(file)))
    else:
        annotation = annotation_file(file)
        if annotation is None:
            raise DataError(f"{file}: no DICOM annotation, and has a grid of its own. Leave out --image.")
        volume = replace(read_dense(annotation, read_grid(Path(image).expanduser())), path=str(file))
    if volume.data.ndim != 3 or not (np.isfinite(volume.data) & (volume.data == np.round(volume.data))).all():
        raise DataError(
            f"{file}: expected a three-dimensional label map of whole numbers; found shape {volume.data.shape} of "
            f"{volume.data.dtype}. Pass the folder of labels, not of images."
        )
    return volume


def _write_sparse(label: Volume, target: Path, keep: Randomizable, seed: int, unlabeled: int) -> float:
    """Write the sparse copy atomically, and return the share of voxels that it keeps."""
    keep.set_random_state(seed=zlib.crc32(f"{case_name(label.path)}/{seed}".encode(errors="surrogateescape")))
    numbers = np.unique(label.data, return_inverse=True)[1].reshape(label.data.shape).astype(np.int16)
    dense = MetaTensor(torch.from_numpy(numbers[None]), meta={"filename_or_obj": label.path})
    kept = np.asarray(keep(dense)[0]) > 0  # type: ignore[operator]
    dtype = np.result_type(np.min_scalar_type(int(label.data.min())), np.min_scalar_type(int(label.data.max())),
                           np.min_scalar_type(unlabeled))  # fmt: skip
    sparse = np.where(kept, label.data, unlabeled).astype(dtype)
    if suffix_among(target, SUFFIXES) not in NIFTI_SUFFIXES:
        write_segmentation(target, sparse, label, {})
        return float(kept.mean())
    with replacing(target, suffix_among(target, SUFFIXES)) as draft:
        nib.save(nib.Nifti1Image(sparse, label.affine), draft)
    return float(kept.mean())
