"""Names of files and classes are printed as they are, also those that rich takes for an emoji."""

import io
import re

import pytest

from sparse3dunet.console import Console, Progress, Table, TextColumn

NAME = "a:smile:b"


@pytest.mark.parametrize("terminal", [False, True])
def test_names_like_emoji(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, soft_wrap=True)
    table = Table(title=f"1 {NAME}")
    table.add_column(f"2 {NAME}")
    table.add_row(f"3 {NAME}")
    console.print(table)
    console.print(f"4 {NAME}")
    with Progress(TextColumn("{task.description}"), console=console) as bars:
        bars.add_task(f"5 {NAME}")
    shown = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())  # without colours
    for number in range(1, 6):
        assert f"{number} {NAME}" in shown
