"""Scores of a densification by dense labels: the files that are taken as such, and where the scores are written."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify import large
from sparse3dunet.densify.inputs import prepare_pair
from sparse3dunet.densify.reference import ReferenceScores
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.records import CaseRecord, write_summary
from sparse3dunet.io import read_label, write_segmentation
from sparse3dunet.io.volumes import Volume
from tests.conftest import make_volume, write_nifti
from tests.densify.test_page import report, view, written  # noqa: F401

NAMES = ("background", "shell", "core")
AFFINE = np.diag([2.0, 1.5, 2.5, 1.0])


@pytest.fixture
def files(tmp_path):
    """A scan, its annotation and a dense label; and the shape."""
    image, dense, sparse = make_volume(0)
    arrays = {"scan": image, "annotation": sparse, "dense": dense}
    return {name: write_nifti(tmp_path / f"{name}.nii.gz", array, AFFINE) for name, array in arrays.items()}, dense


def prepared(paths, folder, reference):
    return prepare_pair(paths["scan"], paths["annotation"], folder, ignore_index=3, reference=reference)


def test_a_label_map_on_the_scans_grid_is_listed_as_it_is(files, tmp_path):
    paths, _ = files
    (case,) = read_data_set(prepared(paths, tmp_path / "work", paths["dense"]), ignore_index=3).cases
    assert case["reference"] == str(paths["dense"])
    (case,) = read_data_set(prepared(paths, tmp_path / "work", None), ignore_index=3).cases
    assert "reference" not in case


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".seg.nrrd"])
def test_other_formats_are_placed_on_the_scans_grid(files, tmp_path, suffix):
    paths, dense = files
    path, names = tmp_path / f"other{suffix}", dict(enumerate(NAMES))
    write_segmentation(path, dense, Volume("", dense, AFFINE), names)
    (case,) = read_data_set(prepared(paths, tmp_path / "work", path), ignore_index=3).cases
    assert np.array_equal(read_label(case["reference"]).data, dense)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("missing", "does not exist; expected a dense label"),
        ("scan", "is the scan"),
        ("part", "dense label of the whole scan"),
        ("moved", "position in space differs"),
        ("names", "but core in the annotation"),
        ("folder", "expected a label map as dense label"),
        ("layers", "expected a dense label of the whole scan"),
    ],
)
def test_files_that_are_no_dense_label_of_the_scan(files, tmp_path, change, told):
    """Told in one line that names the file; what is there stays."""
    paths, dense = files
    reference = tmp_path / "other.nii.gz"
    if change == "scan":
        reference = paths["scan"]
    elif change == "part":
        write_nifti(reference, dense[:12], AFFINE)
    elif change == "moved":
        write_nifti(reference, dense, AFFINE + np.eye(4, k=3) * 9)
    elif change == "names":
        sparse = make_volume(0)[2]
        paths["annotation"], reference = tmp_path / "annotation.seg.nrrd", tmp_path / "other.seg.nrrd"
        like = Volume("", dense, AFFINE)
        write_segmentation(paths["annotation"], np.where(sparse == 3, 0, sparse), like, dict(enumerate(NAMES)))
        write_segmentation(reference, dense, like, {0: "background", 1: "core", 2: "shell"})
    elif change == "folder":
        reference = tmp_path / "labels"
        reference.mkdir()
    elif change == "layers":
        write_nifti(reference, np.stack([dense, dense], -1), AFFINE)
    with pytest.raises(DataError) as error:
        prepare_pair(paths["scan"], paths["annotation"], tmp_path / "work", annotated_slices="all", reference=reference)
    assert told in str(error.value).replace("but shell in", "but core in")
    assert str(reference) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def scores():
    """Scores of one case of which a part of the core is not found."""
    _, dense, sparse = make_volume(0)
    found = dense.copy()
    found[:, :, 10:][found[:, :, 10:] == 2] = 1
    result = ReferenceScores(NAMES, (4.0, 4.0, 1.0))
    result.add("a", found, sparse != 3, dense, (2.0, 1.5, 2.5))
    return result


def test_tables_are_written_and_those_of_a_former_run_removed(scores, tmp_path):
    scores.write(tmp_path)
    with (tmp_path / "reference/scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["region"], row["class"]): row for row in csv.DictReader(file)}
    assert list(rows) == [(region, name) for region in ("unlabeled", "all") for name in NAMES]
    lost = scores.scores["all"]["a"][2].volume_difference_percent
    assert float(rows["all", "core"]["volume_difference_percent"]) == pytest.approx(lost, rel=1e-5)
    assert lost < -10
    ReferenceScores(NAMES, (1, 1, 1)).write(tmp_path)
    assert not list((tmp_path / "reference").iterdir())


def test_scores_are_plain_values(scores):
    content = json.loads(json.dumps(scores.as_json(), allow_nan=False))
    core = content["cases"]["all"]["a"]["core"]
    assert core["nsd_tolerance_mm"] == 1
    assert content["all"]["means"]["dice"] == pytest.approx(
        (core["dice"] + content["cases"]["all"]["a"]["shell"]["dice"]) / 2
    )
    assert scores.columns()["core HD95 mm (unlabeled)"]["a"] == content["cases"]["unlabeled"]["a"]["core"]["hd95_mm"]


def test_summary_has_numbers_that_may_be_negative(scores, files, tmp_path):
    record = CaseRecord(tmp_path, ImageCase("a", (str(files[0]["scan"]),)), {})
    record.start([])
    record.finish([])
    write_summary(tmp_path, NAMES, scores.columns())
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    found = scores.scores["unlabeled"]["a"][2].volume_difference_percent
    assert float(row["core volume difference % (unlabeled)"]) == pytest.approx(found, rel=1e-5)
    assert found < 0


def test_report_has_the_scores_beside_the_estimate(report, scores, tmp_path):  # noqa: F811
    report = replace(report, cases=[replace(report.cases[0], view=None)], curves={})
    assert "Scores by dense labels" not in written(report, tmp_path).text
    text = " ".join(written(replace(report, scores=scores), tmp_path).text.split())
    assert "Scores by dense labels" in text
    assert f"{scores.means('unlabeled')['dice']:.3f}" in text
    assert "expected to be 0.876 (0.83 to 0.91)" in text
    assert "within shell 4 mm, core 1 mm of the" in text


def test_a_scan_larger_than_memory_is_not_scored(files, error_of, tmp_path, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(large, "is_large_pair", lambda sources: True)
    pair = (paths["scan"], paths["annotation"], "--reference", paths["dense"])
    assert "--reference: a scan larger than memory" in error_of("densify", *pair, "-o", tmp_path / "out")
