"""Model files: written whole or not at all, and described so that inference rebuilds the network that was trained."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import replacing
from sparse3dunet.models.description import DESCRIPTION_SUFFIX, NO_MODEL, ModelDescription


def save_file(path: str | Path, content: Mapping[str, Any], description: ModelDescription | None = None) -> None:
    """Write tensors and plain values to a file, which at any moment is the old one or the new one, and whole.

    Neither MONAI's ``CheckpointSaver`` nor Ignite's ``DiskSaver`` gives that for a fixed file name: the former writes
    in place, and both delete the old file before they write the new one.

    Args:
        path: of the file; its folder is made where it is missing.
        content: for ``torch.save``.
        description: written beside the file, as JSON under the same name, before the file itself; a former file with
            another description is removed first. None for none.
    """
    path = Path(path)
    if description is not None:
        _describe(path, description.to_json())
    replace_file(path, lambda draft: torch.save(content, draft))


def _describe(model_file: Path, text: str) -> None:
    path = model_file.with_suffix(DESCRIPTION_SUFFIX)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    # A former model of another kind: at no moment may it lie beside a description that is not its own.
    model_file.unlink(missing_ok=True)
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that at any moment is the old one or the new one, and whole; `write` gets the path of a draft."""
    with replacing(path) as draft:
        write(draft)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


class BestModelSaver:
    """Handler of MONAI's *evaluator*: keeps the network's flat state_dict of the best validation so far, or the last.

    Which one is the best, the evaluator says; give it :func:`is_better` as ``metric_cmp_fn``. Among several processes
    (DDP) the first one writes.

    Args:
        network: the network that is trained.
        path: of the file.
        description: see :func:`save_file`.
        keep: ``best`` or ``last``; with the latter, validation chooses nothing.

    Raises:
        DataError: when `keep` is neither.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        path: str | Path,
        description: ModelDescription | None = None,
        keep: str = "best",
    ) -> None:
        if keep not in ("best", "last"):
            raise DataError(f"keep must be best or last, the model of which validation; got {keep!r}.")
        self.keep = keep
        self.network = network
        self.path = Path(path)
        self.description = description

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        if (self.keep == "last" or state.best_metric_epoch == state.epoch) and idist.get_rank() == 0:
            save_file(self.path, self.network.state_dict(), self.description)


def is_better(metric: float, best: float) -> bool:
    """Whether a metric is larger than the best so far; NaN (nothing evaluable) is smaller than any."""
    return finite_score(metric) > finite_score(best)


def finite_score(value: float) -> float:
    """The value, or minus infinity for NaN, so that comparisons of scores are well-defined."""
    return -math.inf if math.isnan(value) else float(value)


def existing_model(model_file: str | Path) -> str:
    """Return the path, having made sure that it is a model file that can be loaded.

    Raises:
        DataError: when the file is missing or no file of tensors.
    """
    path = Path(model_file)
    if not path.is_file():
        raise DataError(NO_MODEL.format(path=path.absolute()))
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
        raise DataError(f"{path.absolute()}: not a model file ({type(error).__name__}); train again.") from error
    return str(path)
