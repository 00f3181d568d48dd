"""``python -m sparse3dunet``: the command line."""

from __future__ import annotations

import sys

import typer

from sparse3dunet.cli.main import main
from sparse3dunet.errors import ignore_signals, leave


def run() -> None:
    """Run the command line as a program: errors and Ctrl-C end it at once, whatever its threads are doing."""
    try:
        main()
    except SystemExit as end:
        if not end.code:
            ignore_signals()  # all is written
            raise
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        elif isinstance(end.__context__, typer.Exit) and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            print("Stopped.", file=sys.stderr)  # what Typer says nothing about
        leave(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    run()
