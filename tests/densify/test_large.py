"""Densify for a scan larger than memory, as users run it; what it needs in memory is told before anything is read."""

import json

import numpy as np
import pytest
import torch
import zarr

from sparse3dunet.bundle import running
from sparse3dunet.data import checks, cutting, large_conventions
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify import large
from sparse3dunet.densify.large import densify_large, is_large_pair
from sparse3dunet.densify.schedule import check_sparse
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from tests.conftest import make_volume, run_sparse3dunet
from tests.io.microscopy import write

TINY = (
    "--minutes",
    "0.1",
    "--network_def#channels",
    "[4,8]",
    "--largest_patch_size",
    "[16,16,16]",
    "--epoch_length",
    "3",
)


def pair(tmp_path):
    image, dense, _ = make_volume(0, (40, 36, 30))
    label = np.zeros(image.shape, np.uint8)
    label[:, :, [8, 15, 22]] = dense[:, :, [8, 15, 22]] + 1
    scan = write(tmp_path / "ngff04.ome.zarr", np.clip(image + 50, 0, 255).astype(np.uint8))
    return scan, write(tmp_path / "label_ngff04.ome.zarr", label), dense


@pytest.mark.slow
def test_train_on_parts_and_predict_in_parts(tmp_path):
    scan, annotation, dense = pair(tmp_path)
    command = ("densify", scan, annotation, "-o", tmp_path / "out", *TINY, "--volume-memory", "0")
    result = run_sparse3dunet(*command)
    assert result.returncode == 0, result.stderr
    for text in (
        "is larger than memory: a network is trained for 0.1 minutes",
        "0 means unlabeled: all other voxels form",
    ):
        assert text in result.stdout
    found = read_image(tmp_path / "out/ngff04_seg.ome.zarr")
    assert found.spatial_shape == (40, 36, 30)
    assert set(np.unique(found.data)) <= {1, 2, 3}
    np.testing.assert_array_equal(found.data[:, :, [8, 15, 22]], dense[:, :, [8, 15, 22]] + 1)
    assert (tmp_path / "out/ngff04_confidence.ome.zarr").is_dir()
    again = run_sparse3dunet(*command)
    assert again.returncode == 0, again.stderr
    assert "already done" in again.stdout
    predicted = run_sparse3dunet(*command, "--as-predicted")
    assert predicted.returncode == 0, predicted.stderr
    other = read_image(tmp_path / "out/ngff04_seg.ome.zarr").data
    assert (other[:, :, [8, 15, 22]] != dense[:, :, [8, 15, 22]] + 1).any()
    np.testing.assert_array_equal(other[:, :, :8], found.data[:, :, :8])


@pytest.fixture
def trainings(monkeypatch):
    """Settings of each training, none of which runs."""
    found = []
    monkeypatch.setattr(running, "run_quietly", lambda run, settings, overlays: found.append(settings))
    monkeypatch.setattr(large, "_predict", lambda *arguments: None)
    return found


def test_more_annotation_is_trained_on(tmp_path, trainings, capsys):
    """A training that ended is continued only if nothing changed but the minutes; its state is gone otherwise."""
    scan, annotation, dense = pair(tmp_path)
    out = tmp_path / "out"
    state = out / "model/state/last.pt"

    def resumes(minutes=1.0, **settings):
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_bytes(b"of the former run")
        densify_large([str(scan), str(annotation)], out, minutes, {"device": "cpu", **settings}, {})
        assert state.exists() == trainings[-1]["resume"] or settings.get("restart")
        return trainings[-1]["resume"]

    assert not resumes()
    assert resumes()
    assert resumes(minutes=2.0)
    assert not resumes(restart=True)
    assert resumes()
    zarr.open_group(str(annotation), mode="r+")["fine"][12] = dense[:, :, 12].T + 1
    capsys.readouterr()
    assert not resumes()
    assert "changed since the former run: training starts again" in capsys.readouterr().out
    assert resumes()
    assert not resumes(ignore_index=[0])
    weights = write(tmp_path / "weights" / annotation.name, np.ones(dense.shape, np.uint8))
    assert not resumes(weight_dir=str(weights.parent))
    assert resumes(weight_dir=str(weights.parent))
    zarr.open_group(str(weights), mode="r+")["fine"][12] = 0
    assert not resumes(weight_dir=str(weights.parent)), "other weights are trained on"


