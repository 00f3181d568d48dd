"""Rich's console, tables and bars; plain text where rich is not installed, as in MONAI Label's environment."""

from __future__ import annotations

from typing import Any

try:
    from rich import box
    from rich.console import Console as _Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import TextColumn as _TextColumn
    from rich.table import Table
    from rich.text import Text

    class Console(_Console):
        """Console that leaves names such as ``:smile:`` as they are."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(emoji=False, **settings)

    class TextColumn(_TextColumn):
        """Column of a bar in which names such as ``:smile:`` stay as they are, too."""

        def render(self, task: Task) -> Text:
            text = self.text_format.format(task=task)
            return Text.from_markup(text, style=self.style, justify=self.justify, emoji=False)

except ImportError:
    from sparse3dunet.plain_console import (  # type: ignore[assignment,no-redef]
        BarColumn,
        Console,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Table,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        box,
        escape,
    )

__all__ = [
    "BarColumn",
    "Console",
    "MofNCompleteColumn",
    "Progress",
    "ProgressColumn",
    "Table",
    "TextColumn",
    "TimeElapsedColumn",
    "TimeRemainingColumn",
    "box",
    "escape",
]
