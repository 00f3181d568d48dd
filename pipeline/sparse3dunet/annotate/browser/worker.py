"""Process that runs one densification: ``python -m sparse3dunet.annotate.browser.worker``.

It imports what takes seconds, then waits for a line of JSON on its standard input: the arguments of :func:`densify`. A
later line ``stop`` ends the run early, with results, as Ctrl-C does. When its input ends, so does the process.
"""

from __future__ import annotations

import _thread
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

STOP = "stop"


def densify(
    scan: str, annotation: str, output_dir: str, ignore_index: int, reference: str | None = None, **settings: Any
) -> None:
    """Run what the command ``densify SCAN ANNOTATION -o OUTPUT_DIR`` runs.

    Args:
        scan: path of the scan.
        annotation: path of the annotation.
        output_dir: folder for the results.
        ignore_index: value of unlabeled voxels.
        reference: path of a dense label to score the result by; None for none.
        settings: further settings of ``densify.yaml``.
    """
    from sparse3dunet.bundle import running
    from sparse3dunet.densify import inputs
    from sparse3dunet.densify.made import naming_sources
    from sparse3dunet.io import check_output_dir, hold_folder

    check_output_dir(output_dir)
    hold_folder(output_dir)
    folder = Path(output_dir) / "work" / "inputs"
    dataset = inputs.prepare([scan, annotation], folder, ignore_index=ignore_index, reference=reference)
    given = {"dataset_dir": str(dataset), "output_dir": output_dir, "ignore_index": ignore_index, "spacing": "auto"}
    with naming_sources(dataset):
        running.run_quietly("densify", {**given, **settings})


def _follow_input() -> None:
    """Stop the run when told to; end the process when the server has ended."""
    for line in sys.stdin:
        if line.strip() == STOP:
            _thread.interrupt_main()
    os._exit(1)


def main() -> None:
    """Wait for a run, and run it; an error ends it with one line and exit status 1."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the server's terminal is not for this process
    import sparse3dunet.densify.run  # noqa: F401
    from sparse3dunet import errors

    errors.print_any_name()
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_follow_input, daemon=True).start()
    try:
        densify(**json.loads(line))
    except Exception as error:
        message = errors.readable(error) or errors.config_error(error)
        if message is None or os.environ.get(errors.TRACEBACK_VARIABLE):
            raise
        print(f"error: {message}", flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
