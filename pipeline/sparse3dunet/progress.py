"""What a batch shows of itself in a terminal, or in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class BatchProgress:
    """Two bars, over cases and over the windows of one, with the time left; a line for each case that is done.

    Where the output is no terminal, the lines alone.

    Args:
        total: number of cases.
        quiet: whether to show failures alone.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        self.total, self.quiet, self.finished = total, quiet, 0
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

    def start(self, name: str) -> None:
        self.bars.reset(self.current, description=escape(name), total=None)

    def windows(self, done: int, total: int) -> None:
        self.bars.update(self.current, completed=done, total=total)

    def skip(self) -> None:
        """A case was done by an earlier run."""
        self.total -= 1
        self.bars.update(self.cases, total=self.total)

    def done(self, record: Mapping[str, Any]) -> None:
        """A case is done."""
        volumes = ", ".join(f"{name} {ml:.4g} ml" for name, ml in list(record["ml"].items())[1:])
        confidence = record["mean_confidence"]
        sure = "" if confidence is None else f"; mean confidence {confidence:.2f}"
        self._line(f"{record['segmentation']}: {record['seconds']:.1f} s; {volumes}{sure}", self.quiet)

    def failed(self, name: str, error: str) -> None:
        """A case failed."""
        self._line(f"{name}: failed: {error}")

    def _line(self, text: str, quiet: bool = False) -> None:
        self.finished += 1
        self.bars.update(self.cases, completed=self.finished)
        if not quiet:
            text = text.encode(errors="backslashreplace").decode()  # names of files may be no UTF-8
            self.console.print(f"{self.finished}/{self.total} {text}", markup=False, highlight=False)


@contextmanager
def run_progress(cases: int) -> Iterator[Callable[[float], None]]:
    """A bar over the work on some volumes, in a terminal alone; gives what takes the share of a volume that is done."""
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
