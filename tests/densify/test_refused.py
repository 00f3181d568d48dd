"""Where the command that densifies writes nothing, or says first that the result will be of no use."""

import json
import re

import numpy as np
import pytest

from tests.conftest import write_nifti
from tests.densify.test_run import AFFINE, SMALL, array, densify, write_scan


def test_a_constant_scan_is_told_first(tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    write_nifti(scan, np.full(array(scan).shape, 7, np.float32), AFFINE)
    result = densify(scan, annotation, "-o", tmp_path / "out", "--minutes", 0.02, "--folds", 0, *SMALL)
    assert result.returncode == 0, result.stderr
    before = result.stdout[: result.stdout.index("annotation: ")]
    assert "This result is likely to be useless: " in before
    assert "all voxels have the value 7" in before
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["usable"] is False
    assert "all voxels have the value 7" in quality["warnings"][0]
    assert "This result is likely to be useless" in (tmp_path / "out/report.html").read_text()


def test_two_voxels_are_told_first(tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    label = np.full(array(scan).shape, 255, np.uint8)
    label[2, 2, 2], label[6, 6, 6] = 0, 1
    write_nifti(annotation, label, AFFINE)
    result = densify(scan, annotation, "-o", tmp_path / "out", "--minutes", 0.02, "--folds", 0, *SMALL)
    assert result.returncode == 0, result.stderr
    before = result.stdout[: result.stdout.index("annotation: ")]
    assert "likely to be useless: only 1 voxel(s) of structures are annotated" in before
    assert json.loads((tmp_path / "out/quality.json").read_text())["usable"] is False


def test_files_of_others_are_not_overwritten(tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    (tmp_path / "summary.csv").write_text("mine")
    result = densify(scan, annotation, "-o", tmp_path, *SMALL)
    assert result.returncode == 1
    assert "summary.csv exists, and no former run wrote it" in result.stderr
    assert (tmp_path / "summary.csv").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        *("experiment7/last.pt", "learning/thesis.txt", "learned/notes.txt", "propagation/a.csv", "fold_3/model.pt"),
        "a.txt",
    ],
)
def test_a_folder_work_of_others_is_left_alone(tmp_path, name):
    """Without a state of a run, what a run would clear away is not its own."""
    scan, annotation, _ = write_scan(tmp_path)
    (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "work" / name).write_text("mine")
    result = densify(scan, annotation, "-o", tmp_path, *SMALL)
    assert result.returncode == 1
    assert re.search(rf"work/{name.split('/')[0]}\S* exists, and no former run wrote it", result.stderr)
    assert (tmp_path / "work" / name).read_text() == "mine"


def test_what_a_killed_start_leaves_in_work_is_no_hindrance(tmp_path):
    """The annotation of the network to be is written before the state."""
    scan, annotation, _ = write_scan(tmp_path)
    for name in (
        "learning/0123456789abcdef.npz",
        "learning/.0123456789abcdef.host-12.part.npz",
        ".state.host-1.part.json",
    ):
        (tmp_path / "out/work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/work" / name).write_text("cut off")
    result = densify(scan, annotation, "-o", tmp_path / "out", "--minutes", 0.02, "--folds", 0, *SMALL)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "out/work/learned/0123456789abcdef.npz").exists()


def test_a_file_is_no_folder_for_results(tmp_path, error_of):
    scan, annotation, _ = write_scan(tmp_path)
    assert "is a file; pass a folder" in error_of("densify", scan, annotation, "-o", scan)
