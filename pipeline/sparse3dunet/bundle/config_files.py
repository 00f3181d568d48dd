"""Config files, read with an error that names the file and the line."""

from __future__ import annotations

import copy
import functools
import json
import os
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_regular

MOST_ENTRIES = 100_000
"""Number of entries of a config, with all of its aliases followed; few bytes of aliases can stand for billions."""


def read_config(file: str | Path) -> dict[str, Any]:
    """Read a config, in YAML or JSON.

    Raises:
        DataError: when it is damaged, no table of settings, or too large.
    """
    check_regular(file)
    state = os.stat(file)
    return copy.deepcopy(_read(str(file), state.st_mtime_ns, state.st_size, state.st_ino))


@functools.lru_cache(maxsize=32)
def _read(file: str, *_state: int) -> dict[str, Any]:
    """Read a config, once for each of its states: the checks of a run each read all of its configs."""
    try:
        content = ConfigParser.load_config_file(file)
        count = _count(content, {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise _damaged(f"{file}{line}", " ".join(str(error.problem or error.context).split())) from error
    except json.JSONDecodeError as error:
        raise _damaged(f"{file}, line {error.lineno}", error.msg) from error
    except RecursionError as error:
        raise _damaged(file, "it is nested too deeply, or contains itself") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # other characters than text, another suffix
        raise _damaged(file, " ".join(str(error).split())[:200]) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise _damaged(f"{file}, line 1", f"found {found}, expected lines such as max_epochs: 20")
    if count > MOST_ENTRIES:
        raise _damaged(file, f"it stands for {count} entries, expected {MOST_ENTRIES} at most")
    return content


def _count(node: Any, known: dict[int, int]) -> int:
    """Return the number of entries below a node, each alias counted with all that it stands for."""
    if not isinstance(node, (dict, list)):
        return 1
    if id(node) not in known:
        entries = list(node.values()) if isinstance(node, dict) else node
        known[id(node)] = 1 + sum(_count(entry, known) for entry in entries)
    return known[id(node)]


def _damaged(where: str, reason: str) -> DataError:
    return DataError(f"{where}: not a config: {reason}. Correct it there; see the bundle's configs for examples.")
