"""Errors that people can act on, and their display without a traceback."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

from sparse3dunet.interrupts import STOPPED

TRACEBACK_VARIABLE = "SPARSE3DUNET_TRACEBACK"
OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.EIO, errno.EFBIG, errno.EEXIST),
)
"""Errors of the operating system whose cause is a place on disk, not the program."""
LESS_MEMORY = (
    "Options that need less: --roi-size (predict), a coarser --spacing (densify), --largest_patch_size, --batch_size "
    "and --cache_rate (training)."
)


class DataError(ValueError):
    """Error in a file or a setting that the user gave.

    The message names the file, what was found, what was expected, and the remedy.
    """


class UnknownSettingError(DataError):
    """Error that there is no such setting.

    Attributes:
        name: the setting, as the configs spell it.
        near: settings that are spelled in a similar way.
        cure: what to do if there are none.
    """

    def __init__(self, name: str, near: Sequence[str], cure: str) -> None:
        self.name, self.near, self.cure = name, near, cure
        super().__init__(f"{name}: there is no such setting. {did_you_mean(near) or cure}")


def did_you_mean(near: Sequence[str]) -> str:
    """Return the question whether one of these was meant; empty if there are none."""
    return f"Did you mean {', or '.join(near)}?" if near else ""


def find_data_error(error: BaseException | None) -> DataError | None:
    """Return the first DataError among `error`, its causes and contexts: libraries may have wrapped it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, DataError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def readable(error: BaseException) -> str | None:
    """Return what a user needs to know of an error: of the user's data, the disk or the memory; None for any other."""
    data_error = find_data_error(error)
    if data_error is not None:
        return str(data_error)
    seen: BaseException | None = error
    while seen is not None:
        text = " ".join(str(seen).split())
        if isinstance(seen, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            return f"not enough memory ({_short(text or 'no size was given', 200)}). {LESS_MEMORY}"
        if isinstance(seen, OSError) and seen.errno in OF_THE_DISK:
            place = seen.filename2 or seen.filename or "a file of the results"
            return f"{place}: {seen.strerror}. Make room or change the rights there, or pass another folder."
        seen = seen.__cause__ or seen.__context__
    return None


def end_in_order() -> None:
    """Have SIGTERM end this process as Ctrl-C does, and let it go on when nobody reads its output any more."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.unraisablehook = _repeat_interrupt
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Unread(sys.stdout)


def _repeat_interrupt(unraisable: Any) -> None:
    """Send Ctrl-C once more if it came within a destructor, where Python drops it; show any other error there."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    with contextlib.suppress(RuntimeError):  # the interpreter is at its end
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()


def print_any_name() -> None:
    """Have names of files be printed that are no UTF-8, or not in the encoding of standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


class _Unread:
    """Text stream that drops what is written once its reader is gone, as `head` is after some lines, or its disk full.

    What its encoding does not have is escaped: names of files may be no UTF-8.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if self._stream.line_buffering:
                self._stream.flush()
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, ValueError):  # of the same disk
                print(f"note: {error.strerror or error}: what is printed is left out from now on.", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_readable_errors() -> None:
    """Have an uncaught error end the process with one message and exit status 1.

    For a DataError, its own message is shown; also for a lack of room or memory; for an error in a bundle's config,
    one that names the setting. The full traceback is shown if the environment variable SPARSE3DUNET_TRACEBACK is set,
    and for any other error. MONAI's warnings about a DICOM decoder for GPUs are hidden: it is not installed, and
    nothing here needs it. SIGTERM then ends the process as Ctrl-C does, see :func:`end_in_order`; both in one line.
    """
    end_in_order()
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = "Stopped." if isinstance(error, KeyboardInterrupt) else readable(error) or config_error(error)
        if message is None or os.environ.get(TRACEBACK_VARIABLE):
            sys.__excepthook__(kind, error, trace)
        else:
            print(message if isinstance(error, KeyboardInterrupt) else f"error: {message}", file=sys.stderr)
        if not (sys.flags.interactive or hasattr(sys, "ps1")):  # there, the session goes on
            leave(1 if isinstance(error, Exception) else STOPPED)

    sys.excepthook = hook


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on, as a process that has only its end before it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """End this process after what is registered for its end, but without waiting for threads.

    Where threads are at work, such as those that fill MONAI's caches, the interpreter's own end can abort the process:
    it unwinds their stacks, which C++ does not allow ("terminate called without an active exception").
    """
    ignore_signals()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or a disk is full
            stream.flush()
    os._exit(status)


def config_error(error: BaseException) -> str | None:
    """Describe in one line an error in a config: which setting, and what is wrong; None for an error elsewhere."""
    from monai.bundle import ConfigItem, ConfigParser

    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    item: Any = None
    parser: Any = None
    for link in chain:  # the innermost setting of all, and the config that it is in
        for frame, _ in traceback.walk_tb(link.__traceback__):
            values = list(frame.f_locals.values())
            item = next((value for value in values if isinstance(value, ConfigItem)), item)
            parser = next((value for value in values if isinstance(value, ConfigParser)), parser)
    if item is None or not isinstance(error, Exception):
        return None
    cause = chain[-1]
    frames = traceback.extract_tb(cause.__traceback__)
    reason = " ".join(str(cause).split())
    reason = f"{type(cause).__name__}: {reason}" if reason else type(cause).__name__
    name = item.get_id().replace("::", "#")
    config = item.get_config() if parser is None else parser.get(item.get_id())  # as it was written
    value = config.get("_target_") if isinstance(config, dict) else config
    return (
        f"{name} ({_short(value, 120)}): {_short(reason, 400)} (at {os.path.basename(frames[-1].filename)}, line "
        f"{frames[-1].lineno}). Set {TRACEBACK_VARIABLE}=1 to see the full traceback."
    )


def _short(text: object, length: int) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 3] + "..."
