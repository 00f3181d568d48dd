"""Output of a training while it runs: progress bar, lines, and a CSV file."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer

from sparse3dunet.console import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inferers import WITHOUT_BFLOAT16, trains_in_bfloat16_on_a_cpu
from sparse3dunet.io.writing import append_csv, write_csv
from sparse3dunet.progress import StepProgress
from sparse3dunet.training import speed
from sparse3dunet.training.budget import Budget
from sparse3dunet.training.engines import METRIC_NAMES, clock, score_text, scores_in_words

COLUMNS = ("epoch", "iteration", "seconds", "learning_rate", "loss", "data_wait", *METRIC_NAMES)
TIMED = 8
"""Number of iterations after which the length of a training is estimated."""


class TrainingLog:
    """Handler of the trainer for a progress bar, a line per epoch, ``training.csv``, and a summary at the end.

    The bar shows the loss, the last Dice and the time left; if the output is no terminal, only the lines are printed.
    Attach it after the handler that validates at the end of epochs. For a resumed training, the rows written before are
    kept. With several processes (DDP) the first one prints and writes.

    The time that the trainer waits for data is reported as a share of the training time (``data_wait`` in
    ``training.csv``, a fraction): from requesting a batch until it is there, relative to the whole iteration. Not
    included are validation and the wait for a run's first batch, while workers start. Without workers, all loading is
    waiting.

    Args:
        budget: the trainer's budget.
        evaluator: the evaluator for validation, with a :class:`~sparse3dunet.training.engines.ScoreReport`.
        optimizer: its first group's learning rate is logged.
        output_dir: folder for ``training.csv`` (an earlier training's is replaced), in which pictures are.
        model_file: file of the best model, for the summary.
        title: title of the bar.
        brief: whether to print less: lines begin with the title, and there is no summary.
    """

    def __init__(
        self,
        budget: Budget,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        output_dir: str | Path,
        model_file: str | Path,
        title: str = "training",
        brief: bool = False,
    ) -> None:
        self.budget = budget
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.csv_file = Path(output_dir) / "training.csv"
        self.model_file = Path(model_file)
        self.title, self.brief = title, brief
        self.last_dice = ""  # of the last validation, next to the bar
        self.waiting, self.training = Timer(), Timer()
        self.marks: list[tuple[float, float]] = []  # both times, at the run's first batch and each epoch's end

    def attach(self, engine: Engine) -> None:
        state: Any = engine.state
        state.epoch_losses = []  # of the epoch so far
        engine.state_dict_user_keys.append("epoch_losses")
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        # After `iteration`, which waits for the loss: only then has a GPU done its work.
        self.training.attach(engine, resume=Events.GET_BATCH_STARTED, pause=Events.ITERATION_COMPLETED)
        self.waiting.attach(engine, resume=Events.GET_BATCH_STARTED, pause=Events.GET_BATCH_COMPLETED)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        state: Any = engine.state
        self.is_first = idist.get_rank() == 0
        if state.iteration == 0:
            state.epoch_losses = []
        self.marks.clear()
        if self.is_first:
            self._begin_csv(state.epoch)
        in_time = self.budget.total is not None
        total = self.budget.total or state.max_epochs * state.epoch_length
        self.bar = StepProgress(self.title, total, " s" if in_time else "", shown=self.is_first)
        if not engine.has_event_handler(self.fail):
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)  # last, since it raises

    def batch(self) -> None:
        if not self.marks:
            self.marks.append(self._times())

    def iteration(self, engine: Engine) -> None:
        state: Any = engine.state
        loss = float(state.output[0]["loss"])
        if not math.isfinite(loss):
            other = f", or do without bfloat16 ({WITHOUT_BFLOAT16})," if trains_in_bfloat16_on_a_cpu(engine) else ""
            raise DataError(
                f"the loss became {loss} at iteration {state.iteration}. Lower the learning rate (--learning_rate)"
                f"{other} and train again; the best model so far, if any, is {self.model_file}."
            )
        state.epoch_losses.append(loss)
        done = state.iteration if self.budget.total is None else state.seconds
        if state.iteration == TIMED and self.is_first and not self.brief:
            self._warn(round(state.iteration / max(self.budget.share, 1e-9)))
        self.bar.update(done, f"loss {loss:.3f}{self.last_dice}  {clock(self.budget.seconds_left)} left")

    def epoch(self, engine: Engine) -> None:
        state: Any = engine.state
        loss = sum(state.epoch_losses) / len(state.epoch_losses)
        state.epoch_losses.clear()
        self.budget.tick()
        data_wait = self._data_wait(self.marks[-1])
        self.marks.append(self._times())
        scores = self.evaluator.state.metrics if self.evaluator.state.epoch == state.epoch else {}
        if not self.is_first:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        values = [f"{state.seconds:.1f}", f"{rate:.3g}", f"{loss:.4f}", f"{data_wait:.3f}"]
        values += [f"{scores[name]:.4f}" if name in scores else "" for name in METRIC_NAMES]
        append_csv(self.csv_file, [state.epoch, state.iteration, *values])
        if "dice_annotated" in scores:
            self.last_dice = f"  Dice {scores['dice_annotated']:.3f}"
        wait = "" if self.brief else f"  waiting for data {100 * data_wait:.0f} %"
        left = clock(self.budget.seconds_left)
        print(f"{self._epoch_in_words(state)}  {left} left  loss {loss:.3f}{wait}{scores_in_words(scores)}")

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Remove the bar before the error is shown."""
        self.bar.close()
        raise error

    def finish(self, engine: Engine) -> None:
        self.bar.close()
        if not self.is_first or self.brief:
            return
        state: Any = self.evaluator.state
        best = None if math.isnan(state.best_metric) else state.best_metric
        data_wait = self._data_wait(self.marks[0]) if self.marks else 0
        self._warn(engine.state.iteration)
        print(
            f"Trained {engine.state.iteration} iterations in {clock(self.budget.seconds)}, "
            f"waiting for data {100 * data_wait:.0f} % of it (without validation). "
            f"Best {state.key_metric_name}: {score_text(best)} (epoch {state.best_metric_epoch}). "
            f"Last: {scores_in_words(state.metrics).strip()}.\n"
            f"Model: {self.model_file}  log: {self.csv_file}  pictures: {self.csv_file.parent / 'pictures'}"
        )

    def _warn(self, iterations: int) -> None:
        """Say so if the training is too short, of so many iterations."""
        each = self.budget.seconds / max(self.budget.share * iterations, 1)
        if text := speed.warning(iterations, each, in_minutes=self.budget.total is not None):
            print(text, flush=True)

    def _epoch_in_words(self, state: Any) -> str:
        if self.brief:
            return self.title
        if self.budget.total is not None:
            return f"epoch {state.epoch:>3}"
        return f"epoch {state.epoch:>{len(str(state.max_epochs))}}/{state.max_epochs}"

    def _begin_csv(self, epochs: int) -> None:
        """Start the file, keeping the rows of epochs that are done."""
        before = [row for row in _rows(self.csv_file) if (_number(row.get("epoch")) or math.inf) <= epochs]
        rows = [[row.get(name, "") for name in COLUMNS] for row in before if None not in row.values()]
        write_csv(self.csv_file, [COLUMNS, *rows])

    def _times(self) -> tuple[float, float]:
        return self.waiting.value(), self.training.value()

    def _data_wait(self, since: tuple[float, float]) -> float:
        waiting, training = (after - before for after, before in zip(self._times(), since))
        return waiting / training if training else 0.0


class EvaluationProgress:
    """Handler of an evaluator that shows a bar over its batches, in a terminal only."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"))
        total = engine.state.epoch_length or 0
        self.bar = StepProgress("evaluating", total, " volumes", *times, shown=idist.get_rank() == 0)
        self.bar.update(0)

    def iteration(self, engine: Engine) -> None:
        self.bar.update(engine.state.iteration)

    def finish(self) -> None:
        self.bar.close()


def last_iteration(path: str | Path) -> int:
    """Return the number of iterations in a ``training.csv``; 0 if there is no such file."""
    return max((int(number) for row in _rows(path) if (number := _number(row["iteration"]))), default=0)


def read_log(path: str | Path) -> list[dict[str, float | None]]:
    """Read a ``training.csv`` by row: ``seconds``, ``loss``, and ``dice`` on annotated voxels, None if not validated.

    The list is empty if there is no such file.
    """
    names = {"seconds": "seconds", "loss": "loss", "dice": "dice_annotated"}
    return [{key: _number(row.get(name)) for key, name in names.items()} for row in _rows(path)]


def _rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a ``training.csv`` that have an iteration; the last one may be incomplete."""
    if not Path(path).is_file():
        return []
    with Path(path).open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            rows = list(csv.DictReader(file))
        except csv.Error:  # not what was written there
            return []
    return [row for row in rows if _number(row.get("iteration")) is not None]


def _number(text: str | None) -> float | None:
    """Return a cell's number; None if there is none, or not a finite one."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
