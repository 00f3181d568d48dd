"""Commands that are killed at random moments, and run again: nothing is lost, half-written, or done twice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from sparse3dunet.densify.state import StateFile
from sparse3dunet.io import read_image
from sparse3dunet.models.loading import load_model
from tests.conftest import ROOT, TINY, make_dataset, make_volume, write_nifti
from tests.densify.test_run import SMALL, write_scan
from tests.io.microscopy import voxels, write
from tests.robustness.kills import Series, assert_nothing_unfinished, names, times

KILLS = times(34)
"""Of each command."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="moments are measured by /proc, as Linux has it"),
]


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each result of finished cases."""
    found = {}
    for record in (out / "records").glob("*.json"):
        content = json.loads(record.read_text())
        files = [out / name for name in content["results"]]
        made = [[f.stat().st_size, f.stat().st_mtime_ns] if f.is_file() else None for f in files]
        if content["status"] == "done" and made == list(content["results"].values()):
            found |= {str(f.relative_to(out)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}
    return found


def test_predictions(trained, tmp_path):
    """Results are those of an undisturbed run, bit by bit; what was finished is not made again."""
    for number in range(8):
        image = make_volume(number, (24 + number, 20, 18))[0]
        write_nifti(tmp_path / f"images/case_{number}.nii.gz", image)

    def command(out):
        return ("sparse3dunet", "predict", trained / "models", tmp_path / "images", "-o", out, "--confidence")

    def look(out, before):
        now = finished(out)
        assert not [name for name, made in (before or {}).items() if now.get(name) != made]
        return now

    def check(out):
        assert names(out) == names(whole)
        assert_nothing_unfinished(out)
        results = [name for name in names(out) if not name.startswith(("records", "summary"))]
        assert len(results) == 8 * 3 + 1  # labels.txt
        assert not [name for name in results if (out / name).read_bytes() != (whole / name).read_bytes()]
        rows = [list(csv.DictReader((folder / "summary.csv").open())) for folder in (whole, out)]
        assert [[row["case"], row["status"]] for row in rows[0]] == [[row["case"], row["status"]] for row in rows[1]]

    whole = tmp_path / "whole"
    series = Series(command, check, look)
    series.run(tmp_path, KILLS, seed=0)
    print(series)


def test_a_prediction_larger_than_memory(trained, tmp_path):
    """It goes on where it was killed, and all chunks are those of an undisturbed run; no scratch is left."""
    image = write(tmp_path / "ngff04.ome.zarr", voxels((200, 40, 36), high=200))

    def command(out):
        return ("sparse3dunet", "predict", trained / "models", image, "-o", out, "--confidence", "--volume-memory", 0)

    def check(out):
        assert_nothing_unfinished(out)
        assert names(out) == names(whole)
        results = [name for name in names(out) if ".ome.zarr/" in name]
        assert len(results) > 10
        assert not [name for name in results if (out / name).read_bytes() != (whole / name).read_bytes()]
        assert not list(out.rglob("scratch-*"))

    whole = tmp_path / "whole"
    series = Series(command, check)
    series.run(tmp_path, times(16), seed=3)
    print(series)


def test_trainings(tmp_path):
    """Resumed, a training gives the weights of an undisturbed one, and loses no more than a state's distance."""
    make_dataset(tmp_path / "data", 2)
    more = ("--max_epochs", 5, "--epoch_length", 3, "--resume")

    def command(out):
        places = ("--dataset_dir", tmp_path / "data", "--output_dir", out / "eval", "--ckpt_dir", out / "models")
        config = ROOT / "bundle/configs/train.yaml"
        return ("monai.bundle", "run", "training", "--config_file", config, *places, *TINY, *more)

    def rows(out):
        file = out / "eval/training.csv"
        return list(csv.DictReader(file.open())) if file.exists() else []

    def iterations(out):
        file = out / "models/state/last.pt"
        return torch.load(file, weights_only=True)["trainer"]["iteration"] if file.exists() else 0

    def look(out, before):
        now, epochs = iterations(out), len(rows(out))
        assert now >= max(before or 0, 3 * (epochs - 1))
        return now

    def check(out):
        assert names(out) == names(whole)
        assert_nothing_unfinished(out)
        assert [row["epoch"] for row in rows(out)] == [row["epoch"] for row in rows(whole)]
        load_model(out / "models")
        for name, key in (("model.pt", None), ("state/last.pt", "network")):
            pair = [torch.load(folder / "models" / name, weights_only=True) for folder in (whole, out)]
            one, other = (found if key is None else found[key] for found in pair)
            assert one.keys() == other.keys()
            assert all(torch.equal(one[layer], other[layer]) for layer in one), name

    whole = tmp_path / "whole"
    series = Series(command, check, look)
    series.run(tmp_path, KILLS, seed=1)
    print(series)


def test_densified_volumes(tmp_path):
    """The results are whole, keep the annotation, and are the same files as those of an undisturbed run."""
    scan, annotation, dense = write_scan(tmp_path)
    sparse = np.asarray(nib.load(annotation).dataobj)

    def command(out):
        return ("sparse3dunet", "densify", scan, annotation, "-o", out, "--minutes", 0.05, *SMALL)

    def check(out):
        assert_nothing_unfinished(out)
        assert {name for name in names(whole) if not name.startswith("work/")} <= names(out)
        found = read_image(out / "scan_seg.nii.gz").data
        assert np.array_equal(found[sparse != 255], sparse[sparse != 255])
        assert (found == dense).mean() > 0.85
        for name in ("scan_preview.nii.gz", "scan_confidence.nii.gz", "scan_next.nii.gz"):
            assert read_image(out / name).data.shape == dense.shape
        assert json.loads((out / "quality.json").read_text())["usable"] in (True, False)
        assert json.loads((out / "suggestions.json").read_text())["scan"]
        assert "</html>" in (out / "report.html").read_text()
        assert StateFile(out).read().complete
        load_model(out / "model")

    whole = tmp_path / "whole"
    series = Series(command, check)
    series.run(tmp_path, KILLS, seed=2)
    print(series)
