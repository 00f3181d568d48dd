"""``python -m sparse3dunet``: the command line."""

from __future__ import annotations

import sys
import traceback


def run() -> None:
    """Run the command line as a program: errors and Ctrl-C end it at once, whatever its threads are doing."""
    from sparse3dunet.errors import STOPPED, ignore_signals, leave

    status = 1
    try:
        from sparse3dunet.cli.main import main

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


def _is_interrupt(end: SystemExit) -> bool:
    """Return whether Typer has made Ctrl-C this exit, of which it says nothing."""
    import typer

    return isinstance(end.__context__, typer.Exit) and isinstance(end.__context__.__cause__, KeyboardInterrupt)


if __name__ == "__main__":
    run()
