"""Small scans with annotation, and forests of few trees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from sparse3dunet.propagation import forest
from sparse3dunet.propagation.scan import Scan

SHAPE = (24, 20, 16)


def nested(seed=0, shape=SHAPE, noise=0.15):
    """A noisy image of two nested ellipsoids, and its dense label (0, 1, 2)."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    dense = (radius < 0.85).astype(np.int64) + (radius < 0.5)
    return (dense + random.normal(0, noise, shape)).astype(np.float32), dense


def on_slices(shape, *slices):
    """(X, Y, Z) float32: 1 on slices, by axis."""
    weight = np.zeros(shape, np.float32)
    for axis, indices in enumerate(slices):
        for index in indices:
            weight[(slice(None),) * axis + (index,)] = 1
    return weight


def scan_of(image, label, weight, spacing=(1, 1, 1), num_classes=None):
    return Scan.of(image, label, weight, spacing, num_classes)


def raw_scan(image, spacing=(1, 1, 1)):
    """Of gray values as they are."""
    tensor = torch.from_numpy(np.asarray(image, np.float32))
    tensor = tensor[None] if tensor.ndim == 3 else tensor
    label = torch.zeros(tensor.shape[1:], dtype=torch.int64)
    return Scan(tensor, label, torch.ones_like(label, dtype=torch.bool), np.asarray(spacing, float), 1)


@contextmanager
def quick(trees: int = 8) -> Iterator[None]:
    """Forests of few trees, and one thread, which is faster for little data on a busy machine."""
    threads = torch.get_num_threads()

    def fewer(kind):
        return lambda count, n_jobs, **options: kind(min(count, trees), n_jobs=1, **options)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (ExtraTreesClassifier, RandomForestClassifier):
            patch.setattr(forest, kind.__name__, fewer(kind))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def assert_probabilities(prob, shape, classes):
    assert prob.shape == (classes, *shape)
    assert prob.dtype == np.float32
    assert np.isfinite(prob).all()
    assert prob.min() >= 0
    np.testing.assert_allclose(prob.sum(0), 1, atol=1e-4)


def overlap(found, label, where, number):
    """Dice of a class within a mask."""
    a, b = (found == number)[where], (label == number)[where]
    return 2 * (a & b).sum() / (a.sum() + b.sum())
