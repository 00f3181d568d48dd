"""Puts small faults into the core modules, one at a time, and prints those that the modules' own tests don't notice.

``make mutate`` runs it; ``python -m tests.tools.mutate --help`` shows its options. Each fault is drawn by a seed, and
written into a copy of the repository, so that commands which the tests start see it too. Tests run in a fork of a
process that has imported PyTorch and MONAI already, and stop at the first failure. Faults that nobody can notice are
listed, with why, in ``equivalent_mutations.yaml``, and left out of the score.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import multiprocessing
import multiprocessing.util
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.tools.mutations import Mutation, mutated, mutations
from tests.tools.traced import Order, Trace

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("pipeline/sparse3dunet")
EQUIVALENT = Path(__file__).with_name("equivalent_mutations.yaml")
COPIED = ("pipeline", "bundle", "tests", "examples", "docs", "benchmarks", "setup.cfg", "pyproject.toml", "README.md")
CORE = {
    "data/conventions.py": "data/test_inferred_conventions.py data/test_inferred_data_sets.py",
    "data/sampling.py": "data/test_sampling.py planning/test_sampling.py",
    "data/slices.py": "data/test_slices.py data/test_inferred_conventions.py transforms/test_holdout.py",
    "densify/estimate.py": "densify/test_estimate.py",
    "inference/records.py": "inference/test_records.py",
    "inference/windows.py": "inference/test_windows.py",
    "io/volumes.py": "io/test_volumes.py io/test_formats.py io/test_hostile_files.py",
    "io/writing.py": "io/test_volumes.py io/test_replacing.py io/test_formats.py io/test_microscopy_bad.py",
    "losses/masked.py": "losses",
    "metrics/masked.py": "metrics losses",
    "models/description_checks.py": "models/test_description.py",
    "networks/layers.py": "networks",
    "networks/unet3d.py": "networks",
    "planning/checks.py": "planning/test_plan.py",
    "planning/fingerprint.py": "planning/test_fingerprint.py planning/test_plan.py",
    "planning/geometry.py": "planning/test_geometry.py",
    "planning/plan.py": "planning/test_plan.py",
    "planning/sampling.py": "planning/test_sampling.py",
    "propagation/calibration.py": "propagation/test_calibration.py",
    "propagation/random_walker.py": "propagation/test_random_walker.py",
    "transforms/spatial/bspline_field.py": "transforms/test_elastic.py transforms/test_elastic_cases.py",
    "transforms/spatial/elastic.py": "transforms/test_elastic.py transforms/test_elastic_cases.py",
    "transforms/spatial/warping.py": "transforms/test_warping.py transforms/test_elastic.py",
}
"""Core modules, and the tests of each."""
CAUGHT, SURVIVED, TOO_LONG = "caught", "survived", "took too long"


class Fault(NamedTuple):
    """A mutation of a module, and the line of code that it changes."""

    module: str
    mutation: Mutation
    code: str

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies it in the list of equivalent ones: no line number, which other changes would alter."""
        return self.module, self.mutation.scope, self.code, self.mutation.before, self.mutation.after

    def __str__(self) -> str:
        m = self.mutation
        return f"{PACKAGE / self.module}:{m.line} {m.scope}\n      {self.code}\n    - {m.before}\n    + {m.after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations; return 1 if the score is too low, or tests fail without any."""
    options = _options(arguments)
    modules = [name for name in CORE if not options.module or name in options.module]
    import_libraries()
    began = time.monotonic()
    forks = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(options.jobs, forks, initializer=_use_copy) as pool:
        faults = [_drawn(name, options.count, options.seed) for name in modules]
        outcomes = dict(zip(modules, pool.map(_outcomes, modules, faults), strict=True))
    for module, found in outcomes.items():
        print(f"{module:40}", "-" if found is None else f"{sum(o != SURVIVED for o in found):4} of {len(found)}")
    everything = [outcome for found in outcomes.values() for outcome in found or []]
    noticed = sum(outcome != SURVIVED for outcome in everything)
    score = noticed / len(everything) if everything else 0.0
    print(f"{noticed} of {len(everything)} faults noticed, {score:.1%}, in {time.monotonic() - began:.0f} s")
    return int(score < options.least or None in outcomes.values())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--module", action="append", choices=list(CORE), help="one of the core modules; may be repeated"
    )
    parser.add_argument("--count", type=int, default=12, help="number of faults in each module")
    parser.add_argument("--seed", type=int, default=0, help="which faults are drawn")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--least", type=float, default=0.97, help="exit status 1 below this share of noticed faults")
    return parser.parse_args(arguments)


