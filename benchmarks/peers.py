"""Freely available methods that make a dense segmentation from annotated slices."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scans import UNLABELED, Scan
from skimage.feature import multiscale_basic_features
from skimage.segmentation import random_walker
from sklearn.ensemble import ExtraTreesClassifier

TREES, MOST, MOST_BACKGROUND = 100, 8000, 20000
"""Of the forest: trees, and voxels that it learns from, a class and of the background."""
AT_ONCE = 300_000
"""Voxels that the forest labels at a time."""


Peer = Callable[[Scan, int], tuple[np.ndarray, float]]
"""From a scan and a seed, a segmentation and the seconds it took, without imports; raises ImportError where what it
needs is not installed."""


def timed(segment: Callable[[Scan, int], np.ndarray], module: str = "numpy") -> Peer:
    """Return a peer that runs in this process; the module that it needs is imported before the time is measured."""

    def run(scan: Scan, seed: int) -> tuple[np.ndarray, float]:
        importlib.import_module(module)
        started = time.perf_counter()
        segmentation = segment(scan, seed)
        return segmentation, time.perf_counter() - started

    return run


def walk(scan: Scan, seed: int, beta: float) -> np.ndarray:
    """scikit-image's random walker from the annotated voxels; nothing about it is random.

    The spacing is in units of the finest axis, as it is by default: one in mm would divide all gradients by it, and so
    beta by its square.
    """
    present = np.unique(scan.annotation[scan.annotated])
    seeds = np.where(scan.annotated, np.searchsorted(present, scan.annotation) + 1, 0)
    spacing = scan.spacing / scan.spacing.min()
    found = random_walker(scan.gray, seeds, beta=beta, mode="cg_j", tol=1e-3, spacing=spacing)
    return present[found - 1]


def fill_between(scan: Scan, seed: int) -> tuple[np.ndarray, float]:
    """ITK's morphological interpolation of contours: by the annotation alone; nothing about it is random.

    In a process of its own: the package's libraries are not to meet those that are loaded here.
    """
    importlib.metadata.version("itk-morphologicalcontourinterpolation")  # an ImportError where it is not installed
    across = [axis for axis, indices in enumerate(scan.slices) if indices]
    axis = 2 - across[0] if len(across) == 1 else -1
    script = Path(__file__).with_name("contours.py")
    with tempfile.TemporaryDirectory() as folder:
        labels, out = Path(folder, "labels.npy"), Path(folder, "out.npy")
        np.save(labels, np.where(scan.annotation == UNLABELED, 0, scan.annotation))
        command = [sys.executable, "-W", "ignore", script, labels, str(axis), out]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return np.load(out), float(done.stdout.split()[-1])


def grow_forest(scan: Scan, seed: int) -> np.ndarray:
    """Extremely randomized trees on filter responses, as in pixel classifiers."""
    random = np.random.default_rng(seed)
    responses = multiscale_basic_features(scan.gray, sigma_min=1, sigma_max=8)
    responses = responses.reshape(-1, responses.shape[-1])
    label, drawn = scan.annotation.ravel(), []
    for c in np.unique(scan.annotation[scan.annotated]):
        of_class = np.flatnonzero(label == c)
        most = MOST if c else MOST_BACKGROUND
        drawn.append(random.choice(of_class, min(len(of_class), most), replace=False))
    index = np.concatenate(drawn)
    trees = ExtraTreesClassifier(TREES, n_jobs=-1, random_state=seed).fit(responses[index], label[index])
    parts = [trees.predict(responses[i : i + AT_ONCE]) for i in range(0, len(responses), AT_ONCE)]
    return np.concatenate(parts).reshape(scan.annotation.shape)


def smart_interpolation(scan: Scan, seed: int) -> np.ndarray:
    """Biomedisa's random walks: along the first axis of a stack, otherwise along all; needs a GPU or OpenCL."""
    from biomedisa.interpolation import smart_interpolation as interpolate

    across = [axis for axis, indices in enumerate(scan.slices) if indices]
    first = across[0] if len(across) == 1 else 0
    labels = np.where(scan.annotation == UNLABELED, 0, scan.annotation)
    image, labels = (np.ascontiguousarray(np.swapaxes(volume, 0, first)) for volume in (scan.image, labels))
    found = interpolate(image, labels, allaxis=len(across) > 1)
    if not found or "regular" not in found:
        raise ImportError("Biomedisa found no device to compute on, or cannot do this on it")
    return np.swapaxes(found["regular"], 0, first)


PEERS: dict[str, Peer] = {
    "random walker (2000)": timed(partial(walk, beta=2000)),
    "random walker (200)": timed(partial(walk, beta=200)),
    "fill between slices": fill_between,
    "forest": timed(grow_forest),
    "Biomedisa": timed(smart_interpolation, "biomedisa.interpolation"),
}
