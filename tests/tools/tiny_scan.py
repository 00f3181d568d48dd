"""Writes a tiny scan with its annotation, and a data set, into a folder: for tests/tools/matrix.sh."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np


def write(path: Path, array: np.ndarray) -> None:
    """Write an array as NIfTI with voxels of 1 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def main(root: Path) -> None:
    """Write ``scan.nii.gz``, ``annotation.nii.gz`` and ``set/``; 3 means unlabeled."""
    entries = []
    for number in range(3):
        random = np.random.default_rng(number)
        axes = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
        radius = np.sqrt(sum((axis - shift) ** 2 for axis, shift in zip(axes, random.uniform(-0.1, 0.1, 3))))
        dense = (radius < 0.8).astype(np.uint8) + (radius < 0.45)
        image = (dense * 100 + random.normal(0, 15, dense.shape)).astype(np.float32)
        sparse = np.full_like(dense, 3)
        sparse[12], sparse[:, 12], sparse[:, :, 12] = dense[12], dense[:, 12], dense[:, :, 12]
        name = f"case_{number}.nii.gz"
        write(root / "set/imagesTr" / name, image)
        write(root / "set/labelsTr" / name, sparse)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    write(root / "scan.nii.gz", image)
    write(root / "annotation.nii.gz", sparse)
    labels = {"0": "background", "1": "shell", "2": "core"}
    (root / "set/dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
