"""A training that was ended, in order or not, goes on as if nothing had happened."""

import csv
import math
import random
import re
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Loss
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, from_engine
from monai.transforms import RandGaussianNoised
from torch.optim.lr_scheduler import LambdaLR

from sparse3dunet.data.sampling import SeededDataset, SeededSampler
from sparse3dunet.errors import DataError
from sparse3dunet.models.checkpoints import BestModelSaver, is_better
from sparse3dunet.training.budget import Budget, Validation, warmup_cosine
from sparse3dunet.training.log import TrainingLog
from sparse3dunet.training.resume import (
    ResumableTraining,
    _changes,
    saved_iteration,
)
from tests.conftest import ROOT, bundle_environment
from tests.forked import start_module

EPOCHS, LENGTH, BATCH = 3, 4, 2


class Training:
    """All that the bundle's training is made of, in small: with dropout and noise, which draw random numbers."""

    def __init__(self, folder, epochs=EPOCHS, patience=99, settings=None, minutes=None):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 0.01)
        items = [{"image": torch.arange(4.0) - i, "label": torch.full((1,), i / 4)} for i in range(6)]
        sampler = SeededSampler([1.0] * 6, LENGTH * BATCH, 0, BATCH)
        dataset = SeededDataset(Dataset(items, RandGaussianNoised("image", prob=1)))
        # The squared error is 0 at best; its negative is the score.
        metric = {"score": Loss(lambda pred, label: -((pred - label) ** 2).mean(), from_engine(["pred", "label"]))}
        self.evaluator = SupervisedEvaluator(
            "cpu", DataLoader(items, batch_size=3), self.network, key_val_metric=metric, metric_cmp_fn=is_better,
            val_handlers=[BestModelSaver(self.network, folder / "model.pt")], decollate=False,
        )  # fmt: skip
        budget = Budget(minutes)
        schedule = LambdaLR(self.optimizer, lambda step: warmup_cosine(budget.share))
        self.log = TrainingLog(budget, self.evaluator, self.optimizer, folder, folder / "model.pt")
        self.trainer = SupervisedTrainer(
            "cpu", epochs, DataLoader(dataset, sampler=sampler, batch_size=BATCH), self.network, self.optimizer,
            torch.nn.MSELoss(),
            train_handlers=[
                budget, LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
                Validation(self.evaluator, budget), self.log,
            ],
        )  # fmt: skip
        stop = EarlyStopping(patience, lambda engine: engine.state.metrics["score"], self.trainer)
        self.evaluator.add_event_handler(Events.COMPLETED, stop)
        parts = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": schedule, "early_stop": stop}
        self.resumable = ResumableTraining(
            self.trainer, self.evaluator, folder / "last.pt", parts, settings, sampler=sampler, budget=budget
        )

    def end_at(self, iteration, number=signal.SIGTERM):
        self.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), lambda: signal.raise_signal(number))
        return self


