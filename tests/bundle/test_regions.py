"""Regions in the real commands: training, evaluating, predicting, and what is refused."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch

from sparse3dunet.models.description import read_description
from tests.conftest import ROOT, make_dataset, run_bundle, run_package, run_sparse3dunet, run_training
from tests.data.test_datalist import change_json
from tests.data.test_regions import REGIONS

CONFIGS = ROOT / "bundle/configs"
EVALUATING = f"['{CONFIGS}/train.yaml','{CONFIGS}/evaluate.yaml']"


@pytest.fixture(scope="module")
def by_region(tmp_path_factory):
    """A folder with a data set with regions, and a training on it."""
    root = tmp_path_factory.mktemp("regions")
    change_json(make_dataset(root / "dataset"), regions=REGIONS)
    result = run_training(root / "dataset", root, "--epoch_length", 15, "--learning_rate", 0.02)
    assert result.returncode == 0, result.stderr
    assert "region whole: shell, core; written as shell" in result.stdout
    return root


def test_the_model_says_it(by_region):
    description = read_description(by_region / "models/model.pt")
    assert dict(description.regions) == {"whole": [1, 2], "inside": [2]}
    assert description.class_names == ("background", "shell", "core")
    assert description.network["out_channels"] == 2


def test_scores_are_those_of_what_is_predicted(by_region, tmp_path):
    """By name of the region, and the same as of the files that are written."""
    root = by_region
    result = run_bundle(
        *("run", "evaluating", "--config_file", EVALUATING, "--dataset_dir", root / "dataset", "--reference_dir"),
        *("labelsDense", "--ckpt_dir", root / "models", "--output_dir", tmp_path / "scores"),
    )
    assert result.returncode == 0, result.stderr
    assert "inside" in result.stdout
    with (tmp_path / "scores/scores.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file) if row["region"] == "all"}
    assert list(rows) == ["background", "whole", "inside"]
    case = rows["whole"]["case"]
    image = root / f"dataset/imagesTr/{case}.nii.gz"
    result = run_sparse3dunet(
        *("predict", root / "models", image, "-o", tmp_path / "out", "--overlap", 0.5),
        *("--probabilities", "--confidence", "--format", "nii.gz"),
    )
    assert result.returncode == 0, result.stderr
    segmentation, prob, truth = (
        np.asarray(nib.load(path).dataobj)
        for path in (
            tmp_path / f"out/{case}_seg.nii.gz",
            tmp_path / f"out/{case}_prob.nii.gz",
            root / f"dataset/labelsDense/{case}.nii.gz",
        )
    )
    assert len(np.unique(segmentation)) > 1, "it has learned something"
    assert prob.shape == (*segmentation.shape, 2)
    expected = np.where(prob[..., 1] > 0.5, 2, np.where(prob[..., 0] > 0.5, 1, 0))
    assert (expected == segmentation).mean() > 0.999, "region over region"
    for name, classes in {"background": [0], "whole": [1, 2], "inside": [2]}.items():
        found, true = np.isin(segmentation, classes), np.isin(truth, classes)
        assert float(rows[name]["dice"]) == pytest.approx(
            2 * (found & true).sum() / (found.sum() + true.sum()), abs=2e-3
        )


def test_monais_chain_of_transforms_gives_the_same(by_region, tmp_path):
    config = ("--config_file", CONFIGS / "inference.yaml", "--model_file", by_region / "models/model.pt")
    images = ("--dataset_dir", by_region / "dataset/imagesTr")
    found = []
    for name, more in {"ours": (), "monai": ("--inference", '["$@evaluator.run()"]')}.items():
        result = run_bundle("run", "inference", *config, *images, "--output_dir", tmp_path / name, *more)
        assert result.returncode == 0, result.stderr
        found.append(np.asarray(nib.load(tmp_path / name / "case_1_seg.nii.gz").dataobj))
    assert np.array_equal(*found)
    assert len(np.unique(found[0])) > 1


def test_packaging_is_refused(by_region, tmp_path):
    result = run_package(by_region / "models", tmp_path)
    assert result.returncode == 1
    assert "was trained for regions (whole, inside)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_loss_for_classes_is_refused(by_region, tmp_path):
    more = ("--loss", "{'_target_': 'sparse3dunet.losses.MaskedCrossEntropyLoss'}")
    result = run_training(by_region / "dataset", tmp_path, *more)
    assert result.returncode == 1
    assert "the data set declares regions (whole, inside), but the loss is for classes" in result.stderr


def test_the_head_is_new_when_regions_replace_classes(by_region, tmp_path):
    """Even if the network has as many outputs as before."""
    dataset = make_dataset(tmp_path / "dataset")
    for path in dataset.glob("labels*/*"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) % 3 // 2, image.affine), path)
    change_json(dataset, labels={"0": "background", "1": "core"})
    result = run_training(dataset, tmp_path, "--pretrained", by_region / "models", "--max_epochs", 1)
    assert result.returncode == 0, result.stderr
    assert "The head is new: classes (background, core) instead of regions." in result.stdout
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert weights["head.weight"].shape[0] == 2
