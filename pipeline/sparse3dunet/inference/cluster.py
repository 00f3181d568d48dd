"""Prediction of many images on the workers of a Dask cluster: each image is a task."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Outcome, Output, largest_first, record_key, summarise
from sparse3dunet.inference.cluster_worker import (
    PREFIX,
    CaseResult,
    NotReady,
    Work,
    differences,
    forget,
    line_of,
    predict_case,
    prepare,
)
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.processes import rank_and_count
from sparse3dunet.inference.records import CaseRecord, remove_empty_drafts
from sparse3dunet.inference.settings import Settings
from sparse3dunet.models.loading import Model
from sparse3dunet.progress import BatchProgress

CONNECTING = 20.0
"""Seconds to wait for the scheduler."""
FIRST_WORKER = 60.0
"""Seconds to wait for the first worker."""
POLL = 10.0
"""Seconds after which the cluster is looked at, if no case is finished."""
MOST_LOSSES = 3
"""Number of times that a case is given again to a cluster that lost it, as when its scheduler restarts."""


def predict_on_cluster(
    address: str, cases: Sequence[ImageCase], model: Model, settings: Settings, output: Output, quiet: bool = False
) -> Outcome:
    """Predict images as :func:`~sparse3dunet.inference.batch.predict_batch` does, on the workers of a Dask cluster.

    Each worker loads the model once, and writes results and records itself. If one dies, its case is given to another
    one, until that happened more often than the scheduler's setting ``distributed.scheduler.allowed-failures``; the
    case has then failed. The workers must see model, images and results by the same paths.

    Args:
        address: of the scheduler, "host:port" or "tls://host:port".
        cases: the images.
        model: the trained model.
        settings: settings of the prediction; its device is the workers'.
        output: place and format of the results.
        quiet: whether to show only failures.

    Raises:
        DataError: when there is no such cluster, or a worker cannot do the work: another version, no such file.
    """
    if rank_and_count()[1] > 1:
        raise DataError("--dask: the command runs under torchrun. Run it once, without torchrun; Dask has its workers.")
    replace(settings, device="cpu").predictor(model)  # checks the arguments
    environment = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    path = str(Path(model.path).expanduser().absolute())
    output = replace(output, folder=output.folder.absolute())
    work = Work(uuid.uuid4().hex, path, model.digest, settings, output, environment=environment)
    outcome = Outcome()
    with _connected(address) as client, BatchProgress(len(cases), quiet) as progress:
        try:
            work = replace(work, key=_prepare(client, work, address))
            _ClusterBatch(client, address, work, progress, outcome).run(largest_first(cases))
        except KeyboardInterrupt:
            print(outcome.stopped_text(), flush=True)
            raise
        finally:
            summarise(output, cases)
            if client.status == "running":
                client.run(forget, work.number, on_error="ignore")
    remove_empty_drafts(output.folder)
    return Outcome.of_all([outcome])


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield a client of the scheduler at an address."""
    try:
        from distributed import Client, TimeoutError
    except ImportError as error:
        raise DataError('--dask needs the package "distributed": pip install "sparse3dunet[dask]".') from error
    try:
        client = Client(address, timeout=CONNECTING, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"--dask {address}: no Dask scheduler answers there ({reason}). Start one (dask scheduler), and pass "
            "HOST:PORT as it prints it."
        ) from error
    with client, client.as_current():
        yield client


def _prepare(client: Any, work: Work, address: str) -> dict[str, Any]:
    """Have all workers load the model; return what results depend on, which is the same on all."""
    from distributed import TimeoutError

    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(1, timeout=FIRST_WORKER)
    answers = client.run(prepare, work, on_error="return")
    if not answers:
        raise DataError(f"--dask {address}: the scheduler has no worker. Start some: dask worker {address}.")
    for worker, answer in answers.items():
        if isinstance(answer, ImportError):
            raise DataError(f"--dask {address}: worker {worker}: {answer}. Install sparse3dunet there, too.")
        if isinstance(answer, Exception):
            raise DataError(f"--dask {address}: worker {worker}: {_line(answer)}") from answer
    keys = list(answers.values())
    if any(key != keys[0] for key in keys):
        raise DataError(f"--dask {address}: results would differ from worker to worker: {differences(keys)}")
    return keys[0]


@dataclass(frozen=True)
class _Task:
    case: ImageCase
    wait: bool = False
    avoided: frozenset[str] = frozenset()
    """Workers that cannot do it."""
    losses: int = 0


