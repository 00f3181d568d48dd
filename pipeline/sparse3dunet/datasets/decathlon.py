"""Writing of data sets in the Medical Segmentation Decathlon's layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.data.slices import Slices, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import marked
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE
from sparse3dunet.transforms.simulate import choose_slices

FOLDERS = {IMAGE: "imagesTr", LABEL: "labelsTr", REFERENCE: "labelsTr_dense"}


@dataclass(frozen=True)
class DenseCase:
    """Volume with a dense label, from which a sparse one is made.

    Attributes:
        file_name: name of its three files, with suffix.
        image: (X, Y, Z) intensities.
        dense: (X, Y, Z) uint8, class of each voxel.
        affine: 4x4, voxel to RAS in mm.
    """

    file_name: str
    image: np.ndarray
    dense: np.ndarray
    affine: np.ndarray


def new_folder(folder: str | Path) -> Path:
    """Return the path of a new or empty folder for :func:`write_data_set`.

    Raises:
        DataError: when it already exists and is not empty.
    """
    target = Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target.absolute()} already exists; remove it to prepare the data again.")
    return target


def write_data_set(
    folder: Path,
    cases: Iterable[DenseCase],
    slices_per_axis: int,
    class_names: Iterable[str],
    fields: Mapping[str, Any],
    licence: str,
) -> None:
    """Write a data set atomically, with equally spaced annotated slices.

    ``labelsTr/`` contains the sparse annotation, in which unlabeled voxels are one past the last class;
    ``labelsTr_dense/`` the dense labels, for scoring only; there are also ``dataset.json`` and ``LICENSE``.

    Args:
        folder: from :func:`new_folder`.
        cases: cases, read one by one.
        slices_per_axis: annotated slices per axis, equally spaced within the extent of the foreground.
        class_names: class names by value.
        fields: fields of ``dataset.json``; added are ``labels``, ``numTraining``, ``training`` and ``kept_slices``, the
            annotated slices by axis (for several cases: by file name).
        licence: text of the licence.

    Raises:
        DataError: when it cannot be written, or a case is too small for so many slices.
    """
    names = list(class_names)
    kept: dict[str, Slices] = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # An interrupted preparation must not look like a data set.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            draft = Path(scratch) / "data"
            for case in cases:
                kept[case.file_name] = _write_case(draft, case, slices_per_axis, len(names))
            description = {
                **fields,
                "labels": {str(number): name for number, name in enumerate(names)},
                "kept_slices": next(iter(kept.values())) if len(kept) == 1 else kept,
                "numTraining": len(kept),
                "training": [{key: f"{sub}/{name}" for key, sub in FOLDERS.items()} for name in kept],
            }
            (draft / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
            (draft / "LICENSE").write_text(licence, encoding="utf-8")
            if folder.exists():
                folder.rmdir()
            shutil.move(draft, folder)
    except OSError as error:
        raise DataError(f"{folder.absolute()} cannot be written ({error}); choose another folder.") from error


def _write_case(folder: Path, case: DenseCase, slices_per_axis: int, unlabeled: int) -> Slices:
    """Write a case's three files and return the annotated slices."""
    slices = choose_slices(case.dense > 0, slices_per_axis, "equidistant")
    sparse = marked(case.dense, slices_mask(case.dense.shape, slices), unlabeled, np.uint8)
    arrays = {IMAGE: case.image.astype(np.float32), LABEL: sparse, REFERENCE: case.dense}
    for key, array in arrays.items():
        path = folder / FOLDERS[key] / case.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, case.affine), path)
    return slices
