"""What the trainer tells of itself."""

import csv
import re
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import timing
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from sparse3dunet.training import budget, speed
from sparse3dunet.training.budget import Budget, Validation
from sparse3dunet.training.log import COLUMNS, TrainingLog, last_iteration, read_log

LOADING, UPDATING, VALIDATING, STARTING = 0.02, 0.06, 0.2, 0.3  # seconds of the clock below
EPOCHS, ITERATIONS = 2, 4


class Clock:
    """Time that passes only as data are loaded and a network works: no timing of the machine is tested."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(timing, "perf_counter", clock.perf_counter)
    return clock


class SlowLoader:
    """Batches that take their time, and the first of all, for which workers would start, much more."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.started = False

    def __len__(self) -> int:
        return ITERATIONS

    def __iter__(self):
        for _ in range(ITERATIONS):
            self.clock.now += LOADING if self.started else STARTING
            self.started = True
            yield {"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}


class SlowNetwork(torch.nn.Linear):
    """Takes its time, while evaluating even more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1, 1)
        self.clock = clock

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.clock.now += UPDATING if self.training else VALIDATING
        return super().forward(image)


def make_trainer(output_dir: Path, clock: Clock) -> SupervisedTrainer:
    network = SlowNetwork(clock)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    evaluator = SupervisedEvaluator("cpu", [{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}], network)
    limit = Budget()
    log = TrainingLog(limit, evaluator, optimizer, output_dir, output_dir / "model.pt")
    handlers = [limit, Validation(evaluator, limit), log]
    loss = torch.nn.MSELoss()
    return SupervisedTrainer("cpu", EPOCHS, SlowLoader(clock), network, optimizer, loss, train_handlers=handlers)


def test_waiting_for_data_is_told_without_validation_and_start(tmp_path, capsys, clock):
    """20 ms of loading before each 60 ms of training: a quarter, in the line, the table and the summary."""
    trainer = make_trainer(tmp_path, clock)
    trainer.run()
    text = capsys.readouterr().out
    *lines, summary = re.findall(r"waiting for data (\d+) %", text)
    with (tmp_path / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert b"\r" not in (tmp_path / "training.csv").read_bytes()
    assert len(rows) == EPOCHS
    waits = [float(row["data_wait"]) for row in rows]
    first = (ITERATIONS - 1) * LOADING / ((ITERATIONS - 1) * LOADING + ITERATIONS * UPDATING)
    assert waits == pytest.approx([first, 0.25], abs=1e-3)
    assert [int(line) / 100 for line in lines] == pytest.approx(waits, abs=0.006)
    assert min(waits) <= int(summary) / 100 + 0.006
    assert int(summary) / 100 <= max(waits) + 0.006
    whole = STARTING + (EPOCHS * ITERATIONS - 1) * LOADING + EPOCHS * (ITERATIONS * UPDATING + VALIDATING)
    assert float(rows[-1]["seconds"]) == pytest.approx(whole, abs=0.06), "all was measured while they took place"


def test_training_again_and_ending_early(tmp_path, capsys, clock):
    """Within the first epoch of a second run, all of whose times begin anew."""
    trainer = make_trainer(tmp_path, clock)
    trainer.run()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: trainer.terminate())
    trainer.run()
    summaries = re.findall(r"Trained (\d+) iterations in .*, waiting for data (\d+) % of it", capsys.readouterr().out)
    assert [int(iterations) for iterations, _ in summaries] == [EPOCHS * ITERATIONS, 2]
    share = LOADING / (LOADING + 2 * UPDATING)  # one wait, since the first is not counted
    assert int(summaries[1][1]) / 100 == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(("epochs", "length", "warned"), [(2, 10, True), (2, 100, False)])
def test_a_training_of_few_iterations_says_so_at_its_start_and_end(epochs, length, warned, tmp_path, capsys):
    network = torch.nn.Linear(1, 1)
    batch = {"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}
    evaluator = SupervisedEvaluator("cpu", [batch], network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    limit = Budget()
    log = TrainingLog(limit, evaluator, optimizer, tmp_path, tmp_path / "model.pt")
    handlers = [limit, Validation(evaluator, limit), log]
    data = [batch] * length
    SupervisedTrainer("cpu", epochs, data, network, optimizer, torch.nn.MSELoss(), train_handlers=handlers).run()
    printed = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(printed) if f"{epochs * length} iterations hardly train" in line]
    assert len(told) == (2 if warned else 0)
    if warned:
        first_epoch = next(number for number, line in enumerate(printed) if line.startswith("epoch"))
        assert told[0] < first_epoch < told[1]


def test_minutes_that_would_be_enough():
    """200 iterations of 3 s take ten minutes."""
    assert "--minutes 10," in speed.warning(40, 3.0, in_minutes=True)
    assert speed.warning(200, 3.0, in_minutes=True) is None


@pytest.mark.parametrize("last", ["3", "3,", "3,x,1.0", "3,1e999", "", "\udcff,\udcff"])
def test_an_incomplete_row_is_no_row(tmp_path, last):
    """As a full disk leaves it, or damage."""
    file = tmp_path / "training.csv"
    rows = [",".join(COLUMNS), "1,10,2.5,0.1,1.5,0,0.5", "2,20,5,0.1,1.25,0,", last]
    file.write_bytes("\n".join(rows).encode(errors="surrogateescape"))
    assert last_iteration(file) == 20
    assert [(row["seconds"], row["loss"]) for row in read_log(file)] == [(2.5, 1.5), (5.0, 1.25)]
