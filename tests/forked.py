"""``python -m MODULE ...`` in a process of its own, forked from one that has imported MONAI and PyTorch already.

These imports take longer than most of what the tests run: five seconds a command.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["sparse3dunet.cli", "monai.bundle", "torch.utils.tensorboard", "tests.forked"])


def run_module(
    module: str, *arguments: object, cwd: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of ``python -m MODULE ARGUMENTS``, with its output captured; MONAI's without warnings."""
    with mock.patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()  # the first time alone
    texts = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder) / "out", Path(folder) / "error"
        process = _PROCESSES.Process(
            target=_run, args=(module, texts, str(cwd), dict(environment), str(out), str(error))
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([module, *texts], timeout)
        return subprocess.CompletedProcess(
            [module, *texts], process.exitcode, out.read_text(encoding="utf-8"), error.read_text(encoding="utf-8")
        )


def _run(module: str, arguments: list[str], cwd: str, environment: Mapping[str, str], out: str, error: str) -> None:
    """What the interpreter does from its start on."""
    for number, name, file in ((1, "stdout", out), (2, "stderr", error)):
        with open(file, "wb") as target:
            os.dup2(target.fileno(), number)
        setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if module == "monai.bundle":
        warnings.simplefilter("ignore")
    sys.argv = [module, *arguments]
    sys.path.insert(0, cwd)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
