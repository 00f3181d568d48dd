"""Plugins of pytest that find out which tests run which line of a file, and put those tests first."""

from __future__ import annotations

import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest


class Trace:
    """Records, for each line of a file, the tests that run it, and how long each test takes.

    Attributes:
        tests: names of tests by line.
        seconds: by name of test.
    """

    def __init__(self, file: str, result: Path) -> None:
        self.file, self.result = file, result
        self.tests: dict[int, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        lines: set[int] = set()

        def of_line(frame: FrameType, event: str, _: Any) -> Any:
            lines.add(frame.f_lineno)
            return of_line

        def of_call(frame: FrameType, event: str, _: Any) -> Any:
            return of_line if frame.f_code.co_filename == self.file else None

        began, before = time.monotonic(), sys.gettrace()
        sys.settrace(of_call)
        try:
            return (yield)
        finally:
            sys.settrace(before)
            self.seconds[item.nodeid] = time.monotonic() - began
            for line in lines:
                self.tests[line].add(item.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.result.write_bytes(pickle.dumps(self))


class Order:
    """Runs the tests that run a line first, the fastest first of all.

    The others run too: what a fixture or a cache has kept was computed in another test.
    """

    def __init__(self, trace: Trace, line: int) -> None:
        self.trace, self.line = trace, line

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        first = self.trace.tests.get(self.line, set())
        items.sort(key=lambda item: (item.nodeid not in first, self.trace.seconds.get(item.nodeid, 0.0)))
