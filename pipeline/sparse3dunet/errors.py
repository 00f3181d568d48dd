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
    """Error in a file or a setting that the user gave.

    The message names the file, what was found, what was expected, and the remedy.
    """


def find_data_error(error: BaseException | None) -> DataError | None:
    """Return the first DataError among `error`, its causes and contexts: libraries may have wrapped it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, DataError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def show_readable_errors() -> None:
    """Have an uncaught error end the process with one message and exit status 1.

    For a DataError, its own message is shown; for an error in a bundle's config, one that names the setting. The full
    traceback is shown if the environment variable SPARSE3DUNET_TRACEBACK is set, and for any other error. MONAI's
    warnings about a DICOM decoder for GPUs are hidden: it is not installed, and nothing here needs it.
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
