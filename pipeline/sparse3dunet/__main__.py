"""``python -m sparse3dunet``: the command line."""

from __future__ import annotations

import os
import sys
import traceback

from sparse3dunet.interrupts import STOPPED, ended_at_once


def run() -> None:
    """Run the command line as a program: errors and Ctrl-C end it at once, whatever its threads are doing."""
    with ended_at_once():
        _check_folder()
        from sparse3dunet.cli.main import main
        from sparse3dunet.errors import ignore_signals, leave

    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        elif _is_interrupt(end):
            print("Stopped.", file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        status = STOPPED
    except BaseException:
        traceback.print_exc()
    if status:
        leave(status)
    ignore_signals()  # all is written


def _check_folder() -> None:
    """End the process if its folder was removed: libraries that are loaded then abort it, without saying why."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("error: the current folder was removed. Change to one that is there (cd), and run the command again.")


def _is_interrupt(end: SystemExit) -> bool:
    """Return whether Typer has made Ctrl-C this exit, of which it says nothing."""
    import typer

    return isinstance(end.__context__, typer.Exit) and isinstance(end.__context__.__cause__, KeyboardInterrupt)


if __name__ == "__main__":
    run()
