"""The bundle's own commands, each in a process of its own, as a user runs them."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output_dir
from sparse3dunet.metrics import surface_distances
from sparse3dunet.models.checkpoints import existing_model
from sparse3dunet.models.description import read_description
from sparse3dunet.networks import UNet3D
from sparse3dunet.training.settings import check_patch_size
from tests.conftest import ROOT, TINY, bundle_command, bundle_environment, make_dataset, run_bundle, run_training

CONFIGS = ROOT / "bundle/configs"
TRAIN, EVALUATE, INFERENCE = (CONFIGS / f"{name}.yaml" for name in ("train", "evaluate", "inference"))
EVALUATING = f"['{TRAIN}','{EVALUATE}']"


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr, of a run that must have failed readably."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert message.strip()
    return message


def test_training_leaves_what_it_says(trained):
    text = (trained / "training.out").read_text()
    line = r"epoch 2/2  0:00:00 left  loss \d\.\d{3}  waiting for data \d+ %  Dice 0\.\d{3} annotated, .* all  IoU "
    assert re.search(line, text)
    assert re.search(r"Trained 4 iterations in 0:\d\d:\d\d, waiting for data \d+ % of it", text)
    assert "Best val_mean_dice: " in text
    for path in ("models/model.pt", "eval/training.csv", "eval/pictures"):
        assert str(trained / path) in text
        assert (trained / path).exists()
    with (trained / "eval/training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("dice_annotated", "iou_unlabeled", "dice_all"))
    best = float(re.search(r"Best val_mean_dice: ([\d.]+) \(epoch (\d)\)", text)[1])
    scores = [float(row["dice_annotated"]) for row in rows]
    assert best == pytest.approx(max(scores), abs=6e-4), "the metric that selects the model is the one that is reported"
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert all(0 < float(row["data_wait"]) < 1 for row in rows)
    assert list((trained / "eval/tensorboard").glob("events*"))
    (picture,) = (trained / "eval/pictures").iterdir()
    assert picture.stem in json.loads((trained / "models/model.json").read_text())["validation"]
    assert matplotlib.image.imread(picture).std() > 0.01


def test_best_model_rebuilds_and_loads(trained):
    model = existing_model(trained / "models/model.pt")
    description = read_description(model)
    assert description.class_names == ("background", "shell", "core")
    UNet3D(**description.network).load_state_dict(torch.load(model, weights_only=True))


def test_training_is_repeatable_and_learns_nothing_from_references(trained, tmp_path):
    """The same seed gives the same weights, also when the dense labels are others: each class the next."""
    dataset = make_dataset(tmp_path / "dataset")
    for path in (dataset / "labelsDense").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) + 1) % 3, image.affine), path)
    assert run_training(dataset, tmp_path).returncode == 0
    first, second = (
        torch.load(root / "models/state/last.pt", weights_only=True)["network"] for root in (trained, tmp_path)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluating(trained):
    """Prints a table; scores.csv agrees with the segmentation counted by hand, of the volume that training held out.

    The other seed would split otherwise.
    """
    places = ("--dataset_dir", trained / "dataset", "--ckpt_dir", trained / "models", "--seed", 4)
    out = trained / "scored"
    result = run_bundle("run", "evaluating", "--config_file", EVALUATING, *places, "--output_dir", out)
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in ("background", "shell", "core", "unlabeled", "Dice", "scores.csv"))
    assert "nan" not in result.stdout
    with (out / "scores.csv").open() as file:
        rows = {(row["case"], row["region"], row["class"]): row for row in csv.DictReader(file)}
    (case,) = {key[0] for key in rows}
    held_out = json.loads((trained / "models/model.json").read_text())["validation"]
    assert held_out == [case]
    predict = ("--model_file", trained / "models/model.pt", "--output_dir", out / "predicted", "--overlap", "0.5")
    image = trained / f"dataset/imagesTr/{case}.nii.gz"
    assert run_bundle("run", "inference", "--config_file", INFERENCE, "--dataset_dir", image, *predict).returncode == 0
    segmentation = np.asarray(nib.load(out / f"predicted/{case}_seg.nii.gz").dataobj)
    dense, sparse = (
        np.asarray(nib.load(trained / f"dataset/{folder}/{case}.nii.gz").dataobj)
        for folder in ("labelsDense", "labelsTr")
    )
    for region, where in (("annotated", sparse < 3), ("unlabeled", sparse == 3), ("all", sparse < 9)):
        for number, name in enumerate(("background", "shell", "core")):
            guess, truth = ((array == number) & where for array in (segmentation, dense))
            row = rows[case, region, name]
            assert int(row["voxels"]) == truth.sum()
            assert float(row["dice"]) == pytest.approx(
                2 * (guess & truth).sum() / (guess.sum() + truth.sum()), abs=1e-4
            )
            assert float(row["iou"]) == pytest.approx((guess & truth).sum() / (guess | truth).sum(), abs=1e-4)
            if number and region == "all":
                distances = surface_distances(guess, truth, (2.0, 2.0, 2.0))
                assert float(row["assd_mm"]) == pytest.approx(distances.average, rel=1e-3)
                assert float(row["nsd"]) == pytest.approx(distances.surface_dice(4.0), abs=1e-4)
                assert row["surfaces"] == "3D"
            elif number:
                assert row["surfaces"] == {"annotated": "2D", "unlabeled": "3D"}[region]
    with (out / "scores_summary.csv").open() as file:
        summary = {(row["region"], row["class"], row["score"]): row for row in csv.DictReader(file)}
    assert summary["all", "core", "nsd"]["mean"] == rows[case, "all", "core"]["nsd"], "of one volume"


def test_run_without_an_id_is_the_same(trained, tmp_path):
    """Each config's `run` is its named command: run in full for the cheapest, by its parsed text for the others."""
    model = ("--model_file", trained / "models/model.pt")
    images = ("--dataset_dir", trained / "dataset/imagesTr/case_0.nii.gz")
    for words in (("run", "inference"), ("run",)):
        out = tmp_path / "_".join(words)
        result = run_bundle(*words, "--config_file", INFERENCE, *images, *model, "--output_dir", out)
        assert result.returncode == 0, result.stderr
        assert (out / "case_0_seg.nii.gz").is_file()
    for files, name in ((str(TRAIN), "training"), ([str(TRAIN), str(EVALUATE)], "evaluating")):
        workflow = create_workflow(config_file=files, workflow_type="train", meta_file=str(CONFIGS / "metadata.json"))
        assert workflow.parser["run"] == f"@{name}"


