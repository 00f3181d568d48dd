"""Progress of the work: bars in a terminal, only lines in a log."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

from sparse3dunet.console import (
    BarColumn,
    Console,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    escape,
)

_DRAWN_EVERY = 0.2  # seconds
_TOLD_EVERY = 60.0  # seconds, between lines on the windows of a case in a log
_MOST_NOTES = 3  # of one kind, in a batch; the others are counted


def minutes_text(minutes: float) -> str:
    """Return a duration in words: 1 minute, 2.5 minutes."""
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


class CaseProgress(Protocol):
    """What is told of the cases of a batch, see :class:`BatchProgress`."""

    def start(self, name: str) -> None: ...

    def line(self, text: str) -> None: ...

    def skip(self) -> None: ...

    def done(self, record: Mapping[str, Any]) -> None: ...

    def note(self, kind: str, text: str) -> None: ...

    def failed(self, name: str, error: str) -> None: ...


class BatchProgress:
    """Two bars, over the cases and the current case's windows, with the time left; a line for each finished case.

    If the output is no terminal, only the lines are printed.

    Args:
        total: number of cases.
        quiet: whether to show only failures.
        notes: whether to show notes; by default, unless `quiet` is set.
    """

    def __init__(self, total: int, quiet: bool = False, notes: bool | None = None) -> None:
        self.total, self.quiet, self.finished = total, quiet, 0
        self.tells_notes = not quiet if notes is None else notes
        self.noted: dict[str, list[str]] = {}
        self.name, self.told = "", time.monotonic()
        self.first: tuple[float, int] | None = None  # time, and number of windows, from which the time left is computed
        self.console = Console(soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"))
        hidden = quiet or not self.console.is_terminal
        self.bars = Progress(*columns, *times, console=self.console, transient=True, disable=hidden)
        self.cases = self.bars.add_task("all", total=total, unit="cases")
        self.current = self.bars.add_task("", total=None, unit="windows")

    def __enter__(self) -> BatchProgress:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()
        for texts in self.noted.values():
            if len(texts) > _MOST_NOTES:
                self._print(
                    f"note: {len(texts) - _MOST_NOTES} more image(s) have such a note, see the column notes of "
                    f"summary.csv: {texts[0]}"
                )

    def start(self, name: str) -> None:
        self.name, self.told, self.first = name, time.monotonic(), None
        self.bars.reset(self.current, description=escape(name), total=None)

    def windows(self, done: int, total: int) -> None:
        """Show how many windows of the current case are done; in a log, by a line every minute."""
        self.bars.update(self.current, completed=done, total=total)
        self.first = self.first or (time.monotonic(), done)
        if self.quiet or self.console.is_terminal or time.monotonic() - self.told < _TOLD_EVERY:
            return
        self.told = time.monotonic()
        began, before = self.first
        minutes = (self.told - began) / 60
        left = minutes * (total - done) / max(done - before, 1)
        self.line(f"{self.name}: {done / total:.1%} of the windows after {minutes:.0f} min, about {left:.0f} min left")

    def line(self, text: str) -> None:
        """Print a line on the current case, unless only failures are shown."""
        if not self.quiet:
            self._print(text)

    def skip(self) -> None:
        """Count a case that was done by an earlier run."""
        self.total -= 1
        self.bars.update(self.cases, total=self.total)

    def done(self, record: Mapping[str, Any]) -> None:
        """Report a finished case."""
        volumes = ", ".join(f"{name} {ml:.4g} ml" for name, ml in list(record["ml"].items())[1:])
        confidence = record["mean_confidence"]
        sure = "" if confidence is None else f"; mean confidence {confidence:.2f}"
        self._line(f"{record['segmentation']}: {record['seconds']:.1f} s; {volumes}{sure}", self.quiet)

    def note(self, kind: str, text: str) -> None:
        """Print a note; of one kind the first few, and in the end how many more there are."""
        if not self.tells_notes:
            return
        texts = self.noted.setdefault(kind, [])
        texts.append(text)
        if len(texts) <= _MOST_NOTES:
            self._print(f"note: {text}")

    def failed(self, name: str, error: str) -> None:
        """Report a failed case."""
        self._line(f"{name}: failed: {error}")

    def _line(self, text: str, quiet: bool = False) -> None:
        self.finished += 1
        self.bars.update(self.cases, completed=self.finished)
        if not quiet:
            self._print(f"{self.finished}/{self.total} {text}")

    def _print(self, text: str) -> None:
        text = text.encode(errors="backslashreplace").decode()  # names of files may be no UTF-8
        self.console.print(text, markup=False, highlight=False)


class StepProgress:
    """Bar over the steps of a run, in a terminal only; anything printed meanwhile appears above it.

    Args:
        title: text in front of the bar.
        total: number of steps, or of seconds.
        unit: its unit, with a space before it; may be empty.
        columns: further columns, such as the time left.
        shown: whether to show the bar at all.
    """

    def __init__(self, title: str, total: float, unit: str, *columns: ProgressColumn, shown: bool = True) -> None:
        console = Console(soft_wrap=True)
        count = TextColumn("{task.completed:.0f}/{task.total:.0f}{task.fields[unit]}")
        self.bars = Progress(
            *(TextColumn("{task.description}"), BarColumn(20), count, TextColumn("{task.fields[text]}"), *columns),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
            auto_refresh=False,  # by a thread, whose locks forked workers would inherit
            redirect_stderr=sys.stderr.isatty(),
        )
        self.task = self.bars.add_task(escape(title), total=total, unit=unit, text="")
        self.drawn = 0.0
        self.bars.start()
        atexit.register(self.close)  # however the run ends, the terminal is restored

    def update(self, done: float, text: str = "") -> None:
        """Set how many steps are done, and the text next to the bar."""
        self.bars.update(self.task, completed=done, text=escape(text))
        if time.monotonic() - self.drawn > _DRAWN_EVERY:
            self.bars.refresh()
            self.drawn = time.monotonic()

    def close(self) -> None:
        """Remove the bar."""
        self.bars.stop()
        atexit.unregister(self.close)


@contextmanager
def run_progress(cases: int) -> Iterator[Callable[[float], None]]:
    """Show a bar over some volumes, in a terminal only; yields a function that takes the done share of a volume."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("learning from held-out parts", total=cases)
        done = 0

        def advance(share: float) -> None:
            nonlocal done
            bars.update(task, completed=done + min(share, 1.0))
            done += share >= 1

        yield advance
