"""Requests as the page makes them, to a server in the test's own process."""

from __future__ import annotations

import base64
import gzip
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from sparse3dunet.annotate.browser.opening import open_session
from sparse3dunet.annotate.browser.server import make_app
from sparse3dunet.annotate.browser.session import Session
from sparse3dunet.io import folders as io_folders
from tests.conftest import ROOT, bundle_environment

TOKEN = "a-token-of-the-test"
SHAPE = (7, 6, 5)  # RAS
AFFINE = np.array([[0, -2.0, 0, 9], [0, 0, 3.0, 0], [-1.5, 0, 0, 4], [0, 0, 0, 1]])  # inferior, left, anterior


def opened(scan: Path, out: Path, *annotation: Path, **options) -> Session:
    """A session as another process would open it: of an earlier one, nothing but its files is there."""
    for path in [path for path in io_folders._HELD if path.is_relative_to(out)]:
        io_folders._HELD.pop(path).release()
    return open_session(scan, annotation[0] if annotation else None, out, **options)


class Command:
    """The command annotate in a process of its own."""

    def __init__(self, scan: Path, out: Path, *options: str) -> None:
        arguments = ("annotate", str(scan), "-o", str(out), "--no-open", *options)
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "-m", "sparse3dunet", *arguments],
            stdout=subprocess.PIPE,
            env=bundle_environment(),
            cwd=ROOT,
            encoding="utf-8",
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]

    def end(self, how: int = signal.SIGINT) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.communicate(timeout=60)


class Client:
    """Requests as the page makes them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.http = TestClient(
            make_app(session, TOKEN), base_url="http://127.0.0.1:8000", raise_server_exceptions=False
        )

    def get(self, path: str, **params):
        return self.http.get(f"/{TOKEN}/{path}", params=params)

    def post(self, path: str, **params):
        return self.http.post(f"/{TOKEN}/{path}", params=params)

    def state(self) -> dict:
        return self.get("api/state").json()

    def paint(self, axis: int, index: int, voxels: np.ndarray, after: int | None = None):
        params = {"axis": axis, "index": index, "after": self.state()["sequence"] if after is None else after}
        body = gzip.compress(np.asarray(voxels, np.uint8).tobytes(order="F"))
        return self.http.put(f"/{TOKEN}/api/slice", params=params, content=body, headers={"Content-Encoding": "gzip"})

    def painted(self) -> np.ndarray:
        return np.frombuffer(self.get("api/painted").content, np.uint8).reshape(SHAPE, order="F")


def shown_by(answer: dict) -> np.ndarray:
    """The voxels of a slice that the page shows after an answer, first axis fastest."""
    return np.frombuffer(base64.b64decode(answer["voxels"]), np.uint8)


def random_slice(axis: int, seed: int = 0) -> np.ndarray:
    shape = [n for other, n in enumerate(SHAPE) if other != axis]
    return np.random.default_rng([axis, seed]).integers(0, 4, shape).astype(np.uint8)
