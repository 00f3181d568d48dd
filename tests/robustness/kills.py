"""Kills of a command at random moments of its whole run, again and again, until the same command ends by itself."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from tests.conftest import ROOT, bundle_environment
from tests.forked import Forked

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST_END = 120
"""Seconds, on a busy machine, in which a process that got a signal has ended."""
MOST_IN_A_ROW = 4


def times(usual: int) -> int:
    """Return how often something is tried: fewer times for a quick look, by the variable SPARSE3DUNET_TIMES."""
    return min(usual, int(os.environ.get("SPARSE3DUNET_TIMES", usual)))


def start(module: str, *arguments: object) -> Forked:
    return Forked(module, list(map(str, arguments)), ROOT, bundle_environment())


def cpu_seconds(pid: int) -> float:
    """Seconds that a process has computed, which do not depend on what else the machine does."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return float("inf")
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def run_and_measure(module: str, *arguments: object) -> tuple[CompletedProcess[str], float]:
    """Run a command undisturbed; return its outcome and the seconds that it computed."""
    running, seconds = start(module, *arguments), 0.0
    while running.poll() is None:
        now = cpu_seconds(running.pid)
        seconds = now if now < float("inf") else seconds
        time.sleep(0.01)
    return running.finish(LONGEST_END), seconds


def run_and_kill(number: int, after: float, module: str, *arguments: object) -> CompletedProcess[str] | None:
    """Send a signal to a command once it has computed `after` seconds; return its outcome, None if it ended before."""
    running = start(module, *arguments)
    while running.poll() is None and cpu_seconds(running.pid) < after:
        time.sleep(0.002)
    is_killed = running.poll() is None
    if is_killed:
        try:
            os.kill(running.pid, number)
        except ProcessLookupError:  # it has just ended
            is_killed = False
    done = running.finish(LONGEST_END)
    return done if is_killed else None


def is_in_order(done: CompletedProcess[str]) -> bool:
    """Return whether a command ended without a traceback, but for one of MONAI's program before it runs anything.

    That program imports what a config names, so that its traceback may go through imports of this package.
    """
    said = done.stdout + done.stderr
    is_early = "pipeline/sparse3dunet" not in said or "in _parse_import_string" in said
    return "Traceback" not in said or (said.rstrip().endswith("KeyboardInterrupt") and is_early)


@dataclass
class Series:
    """Kills of one command, in rows of one to MOST_IN_A_ROW, after each of which it ends by itself.

    Args:
        command: returns module and arguments for an output folder.
        check: looks at a folder after the command has ended by itself.
        look: looks at a folder after each kill; its result is the next look's argument.
    """

    command: Callable[[Path], Sequence[object]]
    check: Callable[[Path], None]
    look: Callable[[Path, object], object] = lambda out, before: None
    kills: int = 0
    rows: int = 0
    ended_before: int = 0
    statuses: list[tuple[str, int]] = field(default_factory=list)

    def run(self, folder: Path, kills: int, seed: int) -> None:
        """Run the command undisturbed, in ``whole`` within the folder, then kill it so often in other ones."""
        done, seconds = run_and_measure(*self.command(folder / "whole"))
        assert done.returncode == 0, done.stderr
        self.check(folder / "whole")
        rng = random.Random(seed)
        while self.kills < kills:
            out = folder / f"killed_{self.rows}"
            self.rows += 1
            seen = None
            for _ in range(min(rng.randint(1, MOST_IN_A_ROW), kills - self.kills)):
                number = SIGNALS[self.kills % len(SIGNALS)]
                done = run_and_kill(number, rng.uniform(0, seconds), *self.command(out))
                if done is None:
                    self.ended_before += 1
                    continue
                self.kills += 1
                self.statuses.append((number.name, done.returncode))
                assert number == signal.SIGKILL or is_in_order(done), (number, done.stderr)
                seen = self.look(out, seen)
            done = start(*self.command(out)).finish(LONGEST_END)
            assert done.returncode == 0, done.stdout + done.stderr
            self.check(out)

    def __str__(self) -> str:
        ends = {pair: self.statuses.count(pair) for pair in sorted(set(self.statuses))}
        counts = ", ".join(f"{name} with status {status}: {count}" for (name, status), count in ends.items())
        return f"{self.kills} kills in {self.rows} folders ({counts}); {self.ended_before} runs ended before"


def names(folder: Path) -> set[str]:
    """Return all files below a folder, hidden ones as well, but for locks and those that are named after times."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if ".lock" not in name and "events.out.tfevents" not in name}


def assert_nothing_unfinished(folder: Path, goes_on: bool = False) -> None:
    """Fail if there is a draft, or a folder of drafts with something in it, unless the next run goes on with these."""
    assert not [path for path in folder.rglob("*") if ".part" in path.name or path.name.endswith(".former")]
    assert goes_on or not list(folder.rglob(".drafts/*"))
