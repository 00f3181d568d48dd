"""Compressed pixels of DICOM files, decoded in a process of its own, whose death is an error of one file.

JPEG, JPEG-LS, JPEG 2000 and RLE are decoded by libraries in C, which a damaged or hostile file may end, or have write
over memory. That process reads paths, a line of JSON each, and answers each with a line of JSON: ``{"error": ...}``, or
type and shape, after which the voxels follow, first axis fastest. It lives as long as this one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.itk import itk_array, itk_read, itk_reader

LONGEST = 300.0
"""Seconds that decoding a file may take."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sparse3dunet.io.dicom_decoding import serve; serve()"
)


def read_pixels(path: Path) -> np.ndarray:
    """Decode a file in this process to (X, Y, Z) or (X, Y, Z, C) voxels, Z the frames.

    Raises:
        DataError: when it cannot be decoded.
    """
    return itk_array(itk_read(itk_reader("GDCMImageIO"), path))


def read_encoded(path: Path) -> np.ndarray:
    """Decode a compressed file as :func:`read_pixels` does, run lengths (RLE) also where GDCM takes them for damaged.

    It does so in small frames, where a run-length segment starts beyond as many bytes as the pixels are.

    Raises:
        DataError: when it cannot be decoded.
    """
    try:
        return read_pixels(path)
    except DataError as error:
        from pydicom import dcmread  # seldom needed, and the process would start later
        from pydicom.config import disable_value_validation
        from pydicom.uid import RLELossless

        with tempfile.TemporaryDirectory(prefix="dicom-") as folder, disable_value_validation():
            copy = Path(folder) / "image.dcm"
            try:
                elements = dcmread(path, force=True)
                if elements.file_meta.TransferSyntaxUID != RLELossless:
                    raise error
                elements.decompress()
                elements.save_as(copy)
                return read_pixels(copy)
            except Exception:  # pydicom raises a dozen kinds here
                raise error from None


def decode(path: Path) -> np.ndarray:
    """Decode a compressed file as :func:`read_pixels` does, but in the process for that.

    Raises:
        DataError: also when that process ends, or takes longer than LONGEST.
    """
    if not sys.executable:  # an embedded interpreter
        return read_encoded(path)
    with _LOCK:
        return _decoder().decode(path)


class _Decoder:
    """The process, as long as nothing goes wrong."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", _START, json.dumps(sys.path)]
        # A session of its own: Ctrl-C is for this process, whose end closes the pipe, and that ends the other
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def decode(self, path: Path) -> np.ndarray:
        clock = threading.Timer(LONGEST, self.process.kill)
        clock.start()
        requests: Any = self.process.stdin
        answers: Any = self.process.stdout
        try:
            requests.write(json.dumps(os.fspath(path.absolute())).encode() + b"\n")
            requests.flush()
            answer = json.loads(answers.readline())
            if "error" in answer:
                raise DataError(answer["error"].replace(str(path.absolute()), str(path)))
            voxels = np.empty(answer["shape"], answer["dtype"], order="F")
            if voxels.size and answers.readinto(voxels.T.data.cast("B")) < voxels.nbytes:
                raise EOFError
            return voxels
        except DataError:
            raise
        except (OSError, ValueError, EOFError) as error:  # nothing, or a part of an answer
            self.end()
            raise DataError(
                f"{path}: its compressed pixels cannot be decoded: {self._end()}. Copy or export it again, without "
                "compression if that does not help."
            ) from error
        except BaseException:  # Ctrl-C: the rest of an answer would be taken for the next one
            self.end()
            raise
        finally:
            clock.cancel()

    def _end(self) -> str:
        status = self.process.returncode or 0
        if status == -getattr(signal, "SIGKILL", 9):
            return f"they need more memory than there is, or longer than {LONGEST:.0f} seconds"
        return f"the decoder was ended by {signal.Signals(-status).name}" if status < 0 else "the decoder has ended"

    def end(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # it reads no more
                continue
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_LOCK = threading.Lock()
_DECODERS: list[_Decoder] = []


def _decoder() -> _Decoder:
    """Return the process, started if it is not there."""
    if not _DECODERS or _DECODERS[-1].process.poll() is not None:
        _DECODERS[:] = [_Decoder()]
    return _DECODERS[-1]


def _end() -> None:
    for decoder in _DECODERS:
        decoder.end()


def _forget() -> None:
    """Leave the process to the one that this one was forked from."""
    global _LOCK
    _LOCK = threading.Lock()
    _DECODERS.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def serve() -> None:
    """Answer until the input ends: what the process does."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries print
    for line in sys.stdin.buffer:
        answer: dict[str, Any]
        voxels = np.empty(0)
        try:
            voxels = read_encoded(Path(json.loads(line)))
            answer = {"dtype": voxels.dtype.str, "shape": voxels.shape}
        except DataError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(np.ascontiguousarray(voxels.T).data)
        answers.flush()
