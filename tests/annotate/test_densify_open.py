"""`densify --open`: the result in the browser, to be corrected."""

import json
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from tests.conftest import ROOT, bundle_environment, make_volume, write_nifti


@pytest.fixture
def pair(tmp_path):
    image, label, _ = make_volume(0)
    sparse = np.full_like(label, 255)
    for index in (4, 9, 14):
        sparse[:, :, index] = label[:, :, index]
    write_nifti(tmp_path / "dense.nii.gz", label)
    return write_nifti(tmp_path / "scan.nii.gz", image), write_nifti(tmp_path / "slices.nii.gz", sparse), sparse


@pytest.mark.slow
def test_the_result_is_shown_with_its_annotation(pair, tmp_path):
    """With its scores by a dense label, which the page's own runs have, too."""
    scan, slices, sparse = pair
    scores = tmp_path / "out/reference/scores.csv"
    more = ("--reference", tmp_path / "dense.nii.gz", "--open", "--device", "cpu")
    command = ("densify", scan, slices, "-o", tmp_path / "out", "--minutes", "0.1", *more)
    process = subprocess.Popen(
        [sys.executable, "-u", "-W", "ignore", "-m", "sparse3dunet", *map(str, command)],
        stdout=subprocess.PIPE,
        env=bundle_environment() | {"BROWSER": "true"},
        cwd=ROOT,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        address = next(line.split()[-1] for line in process.stdout if line.startswith("Annotate at"))
        state = json.load(urllib.request.urlopen(address + "api/state"))
        drawn = np.frombuffer(urllib.request.urlopen(address + "api/painted").read(), np.uint8)
        assert state["found"]["kind"] == "result"
        assert state["finished"] == [[], [], [4, 9, 14]]
        np.testing.assert_array_equal(drawn.reshape(sparse.shape, order="F"), np.where(sparse % 255, sparse + 1, 0))
        scores.unlink()
        urllib.request.urlopen(
            urllib.request.Request(address + "api/densify?minutes=0.1", method="POST")
        )  # out is free for it
        run = state["run"]
        while run["state"] != "done":
            time.sleep(0.2)
            run = json.load(urllib.request.urlopen(address + "api/state"))["run"]
            assert run["state"] in ("idle", "running", "done"), run
        assert run["preview_after"] is not None, run
        assert scores.is_file()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_only_one_scan_can_be_shown(pair, tmp_path, error_of):
    error = error_of("densify", tmp_path, "-o", tmp_path / "out", "--open")
    assert "--open shows one scan" in error
    assert not (tmp_path / "out").exists()