def test_one_volume_is_densified(tmp_path):
    """A single case, without a dense label: trained on, validated on, and no score that needs what is not there."""
    dataset = make_dataset(tmp_path / "dataset", 1)
    description = json.loads((dataset / "dataset.json").read_text())
    del description["training"][0]["reference"]
    (dataset / "dataset.json").write_text(json.dumps(description))
    result = run_training(dataset, tmp_path, "--max_epochs", 3, "--val_interval", 2)
    assert result.returncode == 0, result.stderr
    epochs = [line for line in result.stdout.splitlines() if line.startswith("epoch")]
    assert " annotated" in epochs[-1]
    assert " all" not in epochs[-1]
    assert ["Dice" in line for line in epochs] == [False, True, True], "validation after the interval and at the end"
    assert (tmp_path / "models/model.pt").is_file()


def test_a_class_that_nobody_annotated(tmp_path):
    dataset = make_dataset(tmp_path / "dataset")
    for path in (dataset / "labelsTr").iterdir():
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[array == 2] = 3
        nib.save(nib.Nifti1Image(array, image.affine), path)
    assert run_training(dataset, tmp_path).returncode == 0
    places = ("--dataset_dir", dataset, "--ckpt_dir", tmp_path / "models", "--output_dir", tmp_path / "eval")
    result = run_bundle("run", "evaluating", "--config_file", EVALUATING, *places)
    assert result.returncode == 0, result.stderr
    scores = result.stdout[result.stdout.index("Scores of") :]
    core = [line for line in scores.splitlines() if " core " in line]
    unknown = [bool(re.search(r"core[\s│]+0[\s│]+-", line)) for line in core]
    assert unknown == [True, False, False], "but by the dense label"
    assert "a dash: not evaluable" in " ".join(scores.split())
    assert "nan" not in result.stdout.lower()


