"""Names of files, folders and classes that mean something to a config parser or a spreadsheet are only names."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.models.description import read_description
from tests.conftest import make_volume, run_sparse3dunet, run_training, write_nifti
from tests.densify.test_run import SMALL, write_scan

NAMES = ("_target_", "$x", "@x", "%x", "__local_refs", "=1+1", "a b'\"c", "-o", "ünï", "{0}", "x::y#z")
NAMES += ("[a]*?", "a$1_$")
"""Of files, without suffix."""
CLASSES = ("$1/0", "@x [/old]", r"v$\alpha_$")
"""Names of classes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data set in a folder of such a name, with a case of each name."""
    root = tmp_path_factory.mktemp("names") / "$root @x %y"
    entries = []
    for number, name in enumerate(NAMES):
        image, dense, sparse = make_volume(number, (14, 12, 10))
        for folder, array in (("imagesTr", image), ("labelsTr", sparse), ("dense", dense)):
            write_nifti(root / folder / f"{name}.nii.gz", array)
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    labels = {str(number): name for number, name in enumerate(CLASSES)}
    (root / "dataset.json").write_text(json.dumps({"training": entries, "labels": labels, "name": "$x"}))
    return root


def done(result):
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_check_and_simulate(data, tmp_path):
    report = json.loads(done(run_sparse3dunet("check", data, "--json")).stdout)
    assert report["ok"], report
    done(run_sparse3dunet("simulate", data / "dense", "-o", tmp_path / "$out", "--slices", 1))
    assert {path.name for path in (tmp_path / "$out").iterdir()} == {f"{name}.nii.gz" for name in NAMES}


@pytest.mark.slow
def test_training_and_prediction(data, tmp_path):
    out = tmp_path / "$x"
    split = tmp_path / "@split.json"
    split.write_text(json.dumps({"train": list(NAMES[:-2]), "val": list(NAMES[-2:])}))
    done(run_training(data, out, "--split_file", split))
    assert list(read_description(out / "models/model.pt").class_names) == list(CLASSES)
    images = sorted((data / "imagesTr").iterdir())
    done(run_sparse3dunet("predict", out / "models", *images, "-o", tmp_path / "%pred", "--confidence"))
    for name in NAMES:
        assert nib.load(tmp_path / f"%pred/{name}_seg.nii.gz").shape == (14, 12, 10)
    with (tmp_path / "%pred/summary.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    again = done(
        run_sparse3dunet("predict", out / "models", data / "imagesTr", "-o", tmp_path / "%pred", "--confidence")
    )
    assert f"{len(NAMES)} already done" in again.stdout
    done(run_sparse3dunet("package", out / "models", "-o", tmp_path / "@packaged"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[:5], os.fsdecode(b"M\xfcller")])
def test_densify(tmp_path, name):
    scan, annotation, _ = write_scan(tmp_path)
    renamed = [path.rename(tmp_path / f"{name}{number}.nii.gz") for number, path in enumerate((scan, annotation))]
    scan = renamed[0].rename(tmp_path / f"{name}.nii.gz")
    out = tmp_path / "$out"
    options = ("--minutes", 0.02, "--class-names", "background,one,two", *SMALL)
    done(run_sparse3dunet("densify", scan, renamed[1], "-o", out, *options))
    found = np.asarray(nib.load(out / f"{name}_seg.nii.gz").dataobj)
    sparse = np.asarray(nib.load(renamed[1]).dataobj)
    assert np.array_equal(found[sparse != 255], sparse[sparse != 255])