def outcome(folder):
    """What a training leaves behind, but for times."""
    with (folder / "training.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in csv.DictReader(file)]
    last = torch.load(folder / "last.pt", weights_only=True)
    last["trainer"].pop("seconds")
    return {"model": torch.load(folder / "model.pt", weights_only=True), "last": last, "log": rows}


def assert_same(a, b):
    """Bit for bit, however nested."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    Training(folder).resumable.run()
    return folder


@pytest.fixture(scope="module")
def undisturbed(ended):
    return outcome(ended)


@pytest.mark.parametrize("iteration", range(1, EPOCHS * LENGTH + 1))
def test_ended_by_a_signal_and_resumed(tmp_path, capsys, undisturbed, iteration):
    """After any iteration, also an epoch's last one, whose validation still takes place."""
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        Training(tmp_path).end_at(iteration).resumable.run()
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == former
    assert "Stopped by SIGTERM; continue with --resume" in capsys.readouterr().out
    assert saved_iteration(tmp_path / "last.pt", True) == iteration
    torch.rand(3), np.random.rand(), random.random()  # another process has drawn other random numbers
    again = Training(tmp_path)
    if iteration < EPOCHS * LENGTH:
        with pytest.raises(SystemExit):
            again.end_at(iteration + 1, signal.SIGINT).resumable.run(resume=True)
        assert f"Resuming after {iteration} iterations" in capsys.readouterr().out
    Training(tmp_path).resumable.run(resume=True)
    assert_same(outcome(tmp_path), undisturbed)


def test_the_undisturbed_run_learns(undisturbed):
    assert len(undisturbed["log"]) == EPOCHS
    assert undisturbed["last"]["best"][1] >= 1
    losses = [float(row["loss"]) for row in undisturbed["log"]]
    assert len(set(losses)) == EPOCHS


def test_a_worse_model_never_replaces_the_best(tmp_path):
    with pytest.raises(SystemExit):
        Training(tmp_path).end_at(2 * LENGTH).resumable.run()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["best"] = [1.0, 1]  # no negative squared error is larger
    torch.save(state, tmp_path / "last.pt")
    before = (tmp_path / "model.pt").read_bytes()
    Training(tmp_path).resumable.run(resume=True)
    assert (tmp_path / "model.pt").read_bytes() == before
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"] == [1.0, 1]


def test_nothing_to_go_on_with(tmp_path, capsys):
    Training(tmp_path).resumable.run(resume=True)
    assert "last.pt does not exist yet: training starts" in capsys.readouterr().out
    before = (tmp_path / "last.pt").read_bytes()
    Training(tmp_path).resumable.run(resume=True)
    assert f"Training ended after epoch {EPOCHS}" in capsys.readouterr().out
    assert (tmp_path / "last.pt").read_bytes() == before


def test_more_epochs(tmp_path):
    """The schedule is the longer training's: its learning rates, from there on."""
    Training(tmp_path).resumable.run()
    longer = Training(tmp_path, epochs=5)
    longer.resumable.run(resume=True)
    assert longer.trainer.state.epoch == 5
    Training(tmp_path / "b", epochs=5).resumable.run()
    rates = [[row["learning_rate"] for row in outcome(folder)["log"]] for folder in (tmp_path, tmp_path / "b")]
    assert rates[0][EPOCHS:] == rates[1][EPOCHS:]
    assert len(rates[0]) == 5


def test_stopped_early_is_ended(tmp_path, capsys):
    training = Training(tmp_path, epochs=50, patience=1)
    training.resumable.run()
    epoch = training.trainer.state.epoch
    assert epoch < 50
    Training(tmp_path, epochs=50, patience=1).resumable.run(resume=True)
    text = capsys.readouterr().out
    assert f"Training ended after epoch {epoch}" in text
    assert "a larger --patience" in text
    Training(tmp_path, epochs=epoch, patience=99).resumable.run(resume=True)
    assert "a larger --max_epochs" in capsys.readouterr().out


def test_a_former_training_is_not_taken_for_this_one(tmp_path, capsys):
    Training(tmp_path).resumable.run()
    with pytest.raises(SystemExit):
        Training(tmp_path).end_at(1).resumable.run()
    (tmp_path / "last.pt").unlink()  # as if it had been killed before that was written
    Training(tmp_path).resumable.run()
    anew = Training(tmp_path)
    anew.trainer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        anew.resumable.run()
    assert not (tmp_path / "last.pt").exists()
    Training(tmp_path).resumable.run(resume=True)
    assert "does not exist yet: training starts" in capsys.readouterr().out


def test_the_state_of_an_earlier_version_is_refused_and_left(tmp_path):
    """Versions before 0.13 wrote it beside the model."""
    training = Training(tmp_path)
    training.resumable.path = tmp_path / "state/last.pt"
    torch.save({"recipe": {"report": "$earlier"}}, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(DataError, match=r"last\.pt: an earlier version .* Finish it with that version"):
        training.resumable.run(resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("when", ["iteration", pytest.param("validation", marks=pytest.mark.slow)])
def test_a_signal_to_one_of_two_processes_ends_both(tmp_path, when):
    given = (tmp_path, when)
    ranks = [start_module(__name__, *given, rank, cwd=ROOT, environment=bundle_environment()) for rank in (0, 1)]
    printed = [rank.communicate(120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [128 + signal.SIGTERM] * 2, printed
    assert saved_iteration(tmp_path / "last.pt", True) == (2 if when == "iteration" else LENGTH)


def _run_as_a_rank(folder, when, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    training = Training(folder / f"rank{rank}")
    training.resumable.path = folder / "last.pt"
    if rank == 1 and when == "iteration":
        training.end_at(2)
    if rank == 1 and when == "validation":
        event = Events.COMPLETED(once=1)
        training.evaluator.add_event_handler(event, lambda: signal.raise_signal(signal.SIGTERM))
    try:
        training.resumable.run()
    finally:
        torch.distributed.destroy_process_group()


def test_without_a_signal_handler_in_a_thread_of_its_own(tmp_path):
    import threading

    ended = []
    thread = threading.Thread(target=lambda: ended.append(Training(tmp_path).resumable.run()))
    thread.start()
    thread.join()
    assert ended == [None]


def test_a_flipped_bit_is_found(tmp_path):
    """PyTorch writes checksums, but does not look at them: a weight would be another one, without a word."""
    Training(tmp_path).resumable.run()
    state = tmp_path / "last.pt"
    content = bytearray(state.read_bytes())
    with zipfile.ZipFile(state) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[entry.header_offset + 30 + len(entry.filename) + entry.file_size // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(DataError, match=rf"last\.pt is damaged: its checksums differ at {re.escape(entry.filename)}"):
        Training(tmp_path).resumable.run(resume=True)


def test_faults_are_named(tmp_path):
    with pytest.raises(DataError, match=r"resume is 'last\.pt'; pass --resume without a value"):
        Training(tmp_path).resumable.run(resume="last.pt")
    Training(tmp_path, settings={"batch_size": 2, "spacing": None}).resumable.run()
    with pytest.raises(DataError, match=r"began with other settings: batch_size 2 -> 4\. Pass those"):
        Training(tmp_path, settings={"batch_size": 4, "spacing": None}).resumable.run(resume=True)
    torch.save({"network": {}}, tmp_path / "last.pt")
    with pytest.raises(DataError, match="another version"):
        Training(tmp_path).resumable.run(resume=True)
    assert saved_iteration(tmp_path / "last.pt", True) is None
    (tmp_path / "last.pt").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="is not the state of a training"):
        Training(tmp_path).resumable.run(resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.update(settings=[1]), "settings or recipe are not those"),
        (lambda state: state["trainer"].clear(), "its trainer, .* are not those"),
        (lambda state: state["trainer"].update(epoch_length=0), "epoch_length is 0; expected"),
        (lambda state: state["trainer"].update(iteration=-3), "iteration is -3; expected"),
        (lambda state: state["trainer"].update(iteration="x"), "iteration is 'x'; expected"),
        (lambda state: state.update(best=[1.0]), r"best validation is \[1\.0\]"),
        (lambda state: state.update(random={}), "its random does not fit this training"),
        (lambda state: state["network"].popitem(), r"its network does not fit .*Missing key"),
        (lambda state: state.update(optimizer=3), "its optimizer does not fit"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(tmp_path, ended, change, text):
    state = torch.load(ended / "last.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(DataError, match=rf"last\.pt: damaged, .*{text}.*--ckpt_dir") as error:
        Training(tmp_path).resumable.run(resume=True)
    assert "\n" not in str(error.value)


def test_a_state_does_not_say_how_long_a_training_runs(tmp_path, ended):
    state = torch.load(ended / "last.pt", weights_only=True)
    state["trainer"].update(max_epochs=EPOCHS + 9, run="x")
    torch.save(state, tmp_path / "last.pt")
    again = Training(tmp_path, epochs=EPOCHS + 1)
    again.resumable.run(resume=True)
    assert again.trainer.state.epoch == EPOCHS + 1


def test_a_component_that_moved_is_the_same():
    """Of this package; all else must be as it was."""
    then = {"budget#_target_": "sparse3dunet.budget.Budget", "a": "$import sparse3dunet.engines as engines", "b": 1}
    moved = "$import sparse3dunet.training.engines as engines"
    now = {"budget#_target_": "sparse3dunet.training.budget.Budget", "a": moved, "b": 1}
    assert _changes(then, now) == []
    assert len(_changes(then, {**now, "b": 2})) == 1
    assert len(_changes(then, {**now, "budget#_target_": "sparse3dunet.training.budget.Other"})) == 1
    assert len(_changes({"a": "torch.optim.SGD"}, {"a": "sparse3dunet.optim.SGD"})) == 1


def test_regions_in_another_order_are_other_outputs():
    then, now = {"all": [1, 2], "core": [2]}, {"core": [2], "all": [1, 2]}
    assert _changes({"regions": then, "loss#regions": then}, {"regions": dict(then), "loss#regions": then}) == []
    assert len(_changes({"regions": then, "loss#regions": then}, {"regions": now, "loss#regions": now})) == 2
    assert _changes({"intensity": {"mean": 1, "std": 2}}, {"intensity": {"std": 2, "mean": 1}}) == []


if __name__ == "__main__":
    _run_as_a_rank(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))


def test_a_training_of_another_version_is_refused(tmp_path):
    """Ids and expressions of the configs change from version to version."""
    before = {"class_names": ["a", "b"], "seed": 0}
    Training(tmp_path, settings=before).resumable.run()
    with pytest.raises(DataError, match=r"another version of sparse3dunet.*--pretrained"):
        Training(tmp_path, settings={**before, "schema_version": 1}).resumable.run(resume=True)


def test_a_model_that_it_began_from_is_passed_again(tmp_path):
    Training(tmp_path, settings={"pretrained": "a/model.pt"}).resumable.run()
    with pytest.raises(DataError, match=r"pass --pretrained a/model\.pt again, beside --resume"):
        Training(tmp_path, settings={}).resumable.run(resume=True)
    more = Training(tmp_path, epochs=EPOCHS + 1, settings={"pretrained": "moved/model.pt"})
    more.resumable.run(resume=True)
    assert more.trainer.state.epoch == EPOCHS + 1
