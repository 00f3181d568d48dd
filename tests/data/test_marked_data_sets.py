"""Training takes values that clearly mark unlabeled voxels as such, where a data set declares nothing."""

import json

import h5py
import numpy as np
import pytest

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.large import open_large
from sparse3dunet.data.set_conventions import complete, with_marks
from sparse3dunet.training.data import read as read_for_training
from tests.conftest import make_volume, run_sparse3dunet
from tests.data.test_inferred_conventions import SHAPE, THREE, marked, planes, scribbles
from tests.data.test_inferred_data_sets import CASES, assert_same, write

STRAY = np.where(make_volume(4)[1] > 0, 255, 0).astype(np.uint8)
STRAY[0, 0, 0] = 1
DENSE = [make_volume(seed)[1] for seed in (1, 2)]


@pytest.mark.parametrize("name", ["255", "negative", "largest", "floats"])
def test_marks_are_those_that_densify_infers(tmp_path, capsys, name):
    make, options = CASES[name]
    folder = write(tmp_path, [make(dense, planes(*THREE)) for dense in DENSE])
    found = read_for_training(str(folder))
    assert found.ignore_index == (options["ignore_index"],)
    assert capsys.readouterr().out.count("This was inferred") == 1
    assert_same(found, complete(read_data_set(folder)))


def test_255_in_some_cases_is_enough(tmp_path):
    """The others are dense."""
    folder = write(tmp_path, [marked(DENSE[0], planes(*THREE), 255), DENSE[1]])
    assert with_marks(read_data_set(folder)).ignore_index == (255,)


@pytest.mark.parametrize(
    "maps",
    [
        DENSE,
        [dense * planes(*THREE) for dense in DENSE],  # 0 may as well be background
        [marked(DENSE[0], planes(*THREE), 3), DENSE[1]],  # 3 may be a class of the first alone
        [np.where(DENSE[0] == 2, 255, 0).astype(np.uint8)] * 2,  # the foreground of a mask
        [((dense + 1) * planes(*THREE)).astype(np.uint8) for dense in DENSE],  # 0 may be a class of its own
        [np.where(STRAY == 255, STRAY, 0), STRAY],  # one voxel of a third value
        [np.where(dense == 2, 255, dense + 100) for dense in DENSE],  # a class of a few voxels
    ],
)
def test_what_is_not_clear_is_not_inferred(tmp_path, capsys, maps):
    data_set = read_data_set(write(tmp_path, maps))
    assert with_marks(data_set) == data_set
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options", [{"ignore_index": 9}, {"annotated_slices": "axial"}, {"declared": {"labels": {"0": "a", "1": "b"}}}]
)
def test_what_is_declared_counts(tmp_path, capsys, options):
    maps = [marked(dense, planes(*THREE), 255) for dense in DENSE]
    data_set = read_data_set(write(tmp_path, maps, **options.pop("declared", {})), **options)
    assert with_marks(data_set) == data_set
    assert capsys.readouterr().out == ""


def test_a_map_with_background_alone_agrees(tmp_path):
    maps = [marked(dense, planes(*THREE), 3) for dense in (*DENSE, np.zeros(SHAPE))]
    assert with_marks(read_data_set(write(tmp_path, maps))).ignore_index == (3,)


def test_scribbles_marked_by_most_voxels(tmp_path):
    maps = [marked(DENSE[0], scribbles(DENSE[0]), -1), marked(DENSE[1], scribbles(DENSE[1]), 255)]
    assert with_marks(read_data_set(write(tmp_path, maps))).ignore_index == (-1, 255)


def test_volumes_larger_than_memory(tmp_path, monkeypatch):
    """Are treated like others, so that a training does not depend on the machine's memory."""
    for name, label in (("scan", DENSE[0]), ("scan_seg", marked(DENSE[0], planes(*THREE), 255).astype(np.uint8))):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["label" if "seg" in name else "raw"] = label
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    whole = read_data_set(tmp_path)
    assert open_large(whole.cases[0]["image"])
    assert with_marks(whole).ignore_index == (255,)


def test_unreadable_label_maps_are_left_to_the_checks(tmp_path):
    folder = write(tmp_path, [marked(DENSE[0], planes(*THREE), 3), DENSE[1]])
    (folder / "labels/1.nii.gz").write_bytes(b"nothing")
    assert with_marks(read_data_set(folder)).ignore_index == (3,)


def test_check_shows_it(tmp_path):
    folder = write(tmp_path, [marked(dense, planes((2, 9)), 255) for dense in DENSE])
    result = run_sparse3dunet("check", folder, "--json")
    assert result.returncode == 0, result.stdout
    report = json.loads(result.stdout)
    assert report["ignore_index"] == [255]
    assert sum(entry["voxels"] for entry in report["classes"]) == 2 * SHAPE[0] * SHAPE[1]  # of one axial slice each
