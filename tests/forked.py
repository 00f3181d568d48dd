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
from collections.abc import Mapping
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
    return Running(module, *texts, cwd=cwd, environment=environment).wait(timeout)


class Running:
    """``python -W ignore -m MODULE ARGUMENTS``, which has been started, forked; :meth:`wait` must be called."""

    def __init__(self, module: str, *arguments: object, cwd: Path, environment: Mapping[str, str]) -> None:
        self.arguments = [module, *map(str, arguments)]
        with mock.patch.dict(os.environ, environment, clear=True):
            forkserver.ensure_running()  # the first time alone
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / "out", Path(self._folder.name) / "error"]
        started = (module, self.arguments[1:], str(cwd), dict(environment), *map(str, self._files))
        self.process = _PROCESSES.Process(target=_run, args=started)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_running(self) -> bool:
        return self.process.exitcode is None

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Return what the process printed and its exit status; kill it, and what it has left, at the end."""
        try:
            self.process.join(timeout)
        finally:  # Ctrl-C in the tests as well
            running = self.is_running()
            _kill(self.pid, running)
        out, error = (f.read_text(encoding="utf-8", errors="replace") if f.exists() else "" for f in self._files)
        self._folder.cleanup()
        if running:
            raise subprocess.TimeoutExpired(self.arguments, timeout, out, error)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, error)


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
