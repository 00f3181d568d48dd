"""Label maps that an annotation tool submits: drawn by hand, or a delivered segmentation with corrections."""

import json
import sys

import numpy as np
import pytest

from sparse3dunet.annotate import label_app, label_jobs
from sparse3dunet.annotate.label_app import SETTINGS, write_app
from sparse3dunet.annotate.submitted import (
    ANNOTATION,
    DELIVERED,
    annotation_in,
    corrected_slices,
    update_annotation,
)
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.volumes import UNLABELED_VALUE
from tests.conftest import make_volume, run_sparse3dunet, write_nifti

SHAPE = (24, 20, 18)


@pytest.fixture
def scan(tmp_path):
    image, dense, _ = make_volume(0)
    label = np.zeros_like(dense)
    label[..., [5, 12]] = dense[..., [5, 12]]
    return write_nifti(tmp_path / "a.nii.gz", image), write_nifti(tmp_path / "label.nii.gz", label), dense


def stored(folder):
    return np.asarray(read_image(folder / ANNOTATION).data)


def test_corrected_slices_are_added_to_the_annotation(scan, tmp_path):
    image, label, dense = scan
    folder = tmp_path / "scan"
    assert "finished slices (axial [5, 12])" in update_annotation(image, label, folder)
    first = stored(folder)
    assert np.array_equal(first != UNLABELED_VALUE, np.isin(np.arange(18), [5, 12]) & np.ones_like(dense, bool))

    delivered = dense.copy()
    delivered[6:10, 6:10, 8] = 0  # an error on this slice, and elsewhere one that nobody corrected
    delivered[12:16, 8:12, 14] = 1
    write_nifti(folder / DELIVERED, delivered)
    corrected = delivered.copy()
    corrected[..., 8] = dense[..., 8]
    reason = update_annotation(image, write_nifti(tmp_path / "second.nii.gz", corrected), folder)
    assert "corrected slices" in reason
    assert "axial [8]" in reason
    second = stored(folder)
    assert np.array_equal(second[..., [5, 8, 12]], dense[..., [5, 8, 12]])
    assert (np.delete(second, [5, 8, 12], axis=2) == UNLABELED_VALUE).all(), "what was only predicted is no annotation"


def test_an_unchanged_segmentation_adds_nothing(scan, tmp_path):
    image, label, dense = scan
    update_annotation(image, label, tmp_path / "scan")
    first = stored(tmp_path / "scan")
    write_nifti(tmp_path / "scan" / DELIVERED, dense)
    assert "nothing corrected" in update_annotation(
        image, write_nifti(tmp_path / "same.nii.gz", dense), tmp_path / "scan"
    )
    assert np.array_equal(stored(tmp_path / "scan"), first)


def test_a_label_drawn_anew_is_read_by_its_slices(scan):
    _, _, dense = scan
    former, label = np.full_like(dense, UNLABELED_VALUE), np.zeros_like(dense)
    label[..., 9] = dense[..., 9]
    found = annotation_in(label, np.eye(4), former, dense).annotation
    assert (found[..., 9] == dense[..., 9]).all()
    assert (np.delete(found, 9, axis=2) == UNLABELED_VALUE).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda label: label * 0, "nothing is painted"),
        (lambda label: label[1:], "shape"),
        (lambda label: label * 0.4, "whole number"),
    ],
)
def test_bad_label_maps(scan, tmp_path, change, text):
    image, label, _ = scan
    bad = write_nifti(tmp_path / "bad.nii.gz", change(np.asarray(read_image(label).data)))
    with pytest.raises(DataError, match=text):
        update_annotation(image, bad, tmp_path / "scan")
    assert not (tmp_path / "scan" / ANNOTATION).exists()


