"""Runs that the page's server starts: their end, what they are given, and files with any name."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.annotate.browser import runs
from tests.annotate.client import Client, opened, random_slice

FAKE = """
import json, sys
settings = json.loads(sys.stdin.readline())
print("Preview after 1 s: x")
if settings["minutes"] == 1:
    print("error: scan.nii.gz: something is wrong"); sys.exit(1)
if settings["minutes"] == 2:
    print(sys.stdin.readline()); sys.exit(0)
sys.stdin.read()
"""


@pytest.fixture
def running(client, monkeypatch):
    """A session whose runs are those of a small program, with enough annotation."""
    monkeypatch.setattr(runs, "COMMAND", (sys.executable, "-u", "-c", FAKE))
    client.paint(2, 1, random_slice(2))
    yield client
    client.session.runs.close()


def wait_for(client: Client, *states: str) -> dict:
    for _ in range(200):
        run = client.state()["run"]
        if run["state"] in states and (run["preview_after"] is not None):
            return run
        time.sleep(0.05)
    raise AssertionError(f"still {run}")


def test_an_error_of_a_run_is_told(running):
    assert running.post("api/densify", minutes=1).json()["unfinished"] == ["axial 3"], "as the page and the file count"
    assert wait_for(running, "failed")["error"] == "scan.nii.gz: something is wrong"


def test_stop_and_start_again(running):
    running.post("api/densify", minutes=2)
    assert wait_for(running, "running")["preview_after"] is not None
    assert running.post("api/stop").status_code == 200
    assert "stop" in wait_for(running, "done")["lines"]
    running.post("api/densify", minutes=3)
    wait_for(running, "running")
    first = running.session.runs._current
    running.post("api/densify", minutes=2)
    assert first.poll() is not None, "the run before has been ended"
    assert running.session.runs._current is not first


def test_annotation_of_a_run(running):
    """What a run is given is what was drawn, with names for its values."""
    running.post("api/densify", minutes=3)
    folder = running.session.store.folder
    given = np.asarray(nib.as_closest_canonical(nib.load(folder / "densified.nii.gz")).dataobj)
    assert np.array_equal(given[:, :, 1], np.where(random_slice(2) > 0, random_slice(2).astype(int) - 1, 255))
    assert '"liver"' in (folder / "labels.txt").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_names_of_files_that_are_no_utf8(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "COMMAND", (sys.executable, "-u", "-c", FAKE))
    named = scan.rename(tmp_path / os.fsdecode(b"M\xfcller.nii.gz"))
    client = Client(opened(named, tmp_path / "out"))
    assert client.state()["scan"]["path"] == str(named)
    client.paint(2, 1, random_slice(2) % 2 + 1)
    assert Path(client.post("api/export").json()["path"]).is_file()
    assert client.post("api/densify", minutes=3).status_code == 200
    client.session.runs.close()
    assert np.array_equal(Client(opened(named, tmp_path / "out")).painted(), client.painted())