class _ClusterBatch:
    """Loop over the cases: as many are on the cluster as its workers have threads.

    No more, so that the death of a worker is counted to the case that it worked on, and not to others that wait there.
    """

    def __init__(self, client: Any, address: str, work: Work, progress: BatchProgress, outcome: Outcome) -> None:
        self.client, self.address, self.work = client, address, work
        self.progress, self.outcome = progress, outcome
        self.waiting: deque[_Task] = deque()
        self.running: dict[Any, _Task] = {}
        self.said = False

    def run(self, cases: Sequence[ImageCase]) -> None:
        self.waiting.extend(map(_Task, cases))
        try:
            while self.waiting or self.running:
                self._submit()
                for future in self._finished():
                    self._take(future, self.running.pop(future))
        finally:
            if self.running and self.client.status == "running":
                self.client.cancel(list(self.running))

    def _submit(self) -> None:
        if not self.waiting:
            return
        threads = self.client.nthreads()
        while self.waiting and len(self.running) < max(sum(threads.values()), 1):
            task = self.waiting.popleft()
            workers = [worker for worker in threads if worker not in task.avoided] if task.avoided else None
            future = self.client.submit(
                predict_case,
                self.work,
                task.case,
                task.wait,
                pure=False,
                workers=workers or None,
                allow_other_workers=bool(workers),
            )
            self.running[future] = task

    def _finished(self) -> list[Any]:
        from distributed import CancelledError, TimeoutError, wait

        try:
            wait(list(self.running), timeout=POLL, return_when="FIRST_COMPLETED")
        except CancelledError:
            pass  # seen by the status of each
        except TimeoutError:
            self._look()
        return [future for future in self.running if future.status != "pending"]

    def _look(self) -> None:
        """Tell once that no worker is left; without a scheduler, the batch ends.

        Raises:
            DataError: when the scheduler is gone.
        """
        if self.client.status != "running":
            raise DataError(
                f"--dask {self.address}: the scheduler is gone, after {self.outcome.done} volume(s). Start it and its "
                "workers, and run the same command to continue."
            )
        if not self.said and not self.client.nthreads():
            self.said = True
            self.progress.line(f"no worker is left at {self.address}: waiting for one (dask worker {self.address})")

    def _take(self, future: Any, task: _Task) -> None:
        """Report what became of a case, or give it to the cluster again."""
        if future.status == "finished":
            self._report(future.result(), task)
            return
        if future.status != "error":  # cancelled or lost, as when the scheduler restarts
            self._look()
            if task.losses < MOST_LOSSES:
                self.waiting.append(replace(task, losses=task.losses + 1))
            else:
                self._failed(task.case, f"the cluster lost it {task.losses + 1} times")
            return
        error = future.exception()
        if isinstance(error, NotReady):
            worker, reason = error.args
            avoided = task.avoided | {worker}
            if set(self.client.nthreads()) - avoided:
                self.progress.line(f"{task.case.name}: worker {worker}: {reason} Given to another one.")
                self.waiting.append(replace(task, avoided=avoided))
            else:  # the other cases would fail as well, and it is no fault of theirs
                raise DataError(
                    f"--dask {self.address}: after {self.outcome.done} volume(s), no worker can go on: {worker}: "
                    f"{reason} Mend that, and run the same command to continue."
                )
        else:
            self._failed(task.case, _line(error))

    def _report(self, result: CaseResult, task: _Task) -> None:
        if result.held:  # by another process, as of a worker that was taken for dead
            self.waiting.append(replace(task, wait=True))
            return
        for name, arguments in result.calls:
            getattr(self.progress, name)(*arguments)
        self.outcome.done += result.outcome.done
        self.outcome.skipped += result.outcome.skipped
        self.outcome.failed += result.outcome.failed

    def _failed(self, case: ImageCase, text: str) -> None:
        """Report and record a failure that no worker could record itself."""
        self.outcome.failed.append(f"{case.name}: {text}")
        self.progress.failed(case.name, text)
        try:
            record = CaseRecord(self.work.output.folder, case, record_key(self.work.key or {}, self.work.output))
            if record.hold():
                try:
                    record.fail(text, goes_on=True)  # drafts stay: of a large image, the next run continues
                finally:
                    record.release()
        except (OSError, DataError):
            return  # the disk is full or the image gone; the failure was reported above


def _line(error: BaseException) -> str:
    """Return an error of the cluster in one line."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        deaths, worker = error.allowed_failures + 1, error.last_worker.address
        return (
            f"the workers that had it died, {deaths} of them, {worker} last: too little memory? Their logs may tell. "
            "Use workers with more memory, or pass a smaller --roi-size."
        )
    return line_of(error)
