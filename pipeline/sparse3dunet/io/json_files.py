"""JSON from files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_no_pipe


def parse_json(text: str | bytes, where: str, what: str, cure: str) -> Any:
    """Return the content of JSON text.

    Args:
        text: the text; bytes in UTF-8.
        where: name of the file, for messages.
        what: what it is to be, for messages: "a model description".
        cure: what to do if it is not.

    Raises:
        DataError: when it is not JSON, nested too deeply, or has numbers that are too long.
    """
    try:
        content = json.loads(text)
        json.dumps(content)  # some that can be read are nested too deeply to be written
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"{where}: not {what}: it is not valid JSON ({reason}). {cure}") from error
    return content


def load_json(path: Path, what: str, cure: str = "") -> Any:
    """Return the content of a JSON file, see :func:`parse_json`.

    Raises:
        DataError: also when there is no regular file: to read a named pipe might never end.
        OSError: when it cannot be read.
    """
    check_no_pipe(path)
    return parse_json(path.read_bytes(), str(path), what, cure)


def misfit(content: Any, hints: type | dict[str, Any]) -> str:
    """Return the first field of what was read from JSON that has another type than declared; empty if there is none.

    Args:
        content: what was read.
        hints: a dataclass, or the types of its fields; fields may be missing, and others be there.
    """
    if not isinstance(content, dict):
        return "all"
    declared = hints if isinstance(hints, dict) else get_type_hints(hints)
    return next((name for name, hint in declared.items() if name in content and not _fits(content[name], hint)), "")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value from JSON is of a type: plain ones, lists, dictionaries with text as keys, unions."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, inner[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(entry, inner[1]) for entry in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))
