"""benchmarks/gpu.sh without a GPU."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, bundle_environment


def dry_run(out, *options):
    environment = bundle_environment() | {"PYTHON": sys.executable}
    command = ["bash", ROOT / "benchmarks/gpu.sh", "--dry-run", "--out", out, *options]
    return subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True, timeout=500)


def check(result, out, names):
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(out.read_text())
    assert written["dry_run"]
    assert {"cpu", "torch", "sparse3dunet", "device"} <= set(written["machine"])
    for name in names:
        assert "error" not in written[name]
        assert f"{name}: " in result.stdout
    return written


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_what_is_computed_on_both_devices(tmp_path):
    """On one device twice, all agrees exactly."""
    names = ["network", "elastic", "steps"]
    out = tmp_path / "gpu.json"
    written = check(dry_run(out, "--steps", ",".join(names)), out, names)
    assert [written[name]["difference"] for name in names] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_the_commands(tmp_path):
    names = ["train", "predict", "densify"]
    out = tmp_path / "gpu.json"
    written = check(dry_run(out, "--steps", ",".join(names)), out, names)
    assert written["predict"]["difference"] == 0
    assert min(written["densify"]["dice_device"]) > 0.5
