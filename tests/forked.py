"""``python -m MODULE ...`` in a process of its own, forked from one that has imported MONAI and PyTorch already.

These imports take longer than most of what the tests run: five seconds a command. What a fork does not tell: what goes
wrong while the interpreter starts and imports, and what hash seeds change; ``run_module(..., real=True)`` does.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from monai.transforms import Randomizable

_CAN_FORK = sys.platform == "linux"  # macOS may crash in a fork after such imports
if _CAN_FORK:
    _PROCESSES = multiprocessing.get_context("forkserver")
    _PROCESSES.set_forkserver_preload(
        ["sparse3dunet.cli.main", "monai.bundle", "torch.utils.tensorboard", "tests.forked"]
    )


def run_module(
    module: str, *arguments: object, cwd: Path, environment: Mapping[str, str], timeout: float = 300, real: bool = False
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of ``python -W ignore -m MODULE ARGUMENTS``, with its output captured.

    Args:
        real: in an interpreter that is started for it, without ``-W ignore``.
    """
    texts = list(map(str, arguments))
    if real or not _CAN_FORK:
        command = [sys.executable, *([] if real else ["-W", "ignore"]), "-m", module, *texts]
        return subprocess.run(
            command, cwd=cwd, env=dict(environment), capture_output=True, encoding="utf-8", timeout=timeout
        )
    return Forked(module, texts, cwd, environment).finish(timeout)


def start_module(
    module: str, *arguments: object, cwd: Path, environment: Mapping[str, str]
) -> Forked | subprocess.Popen[str]:
    """Start ``python -W ignore -m MODULE ARGUMENTS``, for a test that sends it a signal while it runs."""
    texts = list(map(str, arguments))
    if _CAN_FORK:
        return Forked(module, texts, cwd, environment)
    command = [sys.executable, "-W", "ignore", "-m", module, *texts]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=cwd, env=dict(environment), **pipes)  # type: ignore[call-overload]


class Forked:
    """A command that runs; with the methods of ``subprocess.Popen`` that tests need. Its output is there at its end."""

    def __init__(self, module: str, texts: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self.command = [module, *texts]
        with mock.patch.dict(os.environ, environment, clear=True):
            forkserver.ensure_running()  # the first time alone
        self.folder = tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name) / name for name in ("out", "error")]
        given = (module, list(texts), str(cwd), dict(environment), *map(str, self.files))
        self.process = _PROCESSES.Process(target=_run, args=given)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def finish(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Return what it printed and its exit status, as :func:`subprocess.run`."""
        out, error = self.communicate(timeout)
        return subprocess.CompletedProcess(self.command, self.returncode, out, error)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, or end it when the time is over; return what it printed, on both streams."""
        try:
            self.process.join(timeout)
        finally:  # Ctrl-C in the tests as well
            running = self.returncode is None
            _kill(self.process.pid, running)
        out, error = (f.read_text(encoding="utf-8", errors="replace") if f.exists() else "" for f in self.files)
        self.folder.cleanup()
        if running:
            raise subprocess.TimeoutExpired(self.command, timeout or 0, out, error)
        return out, error


def _kill(pid: int, running: bool) -> None:
    """What a command has started and left behind, and itself where it is running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
        if running:
            os.kill(pid, signal.SIGKILL)


def _run(module: str, arguments: list[str], cwd: str, environment: Mapping[str, str], out: str, error: str) -> None:
    """What the interpreter does from its start on."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)  # the default
    for stream, file, errors in ((sys.stdout, out, "strict"), (sys.stderr, error, "backslashreplace")):
        with open(file, "wb") as target:
            os.dup2(target.fileno(), stream.fileno())
        stream.reconfigure(encoding="utf-8", errors=errors)  # type: ignore[union-attr]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for draw_seed in (np.random.seed, torch.seed, Randomizable.R.seed):  # else all commands would draw the same
        draw_seed()
    warnings.simplefilter("ignore")
    sys.warnoptions[:] = ["ignore"]
    sys.argv = [module, *arguments]
    sys.path.insert(0, cwd)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (Exception, KeyboardInterrupt) as problem:
        sys.excepthook(type(problem), problem, problem.__traceback__)
        sys.exit(1 if isinstance(problem, Exception) else 128 + signal.SIGINT)
    finally:
        atexit._run_exitfuncs()
