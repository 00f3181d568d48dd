"""Errors that people can act on, and their display without a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

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
    """From now on, end the process on an uncaught error with one message, and exit status 1.

    A DataError's is its own. Of what goes wrong in a bundle's config, the message names the setting. The full traceback
    is shown where the environment variable SPARSE3DUNET_TRACEBACK is set, and for an error that is neither. Warnings of
    MONAI about a DICOM decoder for GPUs are left out: it is not installed, and nothing here needs it.
    """
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        data_error = find_data_error(error)
        message = str(data_error) if data_error else config_error(error)
        if message is None or os.environ.get(TRACEBACK_VARIABLE):
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {message}", file=sys.stderr)

    sys.excepthook = hook


def config_error(error: BaseException) -> str | None:
    """In one line, what is wrong with which setting of a config, where the error came up in one; None elsewhere."""
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
    config = item.get_config() if parser is None else parser.get(item.get_id())  # there as it was written
    told = config.get("_target_") if isinstance(config, dict) else config
    return (
        f"{name} ({_short(told, 120)}): {_short(reason, 400)} (at {os.path.basename(frames[-1].filename)}, line "
        f"{frames[-1].lineno}). Set {TRACEBACK_VARIABLE}=1 to see the whole trace."
    )


def _short(text: object, length: int) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= length else words[: length - 3] + "..."
