"""Built-in data: the ICBM 2009a MNI152 T1 template with sparsely annotated gray and white matter.

The template and its tissue maps are in nilearn's wheel, so nothing is downloaded. The data are prepared by
``python -m sparse3dunet.datasets.mni152 [FOLDER]``, or by the training config if its default folder is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

from sparse3dunet.datasets.decathlon import DenseCase, new_folder, write_data_set
from sparse3dunet.errors import DataError

DEFAULT_DIR = "data/mni152"
CLASS_NAMES = ("background", "gray matter", "white matter")
UNLABELED = 3
SPACING = 2
"""Resolution in mm."""
SLICES_PER_AXIS = 3
FILE_NAME = "mni152.nii.gz"

LICENCE = """\
ICBM 152 Nonlinear atlases version 2009 (symmetric, 2009a)
Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University. Permission to use, copy, modify, and distribute this software and its documentation for any
purpose and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors
and McGill University make no representations about the suitability of this software for any purpose. It is provided
"as is" without express or implied warranty. The authors are not responsible for any data loss, equipment damage,
property loss, or injury to subjects or patients resulting from the use or misuse of this software package.

Fonov, Evans, Botteron, Almli, McKinstry, Collins: Unbiased average age-appropriate atlases for pediatric studies,
NeuroImage 54(1), 2011.
"""


def load_template(spacing: int = SPACING) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the T1 template (intensities 0 ... 1) and its label map (X, Y, Z) uint8, both at `spacing` mm (1 or more).

    A voxel is gray (1) or white (2) matter by the larger of the two maps if that is over one half, else background.

    Raises:
        DataError: when nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise DataError(
            "the built-in data come with the package nilearn, which is not installed: pip install nilearn, "
            "or pass your own data with --dataset_dir FOLDER."
        ) from error
    image = load_mni152_template(resolution=spacing)
    gray = load_mni152_gm_template(resolution=spacing).get_fdata()
    white = load_mni152_wm_template(resolution=spacing).get_fdata()
    tissue = np.where(white > gray, 2, 1).astype(np.uint8)
    return image, np.where(np.maximum(gray, white) > 0.5, tissue, 0).astype(np.uint8)


def prepare(folder: str | Path = DEFAULT_DIR, slices_per_axis: int = SLICES_PER_AXIS, spacing: int = SPACING) -> Path:
    """Write the data set, at `spacing` mm, to `folder` in the Decathlon's layout, and return the folder.

    ``labelsTr/`` contains the sparse annotation (unlabeled: 3), ``labelsTr_dense/`` the dense label, for scoring only.

    Raises:
        DataError: when `folder` already exists and is not empty, cannot be written, or nilearn is missing.
    """
    target = new_folder(folder)
    image, dense = load_template(spacing)
    fields = {
        "name": "MNI152",
        "description": f"T1 template at {spacing} mm with gray and white matter on {slices_per_axis} slices an axis",
        "reference": "ICBM 2009a nonlinear symmetric, Fonov et al., NeuroImage 54(1), 2011; from the package nilearn",
        "licence": "see LICENSE",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
    }
    case = DenseCase(FILE_NAME, image.get_fdata(), dense, image.affine)
    write_data_set(target, [case], slices_per_axis, CLASS_NAMES, fields, LICENCE)
    return target


def ensure_default(dataset_dir: str | Path | None) -> str:
    """Return `dataset_dir`; if it is the missing default folder, or in it, prepare the built-in data first.

    Raises:
        DataError: when it is None, as in a packaged bundle, which contains no data.
    """
    if dataset_dir is None:
        raise DataError("no data set is given: pass --dataset_dir FOLDER.")
    dataset_dir = str(dataset_dir)  # the command line makes an integer of a folder named 2024
    default = Path(DEFAULT_DIR)
    if default in (Path(dataset_dir), *Path(dataset_dir).parents) and not default.exists():
        print(f"Preparing the built-in data in {DEFAULT_DIR} ...")
        try:
            prepare(default)
        except DataError:
            if not (default / "dataset.json").is_file():  # else another process has prepared them meanwhile
                raise
    return dataset_dir


def ensure_defaults(sources: str | Path | list[str] | None) -> list[str]:
    """Apply :func:`ensure_default` to several sources, or one."""
    return [ensure_default(source) for source in (sources if isinstance(sources, list) else [sources])]


def main() -> None:
    """Run the command ``python -m sparse3dunet.datasets.mni152``."""
    parser = argparse.ArgumentParser(
        prog="python -m sparse3dunet.datasets.mni152", description="Prepare built-in data."
    )
    parser.add_argument("folder", nargs="?", default=DEFAULT_DIR, help=f"output folder (default: {DEFAULT_DIR})")
    parser.add_argument("--slices", type=int, default=SLICES_PER_AXIS, help="annotated slices per axis (default: 3)")
    arguments = parser.parse_args()
    if arguments.slices < 1:
        parser.error(f"--slices must be at least 1, got {arguments.slices}")
    try:
        folder = prepare(arguments.folder, arguments.slices)
    except DataError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Prepared {folder}: 1 volume, {arguments.slices} annotated slices per axis.")


if __name__ == "__main__":
    main()