def test_the_annotation_is_kept_as_training_reads_it(tmp_path, monkeypatch):
    """With a background of 255, which would mean unlabeled by itself; files of other values change the key."""
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    scan, _, dense = pair(tmp_path)
    label = np.zeros(dense.shape, np.uint8)
    label[:, :, [8, 15]] = np.where(dense == 0, 255, dense)[:, :, [8, 15]]
    kept = []
    monkeypatch.setattr(running, "run_quietly", lambda *arguments: None)
    monkeypatch.setattr(large, "_predict", lambda *arguments: kept.append(arguments[-1]))
    for name in ("a_ngff04.ome.zarr", "b_ngff04.ome.zarr"):
        annotation = write(tmp_path / name, label)
        densify_large([str(scan), str(annotation)], tmp_path / "out", 1.0, {"device": "cpu", "background": 255}, {})
        label[0, 0, 15] = 1
    whole = tuple(slice(0, n) for n in dense.shape)
    values, annotated = kept[0].read(whole)
    assert set(np.flatnonzero(annotated.any((0, 1)))) == {8, 15}
    assert annotated[:, :, [8, 15]].all()
    np.testing.assert_array_equal(values[:, :, 8], np.where(dense == 0, 255, dense)[:, :, 8])
    assert kept[0].key != kept[1].key
    densify_large([str(scan), str(annotation)], tmp_path / "out", 1.0, {"device": "cpu", "keep_annotation": False}, {})
    assert kept[2] is None


def test_an_annotation_is_counted_once_until_it_changes(tmp_path, monkeypatch):
    """Densify reads which voxels are annotated, and so does the training: of a scan larger than memory, for minutes."""
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    scan, annotation, _ = pair(tmp_path)
    counted, real = [], large_conventions.values_found
    monkeypatch.setattr(large_conventions, "values_found", lambda part: counted.append(part.size) or real(part))
    listed = {"training": [{"image": str(scan), "label": str(annotation)}], "ignore_index": 0}
    (tmp_path / "data.json").write_text(json.dumps(listed))
    data_set = read_data_set(tmp_path / "data.json")
    first = cutting.annotation_of_large(data_set, [], None).convention
    parts = cutting.cut_large(data_set, infer=True)
    assert sum(counted) == 40 * 36 * 30
    zarr.open_group(str(annotation), mode="r+")["fine"][12] = 3
    assert cutting.annotation_of_large(data_set, [], None).convention == first
    assert sum(counted) == 2 * 40 * 36 * 30
    assert len(cutting.cut_large(data_set, infer=True).cases) == len(parts.cases)


@pytest.mark.parametrize(("device", "expected"), [("cpu", "cpu"), ("cuda:1", "gpu"), ("mps", "cpu")])
def test_the_preset_of_a_device(device, expected):
    """`gpu` keeps volumes on the GPU, and was made for CUDA alone."""
    assert running.preset(torch.device(device)) == running.preset(device) == [expected]


def test_results_are_checked_before_the_training(tmp_path, trainings):
    scan, annotation, _ = pair(tmp_path)
    for format, message in ((".nii.gz", "this format is written as a whole"), (".abc", "abc")):
        with pytest.raises(DataError, match=message):
            densify_large([str(scan), str(annotation)], tmp_path / "out", 1.0, {"format": format}, {})
    (tmp_path / "out/ngff04_seg.ome.zarr").mkdir(parents=True)
    with pytest.raises(DataError, match=r"exists and is not what this command wrote there.*another folder\.$"):
        densify_large([str(scan), str(annotation)], tmp_path / "out", 1.0, {}, {})
    assert not trainings


def test_an_annotation_that_is_read_as_a_whole(tmp_path, error_of, monkeypatch):
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    scan, _, _ = pair(tmp_path)
    (tmp_path / "a.nii.gz").write_bytes(b"")
    message = error_of("densify", scan, tmp_path / "a.nii.gz", "-o", tmp_path / "out")
    assert "a.nii.gz: the label of" in message
    assert "expected OME-Zarr or HDF5" in message
    message = error_of("densify", scan, tmp_path / "missing.ome.zarr", "-o", tmp_path / "out")
    assert "missing.ome.zarr does not exist; expected the annotation" in message


def test_a_data_set_of_large_volumes_is_refused(tmp_path, monkeypatch):
    """Its parts would be densified, each by itself."""
    scan, annotation, _ = pair(tmp_path)
    listed = {"training": [{"image": str(scan), "label": str(annotation)}], "ignore_index": 0}
    (tmp_path / "data.json").write_text(json.dumps(listed))
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    report = checks.inspect(checks.complete(read_data_set(tmp_path / "data.json")))
    with pytest.raises(DataError, match=r"data\.json: a volume is larger than memory .* Pass a scan and its"):
        check_sparse(report)


def test_what_is_a_large_pair(tmp_path, monkeypatch):
    scan, annotation, _ = pair(tmp_path)
    for limit, expected in (("0", True), ("1GiB", False)):
        monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", limit)
        assert is_large_pair([str(scan), str(annotation)]) == expected
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    assert not is_large_pair([str(scan)])
    assert not is_large_pair([str(tmp_path / "a.nii.gz"), str(annotation)])
    assert not is_large_pair([str(tmp_path / "missing.ome.zarr"), str(annotation)])
