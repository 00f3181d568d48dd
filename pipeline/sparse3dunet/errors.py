"""Errors that people can act on, and their display without a traceback."""

from __future__ import annotations

import os
import sys
from types import TracebackType

TRACEBACK_VARIABLE = "SPARSE3DUNET_TRACEBACK"


class DataError(ValueError):
    """Something is wrong with a file or a setting that the user gave.

    The message names the file, what was found, what was expected, and the cure.
    """


def find_data_error(error: BaseException | None) -> DataError | None:
    """The first DataError among `error`, its causes and contexts, where the libraries between wrapped one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, DataError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def show_readable_errors() -> None:
    """From now on, end the process on an uncaught DataError with its message alone, and exit status 1.

    The full traceback is shown where the environment variable SPARSE3DUNET_TRACEBACK is set, and for any other error.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        data_error = find_data_error(error)
        if data_error is None or os.environ.get(TRACEBACK_VARIABLE):
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {data_error}", file=sys.stderr)

    sys.excepthook = hook
