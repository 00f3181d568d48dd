"""Resuming of trainings: their whole state is written to a file after each epoch and on a signal to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import Evaluator, Trainer
from torch.optim.lr_scheduler import LambdaLR

from sparse3dunet.data.sampling import SeededSampler
from sparse3dunet.errors import DataError
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import ModelDescription, differs
from sparse3dunet.models.description_checks import is_number
from sparse3dunet.models.loading import damaged_entry
from sparse3dunet.training.budget import Budget
from sparse3dunet.training.random_states import random_state, set_random_state

PRETRAINED = "pretrained"
"""Setting of the model that a training begins from, which may have another path on resuming."""
STATE = "state"
"""Folder of a training's state, in that of the model."""
LAST_FILE = f"{STATE}/last.pt"
"""File of a training's state in the model's folder, by default."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a training in order: a cluster's preemption, and Ctrl-C."""
_CURE = "Leave out --resume to start again, or pass another --ckpt_dir."


class StateError(DataError):
    """Error for a file from which a training cannot be resumed."""


class ResumableTraining:
    """Training whose whole state is kept in a file, from which it continues exactly as if nothing had happened.

    The state is written after each epoch (and its validation), and within one when the process gets SIGTERM, which
    clusters send before they take a machine away, or Ctrl-C. It includes the network, the optimizer, the schedule,
    `parts`, the trainer's counts and what handlers keep in ``trainer.state`` (by Ignite's ``state_dict_user_keys``),
    the best validation so far, the gradient scaler, and the global random states. With a
    :class:`~sparse3dunet.data.sampling.SeededSampler` the patches continue, too: on the CPU, with the same number of
    threads, the final weights are the same, bit for bit. With several processes (DDP) the first one writes; all must
    see the file.

    Args:
        trainer: MONAI's trainer.
        evaluator: the evaluator for validation, whose best metric is kept.
        path: path of the file.
        parts: further objects with ``state_dict`` and ``load_state_dict``, by name: ``network``, ``optimizer``,
            ``lr_scheduler`` ...
        settings: plain values that must be the same when resuming, as a JSON object.
        recipe: learning settings that must be the same when resuming, by id in a config; an empty one is not compared.
        sampler: sampler of the trainer's loader.
        budget: the trainer's budget, if minutes may end it.
        quiet: whether not to print how to continue.
    """

    def __init__(
        self,
        trainer: Trainer,
        evaluator: Evaluator,
        path: str | Path,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        sampler: SeededSampler | None = None,
        budget: Budget | None = None,
        quiet: bool = False,
    ) -> None:
        self.quiet = quiet
        self.trainer = trainer
        self.evaluator = evaluator
        self.path = Path(path)
        self.parts = dict(parts)
        self.settings = json.loads(json.dumps(settings or {}))
        self.recipe = json.loads(json.dumps(recipe or {}))
        self.sampler = sampler
        self.budget = budget
        self.signal: int | None = None  # the one that this process got
        self.agreed: int | None = None  # the one that ends all processes

    def run(self, resume: bool = False) -> None:
        """Run the trainer to its end; with `resume`, from the state in the file, if there is one.

        Raises:
            SystemExit: with 128 plus the signal's number, when a signal ended it, after the state was written.
            StateError: when the file is not a state of this training.
        """
        if not isinstance(resume, bool):
            raise DataError(f"resume is {resume!r}; pass --resume without a value. It resumes from {self.path}.")
        self._look_for_earlier(resume)
        if resume and (state := self._read()) is not None:
            self._restore(state)
            if self._has_ended():
                self._print(f"Training ended after epoch {self.trainer.state.epoch}. {self._how_to_continue()}")
                return
            done = f"{self.trainer.state.iteration} iterations, {self.trainer.state.epoch} epochs"
            self._print(f"Resuming after {done} ({self.path}).")
        elif resume:
            self._print(f"{self.path} does not exist yet: training starts from the beginning.")
        elif idist.get_rank() == 0:
            self.path.unlink(missing_ok=True)  # of an earlier training, which --resume would take for this one
        # Attached here, these come after all other handlers, whose work the state includes.
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        with self._signals():
            self.trainer.run()
        if self.agreed is not None:
            self._print(f"Stopped by {signal.Signals(self.agreed).name}; continue with --resume ({self.path}).")
            raise SystemExit(128 + self.agreed)

    def _look_for_earlier(self, resume: bool) -> None:
        """Refuse to resume from the state of a version before 0.13, beside the model; a new training removes it."""
        earlier = self.path.parent.parent / self.path.name
        found = self.path.parent.name == STATE and earlier.is_file()
        if found and resume and not self.path.is_file():
            raise DataError(
                f"{earlier}: an earlier version of sparse3dunet began this training, whose settings cannot be "
                f"compared. Finish it with that version (0.12), or train further from its model: --pretrained. {_CURE}"
            )
        idist.barrier()  # all processes have looked
        if found and not resume and idist.get_rank() == 0:
            earlier.unlink()

    def _iteration(self, engine: Engine) -> None:
        within_epoch = engine.state.iteration % (engine.state.epoch_length or 1) > 0
        if self._must_end() and within_epoch:  # else the epoch ends now, and is validated first
            self._write()
            engine.terminate(skip_completed=True)

    def _epoch(self, engine: Engine) -> None:
        self._write()
        if self._must_end():
            engine.terminate(skip_completed=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note signals, so that the training ends in order; a second Ctrl-C ends it at once."""
        former: dict[int, Any] = {}

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = self.signal or number
            # torchrun passes on what it gets, so that the same signal may come twice; in the end it kills by itself.
            if number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
                signal.signal(number, former[number])

        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            former |= {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _must_end(self) -> bool:
        """Return whether a process of this training got a signal. All must call it equally often."""
        number = self.signal or 0
        if idist.get_world_size() > 1:
            number = int(idist.all_reduce(number, op="MAX"))
        self.agreed = number or None
        return self.agreed is not None

    def _write(self) -> None:
        if idist.get_rank() > 0:
            return
        trainer, best = self.trainer.state, self.evaluator.state
        state = {
            **{name: part.state_dict() for name, part in self._all_parts().items()},
            "trainer": {key: getattr(trainer, key) for key in self._kept()},
            "best": [float(best.best_metric), best.best_metric_epoch],
            "random": random_state(),
            "settings": self.settings,
            "recipe": self.recipe,
        }
        save_file(self.path, state)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            damaged = damaged_entry(self.path, str(self.path))
        except (OSError, DataError) as error:
            raise StateError(f"{error} {_CURE}") from error
        if damaged:  # PyTorch writes checksums, but does not look at them
            raise StateError(
                f"{self.path} is damaged: its checksums differ at {damaged}. If it was saved with "
                f"torch.serialization.set_crc32_options(False), save it again without that. {_CURE}"
            )
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
            raise StateError(f"{self.path} is not the state of a training ({type(error).__name__}). {_CURE}") from error
        expected = {*self._all_parts(), "trainer", "best", "random", "settings", "recipe"}
        if not isinstance(state, dict) or set(state) != expected:
            raise StateError(f"{self.path} was written by another version, or by another kind of training. {_CURE}")
        fault = _fault_of(state)
        if fault:
            raise StateError(f"{self.path}: damaged, {fault}. {_CURE}")
        schemas = [settings.get("schema_version") for settings in (state["settings"], self.settings)]
        if schemas[0] != schemas[1]:
            raise StateError(
                f"{self.path}: this training began with another version of sparse3dunet, whose settings cannot be "
                f"compared. Finish it with that version, or train further from its model: --pretrained. {_CURE}"
            )
        former, given = (settings.get(PRETRAINED) for settings in (state["settings"], self.settings))
        if former and not given:
            raise StateError(
                f"{self.path}: it began from another model; pass --pretrained {former} again, beside --resume."
            )
        changed = _changes({**state["settings"], PRETRAINED: given}, self.settings)  # the file may have moved
        if self.recipe and state["recipe"]:
            changed += _changes(_with_new_settings(state["recipe"], self.recipe), self.recipe)
        if changed:
            more = f"; and {len(changed) - 8} more" if len(changed) > 8 else ""
            raise StateError(
                f"{self.path}: this training began with other settings: {'; '.join(changed[:8])}{more}. Pass those to "
                f"continue; to train further from its model with yours, use --pretrained. {_CURE}"
            )
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        try:
            for name, part in self._all_parts().items():
                part.load_state_dict(_progress(part, state[name]))
            name = "random"
            set_random_state(state["random"])  # set again when training begins; here, to see that it is one
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what PyTorch, NumPy and Python raise differs by part
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise StateError(
                f"{self.path}: damaged, its {name} does not fit this training ({what}). {_CURE}"
            ) from error
        trainer = self.trainer.state
        for key in self._kept():  # nothing else, such as max_epochs
            if key in state["trainer"]:
                setattr(trainer, key, state["trainer"][key])
        trainer.epoch, first_batch = divmod(trainer.iteration, trainer.epoch_length)
        if self.sampler is not None:
            self.sampler.set_epoch(trainer.epoch, first_batch)
        self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = state["best"]
        # Making a loader's iterator draws a random number; within an epoch, this was done when the epoch began.
        begin = Events.ITERATION_STARTED(once=trainer.iteration + 1) if first_batch else Events.STARTED
        self.trainer.add_event_handler(begin, lambda: set_random_state(state["random"]))

    def _has_ended(self) -> bool:
        spent = self.budget is not None and self.budget.is_over
        return self._stopped_early() or spent or self.trainer.state.epoch >= self.trainer.state.max_epochs

    def _stopped_early(self) -> bool:
        return any(isinstance(p, EarlyStopping) and p.counter >= p.patience for p in self.parts.values())

    def _how_to_continue(self) -> str:
        if self._stopped_early():
            return "It stopped because validations no longer improved; continue with a larger --patience."
        in_minutes = self.budget is not None and self.budget.minutes is not None
        return f"Continue with a larger --{'minutes' if in_minutes else 'max_epochs'}."

    def _print(self, text: str) -> None:
        if idist.get_rank() == 0 and not self.quiet:
            print(text, flush=True)

    def _kept(self) -> tuple[str, ...]:
        """Return the names of what is kept of the trainer's state."""
        return ("iteration", "epoch_length", *self.trainer.state_dict_user_keys)

    def _all_parts(self) -> dict[str, Any]:
        scaler = self.trainer.scaler  # only with CUDA's automatic mixed precision in float16
        return self.parts if scaler is None else {**self.parts, "scaler": scaler}


def _fault_of(state: Mapping[str, Any]) -> str:
    """Return what is wrong with a state apart from the parts themselves; empty if nothing is."""
    trainer, best = state["trainer"], state["best"]
    plain = all(isinstance(state[name], dict) for name in ("trainer", "random", "settings", "recipe"))
    if not plain or not {"iteration", "epoch_length"} <= set(trainer):
        return "its trainer, random state, settings or recipe are not those of a training"
    for name, least in (("iteration", 0), ("epoch_length", 1)):
        if not is_number(trainer[name], int) or trainer[name] < least:
            return f"its {name} is {trainer[name]!r}; expected a whole number of at least {least}"
    if not isinstance(best, (list, tuple)) or [type(value) for value in best] != [float, int]:
        return f"its best validation is {best!r}; expected a score and an epoch"
    return ""


def fixed_settings(
    description: ModelDescription,
    *,
    seed: int,
    batch_size: int,
    epoch_length: int,
    pretrained: str | Path | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the settings that must be the same when resuming, in addition to the config's learning settings.

    Args:
        description: description of the model.
        seed: seed of the training.
        batch_size: batch size of each process; their sum must be the same.
        epoch_length: iterations per epoch.
        pretrained: the model that the training begins from; None for none.
        more: further settings, plain values.
    """
    batch_size *= idist.get_world_size()
    settings = {**description.settings(), "seed": seed, "batch_size": batch_size, "epoch_length": epoch_length, **more}
    return settings | ({PRETRAINED: str(pretrained)} if pretrained else {})


def saved_iteration(path: str | Path, resume: bool) -> int | None:
    """Return the number of iterations in a state to resume from; None if there is none."""
    if not resume or not Path(path).is_file():
        return None
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["trainer"]["iteration"])
    except Exception:  # the error is reported when training begins
        return None


def next_iteration(path: str | Path, resume: bool) -> int | None:
    """Return the first iteration that is not done, for TensorBoard's purge_step."""
    done = saved_iteration(path, resume)
    return None if done is None else done + 1


def leave_signals_to_trainer(worker: int = 0) -> None:
    """Have a loader's worker (``worker_init_fn``) ignore signals that a terminal or a cluster sends to all processes.

    Only the trainer's process ends it, which first finishes its iteration.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS does not report who sent a signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # not the server that Python 3.14 forks workers from
    trainer = os.getppid() if parent is None else parent.pid

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _progress(part: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a part's state; for a schedule by formula only its position: with more epochs, the formula changes."""
    if not isinstance(part, LambdaLR):
        return state
    return {**part.state_dict(), **{key: state[key] for key in ("last_epoch", "_step_count", "_last_lr")}}


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**then, **now} if differs(name, *(_place_free(of.get(name)) for of in (then, now)))]
    return [f"{name} {then.get(name)} -> {now.get(name)}" for name in names]


def _with_new_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a former version with settings that it did not have, as it trained without them."""
    if "rare_share" in then:
        return dict(then)
    follow = {name: now[name] for name in ("rare_class_weights", "loss#ce_class_weight") if name in now}
    return {**then, "rare_share": 0, **follow}  # 0.17 and before


def _place_free(value: Any) -> Any:
    """Return a setting without the module of a component of this package: it may have moved."""
    pattern = r"^(\$import )?sparse3dunet\.([\w.]+\.)?(\w+)( as \w+)?$"
    return re.sub(pattern, r"\3", value) if isinstance(value, str) else value
