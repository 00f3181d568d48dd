"""Names of files, folders and classes that mean something to a config parser or a spreadsheet are only names."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify.inputs import prepare
from sparse3dunet.models.description import read_description
from tests.cli.test_dicom import study
from tests.conftest import bundle_environment, make_volume, run_sparse3dunet, run_training, write_nifti
from tests.densify.test_run import SMALL, write_scan
from tests.io.dicom_files import write_seg, write_series
from tests.io.test_dicom_decoding import compressed

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
    assert {path.name for path in (tmp_path / "$out").glob("[!.]*")} == {f"{name}.nii.gz" for name in NAMES}


def test_a_folder_whose_name_is_no_utf8(tmp_path):
    """Of a scan and its annotation, of a DICOM annotation in a datalist, and of results, with any encoding."""
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    _, series, dense = study(tmp_path / "study")
    folder.mkdir()
    write_seg(folder / "a.dcm", series, {"core": dense == 2, "shell": dense == 1}, omit_empty_frames=False)
    case = {"image": str(tmp_path / "study/PAT0/SE4"), "label": "a.dcm"}
    (folder / "list.json").write_text(json.dumps([case]))
    run = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", "check", folder / "list.json", "--all"]
    found = subprocess.run(
        run, env={**bundle_environment(), "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "M\\udcfcller" in found.stdout
    write_scan(folder)
    (pair,) = read_data_set(prepare([folder / "scan.nii.gz", folder / "annotation.nii.gz"], folder / "work")).cases
    assert pair["image"] == str(folder / "scan.nii.gz")


def test_files_that_itk_reads_and_writes_and_whose_names_are_no_utf8(tmp_path):
    """SimpleITK ends the process for them; in one of its own."""
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    write_series(folder / "series", np.arange(120, dtype=np.int16).reshape(6, 5, 4))
    compressed(folder / os.fsdecode(b"\xe9"))
    code = """
import os, pathlib, sys
import numpy as np
from sparse3dunet.io import read_image, write_map
folder = pathlib.Path(sys.argv[1])
assert not np.array_equal(read_image(folder / os.fsdecode(b"\\xe9")).data, 0)
image = read_image(folder / "series")
values = np.arange(120).reshape(6, 5, 4)
assert np.array_equal(image.data, values)
for name in (b"a.nrrd", b"a.mha", b"\\xe9.nrrd", b"\\xe9.mha"):
    write_map(folder / os.fsdecode(name), values.astype(np.int16), image)
    assert np.array_equal(read_image(folder / os.fsdecode(name)).data, values)
(folder / "voxels.raw").write_bytes(values.astype("<i2").tobytes("F"))
header = "NDims = 3\\nDimSize = 6 5 4\\nElementType = MET_SHORT\\nElementDataFile = voxels.raw\\n"
(folder / os.fsdecode(b"\\xe9.mhd")).write_text("BinaryData = True\\n" + header)
assert np.array_equal(read_image(folder / os.fsdecode(b"\\xe9.mhd")).data, values)
assert len(list(folder.iterdir())) == 8
"""
    run = [sys.executable, "-W", "ignore", "-c", code, folder]
    done(subprocess.run(run, env=bundle_environment(), capture_output=True, text=True))


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
