"""JSON from files that others wrote."""

from __future__ import annotations

import json
from typing import Any

from sparse3dunet.errors import DataError


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
