"""Rich's console, tables and bars; plain text where rich is not installed, as in MONAI Label's environment."""

from __future__ import annotations

try:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
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
