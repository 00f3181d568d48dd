"""Print nnU-Net's plan for scans as JSON; for benchmarks/planning.py, in an environment with nnunetv2.

    python nnunet_plan.py FOLDER CT CLASSES UNLABELED SCAN ANNOTATION [SCAN ANNOTATION ...]

UNLABELED is the value of the annotations' unlabeled voxels. Axes are printed in the order x, y, z, as in the files;
nnU-Net's is z, y, x.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Write the scans as a data set of nnU-Net, and plan it."""
    folder, modality, classes, unlabeled, *files = sys.argv[1:]
    root, name = Path(folder, "nnunet"), "Dataset001_Scan"
    raw = root / "raw" / name
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    import nibabel as nib
    import numpy as np

    ignored, pairs = int(classes) + 1, list(zip(files[::2], files[1::2]))
    for number, (scan, annotation) in enumerate(pairs):
        label = nib.load(annotation)
        values = np.asarray(label.dataobj)
        known = nib.Nifti1Image(np.where(values == int(unlabeled), ignored, values).astype(np.uint8), label.affine)
        nib.save(known, raw / "labelsTr" / f"scan{number}.nii.gz")
        shutil.copy(scan, raw / "imagesTr" / f"scan{number}_0000.nii.gz")
    labels = {"background": 0, **{f"class {c}": c for c in range(1, ignored)}, "ignore": ignored}
    content = {"channel_names": {"0": modality}, "labels": labels, "numTraining": len(pairs), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    for part in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{part}"] = str(root / part)
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    plans = json.loads((root / "preprocessed" / name / "nnUNetPlans.json").read_text())
    full = plans["configurations"]["3d_fullres"]
    arguments = full["architecture"]["arch_kwargs"]
    found = {
        "spacing": full["spacing"][::-1],
        "patch": full["patch_size"][::-1],
        "batch": full["batch_size"],
        "strides": [stride[::-1] for stride in arguments["strides"][1:]],
        "kernels": [kernel[::-1] for kernel in arguments["kernel_sizes"]],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
