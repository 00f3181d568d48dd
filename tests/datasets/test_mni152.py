"""The built-in data set is what it says."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.checks import check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.slices import PLANES
from sparse3dunet.datasets import mni152
from sparse3dunet.errors import DataError
from tests.conftest import ROOT, bundle_environment
from tests.forked import run_module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "deep" / "mni152"
    module = "sparse3dunet.datasets.mni152"
    result = run_module(module, folder, cwd=ROOT, environment=bundle_environment())
    assert result.returncode == 0, result.stderr
    again = run_module(module, folder, cwd=ROOT, environment=bundle_environment())
    assert again.returncode == 1
    assert "already exists" in again.stderr
    assert "Traceback" not in again.stderr
    assert sorted(p.name for p in folder.parent.iterdir()) == ["mni152"]
    return folder


def volumes(folder):
    (case,) = read_data_set(folder).cases
    images = {key: nib.load(path) for key, path in case.items()}
    return images, {key: np.asarray(image.dataobj) for key, image in images.items()}


def test_passes_the_check(prepared):
    found = read_data_set(prepared)
    assert found.class_names == ["background", "gray matter", "white matter"]
    report = check_data(found)
    assert [case.shape for case in report.cases] == [(99, 117, 95)]
    assert report.warning_lines() == []
    assert {plane: len(slices) for plane, slices in report.cases[0].slices.items()} == dict.fromkeys(PLANES, 3)


def test_two_millimetres_on_one_grid(prepared):
    images, arrays = volumes(prepared)
    for image in images.values():
        assert image.header.get_zooms()[:3] == (2, 2, 2)
        assert np.array_equal(image.affine, images["image"].affine)
    assert np.isfinite(arrays["image"]).all()


def test_annotation_is_three_slices_an_axis_of_the_dense_label(prepared):
    _, arrays = volumes(prepared)
    sparse, dense = arrays["label"], arrays["reference"]
    annotated = sparse != mni152.UNLABELED
    assert np.array_equal(sparse[annotated], dense[annotated])
    assert set(np.unique(dense)) == {0, 1, 2}
    assert 0.07 < annotated.mean() < 0.1
    assert set(np.unique(sparse[annotated])) == {0, 1, 2}
    slices = json.loads((prepared / "dataset.json").read_text())["kept_slices"]
    brain = dense > 0
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        assert np.flatnonzero(annotated.all(axis=others)).tolist() == slices[axis]
        extent = np.flatnonzero(brain.any(axis=others))
        gaps = np.diff([extent[0], *slices[axis], extent[-1]])
        assert gaps.max() - gaps.min() <= 1


def test_only_the_default_folder_is_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mni152.ensure_default("data/other") == "data/other"
    assert not (tmp_path / "data").exists()
    (tmp_path / "data" / "mni152").mkdir(parents=True)
    assert mni152.ensure_default(mni152.DEFAULT_DIR) == mni152.DEFAULT_DIR
    assert not list((tmp_path / "data" / "mni152").iterdir())


def test_two_at_once_prepare_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = mni152.load_template

    def load_while_another_finishes(*args):
        monkeypatch.setattr(mni152, "load_template", load)
        mni152.prepare(mni152.DEFAULT_DIR)
        return load(*args)

    monkeypatch.setattr(mni152, "load_template", load_while_another_finishes)
    assert mni152.ensure_default(mni152.DEFAULT_DIR) == mni152.DEFAULT_DIR
    assert len(read_data_set(tmp_path / "data" / "mni152").cases) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mni152"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        mni152.prepare(tmp_path / "file" / "mni152")


def test_without_nilearn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)
    with pytest.raises(DataError, match="pip install nilearn"):
        mni152.prepare(tmp_path / "mni152")
    assert not list(tmp_path.iterdir())
