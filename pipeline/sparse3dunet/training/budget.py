"""Length of a training, in epochs or in minutes on any machine, and what depends on it."""

from __future__ import annotations

import math
import time
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from sparse3dunet.errors import DataError

UNLIMITED = 10**9
"""The trainer's number of epochs if minutes end the training."""


def is_finite(value: Any) -> bool:
    """Return whether a setting is a number, and neither a truth value, nor NaN, nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def is_positive(value: Any) -> bool:
    """Return whether a setting is a number above 0."""
    return is_finite(value) and value > 0


def check_minutes(minutes: Any) -> None:
    """Raise DataError unless the setting is a positive number, or None for no limit."""
    if minutes is not None and not is_positive(minutes):
        raise DataError(f"minutes must be a number above 0, such as --minutes 10, or null; got {minutes!r}.")


class Budget:
    """Handler that measures a training's time and, given minutes, ends it; attach it first.

    Minutes are counted from the first iteration, over all parts of a resumed training, and include validation, also
    the time that the last validation is expected to take. With several processes (DDP) the longest time counts for all.

    Keeps ``engine.state.seconds``, the time of the whole training so far, from which a resumed training continues.

    Args:
        minutes: the limit; None to end by the trainer's ``max_epochs``.

    Raises:
        DataError: when `minutes` is not a positive number.
    """

    def __init__(self, minutes: float | None = None) -> None:
        check_minutes(minutes)
        self.minutes = minutes
        self.total = None if minutes is None else 60.0 * minutes
        self.validation = 0.0  # seconds of the last one
        self._state: Any = None

    def set(self, minutes: float) -> None:
        """Change the minutes, before the training begins; only for a budget in minutes."""
        assert self.minutes is not None
        self.minutes, self.total = minutes, 60.0 * minutes

    def attach(self, engine: Engine) -> None:
        self._state = engine.state
        self._state.seconds, self._state.spent = 0.0, 0.0
        # `spent`: the minutes of the budget that was used up; a larger one may follow.
        engine.state_dict_user_keys.extend(["seconds", "spent"])
        if self.total is not None:
            self._state.max_epochs = UNLIMITED
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)

    def _start(self) -> None:
        if self._state.iteration == 0:
            self._state.seconds, self._state.spent = 0.0, 0.0
        self._since = time.perf_counter() - self._state.seconds

    def _iteration(self, engine: Engine) -> None:
        before = self._state.seconds
        self.tick()
        if self.total is None:
            return
        iteration = self._state.seconds - before
        if self._state.seconds + iteration / 2 + self.validation >= self.total:
            self._state.spent = self.minutes
            self._state.max_epochs = self._state.epoch
            engine.terminate_epoch()

    def tick(self) -> None:
        """Update ``engine.state.seconds``."""
        seconds = time.perf_counter() - self._since
        if self.total is not None and idist.get_world_size() > 1:  # else processes would differ in learning rate
            seconds = float(idist.all_reduce(seconds, op="MAX"))
        self._state.seconds = seconds

    @property
    def seconds(self) -> float:
        """Seconds of the whole training so far, with its validations."""
        return 0.0 if self._state is None else self._state.seconds

    @property
    def share(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        if self._state is None:
            return 0.0
        if self.total is not None:
            return min(self._state.seconds / max(self.total - self.validation, 1e-9), 1.0)
        iterations = (self._state.max_epochs or 0) * (self._state.epoch_length or 0)
        return min(self._state.iteration / iterations, 1.0) if iterations else 0.0

    @property
    def seconds_left(self) -> float:
        """Estimated seconds that the training still takes."""
        if self.total is not None:
            return max(self.total - self._state.seconds, 0.0)
        return self.seconds * (1 - self.share) / self.share if self.share else 0.0

    @property
    def in_last_epoch(self) -> bool:
        """Whether the trainer's epoch is the last one, as far as that is known."""
        return self._state is not None and self._state.epoch >= self._state.max_epochs

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do for a training that would be resumed."""
        return self.in_last_epoch or (self.minutes is not None and self._state.spent >= self.minutes)


def default_patience(minutes: float | None) -> int:
    """Return after how many validations without improvement a training ends: 10, or never if minutes end it."""
    return 10 if minutes is None else UNLIMITED


def warmup_cosine(share: float, warmup: float = 0.1) -> float:
    """Return the learning rate's factor when a `share` of the training is done.

    It rises linearly from 0 to 1 over `warmup` and falls to 0 along half a cosine, as in MONAI's
    ``WarmupCosineSchedule``, but by share instead of step.
    """
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


class Validation:
    """Handler of the trainer that validates after some epochs, and after the last.

    With a budget in minutes, it first validates after a fifth of the training, and then after any epoch at which all
    validations including the next one take no more than `largest_share` of the time so far.

    Args:
        validator: the evaluator to run.
        budget: the trainer's budget.
        interval: number of epochs between validations; None to validate after the last epoch only.
        largest_share: largest share of the time for validation.
    """

    def __init__(
        self, validator: Evaluator, budget: Budget, interval: int | None = 1, largest_share: float = 0.05
    ) -> None:
        whole = isinstance(interval, int) and not isinstance(interval, bool)
        if interval is not None and not (whole and interval > 0):
            raise DataError(f"val_interval must be a number of epochs (--val_interval 2), or null; got {interval!r}.")
        self.validator = validator
        self.budget = budget
        self.interval = interval
        self.largest_share = largest_share
        self.seconds = 0.0  # of all validations

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not (self.budget.in_last_epoch or self._is_due(engine.state.epoch)):
            return
        before = self.budget.seconds
        self.validator.run(engine.state.epoch)
        self.budget.tick()
        self.budget.validation = self.budget.seconds - before
        self.seconds += self.budget.validation

    def _is_due(self, epoch: int) -> bool:
        if self.interval is None:
            return False
        if self.budget.minutes is None:
            return epoch % self.interval == 0
        if not self.seconds:
            return self.budget.share >= 0.2
        return self.seconds + self.budget.validation <= self.largest_share * self.budget.seconds
