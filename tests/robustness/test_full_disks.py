"""Disks that are full at some moment of a command: one line says so, nothing is half-written, and with room it goes on.

On a small file system in memory, which only the superuser can mount.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY, make_dataset, make_volume, run_bundle, run_sparse3dunet, write_nifti
from tests.densify.test_run import SMALL, write_scan
from tests.io.microscopy import write
from tests.robustness.kills import assert_nothing_unfinished, names

SIZE = 64 * 2**20
"""Bytes of the disk."""


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def leave(disk: Path, room: int) -> Path:
    """Fill a disk but for `room` bytes; return the file that does."""
    status, ballast = os.statvfs(disk), disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(status.f_bavail * status.f_frsize - room, 1))
    return ballast


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def predicting(root: Path, model: Path):
    for number in range(3):
        write_nifti(root / f"images/case_{number}.nii.gz", make_volume(number)[0])
    return lambda out: run_sparse3dunet("predict", model, root / "images", "-o", out, "--probabilities")


def predicting_large(root: Path, model: Path):
    image = np.clip(make_volume(0, (48, 40, 36))[0] + 50, 0, 255).astype(np.uint8)
    scan = write(root / "ngff04.ome.zarr", image)
    options = ("--volume-memory", 0, "--confidence")
    return lambda out: run_sparse3dunet("predict", model, scan, "-o", out, *options)


def training(root: Path, model: Path):
    make_dataset(root / "data", 2)
    config = ("run", "training", "--config_file", ROOT / "bundle/configs/train.yaml", "--dataset_dir", root / "data")
    return lambda out: run_bundle(*config, "--output_dir", out / "eval", "--ckpt_dir", out / "models", *TINY)


def densifying(root: Path, model: Path):
    scan, annotation, _ = write_scan(root)
    return lambda out: run_sparse3dunet("densify", scan, annotation, "-o", out, "--minutes", 0.03, *SMALL)


def simulating(root: Path, model: Path):
    for number in range(5):
        dense = np.random.default_rng(number).integers(0, 3, (24, 20, 18)).astype(np.uint8)
        write_nifti(root / f"dense/case_{number}.nii", dense)
    return lambda out: run_sparse3dunet("simulate", root / "dense", "-o", out, "--slices", 3)


def packaging(root: Path, model: Path):
    return lambda out: run_sparse3dunet("package", model, "-o", out, "--overwrite")


POINTS = {predicting: 4, predicting_large: 3, training: 4, densifying: 3, simulating: 3, packaging: 3}
"""How often the disk is full, by command."""


@pytest.mark.slow
@pytest.mark.parametrize("prepare", POINTS, ids=lambda prepare: prepare.__name__)
def test_a_full_disk_is_one_line_and_the_command_goes_on(trained, disk, tmp_path, prepare):
    command = prepare(tmp_path / "inputs", trained / "models")
    whole = command(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    expected = {name for name in names(tmp_path / "whole") if not name.startswith("work/")}
    rng, needed, full = random.Random(prepare.__name__), used(tmp_path / "whole"), 0
    for number in range(3 * POINTS[prepare]):
        if full == POINTS[prepare]:
            break
        out = disk / f"out_{number}"
        ballast = leave(disk, room := rng.randrange(0, needed))
        result = command(out)
        ballast.unlink()
        print(prepare.__name__, f"{room} of {needed} bytes:", result.returncode, result.stderr.strip()[-300:])
        if result.returncode:
            full += 1
            assert_told(result, out, goes_on=prepare is predicting_large)
            result = command(out)
        assert result.returncode == 0, result.stderr
        assert expected <= names(out)
        assert_nothing_unfinished(out)
    assert full == POINTS[prepare], "the disk was hardly ever full"


def assert_told(result: subprocess.CompletedProcess[str], out: Path, goes_on: bool) -> None:
    """Fail unless a command said in one line that the disk is full, and left nothing unfinished."""
    said = result.stdout + result.stderr
    assert "Traceback" not in said, said
    assert result.returncode == 1, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert str(out) in errors[0], errors
    assert re.search(r"No space left|cannot be written|cannot write", errors[0]), errors
    if out.exists():
        assert_nothing_unfinished(out, goes_on)
