"""The model that a training finds in its folder: kept beside the new one, and replaced only by a better one."""

from __future__ import annotations

import math
import shutil
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import replacing, write_text
from sparse3dunet.io.written import file_digest
from sparse3dunet.models.checkpoints import BestModelSaver
from sparse3dunet.models.description import DESCRIPTION_SUFFIX, differs, read_description

FORMER = "former"
"""Folder of the former model, next to the new one."""
UNFINISHED = "unfinished.txt"
"""File in that folder while the training has not come to its end."""
COMPARED = ("class_names", "class_values", "spacing", "normalize", "intensity", "regions")
"""What two models must have in common for their scores to be compared."""
UNSCORED = -1
"""Epoch of the best validation before there is one, as MONAI has it; the next one then counts as the best."""


class FormerModel:
    """Handler of the trainer that never loses the model which a training replaces.

    At the start, a copy of it is put into the folder ``former``. While the training before did not come to its end, its
    copy stays, and the next ones are put into ``former_2``, ``former_3``, ... If the training goes on from just this
    model, as MONAI Label's does, the model is validated first: it stays unless the training becomes better. Not if it
    was trained on cases that are for validation now, on which it would seem too good, or is used in another way. A
    training whose validations cannot be scored, for lack of foreground, leaves its last model. With several processes
    (DDP) the first one writes. Attach it after what loads weights. A resumed training is left alone.

    Args:
        validator: the evaluator for validation.
        saver: its handler that saves the model.
    """

    def __init__(self, validator: Evaluator, saver: BestModelSaver) -> None:
        self.validator, self.saver, self.path = validator, saver, saver.path
        self.bar: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        """Keep a copy of the former model and, if this training goes on from it, validate it."""
        if engine.state.iteration or not self.path.is_file():
            return
        goes_on = self.saver.keep == "best" and self._is_loaded() and self._is_comparable()
        if idist.get_rank() == 0:
            self._copy()
        if not goes_on:
            return
        self.saver.enabled = False
        self.validator.run(1)
        self.saver.enabled = True
        state: Any = self.validator.state
        if not math.isfinite(state.best_metric):
            state.best_metric, state.best_metric_epoch = -1, UNSCORED
            return
        self.bar = float(state.best_metric)
        state.best_metric_epoch = 0  # before the training's own epochs
        self._print(
            f"The present model, {self.path}, scores {self.bar:.3f} on this validation; a worse one is not kept."
        )

    def finish(self, engine: Engine) -> None:
        """Say that the former model stays, or save the last one if no validation could be scored."""
        state: Any = self.validator.state
        if idist.get_rank() == 0:
            (self.path.parent / FORMER / UNFINISHED).unlink(missing_ok=True)
        if self.saver.keep == "last":
            return
        if self.bar is not None and state.best_metric_epoch == 0:
            self._print(f"No validation was better than {self.bar:.3f}: {self.path} stays as it was.")
        elif state.best_metric_epoch == UNSCORED or not math.isfinite(state.best_metric):
            if idist.get_rank() == 0:
                self.saver.save()
            self._print(f"No validation could be scored: {self.path} is the last model. Annotate foreground.")

    def _is_loaded(self) -> bool:
        """Return whether the network's weights are those in the file."""
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            own = {name: tensor.cpu() for name, tensor in self.saver.network.state_dict().items()}
            return saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in own)
        except Exception:  # damaged, or of another network: what PyTorch raises differs
            return False

    def _is_comparable(self) -> bool:
        """Return whether the model is used as the new one will be, and did not learn from the validation cases."""
        own = self.saver.description
        if own is None:
            return True
        try:
            former = read_description(self.path).settings()
        except DataError:
            return False
        if any(differs(name, former[name], own.settings()[name]) for name in COMPARED):
            return False
        known = sorted({*own.validation} & {*former["training"]})
        if known:
            self._print(
                f"The present model, {self.path}, is not compared with the new one: it was trained on "
                f"{', '.join(known[:5])}{', ...' * (len(known) > 5)}, now for validation."
            )
        return not known

    def _copy(self) -> None:
        """Keep the model; what was kept for a training that did not come to its end stays."""
        folder = self.path.parent / FORMER
        mark, number = folder / UNFINISHED, 1
        while mark.is_file() and (folder / self.path.name).is_file():
            if file_digest(folder / self.path.name) == file_digest(self.path):
                break
            number += 1
            folder = self.path.parent / f"{FORMER}_{number}"
        for file in (self.path.with_suffix(DESCRIPTION_SUFFIX), self.path):
            if file.is_file():
                with replacing(folder / file.name) as draft:
                    shutil.copyfile(file, draft)
        write_text(mark, "The training that began with this model has not come to its end.\n")
        self._print(f"The present model is kept in {folder}.")

    def _print(self, text: str) -> None:
        if idist.get_rank() == 0:
            print(text, flush=True)
