"""Seconds from Densify to the first preview in the page of `annotate`, on the built-in scan, three slices per axis."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.augmentation import machine
from benchmarks.scans import demo

LOOKING = 20.0
"""Seconds that a person looks at the page before the first Densify; the program imports meanwhile."""


def main() -> None:
    """Serve the page, press Densify, and print the seconds until a segmentation is shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of the run")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        scan, annotation = demo().write(Path(folder))
        command = ["annotate", str(scan), str(annotation), "-o", f"{folder}/out", "--no-open"]
        process = subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "-m", "sparse3dunet", *command],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            assert process.stdout is not None
            address = next(line.split()[-1] for line in process.stdout if line.startswith("Annotate at"))
            time.sleep(LOOKING)
            print(f"{seconds_to_preview(address, minutes):.1f} s from Densify to the preview in the page; {machine()}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def seconds_to_preview(address: str, minutes: float) -> float:
    """Start a run, and wait for its first segmentation."""
    start = time.monotonic()
    urllib.request.urlopen(urllib.request.Request(f"{address}api/densify?minutes={minutes}", method="POST"))
    state: dict[str, Any] = {"found": None, "run": {"state": "running"}}
    while state["found"] is None:
        if state["run"]["state"] != "running":
            sys.exit(f"the run ended without a preview: {state['run']}")
        time.sleep(0.1)
        state = json.load(urllib.request.urlopen(f"{address}api/state"))
    return time.monotonic() - start


if __name__ == "__main__":
    main()
