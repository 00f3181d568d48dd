"""Score a segmentation of the built-in volume against scikit-image's random walker, in one run.

    python benchmarks/mni152.py bundle/eval/predictions/mni152_seg.nii.gz

Prints the IoU of each class on the *unannotated* voxels, ours and the random walker's (beta 2000), their ratio, and the
machine. Make the segmentation with `make demo`. Needs scikit-image (extra `bench`).
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from skimage.segmentation import random_walker

from sparse3dunet.datalist import read_data_set
from sparse3dunet.metrics import overlap_counts, overlap_scores
from sparse3dunet.mni152 import CLASS_NAMES, DEFAULT_DIR, UNLABELED, ensure_default
from sparse3dunet.target import pack_target

BETA = 2000


def walk(image: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """The random walker's segmentation from the annotated voxels, which are its seeds."""
    seeds = np.where(sparse == UNLABELED, 0, sparse.astype(np.int32) + 1)
    return random_walker(image, seeds, beta=BETA, mode="cg_j") - 1


def iou(segmentation: np.ndarray, dense: np.ndarray, unannotated: np.ndarray) -> list[float]:
    """IoU by class on the unannotated voxels."""
    volumes = [torch.from_numpy(array.astype(np.int64))[None, None] for array in (segmentation, dense, unannotated)]
    counts = overlap_counts(volumes[0], pack_target(volumes[1], volumes[2]), len(CLASS_NAMES))
    return overlap_scores(counts, "iou")[0].tolist()


def machine() -> str:
    """What this ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def main() -> None:
    """Score, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("segmentation", type=Path, help="our segmentation of the built-in volume")
    arguments = parser.parse_args()
    (case,) = read_data_set(ensure_default(DEFAULT_DIR)).cases
    image, sparse, dense = (np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label", "reference"))
    unannotated = sparse == UNLABELED
    ours = iou(np.asarray(nib.load(arguments.segmentation).dataobj), dense, unannotated)
    started = time.perf_counter()
    theirs = iou(walk(image, sparse), dense, unannotated)
    seconds = time.perf_counter() - started

    print(f"IoU on the {unannotated.mean():.1%} unannotated voxels of MNI152 at 2 mm ({machine()})")
    print(f"{'class':<16}{'sparse3dunet':>14}{'random walker':>16}{'ratio':>8}")
    for name, a, b in zip([*CLASS_NAMES, "mean"], [*ours, np.mean(ours)], [*theirs, np.mean(theirs)]):
        print(f"{name:<16}{a:>14.3f}{b:>16.3f}{a / b:>8.3f}")
    print(f"random walker (beta {BETA}): {seconds:.1f} s")


if __name__ == "__main__":
    main()