def test_data_sets_of_jobs(scan, tmp_path, monkeypatch):
    """A job trains on the annotation, never on submitted label maps; values beyond the app's classes are told."""
    image, label, _ = scan
    runs = []
    monkeypatch.setattr(label_jobs.running, "run_quietly", lambda *arguments: runs.append(arguments))
    job = {"folder": str(tmp_path / "model"), "minutes": 1, "device": "cpu"}
    cases = [[str(image), str(label), str(tmp_path / "scan")]]
    label_jobs.main([json.dumps({"job": "train", "cases": cases, "names": ["shell", "core", "more"], **job})])
    ((run, settings, overlays),) = runs
    assert (run, settings["minutes"], overlays) == ("training", 1, ["cpu"])
    content = json.loads((tmp_path / "model/dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "shell", "2": "core", "3": "more"}
    assert content["ignore_index"] == UNLABELED_VALUE
    assert content["training"] == [{"image": str(image), "label": str(tmp_path / "scan" / ANNOTATION)}]
    with pytest.raises(DataError, match="value 2, but the app has 1 class"):
        label_jobs.train(cases, names=["shell"], **job)
    with pytest.raises(DataError, match="named 'ignore', which means unlabeled"):
        label_jobs.train(cases, names=["ignore", "core"], **job)


@pytest.mark.parametrize("place", [(slice(0, 4), 3, 9), (3, 3, 12)])
def test_values_without_a_class_are_told(scan, tmp_path, monkeypatch, place):
    """Also where they do not become annotation: on a slice that is not finished."""
    image, label, _ = scan
    monkeypatch.setattr(label_jobs.running, "run_quietly", lambda *arguments: None)
    values = np.asarray(read_image(label).data).copy()
    values[place] = 3
    write_nifti(tmp_path / "label.nii.gz", values)
    job = {"folder": str(tmp_path / "scan"), "minutes": 1, "device": "cpu"}
    with pytest.raises(DataError, match=r"label\.nii\.gz: .* value 3, but the app has 2 class\(es\): shell, core"):
        label_jobs.densify(str(image), str(label), names=["shell", "core"], **job)
    assert not (tmp_path / "scan" / ANNOTATION).exists()
    label_jobs.densify(str(image), str(label), names=["shell", "core", "more"], **job)


def test_names_of_segments_are_those_of_the_app(scan, tmp_path, monkeypatch):
    image, label, _ = scan
    monkeypatch.setattr(label_jobs.running, "run_quietly", lambda *arguments: None)
    segments = tmp_path / "label.seg.nrrd"
    classes = {0: "background", 1: "Shell", 2: "core"}
    write_segmentation(segments, np.asarray(read_image(label).data).astype(np.uint8), read_image(image), classes)
    job = {"folder": str(tmp_path / "scan"), "minutes": 1, "device": "cpu"}
    with pytest.raises(DataError, match=r"label\.seg\.nrrd: the value 1 is the segment Shell, but core in the app"):
        label_jobs.densify(str(image), str(segments), names=["core", "shell"], **job)
    label_jobs.densify(str(image), str(segments), names=["shell", "core"], **job)


def test_label_app_command(tmp_path):
    result = run_sparse3dunet("label-app", "-o", tmp_path / "app", "--class-names", "shell, core")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "monailabel start_server --app" in result.stdout
    settings = json.loads((tmp_path / "app" / SETTINGS).read_text())
    assert settings["class_names"] == ["shell", "core"]
    assert settings["python"] == sys.executable
    compile((tmp_path / "app/main.py").read_text(), "main.py", "exec")


def test_an_app_keeps_its_data_and_other_folders_are_left_alone(tmp_path):
    app = write_app(tmp_path / "app", ["shell"])
    (app / "scans").mkdir()
    with pytest.raises(DataError, match="--overwrite"):
        write_app(app, ["shell", "core"])
    write_app(app, ["background", "shell", "core"], overwrite=True)
    assert (app / "scans").is_dir()
    assert json.loads((app / SETTINGS).read_text())["class_names"] == ["shell", "core"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").touch()
    with pytest.raises(DataError, match="no app of this command"):
        write_app(tmp_path / "mine", ["shell"], overwrite=True)
    for names in ([], ["a", "a"], [""]):
        with pytest.raises(DataError, match="different name"):
            write_app(tmp_path / "new", names)
    for name in ("ignore", "Unlabeled", "BACKGROUND"):
        with pytest.raises(DataError, match=f"named '{name}', which means"):
            write_app(tmp_path / "new", ["shell", name])
    assert not (tmp_path / "new").exists()
    assert json.loads((write_app(tmp_path / "new", ["Background", "shell"]) / SETTINGS).read_text())["class_names"] == [
        "shell"
    ]


@pytest.mark.parametrize("text", ['{"editor.tabSize": 4}', "[]", "", '{"version": "1", "class_names": ["shell"]}'])
def test_settings_of_another_program_are_left_alone(tmp_path, text):
    (tmp_path / SETTINGS).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="no app of this command"):
            write_app(tmp_path, ["shell"], overwrite)
    assert (tmp_path / SETTINGS).read_text() == text
    assert not (tmp_path / "main.py").exists()


@pytest.mark.parametrize("part", ["scans", "model"])
def test_the_numbers_of_an_app_with_data_keep_their_meaning(tmp_path, part):
    """Annotation and models have numbers: with the names in another order, a tumor would be a liver."""
    app = write_app(tmp_path / "app", ["shell", "core"])
    write_app(app, ["core", "shell"], overwrite=True)  # there are no data yet
    (app / part / "x").mkdir(parents=True)
    before = (app / SETTINGS).read_text()
    for names in (["shell", "core"], ["shell"], ["core", "rim", "shell"]):
        with pytest.raises(DataError, match="of the classes core, shell, by number"):
            write_app(app, names, overwrite=True)
    assert (app / SETTINGS).read_text() == before
    for names in (["core", "shell", "rim"], ["core"]):
        write_app(app, names, overwrite=True)
        assert json.loads((app / SETTINGS).read_text())["class_names"] == names


def test_slices_that_were_corrected_in_single_voxels():
    """Errors lie along borders, and corrections of a slice are rarely whole areas."""
    changed = np.random.default_rng(0).random(SHAPE) < 0.15
    plane, other = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    plane[7], other[:, :, 4] = changed[7], changed[:, :, 4]
    assert corrected_slices(plane | other) == [[7], [], [4]]
    ball = np.zeros(SHAPE, bool)
    ball[5:10, 5:10, 5:10] = True
    assert corrected_slices(ball) == [[], [], []]
    assert corrected_slices(ball & False) == [[], [], []]


def test_a_straight_correction_names_no_slice():
    """A line lies on an axial and on a sagittal slice; with more of the former, it is the axial one."""
    changed = np.zeros(SHAPE, bool)
    changed[10, 3:12, 12] = True
    assert corrected_slices(changed) == [[], [], []]
    changed[10:14, 12, 12] = True
    assert corrected_slices(changed) == [[], [], [12]]


def test_corrections_at_the_same_place_of_many_slices():
    changed = np.zeros((24, 20, 24), bool)
    changed[8:13, 6:12, 1:22:2] = True
    assert corrected_slices(changed) == [[], [], list(range(1, 22, 2))]
    changed[:8] = changed[9:] = False
    assert corrected_slices(changed) == [[], [], []], "lines again: nobody looked at sagittal 8"


def test_a_corrected_prediction_of_a_scan_without_annotation(scan, tmp_path, monkeypatch):
    """By the trained model: only the corrected slice becomes annotation, and no training takes the unchanged one."""
    image, _, dense = scan
    folder = tmp_path / "scan"
    monkeypatch.setattr(label_jobs.running, "run_quietly", lambda *arguments: None)
    predicted = dense.copy()
    predicted[6:10, 6:10, 8] = 0
    same = write_nifti(folder / DELIVERED, predicted)
    job = {"folder": str(tmp_path / "model"), "minutes": 1, "names": ["shell", "core"], "device": "cpu"}
    with pytest.raises(DataError, match="nothing was corrected"):
        label_jobs.train([[str(image), str(same), str(folder)]], **job)
    corrected = predicted.copy()
    corrected[..., 8] = dense[..., 8]
    label = write_nifti(tmp_path / "label.nii.gz", corrected)
    label_jobs.train([[str(image), str(label), str(folder)]], **job)
    assert (stored(folder)[..., 8] == dense[..., 8]).all()
    assert (np.delete(stored(folder), 8, axis=2) == UNLABELED_VALUE).all()


def test_installed_packages_are_not_imported_by_another_interpreter(tmp_path, monkeypatch):
    def path_of(module):
        monkeypatch.setattr(label_app, "__file__", str(module))
        return json.loads((write_app(tmp_path / "app", ["shell"], overwrite=True) / SETTINGS).read_text())["path"]

    assert path_of(tmp_path / "site-packages/sparse3dunet/annotate/label_app.py") == ""
    (tmp_path / "pyproject.toml").touch()
    assert path_of(tmp_path / "pipeline/sparse3dunet/annotate/label_app.py") == str(tmp_path / "pipeline")