def test_options(tmp_path):
    """Other label folder and values, batch normalisation, several workers, early stop."""
    dataset = make_dataset(tmp_path / "dataset")
    (dataset / "labelsTr").rename(dataset / "annotation")
    description = json.loads((dataset / "dataset.json").read_text())
    for case in description["training"]:
        case["label"] = case["label"].replace("labelsTr", "labelsDense")
        del case["reference"]
    (dataset / "dataset.json").write_text(json.dumps(description))
    for path in (dataset / "annotation").iterdir():
        image = nib.load(path)
        array = np.asarray(image.dataobj).astype(np.int16)
        array[array == 3] = np.where(np.arange((array == 3).sum()) % 2, 255, -1)
        nib.save(nib.Nifti1Image(array, image.affine), path)
    options = ("--label_dir", "annotation", "--reference_dir", "labelsDense", "--ignore_index", "[255,-1]")
    more = (
        "--network_def#norm",
        "batch",
        "--cache_rate",
        0.5,
        "--num_workers",
        2,
        "--patience",
        1,
        "--max_epochs",
        30,
        "--learning_rate",
        0,
    )
    result = run_training(dataset, tmp_path, *options, *more)
    assert result.returncode == 0, result.stderr
    assert " all" in result.stdout
    assert "epoch  2/30" in result.stdout
    assert "epoch  5/30" not in result.stdout, "nothing is learned at learning rate 0, so that training ends early"


def test_several_channels(tmp_path):
    """Three channels an image, as in the paper, from training to prediction."""
    dataset = make_dataset(tmp_path / "dataset", 2)
    for path in (dataset / "imagesTr").iterdir():
        image = nib.load(path)
        array = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.stack([array, -array, array**2], -1), image.affine), path)
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**description, "modality": {"0": "a", "1": "b", "2": "c"}}))
    result = run_training(dataset, tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_description(tmp_path / "models/model.pt").network["in_channels"] == 3
    places = ("--dataset_dir", dataset / "imagesTr", "--output_dir", tmp_path / "out")
    model = ("--model_file", tmp_path / "models/model.pt")
    result = run_bundle("run", "inference", "--config_file", INFERENCE, *places, *model)
    assert result.returncode == 0, result.stderr
    assert nib.load(tmp_path / "out/case_1_seg.nii.gz").shape == (24, 20, 18)
    make_dataset(tmp_path / "other", 1)
    places = ("--dataset_dir", tmp_path / "other/imagesTr", "--output_dir", tmp_path / "other/out")
    message = error_of(run_bundle("run", "inference", "--config_file", INFERENCE, *places, *model))
    assert "expected a 3D image with 3 channel(s)" in message


def spoil_nan(dataset: Path) -> None:
    path = dataset / "imagesTr/case_1.nii.gz"
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), path)


def spoil_label(change):
    def spoil(dataset: Path) -> None:
        path = dataset / "labelsTr/case_1.nii.gz"
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), path)

    return spoil


def spoil_truncate(dataset: Path) -> None:
    path = dataset / "imagesTr/case_1.nii.gz"
    path.write_bytes(path.read_bytes()[:1000])


def spoil_empty(dataset: Path) -> None:
    for path in sorted(dataset.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.rename(d.with_name("elsewhere")), ["does not exist", "--dataset_dir"]),
        (spoil_empty, ["dataset.json"]),
        (spoil_truncate, ["case_1.nii.gz", "truncated", "copy or export it again"]),
        (spoil_label(lambda a: a[:-2]), ["case_1.nii.gz", "(22, 20, 18)", "resample this one"]),
        (spoil_label(lambda a: np.where(a == 2, 9, a)), ["case_1.nii.gz", "label value 9", "ignore_index"]),
        (spoil_label(lambda a: a * 0 + 3), ["case_1.nii.gz", "no voxel is annotated", "Annotate at least one slice"]),
        (spoil_nan, ["case_1.nii.gz", "NaN", "Replace them"]),
    ],
    ids=["missing", "empty", "truncated", "shapes", "value", "unannotated", "nan"],
)
def test_bad_data_ends_in_one_message(dataset, tmp_path, spoil, words):
    spoil(dataset)
    # the patch size given: no check may hang on it being worked out from the data
    message = error_of(run_training(dataset, tmp_path, "--patch_size", "[16,16,16]"))
    assert all(word in message for word in words), message
    assert len(message.strip().splitlines()) == 1
    assert {path.name for path in (tmp_path / "models").iterdir()} <= {".lock", ".lock.json"}


