"""What files of any format say of the patient is in no result, record, model, log, message or report."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from tests.conftest import ROOT, UNLABELED, bundle_environment, make_volume, run_package, run_sparse3dunet, run_training
from tests.densify.test_run import SMALL
from tests.fuzzing import damage
from tests.robustness.marked import MARK, assert_unmarked, make_annotations, make_dicom_annotation, make_images

KINDS = ("nifti.nii.gz", "a.nrrd", "imagej.tif", "ome.ome.tif", "ilastik.h5", "ngff04.ome.zarr")


def scan():
    image, dense, sparse = make_volume(0)
    return np.clip(image + 100, 0, 999).astype(np.uint16), dense, sparse


def damaged(image: Path, folder: Path, rng: random.Random) -> Path:
    """Copy an image, with what belongs to it, and damage one of its files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    copy = folder / image.name
    shutil.copytree(image, copy) if image.is_dir() else shutil.copy(image, copy)
    for voxels in image.parent.glob(f"{image.stem}.raw*"):
        shutil.copy(voxels, folder)
    files = sorted(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else [copy]
    file = rng.choice(files)
    file.write_bytes(damage(file.read_bytes(), rng, b"0" * 64))
    return copy


def attack(folder: Path, count: int) -> None:
    """Read damaged images, and fail where a message has the mark; in a process of its own, which libraries may end."""
    refused: list[str] = []
    for image in make_images(folder / "images", scan()[0]):
        for number in range(count):
            copy = damaged(image, folder / "work", random.Random(f"{image.name}/{number}"))
            try:
                read_image(copy)
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > count
    assert not [text for text in refused if MARK in text]


@pytest.mark.parametrize("count", [2, pytest.param(150, marks=pytest.mark.slow)])
def test_no_message_about_a_damaged_file_quotes_its_texts(tmp_path, count):
    code = "import pathlib, sys; from tests.robustness.test_privacy_formats import attack; "
    code += "attack(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), str(count)]
    done = subprocess.run(
        command, cwd=ROOT, env=bundle_environment(), capture_output=True, encoding="utf-8", timeout=550
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert MARK not in done.stdout


def test_predictions_of_any_format_name_no_patient(trained, tmp_path):
    images = make_images(tmp_path / "images", scan()[0])
    rng = random.Random(0)
    broken = [damaged(image, tmp_path / f"broken_{n}", rng) for n, image in enumerate(images)]
    out = tmp_path / "out"
    options = ("-o", out, "--confidence", "--probabilities")
    result = run_sparse3dunet("predict", trained / "models", *images, *broken, *options)
    rows = (out / "summary.csv").read_text().splitlines()
    assert sum(",done," in row for row in rows) >= len(images), rows
    assert any(",failed," in row for row in rows), rows
    assert_unmarked(out, result.stdout, result.stderr)


def densified(folder: Path, kind: str, *options: object) -> None:
    image, dense, sparse = scan()
    images = {path.name: path for path in make_images(folder / "images", image)}
    if kind == "series":
        shown = [4, 9, 14]
        masks = {name: (dense == value) & np.isin(np.arange(18), shown) for value, name in ((1, "one"), (2, "two"))}
        annotation = make_dicom_annotation(folder / "label.dcm", images[kind], masks)
    else:
        annotation = make_annotations(folder / "labels", sparse, UNLABELED)[kind]
    out = folder / "out"
    result = run_sparse3dunet("densify", images[kind], annotation, "-o", out, "--minutes", 0.02, *SMALL, *options)
    assert result.returncode == 0, result.stderr
    assert (out / "report.html").is_file()
    assert (out / "model/model.json").is_file()
    assert_unmarked(out, result.stdout, result.stderr)


@pytest.mark.slow
def test_a_densified_stack_of_microscopy_names_nobody(tmp_path):
    densified(tmp_path, "ome.ome.tif")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, "series") if kind != "ome.ome.tif"])
def test_a_densified_scan_of_any_format_names_nobody(tmp_path, kind):
    densified(tmp_path, kind)


@pytest.mark.slow
def test_what_a_training_and_a_package_contain_names_nobody(tmp_path):
    """Also a datalist's keys that are not this package's, of which tools write many."""
    image, _, sparse = scan()
    make_images(tmp_path / "images", image)
    labels = make_annotations(tmp_path / "labels", sparse, UNLABELED)
    cases = [
        {"image": f"images/{kind}", "label": str(labels[kind]), "patient": MARK, "comment": {MARK: MARK}}
        for kind in ("nifti.nii.gz", "ome.ome.tif", "ilastik.h5", "ngff04.ome.zarr")
    ]
    content = {"training": cases, "labels": {"0": "background", "1": "one", "2": "two"}, "ignore_index": UNLABELED}
    (tmp_path / "list.json").write_text(json.dumps({**content, "description": MARK, "reference": MARK, "name": MARK}))
    out = tmp_path / "out"
    result = run_training(tmp_path / "list.json", out, "--spacing", "$None")
    assert result.returncode == 0, result.stderr
    assert_unmarked(out, result.stdout, result.stderr)
    packaged = run_package(out / "models", tmp_path / "packaged")
    assert packaged.returncode == 0, packaged.stderr
    assert_unmarked(tmp_path / "packaged", packaged.stdout, packaged.stderr)
    checked = run_sparse3dunet("check", tmp_path / "list.json", "--json")
    assert MARK not in checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ["a.raw", "b=SURNAME", "b\tSURNAME"])
def test_a_missing_file_of_voxels_is_named_if_nothing_else_is_in_its_name(tmp_path, name):
    """A damaged header's next line may be."""
    (tmp_path / "c.nhdr").write_text(
        f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: {name}\n"
    )
    with pytest.raises(DataError, match=r"c\.nhdr: .* cannot be read \(No such file") as error:
        read_image(tmp_path / "c.nhdr")
    assert ("a.raw" in str(error.value)) == (name == "a.raw")
    assert "SURNAME" not in str(error.value)
