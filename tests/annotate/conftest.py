"""A small scan, and a client of a new session on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.annotate.client import AFFINE, Client, opened
from tests.conftest import write_nifti


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).normal(0, 1, (5, 7, 6)).astype(np.float32)
    return write_nifti(tmp_path / "scan.nii.gz", data, AFFINE)


@pytest.fixture
def client(scan, tmp_path) -> Client:
    return Client(opened(scan, tmp_path / "out", class_names=["background", "liver", "tumor"]))
