"""What a newcomer types wrong: told at once, in the words that were typed, and without leaving anything behind."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

from sparse3dunet.bundle import running
from sparse3dunet.cli import run
from sparse3dunet.cli.main import main
from sparse3dunet.datasets.mni152 import DEFAULT_DIR
from sparse3dunet.errors import UnknownSettingError
from sparse3dunet.io.folders import HOLDER, LOCK
from tests.conftest import ROOT, bundle_environment, make_dataset, make_volume, write_nifti


@pytest.fixture
def pair(tmp_path):
    image, _, sparse = make_volume(0)
    return write_nifti(tmp_path / "scan.nii.gz", image), write_nifti(tmp_path / "annotation.nii.gz", sparse)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--class-name", "a,b"], "--class-name: there is no such setting. Did you mean --class-names"),
        (["--keep-anotation"], "--keep-anotation: there is no such setting. Did you mean --keep-annotation"),
        (["--learning-rat=1"], "--learning-rat: there is no such setting. Did you mean --learning_rate"),
        (["--train#defrom#prob", "1"], "--train#defrom: there is no such setting. Did you mean --train#deform"),
        (["--class_names", "a,b"], "--class_names: there is no such setting. Did you mean --class-names?"),
    ],
)
def test_settings_are_told_as_they_were_typed(pair, tmp_path, error_of, typed, told):
    error = error_of("densify", *pair, "-o", tmp_path / "out", *typed)
    assert error.startswith(f"error: {told}")
    assert "--class_name," not in error
    assert not (tmp_path / "out").exists()


def test_settings_of_the_bundles_runs_too(error_of, tmp_path):
    data = make_dataset(tmp_path / "data", 1)
    error = error_of("run", "training", "--dataset-dir", data, "--voxel-sise", "1um")
    assert error.startswith("error: --voxel-sise: there is no such setting. Did you mean --voxel-size")
    assert "--max-epoch: there is no such setting" in error_of("plan", data, "--max-epoch", "3")
    with pytest.raises(UnknownSettingError, match="--max_epoch: there"):
        running.check_run("training", [], {"max_epoch": 3})


def test_the_background_that_was_forgotten_is_proposed(pair, tmp_path, error_of):
    error = error_of("densify", *pair, "-o", tmp_path / "out", "--class-names", "left kidney,spleen")
    assert error.startswith("error: --class-names gives 2 name(s) (left kidney, spleen) for 3 classes, values 0, 1, 2")
    assert error.endswith("The background is missing: --class-names 'background,left kidney,spleen'")
    error = error_of("densify", *pair, "-o", tmp_path / "out", "--class-names", "bg,spleen")
    assert "The background is missing" not in error
    assert not (tmp_path / "out").exists()


def test_what_is_refused_leaves_no_folder(pair, tmp_path, error_of):
    """Not for swapped inputs, a missing annotation, another shape; nor are others' folders removed."""
    scan, annotation = pair
    small = write_nifti(tmp_path / "small.nii.gz", np.zeros((9, 9, 9), np.uint8), np.diag([3.0, 2, 2, 1]))
    for files in ((annotation, scan), (scan, tmp_path / "nowhere.nii.gz"), (scan, small)):
        error_of("densify", *files, "-o", tmp_path / "new/out")
        assert not (tmp_path / "new/out").exists(), files
    (tmp_path / "mine").mkdir()
    error_of("densify", annotation, scan, "-o", tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} <= {LOCK, HOLDER}
    assert (tmp_path / "mine").is_dir()


MISSING = {
    ("densify", "no.nii.gz", "a.nii.gz", "-o", "out"): "no.nii.gz does not exist; expected the scan. The order is",
    ("densify", "here.nii.gz", "no.nii.gz", "-o", "out"): "no.nii.gz does not exist; expected the annotation",
    ("densify", "no", "-o", "out"): "no does not exist; expected a scan and its annotation",
    ("predict", "no.pt", "here.nii.gz", "-o", "out"): "no.pt: there is no trained model",
    ("predict", "here.nii.gz", "no.nii.gz", "-o", "out"): "no.nii.gz does not exist, nor does any file match it",
    ("check", "no"): "no does not exist. Pass a folder with dataset.json",
    ("run", "training", "--dataset_dir", "no"): "no does not exist. Pass a folder with dataset.json",
    ("run", "training", "--dataset-dir=no"): "no does not exist. Pass a folder with dataset.json",
}
SLOW = {"torch", "monai", "numpy", "nibabel"}
PROGRAM = f"""
import sys
from sparse3dunet.cli.main import main
for words in {list(MISSING)}:
    sys.argv = ["sparse3dunet", *words]
    try:
        main()
    except SystemExit as end:
        print(end.code)
print({SLOW} & set(sys.modules))
"""


def test_missing_files_are_told_before_slow_imports(tmp_path, monkeypatch, error_of):
    """In the same words as later on."""
    (tmp_path / "here.nii.gz").touch()
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=bundle_environment(), capture_output=True, encoding="utf-8")
    *errors, imported = done.stdout.splitlines()
    assert imported == "set()", done.stderr
    for error, told in zip(errors, MISSING.values(), strict=True):
        assert error.startswith("error: ")
        assert f"{tmp_path}/{told}" in error
    monkeypatch.chdir(tmp_path)
    for name in ("check_sources", "check_data_set", "check_prediction"):
        monkeypatch.setattr(f"sparse3dunet.missing.{name}", lambda *paths: None)
    later = [words for words in MISSING if words[0] in ("densify", "check")]
    assert [error_of(*words) for words in later] == [e for e, words in zip(errors, MISSING) if words in later]


def test_the_built_in_data_need_not_exist():
    assert run.BUILT_IN == DEFAULT_DIR
    assert run._data_set(["--dataset_dir", DEFAULT_DIR]) is None
    assert run._data_set(["--resume", "--dataset_dir", "a"]) == run._data_set(["--dataset-dir=a"]) == "a"
    assert run._data_set(["--dataset_dir", "'inf'"]) == run._data_set(["--dataset_dir", "inf"]) == "inf"


@pytest.mark.parametrize("value", ["scans/*/t1.nii.gz", "scan_[12].nii", "['a','b']", "None", "no"])
@pytest.mark.parametrize("what", ["inference", "training"])
def test_what_names_images_otherwise_is_left_to_the_run(monkeypatch, error_of, what, value):
    runs = []
    monkeypatch.setattr(running, "run_bundle", lambda *arguments: runs.append(arguments))
    words = ("run", what, "--dataset_dir", value)
    if (what, value) == ("training", "no"):
        assert "no does not exist. Pass a folder with dataset.json" in error_of(*words)
    else:
        monkeypatch.setattr(sys, "argv", ["sparse3dunet", *words])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
        assert runs == [(what, [], ["--dataset_dir", value])]


@pytest.mark.parametrize("own", [True, False])
def test_monais_warning_is_of_configs_from_elsewhere(tmp_path, monkeypatch, own):
    (tmp_path / "mine.yaml").write_text("max_epochs: 3\n")
    text = "parsing config_file ['a']: any `\"_target_\"` value in it is resolved to an importable callable"
    monkeypatch.setattr("runpy.run_module", lambda *a, **k: [warnings.warn(t, stacklevel=1) for t in (text, "other")])
    monkeypatch.setattr(sys, "argv", [])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        overlay = ROOT / "bundle/configs/cpu.yaml" if own else tmp_path / "mine.yaml"
        running.run_bundle("training", [str(overlay)], ["--val_interval", "1"])
    assert [str(warning.message) for warning in shown] == (["other"] if own else [text, "other"])
