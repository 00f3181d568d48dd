"""Runs of densify in a process of their own, one at a time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from sparse3dunet.annotate.browser.worker import STOP

COMMAND = (sys.executable, "-u", "-W", "ignore", "-m", "sparse3dunet.annotate.browser.worker")
SHOWN_LINES = 12
WAIT = 0.4
"""Seconds between two looks at the files of a run."""
ERROR = "error: "


class Runs:
    """The current run, and a process that is ready for the next.

    Args:
        look: called in other threads while a run goes on; with True at its preview and at its end.
    """

    def __init__(self, look: Callable[[bool], None]) -> None:
        self.look = look
        self.state = "idle"  # idle, running, stopping, done, failed
        self.error = ""
        self.minutes = self.started = self.seconds = 0.0
        self.preview_after: float | None = None
        self.lines: deque[str] = deque(maxlen=SHOWN_LINES)
        self._lock = threading.Lock()
        self._current: subprocess.Popen[str] | None = None
        self._spare: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Start a process that imports what it needs and waits, unless there is one."""
        with self._lock:
            if self._spare is None or self._spare.poll() is not None:
                self._spare = _start()

    def start(self, settings: Mapping[str, Any]) -> None:
        """Start a run, and end the current one without results, if there is one.

        Args:
            settings: arguments of :func:`~sparse3dunet.annotate.browser.worker.densify`.
        """
        self.end()
        self.prepare()
        with self._lock:
            process, self._spare = self._spare, None
            assert process is not None
            self._current = process
            self.state, self.error, self.minutes = "running", "", float(settings["minutes"])
            self.started, self.seconds, self.preview_after = time.monotonic(), 0.0, None
            self.lines.clear()
            _send(process, json.dumps(settings))
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def stop(self) -> None:
        """End the current run early; it writes results of what it has found so far."""
        with self._lock:
            if self._current is not None and self.state == "running":
                self.state = "stopping"
                _send(self._current, STOP)

    def end(self) -> None:
        """End the current run at once, without results."""
        with self._lock:
            process, self._current = self._current, None
        if process is not None:
            process.kill()
            process.wait()
            self.state = "idle"

    def close(self) -> None:
        """End all processes."""
        self.end()
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
            spare.wait()

    def as_json(self) -> dict[str, Any]:
        """Return state, times in seconds and minutes, the error, and the last lines of the run."""
        running = self.state in ("running", "stopping")
        return {
            "state": self.state,
            "seconds": round(time.monotonic() - self.started if running else self.seconds, 1),
            "minutes": self.minutes,
            "preview_after": self.preview_after,
            "error": self.error,
            "lines": list(self.lines),
        }

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Keep the lines of a run; at its end, set the state."""
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            text = line.rstrip()
            if not text or process is not self._current:
                continue
            last = text
            self.lines.append(text[:500])
            if text.startswith("Preview after"):
                self.look(True)
                self.preview_after = round(time.monotonic() - self.started, 1)
                threading.Thread(target=self.prepare, daemon=True).start()
        status = process.wait()
        if process is not self._current:
            return
        if status == 0:
            self.look(True)
        with self._lock:
            if process is not self._current:
                return
            self._current = None
            self.seconds = time.monotonic() - self.started
            self.state = "done" if status == 0 else "failed"
            if status:
                known = last.startswith(ERROR)
                self.error = last.removeprefix(ERROR) if known else f"the run ended with status {status}: {last[:300]}"
        self.prepare()

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process is self._current and process.poll() is None:
            time.sleep(WAIT)
            if self.preview_after is not None:
                self.look(False)


def _start() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        COMMAND, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )


def _send(process: subprocess.Popen[str], line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended; that is told when its output is read
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
