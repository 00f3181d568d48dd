"""Synthetic tubules are what they say, and make a data set."""

import importlib
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.errors import DataError
from tests.conftest import ROOT, bundle_environment

sys.path.insert(0, str(ROOT / "benchmarks"))
tubules = importlib.import_module("tubules")
sys.path.pop(0)

SMALL = (48, 40, 36)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=bundle_environment(), capture_output=True, encoding="utf-8", timeout=120)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "deep" / "tubules"
    result = run(ROOT / "benchmarks/tubules.py", folder, "--slices", 2, "--count", 2, "--seed", 3)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def volume():
    return tubules.make_tubules()


def test_each_class_is_there(volume):
    image, dense = volume
    assert image.shape == dense.shape == tubules.SHAPE
    assert image.dtype == np.float32
    assert dense.dtype == np.uint8
    assert np.isfinite(image).all()
    shares = np.bincount(dense.ravel()) / dense.size
    assert len(shares) == len(tubules.CLASS_NAMES) == tubules.UNLABELED
    assert shares.min() > 0.02


def test_walls_are_bright(volume):
    """In the front half, where light is; but no threshold tells the classes apart."""
    image, dense = (array[..., :32] for array in volume)
    means = [image[dense == number].mean() for number in range(3)]
    assert means[1] > 1.5 * max(means[0], means[2])
    best = max(np.mean((image > value) == (dense == 1)) for value in np.percentile(image, range(50, 100, 5)))
    assert best < 0.95


def test_less_light_in_the_depth(volume):
    image, dense = volume
    front, back = (image[..., part][dense[..., part] == 1].mean() for part in (slice(16), slice(-16, None)))
    assert back < 0.85 * front


@pytest.mark.parametrize("seed", range(4))
def test_lumen_is_inside_the_wall(seed):
    dense = tubules.make_tubules(SMALL, seed)[1]
    for axis in range(3):
        along = np.moveaxis(dense, axis, 0).astype(int)
        assert not ((along[1:] * along[:-1] == 0) & (along[1:] + along[:-1] == 2)).any()
    assert set(np.unique(dense)) == {0, 1, 2}


def test_repeatable_by_seed():
    first, again, other = (tubules.make_tubules(SMALL, seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("shape", [(20, 48, 48), (48, 48)])
def test_too_small(shape):
    with pytest.raises(DataError, match="three axes of 32"):
        tubules.make_tubules(shape)


def test_passes_the_check(prepared):
    result = run("-m", "sparse3dunet", "check", prepared, "--json")
    assert result.returncode == 0, result.stdout
    report = json.loads(result.stdout)
    assert report["errors"] == report["warnings"] == []
    assert [{plane: len(found) for plane, found in case["slices"].items()} for case in report["cases"]] == [
        dict.fromkeys(("sagittal", "coronal", "axial"), 2)
    ] * 2


def test_annotation_is_of_the_dense_label(prepared):
    cases = read_data_set(prepared).cases
    kept = json.loads((prepared / "dataset.json").read_text())["kept_slices"]
    images = []
    for case, (name, slices) in zip(cases, kept.items(), strict=True):
        image, sparse, dense = (np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label", "reference"))
        assert str(case["image"]).endswith(name)
        annotated = sparse != tubules.UNLABELED
        assert np.array_equal(sparse[annotated], dense[annotated])
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            assert np.flatnonzero(annotated.all(axis=others)).tolist() == slices[axis]
        images.append(image)
    assert not np.array_equal(*images)
    assert "CC0" in (prepared / "LICENSE").read_text()


def test_seeds_share_no_volume(tmp_path):
    """So that one seed's may be held out against another's."""
    one = tubules.prepare(tmp_path / "one", 1, count=2, shape=SMALL, seed=0)
    other = tubules.prepare(tmp_path / "other", 1, count=2, shape=SMALL, seed=1)
    images = [np.asarray(nib.load(path).dataobj) for root in (one, other) for path in (root / "imagesTr").iterdir()]
    assert len({image.tobytes() for image in images}) == 4


def test_replaces_nothing(prepared):
    before = sorted(prepared.rglob("*"))
    result = run(ROOT / "benchmarks/tubules.py", prepared)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "already exists" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(prepared.rglob("*")) == before
    assert [path.name for path in prepared.parent.iterdir()] == ["tubules"]


def test_wrong_numbers(tmp_path, monkeypatch, capsys):
    for option, value, least in (("--slices", 0, 1), ("--count", 0, 1), ("--seed", -1, 0)):
        monkeypatch.setattr(sys, "argv", ["tubules", str(tmp_path / "out"), option, str(value)])
        with pytest.raises(SystemExit) as end:
            tubules.main()
        assert end.value.code == 2
        assert f"{option} must be at least {least}, got {value}" in capsys.readouterr().err
    with pytest.raises(DataError, match="1 volume or more"):
        tubules.prepare(tmp_path / "out", count=0)
    with pytest.raises(DataError, match="request fewer"):
        tubules.prepare(tmp_path / "out", 60, shape=SMALL)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        tubules.prepare(tmp_path / "file" / "tubules", shape=SMALL)