def _drawn(module: str, count: int, seed: int) -> list[Fault]:
    """Return random faults of a module, from top to bottom, without those that nobody can notice."""
    equivalent = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    excluded = {tuple(entry[name] for name in ("module", "scope", "code", "before", "after")) for entry in equivalent}
    source = (ROOT / PACKAGE / module).read_text(encoding="utf-8")
    everything, lines = mutations(source), source.splitlines()
    order = list(range(len(everything)))
    random.Random(f"{seed} {module}").shuffle(order)  # so that a larger number adds to a smaller one
    drawn = [everything[index] for index in sorted(order[:count])]
    faults = [Fault(module, mutation, lines[mutation.line - 1].strip()) for mutation in drawn]
    return [fault for fault in faults if fault.key not in excluded]


def import_libraries() -> None:
    """Import all that the package imports from elsewhere, and nothing of its own."""
    for file in (ROOT / PACKAGE).rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                if name.partition(".")[0] not in ("sparse3dunet", "tests", "__future__"):
                    with contextlib.suppress(ImportError):  # an optional one
                        importlib.import_module(name)


def _use_copy() -> None:
    """Give this process a copy of the repository of its own, its working directory from now on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the others
    folder = tempfile.TemporaryDirectory(prefix="mutate")
    multiprocessing.util.Finalize(folder, folder.cleanup, exitpriority=0)
    copy = Path(folder.name) / "copy"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    os.chdir(copy)
    sys.path[:] = [str(copy / "pipeline"), str(copy), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(copy / "pipeline")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:  # else those of the original
        if name != "tests.tools" and not name.startswith("tests.tools."):
            del sys.modules[name]


def _outcomes(module: str, faults: Sequence[Fault]) -> list[str] | None:
    """Return whether a module's tests notice its faults, and print those that they don't; None if they fail anyway."""
    file = Path("trace.pickle")
    status, output = _run_tests(module, 900, Trace(str((PACKAGE / module).resolve()), file))
    if status != 0:
        print(f"The tests of {module} fail without any fault:\n{output}", flush=True)
        return None
    trace = pickle.loads(file.read_bytes())
    outcomes = []
    for fault in faults:
        outcomes.append(_outcome(fault, trace))
        if outcomes[-1] != CAUGHT:
            print(f"{outcomes[-1]}: {fault}", flush=True)
    return outcomes


def _outcome(fault: Fault, trace: Trace) -> str:
    """Return whether a module's tests notice a fault."""
    file = PACKAGE / fault.module
    source = file.read_text(encoding="utf-8")
    cached = Path(importlib.util.cache_from_source(str(file)))
    file.write_text(mutated(source, fault.mutation), encoding="utf-8")
    cached.unlink(missing_ok=True)  # it would be taken for current if size and second are the same
    try:
        status, _ = _run_tests(fault.module, 60 + 4 * trace.total, Order(trace, fault.mutation.line))
    finally:
        file.write_text(source, encoding="utf-8")
        cached.unlink(missing_ok=True)
    return TOO_LONG if status is None else SURVIVED if status == 0 else CAUGHT


def _run_tests(module: str, limit: float, plugin: object) -> tuple[int | None, str]:
    """Run a module's tests in a fork of this process; return the exit status (None: too long), and what they print."""
    log = Path("tests.log")
    pid = os.fork()
    if pid == 0:
        _be_pytest(module, log, plugin)
    end = time.monotonic() + limit
    status = None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # and what they have left behind
    if status is None:
        os.waitpid(pid, 0)
    return status, log.read_text(errors="replace")


def _be_pytest(module: str, log: Path, plugin: object) -> None:
    """Turn this process into pytest, and end it."""
    status = 3
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("wb") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        files = [f"tests/{name}" for name in CORE[module].split()]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short", "-m"]
        temporary = f"--basetemp={Path.cwd().parent / 'tmp'}"
        status = pytest.main([*options, "not slow", temporary, *files], plugins=[plugin])
        sys.stdout.flush()
    finally:
        os._exit(int(status))


if __name__ == "__main__":
    sys.exit(main())
