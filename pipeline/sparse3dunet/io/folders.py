"""Folders for results: made and tested before anything is computed, and held by one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sparse3dunet.errors import DataError
from sparse3dunet.io.json_files import load_json

LOCK = ".lock"
"""Name of the file in a folder that the run which uses it keeps locked; the system unlocks it when the run ends."""
HOLDER = ".lock.json"
"""Name of the file that says which process that is."""
LONGEST_END = 10.0
"""Seconds to wait for the rest of a run whose process has ended: its workers end a little later."""
_HELD: dict[Path, FileLock] = {}


def check_output_dir(output_dir: str | Path, inputs: str | Path | None = None) -> None:
    """Raise DataError if results cannot be written there: it is a file or the folder of the inputs, or writing fails.

    A file is written for that, and removed.
    """
    if not isinstance(output_dir, (str, Path)):
        raise DataError(f"the folder for results is {output_dir!r}, which is not text; pass ./{output_dir} instead.")
    if str(output_dir).startswith("~"):
        raise DataError(
            f"the folder for results is {output_dir}, in which ~ is not expanded here; pass the whole path."
        )
    path = Path(output_dir)
    if os.path.exists(path) and not path.is_dir():
        raise DataError(f"{path.absolute()}, the folder for results, is a file; pass a folder.")
    if inputs is not None and os.path.realpath(path) == os.path.realpath(os.path.expanduser(str(inputs))):
        raise DataError(
            f"output_dir {path.absolute()} is also the folder of the images, so a second run would take the results "
            "for images. Pass another folder: --output_dir FOLDER."
        )
    _check_writable(path)


def _check_writable(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
        for place in missing:
            with contextlib.suppress(OSError):  # of several processes, another may have put something there; new/..
                place.rmdir()
    except OSError as error:
        raise DataError(
            f"cannot write results to {folder.absolute()} ({error.strerror or error}). Make room or change the rights "
            "there, or pass another folder."
        ) from error


def hold_folder(folder: str | Path) -> None:
    """Hold a folder for this process until it ends, so that no other run writes to it at the same time.

    Where the file system has no locks, this does nothing.

    Raises:
        DataError: when another process holds it; says which one.
    """
    path = _place(folder)
    if path in _HELD:
        return
    lock = FileLock(path / LOCK, thread_local=False)
    if not acquire(lock) and not acquire(lock, LONGEST_END if _has_ended(path) else 0):
        raise DataError(
            f"{path} is in use by another run ({_holder(path)}). Wait until it has ended, or pass another folder."
        )
    if lock.is_locked:
        with contextlib.suppress(OSError):
            (path / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
        _HELD[path] = lock


def discard_folder(folder: str | Path, inputs: str | Path) -> None:
    """Remove a folder that this process holds, if there is nothing in it but its lock and the files made of the inputs.

    Args:
        folder: the folder, which this process made.
        inputs: folder in it of what was made of the inputs.
    """
    path, made = _place(folder), _place(inputs)
    files = [Path(place) / name for place, _, names in os.walk(path) for name in names]
    if any(made not in file.parents and file not in (path / LOCK, path / HOLDER) for file in files):
        return
    lock = path / LOCK  # removed last, and held until then: a run that waits for it would hold a file that is not there
    with contextlib.suppress(OSError):  # another run may have begun to use it
        for file in files:
            if file != lock:
                file.unlink(missing_ok=True)
        for place, _, _ in sorted(os.walk(path), reverse=True):
            if Path(place) != path:
                os.rmdir(place)
        lock.unlink(missing_ok=True)
        path.rmdir()
    release_folder(folder)


def unused_name(folder: str | Path, stem: str, suffix: str = "") -> str:
    """Return a name that nothing in a folder has, see :func:`numbered`."""
    return next(name for name in numbered(stem, suffix) if not os.path.lexists(Path(folder) / name))


def numbered(stem: str, suffix: str = "") -> Iterator[str]:
    """Yield names of stem and suffix, from the second on with a number between them: a.nii, a2.nii, a3.nii ..."""
    return (f"{stem}{number or ''}{suffix}" for number in (0, *range(2, 10_000)))


def release_folder(folder: str | Path) -> None:
    """Let other processes write to a folder that this one holds (:func:`hold_folder`)."""
    lock = _HELD.pop(_place(folder), None)
    if lock is not None:
        lock.release()


def _place(folder: str | Path) -> Path:
    """Return the path without links, so that a process does not hold a folder twice, by two names."""
    return Path(os.path.realpath(os.path.expanduser(folder)))


def acquire(lock: FileLock, timeout: float = 0) -> bool:
    """Acquire a lock, and make its folder; return whether no other process holds it.

    Where the file system has no locks, or the folder cannot be written to, nothing is locked, and that counts as
    success: what cannot be written is told by :func:`check_output_dir`.

    Args:
        lock: the lock.
        timeout: seconds to wait; -1 for as long as it takes.
    """
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True
    return True


def _read_holder(folder: Path) -> tuple[int, str]:
    """Return process and host of the run that holds a folder; 0 and "" if unknown."""
    try:
        content = load_json(folder / HOLDER, "a holder")
        return int(content["pid"]), str(content["host"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0, ""


def _holder(folder: Path) -> str:
    pid, host = _read_holder(folder)
    return f"process {pid} on {host}" if pid else "an unknown process"


def _has_ended(folder: Path) -> bool:
    """Return whether the process that holds a folder was one of this machine, and has ended."""
    pid, host = _read_holder(folder)
    return bool(pid) and host == platform.node() and not is_running(pid)


def is_running(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
