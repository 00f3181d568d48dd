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
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()  # the first time alone
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "out", Path(folder) / "error"]
        process = _PROCESSES.Process(target=_run, args=(module, texts, str(cwd), dict(environment), *map(str, files)))
        process.start()
        try:
            process.join(timeout)
        finally:  # Ctrl-C in the tests as well
            running = process.exitcode is None
            _kill(process.pid, running)
        out, error = (file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files)
        if running:
            raise subprocess.TimeoutExpired([module, *texts], timeout, out, error)
        return subprocess.CompletedProcess([module, *texts], process.exitcode, out, error)


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
    except Exception as problem:
        sys.excepthook(type(problem), problem, problem.__traceback__)
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
