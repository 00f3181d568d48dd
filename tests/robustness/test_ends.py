"""Signals end every command in order, at any moment of its run; the same command then ends well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, TINY, bundle_environment, write_nifti
from tests.robustness.kills import Series, assert_nothing_unfinished, times

CONFIGS = ROOT / "bundle/configs"
KILLS = times(6)
"""Of each command: twice each signal."""


def commands(trained: Path, out: Path) -> dict[str, tuple[object, ...]]:
    """Module and arguments of each command, with `out` for what it writes."""
    data = ("--dataset_dir", trained / "dataset", "--output_dir", out / "eval")
    settings = (*data, "--ckpt_dir", out / "models", *TINY)
    both = "['{0}/train.yaml','{0}/{1}.yaml']"
    return {
        "check": ("sparse3dunet", "check", trained / "dataset"),
        "simulate": ("sparse3dunet", "simulate", trained / "dataset/labelsDense", "-o", out, "--slices", 1),
        "plan": ("sparse3dunet", "plan", trained / "dataset", "-o", out / "plan.json"),
        "package": ("sparse3dunet", "package", trained / "models", "-o", out, "--overwrite"),
        "evaluating": (
            *("monai.bundle", "run", "evaluating", "--config_file", both.format(CONFIGS, "evaluate")),
            *(*data, "--ckpt_dir", trained / "models"),
        ),
        "cross_validating": (
            *("monai.bundle", "run", "cross_validating", "--config_file", both.format(CONFIGS, "crossval")),
            *(*settings, "--folds", 2),
        ),
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="moments are measured by /proc, as Linux has it")
@pytest.mark.parametrize("name", ["check", "simulate", "plan", "package", "evaluating", "cross_validating"])
def test_a_signal_ends_a_command_in_order(trained, tmp_path, name):
    series = Series(lambda out: commands(trained, out)[name], lambda out: assert_nothing_unfinished(out))
    series.run(tmp_path, KILLS, seed=len(name))
    print(name, series)


@pytest.mark.slow
def test_memory_that_is_not_there_is_named_with_the_option_that_needs_less(trained, tmp_path):
    """As in a container that is too small: the limit is set for the process, as `ulimit -v` does."""
    image = write_nifti(tmp_path / "large.nii", np.zeros((300, 300, 300), np.float32))
    code = "import resource, runpy, sys\nimport torch, monai.bundle, sparse3dunet.cli.main\n"
    code += "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    code += "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
    code += "sparse3dunet.cli.main.main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "predict", trained / "models", image, "-o", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=bundle_environment(), capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "--roi-size" in done.stderr, done.stderr
    assert not list((tmp_path / "out").glob("*_seg*"))
