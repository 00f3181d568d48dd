"""Data as people have them, through the bundle's own commands: trained on and segmented without a conversion."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from tests.conftest import ROOT, TINY, make_volume, run_bundle, run_training, write_nifti

TRAIN, CROSSVAL, EVALUATE, INFERENCE = (
    ROOT / f"bundle/configs/{name}.yaml" for name in ("train", "crossval", "evaluate", "inference")
)
SAGITTAL = np.array([[0, 0, 3.0, 5], [-1, 0, 0, 7], [0, 2, 0, -9], [0, 0, 0, 1]])
"""Affine of a sagittal stack."""


def make_nnunet(root: Path) -> Path:
    """An nnU-Net v2 raw folder: two channels, and its ignore label."""
    for number in range(3):
        image, _, sparse = make_volume(number)
        for channel, array in enumerate((image, -image)):
            write_nifti(root / f"imagesTr/kidney_{number}_{channel:04d}.nii.gz", array, SAGITTAL)
            write_nifti(root / f"imagesTs/kidney_{number}_{channel:04d}.nii.gz", array, SAGITTAL)
        write_nifti(root / f"labelsTr/kidney_{number}.nii.gz", sparse, SAGITTAL)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "shell": 1, "core": 2, "ignore": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunet_raw_folder(tmp_path):
    """Trained on as it is; channels in files of their own are put together for prediction, too."""
    dataset = make_nnunet(tmp_path / "Dataset001_Kidney")
    result = run_training(dataset, tmp_path)
    assert result.returncode == 0, result.stderr
    model = json.loads((tmp_path / "models/model.json").read_text())
    assert model["network"]["in_channels"] == 2
    assert model["class_names"] == ["background", "shell", "core"]
    assert sorted(model["training"] + model["validation"]) == ["kidney_0", "kidney_1", "kidney_2"]
    places = ("--dataset_dir", dataset / "imagesTs", "--output_dir", tmp_path / "out")
    result = run_bundle(
        "run", "inference", "--config_file", INFERENCE, *places, "--model_file", tmp_path / "models/model.pt"
    )
    assert result.returncode == 0, result.stderr
    assert [p.name for p in sorted((tmp_path / "out").glob("*.nii.gz"))] == [f"kidney_{i}_seg.nii.gz" for i in range(3)]
    segmentation = nib.load(tmp_path / "out/kidney_1_seg.nii.gz")
    assert segmentation.shape == (24, 20, 18)
    assert np.allclose(segmentation.affine, SAGITTAL)
    assert sorted(p.stem for p in (tmp_path / "out/pictures").iterdir()) == ["kidney_0", "kidney_1", "kidney_2"]


def test_plain_pairs_with_other_class_values(tmp_path):
    """Images with labels beside them; classes 0, 100 and 200; slices found; resampled; classes and cases in balance.

    What is predicted lies on the image's own grid and has the labels' own values.
    """
    affine = SAGITTAL
    for number in range(2):
        image, dense, sparse = make_volume(number)
        write_nifti(tmp_path / f"data/scan{number}.nii.gz", image, affine)
        label = np.where(sparse < 3, np.array([0, 100, 200], np.uint8)[dense], 0).astype(np.uint8)
        write_nifti(tmp_path / f"data/scan{number}_seg.nii.gz", label, affine)
    options = ("--annotated_slices", "all", "--spacing", "[2,2,2]", "--class_weighting", "inverse_sqrt")
    balance = ("--class_balance", 0.5, "--case_balance", 1, "--val_fraction", 0, "--epoch_length", 20)
    result = run_training(tmp_path / "data", tmp_path, *options, *balance)
    assert result.returncode == 0, result.stderr
    assert "class 200" in result.stdout, "the classes' counts are reported"
    model = json.loads((tmp_path / "models/model.json").read_text())
    assert (model["class_values"], model["spacing"]) == ([0, 100, 200], [2, 2, 2])
    places = ("--dataset_dir", tmp_path / "data/scan0.nii.gz", "--output_dir", tmp_path / "out")
    result = run_bundle(
        "run", "inference", "--config_file", INFERENCE, *places, "--model_file", tmp_path / "models/model.pt"
    )
    assert result.returncode == 0, result.stderr
    segmentation = nib.load(tmp_path / "out/scan0_seg.nii.gz")
    assert segmentation.shape == (24, 20, 18)
    assert np.allclose(segmentation.affine, affine)
    values = np.unique(np.asarray(segmentation.dataobj))
    assert set(values) <= {0, 100, 200}
    assert len(values) > 1


def test_evaluating_reads_the_annotation_as_training_did(tmp_path):
    """Without the option that training had, the scores are training's own; other class values are refused."""
    for number in range(2):
        image, dense, sparse = make_volume(number)
        write_nifti(tmp_path / f"data/scan{number}.nii.gz", image)
        write_nifti(tmp_path / f"data/scan{number}_seg.nii.gz", np.where(sparse < 3, dense, 0).astype(np.uint8))
    result = run_training(tmp_path / "data", tmp_path, "--annotated_slices", "all", "--overlap", 0.5, "--max_epochs", 1)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "eval/training.csv").open() as file:
        (trained,) = csv.DictReader(file)
    config = ("--config_file", f"['{TRAIN}','{EVALUATE}']", "--ckpt_dir", tmp_path / "models")
    result = run_bundle(
        "run", "evaluating", *config, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out/scores.csv").open() as file:
        scores = [float(row["dice"]) for row in csv.DictReader(file) if row["class"] != "background" and row["dice"]]
    assert np.mean(scores) == pytest.approx(float(trained["dice_annotated"]), abs=2e-3)
    assert "Annotated slices: all, as set for the model's training" in result.stdout
    assert "pass --annotated_slices None" in result.stdout
    for number in range(2):
        path = tmp_path / f"data/scan{number}_seg.nii.gz"
        write_nifti(path, np.asarray(nib.load(path).dataobj) * 50)
    result = run_bundle(
        "run", "evaluating", *config, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path / "out"
    )
    assert result.returncode == 1
    assert "label value 50" in result.stderr


def test_references_are_resampled_onto_the_images_grid(dataset):
    """However a header's last digits round."""
    for path in (dataset / "labelsDense").iterdir():
        image = nib.load(path)
        affine = image.affine.copy()
        affine[:3, :3] *= 1 - 1e-7
        write_nifti(path, np.asarray(image.dataobj), affine)
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser.update({"dataset_dir": str(dataset), "spacing": [1.6, 1.6, 16.0 / 3], "val_fraction": 0})
    parser["steps"] = {"_target_": "Compose", "transforms": "@load"}
    data = parser.get_parsed_content("steps")(parser.get_parsed_content("split")[1][0])
    assert {tuple(data[key].shape) for key in ("image", "label", "weight", "reference")} == {(1, 30, 25, 7)}


@pytest.mark.slow
def test_cross_validation_over_slices(dataset, tmp_path):
    """One command: a table of the folds, whose figures are those of their scores, on slices never trained on."""
    places = ("--dataset_dir", dataset, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    config = ("--config_file", f"['{TRAIN}','{CROSSVAL}']")
    options = ("--max_epochs", 1, "--folds", 2, "--spacing", "[1,1,1]")  # a slice becomes two: still one
    result = run_bundle("run", "cross_validating", *config, *places, *TINY, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "IoU on held-out slices" in result.stdout
    with (tmp_path / "eval/crossval.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == ["1", "2", "mean"]
    assert [int(row["slices"]) for row in rows][2] == 9, "three slices in each of three volumes"
    for fold, row in enumerate(rows[:2]):
        with (tmp_path / f"eval/fold_{fold}/scores.csv").open() as file:
            scores = [s for s in csv.DictReader(file) if s["class"] == "shell"]
        assert {s["region"] for s in scores} == {"annotated"}, "dense labels play no part"
        values = [float(s["iou"]) for s in scores if s["iou"]]
        assert int(row["shell n"]) == len(values)
        assert float(row["shell"]) == pytest.approx(np.mean(values), abs=1e-4)
        assert (tmp_path / f"models/fold_{fold}/model.pt").is_file()
    assert float(rows[2]["core"]) == pytest.approx(np.mean([float(row["core"]) for row in rows[:2]]), abs=1e-3)
    with (tmp_path / "eval/crossval_scores.csv").open() as file:
        assert {row["fold"] for row in csv.DictReader(file)} == {"1", "2", "all"}
    assert "NSD: within 2 mm" in " ".join(result.stdout.split()), "twice the voxels that the network sees"
    other = ("--max_epochs", 1, "--folds", 3, "--spacing", "[1,1,1]", "--resume")
    result = run_bundle("run", "cross_validating", *config, *places, *TINY, *other)
    assert result.returncode == 1
    assert "began with other settings: folds 2 -> 3" in result.stderr, "other slices were held out"


def test_cross_validation_without_slices(dataset, tmp_path):
    """Scribbles cannot be held out by slices: told before anything is trained."""
    path = dataset / "labelsTr/case_1.nii.gz"
    image = nib.load(path)
    label = np.asarray(image.dataobj).copy()
    label[::2, ::2, ::2] = 3
    write_nifti(path, label, image.affine)
    places = ("--dataset_dir", dataset, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    config = ("--config_file", f"['{TRAIN}','{CROSSVAL}']")
    result = run_bundle("run", "cross_validating", *config, *places, *TINY)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "not made of slices" in result.stderr
    assert "case_1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "models").exists()
