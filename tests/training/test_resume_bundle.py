"""The bundle's own training goes on, after a kill or with other settings, as it promises."""

import csv
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from monai.data import DataLoader, Dataset

from sparse3dunet.training.resume import (
    leave_signals_to_trainer,
)
from tests.conftest import ROOT, TINY, bundle_command, bundle_environment, run_training
from tests.training.test_resume import assert_same


def start(dataset, out, *more):
    places = ("--dataset_dir", dataset, "--output_dir", out / "eval", "--ckpt_dir", out / "models")
    config = ("--config_file", ROOT / "bundle/configs/train.yaml")
    command = bundle_command("run", "training", *config, *places, *TINY, *more)
    return subprocess.Popen(
        command, cwd=ROOT, env=bundle_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


def bundle_outcome(out):
    last = torch.load(out / "models/state/last.pt", weights_only=True)
    last["trainer"].pop("seconds")
    with (out / "eval/training.csv").open() as file:
        rows = [row["loss"] for row in csv.DictReader(file)]
    return {"model": torch.load(out / "models/model.pt", weights_only=True), "last": last, "losses": rows}


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell who sent a signal")
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_workers_are_ended_by_their_trainer_alone(start):
    """However they were started; 3.14 begins with a server of which they are children."""
    loader = DataLoader(
        Dataset([1] * 1000), num_workers=1, multiprocessing_context=start, worker_init_fn=leave_signals_to_trainer
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(50):  # many more than are prepared in advance: the worker goes on
        next(batches)
    assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_killed_and_resumed_ends_in_the_same_weights(trained, tmp_path):
    """Killed without warning at two moments, told to end at a third one, with two worker processes."""
    options = ("--max_epochs", 4, "--num_workers", 2)
    reference = run_training(trained / "dataset", tmp_path / "reference", *options)
    assert reference.returncode == 0, reference.stderr
    out = tmp_path / "out"
    for epoch, wait in ((1, 0.0), (2, 0.05)):
        process = start(trained / "dataset", out, *options, "--resume")
        for line in process.stdout:
            if line.startswith(f"epoch {epoch}/"):
                break
        else:
            pytest.fail("training ended by itself")
        time.sleep(wait)
        process.kill()
        process.wait()
    process = start(trained / "dataset", out, *options, "--resume")
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("epoch 3/"):
            process.terminate()
    assert process.wait() in (128 + signal.SIGTERM, 0), text
    assert "Resuming after" in text
    assert "Traceback" not in text
    end = run_training(trained / "dataset", out, *options, "--resume")
    assert end.returncode == 0, end.stderr
    assert_same(bundle_outcome(out), bundle_outcome(tmp_path / "reference"))


@pytest.mark.parametrize(("options", "is_refused"), [((), True), (("--rare_share", 0), False)])
def test_a_training_that_a_version_without_weights_of_rare_classes_began(trained, tmp_path, options, is_refused):
    """It goes on as it began, and is told by the one setting that decides."""
    shutil.copytree(trained / "models", tmp_path / "models")
    file = tmp_path / "models/state/last.pt"
    state = torch.load(file, weights_only=True)
    for name in ("rare_share", "rare_class_weights", "loss#ce_class_weight"):
        del state["recipe"][name]
    torch.save(state, file)
    result = run_training(trained / "dataset", tmp_path, "--max_epochs", 3, "--resume", *options)
    assert result.returncode == int(is_refused), result.stderr
    assert ("began with other settings: rare_share 0 -> 0.01. Pass those" in result.stderr) == is_refused


def test_the_state_holds_no_pickled_object(trained):
    state = torch.load(trained / "models/state/last.pt", weights_only=True)
    assert state.pop("recipe")["train#deform#prob"] == 0.8
    assert {"network", "optimizer", "lr_scheduler", "early_stop", "trainer", "best", "random", "settings"} == set(state)
    assert state["trainer"]["iteration"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--learning_rate", 1.0), "learning_rate 0.003 -> 1.0"),
        (("--train#deform#prob", 0), "train#deform#prob 0.8 -> 0"),
        (("--optimizer#_target_", "torch.optim.SGD"), "optimizer#_target_ torch.optim.AdamW -> torch.optim.SGD"),
    ],
)
def test_another_recipe_is_refused(trained, tmp_path, options, words):
    shutil.copytree(trained / "models", tmp_path / "models")
    before = (tmp_path / "models/state/last.pt").read_bytes()
    result = run_training(trained / "dataset", tmp_path, "--max_epochs", 3, "--resume", *options)
    assert result.returncode == 1
    assert f"began with other settings: {words}. Pass those" in result.stderr
    assert (tmp_path / "models/state/last.pt").read_bytes() == before
