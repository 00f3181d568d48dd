"""Predictions of several processes into one folder, which share the images by holding them one by one."""

import json
import time

from filelock import FileLock

from tests.conftest import ROOT, bundle_environment, make_volume, write_nifti
from tests.forked import start_module


def test_what_is_held_is_done_before_waiting_for_others(trained, tmp_path):
    """Otherwise two processes, each of which holds an image that the other one waits for, wait for ever."""
    for number in range(3):  # of one size, so that they are predicted in the order of their names
        write_nifti(tmp_path / f"images/case_{number}.nii.gz", make_volume(0)[0])
    (tmp_path / "out/records").mkdir(parents=True)
    others = [FileLock(tmp_path / f"out/records/case_{number}.json.lock") for number in (1, 2)]
    for lock in others:
        lock.acquire()
    command = ("predict", trained / "models", tmp_path / "images", "-o", tmp_path / "out")
    running = start_module("sparse3dunet", *command, cwd=ROOT, environment=bundle_environment())
    try:
        for number, lock in ((0, others[0]), (1, others[1])):  # each is done while another process holds the next one
            record, deadline = tmp_path / f"out/records/case_{number}.json", time.monotonic() + 120
            while time.monotonic() < deadline and running.poll() is None:
                if record.is_file() and json.loads(record.read_text())["status"] == "done":
                    break
                time.sleep(0.05)
            assert json.loads(record.read_text())["status"] == "done"
            assert running.poll() is None
            lock.release()
        _, errors = running.communicate(timeout=120)
    finally:
        for lock in others:
            lock.release(force=True)
        if running.poll() is None:
            running.kill()
    assert running.returncode == 0, errors
    assert len(list((tmp_path / "out").glob("case_*_seg.nii.gz"))) == 3
