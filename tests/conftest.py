"""Small data sets and the bundle's command line, as a user has them."""

from __future__ import annotations

import json
import locale
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Randomizable

from sparse3dunet.bundle.package import package
from sparse3dunet.cli.main import main
from tests.forked import run_module

ROOT = Path(__file__).resolve().parents[1]
UNLABELED = 3
TINY = [
    *("--network_def#channels", "[4,8,8]", "--largest_patch_size", "[16,16,16]", "--batch_size", "2"),
    *("--max_epochs", "2", "--epoch_length", "2", "--val_interval", "1", "--num_workers", "0"),
]
"""A training of seconds."""


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a seed of its own is the same in each run; MONAI's transforms share one state."""
    Randomizable.R.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def same_locale():
    """GDCM, on writing a DICOM file, sets the process's locale to ASCII's, and so for the tests that follow."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def make_volume(seed: int, shape: tuple[int, int, int] = (24, 20, 18)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy image of two nested ellipsoids, its dense label (0, 1, 2) and three annotated slices of it."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt(((grid - random.uniform(-0.1, 0.1, (3, 1, 1, 1))) ** 2).sum(0))
    dense = ((radius < 0.8).astype(np.uint8) + (radius < 0.45)).astype(np.uint8)
    image = (dense * 100 + random.normal(0, 15, shape)).astype(np.float32)
    sparse = np.full(shape, UNLABELED, np.uint8)
    for axis, n in enumerate(shape):
        plane = (slice(None),) * axis + (n // 2,)
        sparse[plane] = dense[plane]
    return image, dense, sparse


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def make_dataset(root: Path, count: int = 3) -> Path:
    """A Decathlon folder with sparse labels, and dense ones as references."""
    entries = []
    for number in range(count):
        name = f"case_{number}.nii.gz"
        image, dense, sparse = make_volume(number)
        write_nifti(root / "imagesTr" / name, image)
        write_nifti(root / "labelsTr" / name, sparse)
        write_nifti(root / "labelsDense" / name, dense)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}", "reference": f"labelsDense/{name}"})
    description = {
        "modality": {"0": "test"},
        "labels": {"0": "background", "1": "shell", "2": "core"},
        "training": entries,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "dataset")


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command ``sparse3dunet``, in this process, and returns the one error that it ends with.

    Any other exception than the command's own exit gets out of it, and fails the test.
    """

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["sparse3dunet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        lines = capsys.readouterr().out.splitlines()
        if isinstance(end.value.code, str):  # printed on standard error, with exit status 1
            lines += end.value.code.split("\n")
        else:
            assert end.value.code == 1
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, lines
        assert lines[-1] == errors[0], lines
        return errors[0]

    return run


def bundle_command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "monai.bundle", *map(str, arguments)]


def bundle_environment() -> dict[str, str]:
    """The tests' own environment, in which the package is found without being installed, and with few threads."""
    path = os.pathsep.join(filter(None, [str(ROOT / "pipeline"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_bundle(*arguments: object, cwd: Path = ROOT, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle`` in a process of its own."""
    return run_module("monai.bundle", *arguments, cwd=cwd, environment=bundle_environment(), real=real)


def run_sparse3dunet(*arguments: object, cwd: Path = ROOT, real: bool = False) -> subprocess.CompletedProcess[str]:
    """Run ``python -m sparse3dunet`` in a process of its own."""
    return run_module("sparse3dunet", *arguments, cwd=cwd, environment=bundle_environment(), real=real)


def run_training(dataset_dir: Path, out: Path, *more: object, real: bool = False) -> subprocess.CompletedProcess[str]:
    """A training of seconds that writes below `out` alone."""
    places = ("--dataset_dir", dataset_dir, "--output_dir", out / "eval", "--ckpt_dir", out / "models")
    config = ("--config_file", ROOT / "bundle/configs/train.yaml")
    return run_bundle("run", "training", *config, *places, *TINY, *more, real=real)


def run_package(model: Path, out: Path, *more: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``sparse3dunet package`` in a process of its own."""
    return run_sparse3dunet("package", model, "-o", out, *more, cwd=cwd)


@pytest.fixture(scope="session")
def packaged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the trained model, its .zip beside it; to be read alone."""
    return package(trained / "models", tmp_path_factory.mktemp("packaged")).folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, and what a training of seconds on it left behind."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root / "dataset")
    result = run_training(root / "dataset", root)
    assert result.returncode == 0, result.stderr
    (root / "training.out").write_text(result.stdout)
    return root
