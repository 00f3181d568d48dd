"""Plain text in place of the parts of rich that this package uses: aligned tables, no colours, no bars."""

from __future__ import annotations

import re
from typing import Any

_TAG = re.compile(r"(?<!\\)\[/?[a-z ]*\]")


def escape(text: str) -> str:
    """Mark brackets as text, not markup, as ``rich.markup.escape``."""
    return re.sub(r"(\[/?[a-z ]*\])", r"\\\1", text)


class box:
    """Names of frames, which plain tables do not have."""

    SIMPLE_HEAD = None


class Table:
    """Table that is printed as aligned columns."""

    def __init__(self, title: str = "", **_: Any) -> None:
        self.title, self.caption = title, ""
        self.headings: list[str] = []
        self.right: list[bool] = []
        self.rows: list[tuple[str, ...]] = []

    def add_column(self, heading: str, justify: str = "left", **_: Any) -> None:
        self.headings.append(heading)
        self.right.append(justify == "right")

    def add_row(self, *cells: str, **_: Any) -> None:
        self.rows.append(cells)

    def __str__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(_plain(line[i])) for line in lines) for i in range(len(self.headings))]
        aligned = [
            "  ".join(
                _plain(cell).rjust(width) if right else _plain(cell).ljust(width)
                for cell, width, right in zip(line, widths, self.right)
            ).rstrip()
            for line in lines
        ]
        return "\n".join(filter(None, [_plain(self.title), *aligned, _plain(self.caption)]))


class Console:
    """Console that prints text without colours, and is no terminal, so that no bars are shown."""

    is_terminal = False

    def __init__(self, **_: Any) -> None:
        pass

    def print(self, content: Any = "", markup: bool = True, **_: Any) -> None:
        print(_plain(content) if markup and isinstance(content, str) else content, flush=True)


class Progress:
    """Bars that are not shown."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def add_task(self, *_: Any, **__: Any) -> int:
        return 0

    def update(self, *_: Any, **__: Any) -> None:
        pass

    start = stop = reset = refresh = update


class ProgressColumn:
    """Column of a bar that is not shown."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


BarColumn = MofNCompleteColumn = TextColumn = TimeElapsedColumn = TimeRemainingColumn = ProgressColumn


def _plain(text: str) -> str:
    """Return the text without markup."""
    return _TAG.sub("", text).replace("\\[", "[")
