"""Settings on the command line of a bundle's run, without the import of what takes seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from fire.parser import DefaultParseValue

from sparse3dunet.errors import DataError

PATHS = ("_dir", "_file", "pretrained", "plan", "plan_output", "plan_copy", "bundle_root")
"""Ends of the names of settings that are paths."""


def parse_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the settings of a command line as MONAI does (by python-fire).

    Raises:
        DataError: unless they have the form ``--name value``, ``--name=value``, or ``--name`` for true.
    """
    settings: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        name, equals, text = option.removeprefix("--").partition("=")
        name = name.replace("-", "_")  # as python-fire does
        if not option.startswith("--") or not re.fullmatch(r"[\w#:]+", name):
            raise DataError(
                f"{option!r}: expected a setting such as --max_epochs 20; enclose values with blanks in quotes."
            )
        if equals:
            settings[name] = _value(name, text)
        elif rest and not rest[0].startswith("--"):
            settings[name] = _value(name, rest.pop(0))
        else:
            settings[name] = True
    # The shell expands --name ~/x, but not --name=~/x
    return {
        name: os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value
        for name, value in settings.items()
    }


def _value(name: str, text: str) -> Any:
    """Return the value of a setting; a path stays text, also one that looks like a number or a tuple.

    ``null`` is None, as in the config files, where people find it.
    """
    if text == "null":
        return None
    value = DefaultParseValue(text)
    if name.endswith(PATHS) and not (value is None or isinstance(value, (str, list))):
        return text
    return value
