"""Trainings by epochs and by minutes: when they end, how they learn until then, when they validate."""

import csv
import signal

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch.optim.lr_scheduler import LambdaLR

from sparse3dunet.errors import DataError
from sparse3dunet.training import budget as budgets
from sparse3dunet.training.budget import Budget, Validation, warmup_cosine
from sparse3dunet.training.log import TrainingLog
from sparse3dunet.training.resume import ResumableTraining

UPDATING, VALIDATING = 2.0, 3.0  # seconds of the clock below
LENGTH = 5


class Clock:
    """Time that passes only as a network works: no timing of the machine is tested."""

    now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    return clock


class Network(torch.nn.Linear):
    def __init__(self, clock):
        super().__init__(1, 1)
        self.clock = clock
        self.validations = []

    def forward(self, image):
        self.clock.now += UPDATING if self.training else VALIDATING
        if not self.training:
            self.validations.append(self.clock.now - VALIDATING - 100)
        return super().forward(image)


def make(folder, clock, minutes=None, interval=1, epochs=3):
    torch.manual_seed(0)
    network = Network(clock)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    items = [{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}] * LENGTH
    evaluator = SupervisedEvaluator("cpu", items[:1], network)
    budget = Budget(minutes)
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine(budget.share))
    rates = []
    handlers = [
        budget,
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False, step_transform=lambda engine: ()),
        Validation(evaluator, budget, interval),
        TrainingLog(budget, evaluator, optimizer, folder, folder / "model.pt"),
    ]
    loss = lambda pred, label: rates.append(optimizer.param_groups[0]["lr"]) or (0 * pred).sum()  # noqa: E731
    trainer = SupervisedTrainer("cpu", epochs, items, network, optimizer, loss, train_handlers=handlers)
    parts = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    resumable = ResumableTraining(trainer, evaluator, folder / "last.pt", parts, budget=budget)
    return trainer, network, rates, resumable


def test_epochs_as_monais_schedule(tmp_path, clock):
    trainer, network, rates, _ = make(tmp_path, clock, epochs=4)
    trainer.run()
    assert trainer.state.iteration == 4 * LENGTH
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=4 * LENGTH)
    expected = []
    for _ in rates:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, abs=1e-12)
    assert len(network.validations) == 4


@pytest.mark.parametrize(("interval", "expected"), [(1, 7), (3, 3), (7, 1), (9, 1), (None, 1)])
def test_validation_after_some_epochs_and_the_last(tmp_path, clock, interval, expected):
    trainer, network, _, _ = make(tmp_path, clock, interval=interval, epochs=7)
    trainer.run()
    assert len(network.validations) == expected
    assert trainer.state.epoch == 7


@pytest.mark.parametrize("minutes", [0.1, 1, 7.3])
def test_minutes(tmp_path, clock, capsys, minutes):
    """It ends when they are over, within an iteration, the last validation in it; and rates go down to 0 by then."""
    trainer, network, rates, resumable = make(tmp_path, clock, minutes)
    resumable.run()
    seconds = clock.now - 100
    known = len(network.validations) > 1  # how long one takes
    assert abs(seconds - (0 if known else VALIDATING) - 60 * minutes) <= UPDATING
    assert trainer.state.seconds == pytest.approx(seconds)
    in_training = trainer.state.iteration * UPDATING
    assert in_training + VALIDATING * len(network.validations) == pytest.approx(seconds)
    assert max(rates) == pytest.approx(1, abs=0.1) if minutes >= 1 else 0 < max(rates) <= 1
    assert rates[-1] < 0.02 or minutes < 1
    with (tmp_path / "training.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["seconds"]) == pytest.approx(seconds, abs=0.1)
    text = capsys.readouterr().out
    assert "0:00:00 left" in text
    assert "/1000000000" not in text
    assert f"Trained {trainer.state.iteration} iterations" in text


def test_validation_takes_a_twentieth_of_the_minutes(tmp_path, clock):
    trainer, network, _, _ = make(tmp_path, clock, minutes=20, interval=1)
    trainer.run()
    spent = VALIDATING * len(network.validations)
    assert 0.04 * 1200 < spent <= 0.05 * 1200 + VALIDATING
    assert network.validations[0] == pytest.approx(0.2 * 1200, abs=2 * LENGTH * UPDATING)
    assert network.validations[-1] == pytest.approx(1200 - VALIDATING, abs=UPDATING)


def test_minutes_are_those_of_all_parts(tmp_path, clock, capsys):
    trainer, network, _, resumable = make(tmp_path, clock, minutes=2)
    network.register_forward_hook(
        lambda *_: signal.raise_signal(signal.SIGTERM) if trainer.state.iteration == 18 else None
    )
    with pytest.raises(SystemExit):
        resumable.run()
    first = clock.now - 100
    assert first == 18 * UPDATING + VALIDATING * len(network.validations)
    clock.now += 1000  # until it goes on
    trainer, network, rates, resumable = make(tmp_path, clock, minutes=2)
    resumable.run(resume=True)
    assert clock.now - 1100 == pytest.approx(120, abs=UPDATING)
    assert rates[0] == pytest.approx(warmup_cosine(first / (120 - VALIDATING)))
    assert trainer.state.iteration > 18

    capsys.readouterr()
    make(tmp_path, clock, minutes=2)[-1].run(resume=True)
    assert "Training ended after epoch" in (text := capsys.readouterr().out)
    assert "a larger --minutes" in text
    before = clock.now
    make(tmp_path, clock, minutes=3)[-1].run(resume=True)
    assert clock.now - before == pytest.approx(60, abs=VALIDATING + UPDATING)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), "ten", True])
def test_no_minutes(minutes):
    with pytest.raises(DataError, match="--minutes 10"):
        Budget(minutes)


@pytest.mark.parametrize("interval", [0, -2, 1.5, "often", True])
def test_no_interval(interval):
    with pytest.raises(DataError, match="--val_interval 2"):
        Validation(None, Budget(), interval)
