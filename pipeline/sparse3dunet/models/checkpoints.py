"""Model files that are never incomplete, with a description from which inference rebuilds the network."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import replacing, write_text
from sparse3dunet.models.description import DESCRIPTION_SUFFIX, NO_MODEL, ModelDescription


def save_file(path: str | Path, content: Mapping[str, Any], description: ModelDescription | None = None) -> None:
    """Write tensors and plain values to a file, which is the complete old one or the complete new one at any moment.

    Neither MONAI's ``CheckpointSaver`` nor Ignite's ``DiskSaver`` ensures that for a fixed file name: the former writes
    in place, and both delete the old file before they write the new one.

    Args:
        path: path of the file; its folder is made if it is missing.
        content: content for ``torch.save``.
        description: description to write next to the file, as JSON with the same name, before the file itself; an
            existing file with another description is removed first. None to write none.
    """
    path = Path(path)
    if description is not None:
        _describe(path, description.to_json())
    with replacing(path) as draft:
        # PyTorch itself, on a full disk, raises an error of another kind, or ends the process
        buffer = io.BytesIO()
        torch.save(content, buffer)
        draft.write_bytes(buffer.getbuffer())


def _describe(model_file: Path, text: str) -> None:
    path = model_file.with_suffix(DESCRIPTION_SUFFIX)
    if path.is_file() and path.read_bytes() == text.encode():
        return
    # An earlier model of another kind must at no moment be next to a description that is not its own.
    model_file.unlink(missing_ok=True)
    write_text(path, text)


class BestModelSaver:
    """Handler of MONAI's evaluator that saves the network's flat state_dict of the best validation so far, or the last.

    The evaluator decides which one is the best; give it :func:`is_better` as ``metric_cmp_fn``. With several processes
    (DDP) the first one writes.

    Args:
        network: the network that is trained.
        path: path of the file.
        description: see :func:`save_file`.
        keep: ``best`` or ``last``; with the latter, validation selects nothing.

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
            raise DataError(f"keep must be best or last, the validation whose model is kept; got {keep!r}.")
        self.keep = keep
        self.network = network
        self.path = Path(path)
        self.description = description
        self.enabled = True

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        is_kept = self.keep == "last" or state.best_metric_epoch == state.epoch
        if self.enabled and is_kept and idist.get_rank() == 0:
            self.save()

    def save(self) -> None:
        """Save the network as it is."""
        save_file(self.path, self.network.state_dict(), self.description)


def is_better(metric: float, best: float) -> bool:
    """Return whether a metric is larger than the best so far; NaN (nothing evaluable) is smaller than any."""
    return finite_score(metric) > finite_score(best)


def finite_score(value: float) -> float:
    """Return the value, or minus infinity for NaN, so that comparisons of scores are well-defined."""
    return -math.inf if math.isnan(value) else float(value)


def existing_model(model_file: str | Path) -> str:
    """Return the path after checking that it is a model file that can be loaded.

    Raises:
        DataError: when the file is missing or not a file of tensors.
    """
    path = Path(model_file)
    if not path.is_file():
        raise DataError(NO_MODEL.format(path=path.absolute()))
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zipfile, pickle and PyTorch raise many kinds here
        raise DataError(f"{path.absolute()}: not a model file ({type(error).__name__}); train again.") from error
    return str(path)
