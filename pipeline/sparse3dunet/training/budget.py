"""How long a training goes on: for epochs, or for minutes on whatever machine; and what goes by it."""

from __future__ import annotations

import math
import time
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from sparse3dunet.errors import DataError

UNLIMITED = 10**9
"""The trainer's number of epochs where minutes end the training."""


class Budget:
    """A trainer's clock, and its end where that is a number of minutes; the first of the trainer's handlers.

    Minutes are counted from the first iteration on, over all parts of a training that was resumed, with validation, and
    with the time that the last one will need as far as that is known. Among several processes (DDP) the longest
    time counts for all.

    Keeps ``engine.state.seconds``, of the whole training so far, which a resumed training begins with.

    Args:
        minutes: None for the trainer's ``max_epochs``.

    Raises:
        DataError: when `minutes` is no positive number.
    """

    def __init__(self, minutes: float | None = None) -> None:
        number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
        if minutes is not None and not (number and 0 < minutes < math.inf):
            raise DataError(f"minutes must be a number above 0, as --minutes 10, or null; got {minutes!r}.")
        self.minutes = minutes
        self.total = None if minutes is None else 60.0 * minutes
        self.validation = 0.0  # seconds of the last one
        self._state: Any = None

    def set(self, minutes: float) -> None:
        """Other minutes than so far, before the training begins; for a budget in minutes alone."""
        assert self.minutes is not None
        self.minutes, self.total = minutes, 60.0 * minutes

    def attach(self, engine: Engine) -> None:
        self._state = engine.state
        self._state.seconds, self._state.spent = 0.0, 0.0
        # `spent`: the minutes of the budget that was used up, should there be more after it.
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
        """Bring ``engine.state.seconds`` up to date."""
        seconds = time.perf_counter() - self._since
        if self.total is not None and idist.get_world_size() > 1:  # else learning rates would differ among processes
            seconds = float(idist.all_reduce(seconds, op="MAX"))
        self._state.seconds = seconds

    @property
    def seconds(self) -> float:
        """Of the whole training so far, with its validations."""
        return 0.0 if self._state is None else self._state.seconds

    @property
    def share(self) -> float:
        """How much of the training is done, from 0 to 1."""
        if self._state is None:
            return 0.0
        if self.total is not None:
            return min(self._state.seconds / max(self.total - self.validation, 1e-9), 1.0)
        iterations = (self._state.max_epochs or 0) * (self._state.epoch_length or 0)
        return min(self._state.iteration / iterations, 1.0) if iterations else 0.0

    @property
    def seconds_left(self) -> float:
        """How long the training is likely to go on."""
        if self.total is not None:
            return max(self.total - self._state.seconds, 0.0)
        return self.seconds * (1 - self.share) / self.share if self.share else 0.0

    @property
    def in_last_epoch(self) -> bool:
        """Whether the trainer's epoch is the last one, as far as that is known."""
        return self._state is not None and self._state.epoch >= self._state.max_epochs

    @property
    def is_over(self) -> bool:
        """Of a training that would be resumed, whether nothing is left to do."""
        return self.in_last_epoch or (self.minutes is not None and self._state.spent >= self.minutes)


def default_patience(minutes: float | None) -> int:
    """Validations without a better one after which a training ends: 10; where minutes end it, no number of them."""
    return 10 if minutes is None else UNLIMITED


def warmup_cosine(share: float, warmup: float = 0.1) -> float:
    """The learning rate's factor when a `share` of the training is done: up from 0 to 1 by then `warmup` is done, and
    down to 0 along half a cosine; MONAI's ``WarmupCosineSchedule``, of a share instead of a step.
    """
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


class Validation:
    """Handler of the trainer: validates after some epochs, and after the last.

    Where minutes are the budget, it validates after any epoch at which all validations so far and one more are not over
    `largest_share` of the time, the first after a fifth of the training.

    Args:
        validator: what validates.
        budget: the trainer's.
        interval: in epochs; None: after the last epoch alone.
        largest_share: of the time, for validation.
    """

    def __init__(
        self, validator: Evaluator, budget: Budget, interval: int | None = 1, largest_share: float = 0.05
    ) -> None:
        whole = isinstance(interval, int) and not isinstance(interval, bool)
        if interval is not None and not (whole and interval > 0):
            raise DataError(f"val_interval must be a number of epochs, as --val_interval 2, or null; got {interval!r}.")
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
