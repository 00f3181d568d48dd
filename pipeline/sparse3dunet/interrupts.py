"""Ctrl-C while modules are imported; imports nothing that takes time."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

STOPPED = 128 + signal.SIGINT
"""Exit status after Ctrl-C."""


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Context of imports, in which Ctrl-C ends the process at once: nothing is unfinished yet.

    As an exception, it can get lost there: modules that try whether others can be imported catch it, and so do those in
    C. SIGTERM, too, where it means the same.
    """
    former = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.default_int_handler:  # else it is ignored, as under nohup, or handled
                former[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"Stopped.\n")  # sys.stderr may be in the middle of something
    os._exit(STOPPED)
