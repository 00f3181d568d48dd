"""What a worker of a Dask cluster does: it loads the model of a batch once, and predicts one case after the other."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sparse3dunet import __version__
from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Batch, Outcome, Output, record_key
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.predictor import Predictor
from sparse3dunet.inference.settings import Settings
from sparse3dunet.models.loading import load_model

PREFIX = "SPARSE3DUNET_"
"""Start of the names of the environment variables that are the same on all workers."""
MOST_MODELS = 2
"""Number of batches whose models a worker keeps; a shared cluster may work on several."""


class NotReady(Exception):
    """Error of a worker, not of a case: it has no such file, device or version. Arguments: its address, the reason."""


@dataclass(frozen=True)
class Work:
    """A batch as the workers need it.

    Attributes:
        number: a text that no other batch has.
        model: absolute path of the model.
        digest: the model's digest.
        settings: settings of the prediction.
        output: place and format of the results, with an absolute path.
        key: what results depend on, which must be the same on all workers; None if not known yet.
        environment: environment variables that set how files are read.
        version: version of this package.
    """

    number: str
    model: str
    digest: str
    settings: Settings
    output: Output
    key: dict[str, Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    version: str = __version__


@dataclass
class CaseResult:
    """What became of a case on a worker.

    Attributes:
        outcome: numbers of cases done and skipped, and the failure.
        calls: what the progress was told: names of methods of BatchProgress, and their arguments.
        held: whether another process is working on the case, so that nothing was done.
    """

    outcome: Outcome
    calls: list[tuple[str, tuple[Any, ...]]]
    held: bool


class _Recorded:
    """Progress that is kept, to be shown by the process that has the terminal."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def start(self, name: str) -> None:
        """Nothing is shown of a case before its end."""

    def line(self, text: str) -> None:
        self.calls.append(("line", (text,)))

    def skip(self) -> None:
        self.calls.append(("skip", ()))

    def done(self, record: Mapping[str, Any]) -> None:
        self.calls.append(("done", (dict(record),)))

    def note(self, kind: str, text: str) -> None:
        self.calls.append(("note", (kind, text)))

    def failed(self, name: str, error: str) -> None:
        self.calls.append(("failed", (name, error)))


_loaded: dict[str, tuple[Predictor, dict[str, Any]]] = {}
_loading = threading.Lock()
_turn = threading.Lock()  # one case at a time: a network on a device, the environment's variables


async def prepare(work: Work) -> dict[str, Any]:
    """Load the model of a batch; return what results depend on, see :meth:`Settings.key`.

    Raises:
        DataError: when this worker cannot do the work.
    """
    return (await asyncio.to_thread(_load, work))[1]


def forget(number: str) -> None:
    """Free the memory of a batch's model."""
    _loaded.pop(number, None)


def predict_case(work: Work, case: ImageCase, wait: bool) -> CaseResult:
    """Predict a case, and write its results and record.

    Args:
        work: the batch.
        case: the image.
        wait: whether to wait if another process is working on it.

    Raises:
        NotReady: when this worker cannot do the work.
    """
    try:
        predictor, key = _load(work)
        if key != work.key:
            raise DataError(f"its results would differ from other workers': {differences([key, work.key or {}])}")
    except Exception as error:
        from distributed import get_worker

        raise NotReady(get_worker().address, line_of(error)) from error
    progress, outcome = _Recorded(), Outcome()
    with _turn, _environment(work.environment):
        batch = Batch(predictor, work.output, record_key(key, work.output), progress, outcome, wait)
        batch.run([case])
    return CaseResult(outcome, progress.calls, bool(batch.held) and not wait)


def differences(keys: list[dict[str, Any]]) -> str:
    """Describe in which settings keys differ."""
    names = sorted(name for name in keys[0] if any(key.get(name) != keys[0][name] for key in keys))
    return f"{', '.join(names)} differ. Pass --precision float32 or bfloat16, or use workers of one kind."


def _load(work: Work) -> tuple[Predictor, dict[str, Any]]:
    """Return the predictor of a batch and its key; loads the model the first time."""
    with _loading:
        if work.number not in _loaded:
            if work.version != __version__:
                raise DataError(
                    f"version {__version__} of sparse3dunet is installed, but {work.version} where the command runs. "
                    "Install the same version."
                )
            model = load_model(work.model)
            if model.digest != work.digest:
                raise DataError(f"{work.model}: another model than where the command runs. Use a shared folder.")
            try:
                predictor = work.settings.predictor(model)
            except (RuntimeError, AssertionError) as error:
                raise DataError(f"--device {work.settings.device} cannot be used ({line_of(error)}).") from error
            while len(_loaded) >= MOST_MODELS:
                _loaded.pop(next(iter(_loaded)), None)
            _loaded[work.number] = predictor, work.settings.key(model, predictor)
        return _loaded[work.number]


def line_of(error: BaseException) -> str:
    """Return an error in one line, with its type unless it is a message of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables of this package, and restore them."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    _replace(before, wanted)
    try:
        yield
    finally:
        _replace(wanted, before)


def _replace(present: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in present:
        os.environ.pop(name, None)
    os.environ.update(wanted)
