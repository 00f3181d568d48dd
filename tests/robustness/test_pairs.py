"""Two commands at once in one folder of results: one waits or says who holds it, and the results are right."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.io import read_image
from sparse3dunet.models.loading import load_model
from tests.conftest import ROOT, TINY, make_dataset, make_volume, write_nifti
from tests.densify.test_run import SMALL, write_scan
from tests.robustness.kills import assert_nothing_unfinished, start, times

TOLD = (
    *("is in use by another run (process ", "exists, and no former run wrote it", "changed, or is another file"),
    "has the results of densify",
)
"""What a command says that does not go on: the other holds the folder, or has put a file where its own would be."""
ROUNDS = times(10)
COMMANDS = ("densify", "predict", "training", "annotate", "package", "simulate")


class Folder:
    """Inputs of all commands, and a folder in which they write."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.scan, self.annotation, _ = write_scan(root)
        make_dataset(root / "data", 2)
        for number in range(4):
            write_nifti(root / f"images/case_{number}.nii.gz", make_volume(number)[0])

    def command(self, name: str, out: Path) -> tuple[object, ...]:
        config = ROOT / "bundle/configs/train.yaml"
        return {
            "densify": ("sparse3dunet", "densify", self.scan, self.annotation, "-o", out, "--minutes", 0.02, *SMALL),
            "predict": ("sparse3dunet", "predict", self.model, self.root / "images", "-o", out),
            "training": (
                *("monai.bundle", "run", "training", "--config_file", config, "--dataset_dir", self.root / "data"),
                *("--output_dir", out, "--ckpt_dir", out / "models", *TINY),
            ),
            "annotate": ("sparse3dunet", "annotate", self.scan, "-o", out, "--no-open"),
            "package": ("sparse3dunet", "package", self.model, "-o", out, "--overwrite"),
            "simulate": ("sparse3dunet", "simulate", self.root / "data/labelsDense", "-o", out, "--slices", 3),
        }[name]

    def check(self, name: str, out: Path) -> None:
        """Look at the results of a command that ended well."""
        if name == "densify":
            found, sparse = read_image(out / "scan_seg.nii.gz").data, np.asarray(nib.load(self.annotation).dataobj)
            assert np.array_equal(found[sparse != 255], sparse[sparse != 255])
            json.loads((out / "quality.json").read_text())
        elif name == "predict":
            assert len(list(out.glob("case_*_seg.nii.gz"))) == 4
            assert all(",done," in row for row in (out / "summary.csv").read_text().splitlines()[1:5])
        elif name == "training":
            load_model(out / "models")
        elif name == "simulate":
            assert len([read_image(path) for path in out.glob("case_*.nii.gz")]) >= 2
        elif name == "package":
            load_model(out / "sparse3dunet_segmentation/models/model.pt")


def run_pair(folder: Folder, first: str, second: str, out: Path) -> list[str]:
    """Run two commands at once; return how each ended."""
    running = [start(*folder.command(name, out)) for name in (first, second)]
    ends = []
    for name, process in zip((first, second), running):
        if name == "annotate":
            _end(process)
        done = process.finish(200)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, (first, second, said)
        if done.returncode and name != "annotate":
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1, (first, second, said)
            assert any(words in errors[0] for words in TOLD), (first, second, said)
            assert str(out) in errors[0]
        ends.append((name, done.returncode))
    assert any(status == 0 for _, status in ends), ends
    for name, status in ends:
        if status == 0:
            folder.check(name, out)
    assert_nothing_unfinished(out)
    return [f"{name} {'ended well' if status == 0 else 'was told'}" for name, status in ends]


def _end(process) -> None:
    """End the page's server, as Ctrl-C does, once the other command must have met it."""
    import os
    import signal

    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGINT)


PAIRS = [
    *((name, name) for name in COMMANDS),
    *(("densify", other) for other in ("predict", "training", "annotate")),
    ("predict", "training"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_commands_in_one_folder(trained, tmp_path, first, second):
    folder = Folder(tmp_path, trained / "models")
    for number in range(ROUNDS):
        print(*run_pair(folder, first, second, tmp_path / f"out_{number}"), sep="; ")
