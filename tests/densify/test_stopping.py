"""A densification that is killed or stopped: the same command goes on, and Ctrl-C gives results."""

import json
import signal
import time

import numpy as np

from sparse3dunet.data.slices import slices_mask
from sparse3dunet.densify.state import StateFile
from tests.conftest import ROOT, bundle_environment, make_volume, write_nifti
from tests.densify.test_run import AFFINE, SMALL, array, densify, write_scan
from tests.forked import start_module


def start(*arguments):
    return start_module("sparse3dunet", "densify", *arguments, cwd=ROOT, environment=bundle_environment())


def wait_for(path, process, seconds=120):
    started = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


def test_a_killed_run_goes_on(tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    arguments = (scan, annotation, "-o", tmp_path / "out", "--minutes", 0.2, *SMALL, "--epoch_length", 3)
    process = start(*arguments)
    wait_for(tmp_path / "out/work/final/last.pt", process)
    process.kill()
    process.communicate()
    before = StateFile(tmp_path / "out").read()
    assert not before.complete
    assert not (tmp_path / "out/report.html").exists()
    result = densify(*arguments)
    assert result.returncode == 0, result.stderr
    assert "Continuing the unfinished run" in result.stdout
    assert "--resume" not in result.stdout
    after = StateFile(tmp_path / "out").read()
    assert after.complete
    assert after.held_out == before.held_out
    assert {p: s for p, s in after.seconds.items() if p in before.seconds} == before.seconds
    assert (tmp_path / "out/report.html").is_file()


def test_ctrl_c_ends_the_training_with_what_was_learned(tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    arguments = (scan, annotation, "-o", tmp_path / "out", "--minutes", 10, "--folds", 1, *SMALL, "--epoch_length", 3)
    process = start(*arguments)
    wait_for(tmp_path / "out/work/fold_0/last.pt", process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Ctrl-C" in stdout
    assert array(tmp_path / "out/scan_seg.nii.gz").shape == array(scan).shape
    assert StateFile(tmp_path / "out").read().stopped_early
    assert "stopped early" in (tmp_path / "out/report.html").read_text()
    assert json.loads((tmp_path / "out/quality.json").read_text())["mean_dice"] > 0.5


def test_ctrl_c_after_the_preview(tmp_path):
    """What the methods without a network have found makes the results."""
    shape = (60, 54, 48)  # refined for seconds
    image, dense, _ = make_volume(0, shape)
    scan = write_nifti(tmp_path / "scan.nii.gz", image, AFFINE)
    sparse = np.where(slices_mask(shape, [[20, 36], [18, 34], [16, 32]]), dense, 255).astype(np.uint8)
    annotation = write_nifti(tmp_path / "annotation.nii.gz", sparse, AFFINE)
    process = start(scan, annotation, "-o", tmp_path / "out", "--minutes", 10, *SMALL)
    wait_for(tmp_path / "out/scan_preview.nii.gz", process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Ctrl-C: writing the results with what was found so far" in stdout
    unlabeled = sparse == 255
    right = array(tmp_path / "out/scan_seg.nii.gz") == dense
    assert right[unlabeled].mean() > 0.95
    assert right[~unlabeled].all()