def test_evaluating_looks_at_the_data_too(trained, dataset):
    """Bad data, and a data set with other classes than the model's, both before anything is scored."""
    places = ("--ckpt_dir", trained / "models", "--output_dir", dataset / "eval", "--dataset_dir", dataset)
    spoil_nan(dataset)
    message = error_of(run_bundle("run", "evaluating", "--config_file", EVALUATING, *places))
    assert "case_1.nii.gz" in message
    assert "NaN" in message
    description = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**description, "labels": {"0": "a", "1": "b"}}))
    message = error_of(run_bundle("run", "evaluating", "--config_file", EVALUATING, *places))
    assert "the model has 3 classes" in message
    assert not (dataset / "eval").exists()


def test_places_and_sizes_that_cannot_work():
    with pytest.raises(DataError, match=r"pass \./7 instead"):
        check_output_dir(7)
    with pytest.raises(DataError, match=r'--patch_size "\[64,64,64\]"'):
        check_patch_size(None, 16)
    with pytest.raises(DataError, match="2024 does not exist"):
        read_data_set(2024)


def test_settings_that_cannot_work(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    for options, words in [
        (("--patch_size", "[16,16,10]"), "patch_size [16, 16, 10]"),
        (("--output_dir", tmp_path / "file"), "is a file"),
        (("--label_dir", 2024), "2024: no such folder"),
        (("--max_epochs", 2.5), "max_epochs must be a whole number of at least 1, such as --max_epochs 10; got 2.5"),
        (("--val_interval", 0), "val_interval must be a number of epochs (--val_interval 2), or null; got 0"),
        (("--minutes", 0), "minutes must be a number above 0, such as --minutes 10, or null; got 0"),
    ]:
        message = error_of(run_training(dataset, tmp_path, *options))
        assert words in message, message


def test_evaluating_a_model_of_which_weights_are_missing(trained, tmp_path):
    (tmp_path / "model.json").write_bytes((trained / "models/model.json").read_bytes())
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    torch.save(dict(list(weights.items())[1:]), tmp_path / "model.pt")
    places = ("--dataset_dir", trained / "dataset", "--ckpt_dir", tmp_path, "--output_dir", tmp_path / "out")
    message = error_of(run_bundle("run", "evaluating", "--config_file", EVALUATING, *places))
    assert "model.pt: its weights do not fit the network that its .json describes: 1 differ" in message
    assert not (tmp_path / "out/scores.csv").exists()


def test_evaluating_without_a_model(dataset, tmp_path):
    places = ("--dataset_dir", dataset, "--ckpt_dir", tmp_path, "--output_dir", tmp_path / "eval")
    message = error_of(run_bundle("run", "evaluating", "--config_file", EVALUATING, *places))
    assert "no trained model" in message


def test_a_loss_that_is_not_finite(dataset, tmp_path):
    message = error_of(run_training(dataset, tmp_path, "--learning_rate", 1e30, "--epoch_length", 12))
    assert "the loss became" in message
    assert "Lower the learning rate" in message


@pytest.mark.slow
def test_killed_while_training_the_best_model_is_whole(dataset, tmp_path):
    """Killed without warning once a model is there, at three moments: it loads, and predicts."""
    places = ("--dataset_dir", dataset, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    command = bundle_command("run", "training", "--config_file", TRAIN, *places, *TINY, "--max_epochs", 1000)
    model = tmp_path / "models/model.pt"
    for wait in (0.0, 0.37, 0.81):
        before = model.stat().st_mtime_ns if model.exists() else 0
        process = subprocess.Popen(
            command, cwd=ROOT, env=bundle_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not model.exists() or model.stat().st_mtime_ns == before:
            assert process.poll() is None, "training ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        network = UNet3D(**read_description(model).network)
        network.load_state_dict(torch.load(existing_model(model), weights_only=True))
