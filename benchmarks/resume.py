"""Kill a training at random, again and again, and resume it: does it end as if nothing had happened?

    python benchmarks/resume.py [--kills 20] [--workers 2] [--seed 0]

Trains a small network on the built-in volume, once undisturbed and once killed (SIGKILL) at random moments, every
fourth time told to end instead (SIGTERM), each time followed by the same command with --resume. In the end compares
the weights, the optimizer's state, the random states, the best model and the logged losses of both, bit for bit; exit
status 1 where one differs. Needs the built-in data, which the first training fetches.
"""

from __future__ import annotations

import argparse
import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    *("--network_def#channels", "[8,16]", "--largest_patch_size", "[24,24,24]", "--batch_size", "2"),
    *("--epoch_length", "6", "--val_interval", "1", "--overlap", "0.0", "--network_def#dropout", "0.2"),
)


def command(out: Path, epochs: int, workers: int, *more: str) -> list[str]:
    """Return the command of the training, as a user runs it."""
    run = (sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training")
    places = ("--config_file", "bundle/configs/train.yaml", "--output_dir", out / "eval", "--ckpt_dir", out / "models")
    settings = (*SETTINGS, "--max_epochs", epochs, "--patience", epochs, "--num_workers", workers)
    return [*map(str, (*run, *places, *settings, *more))]


def interrupt(arguments: list[str], delay: float, number: int) -> int | None:
    """Run a training and signal it `delay` seconds after it began to learn; its exit status, None if too late."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", bufsize=1
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("Going on", str(Path(arguments[arguments.index("--ckpt_dir") + 1]) / "state/last.pt"))):
            break
    time.sleep(delay)
    in_time = process.poll() is None
    process.send_signal(number)
    process.communicate()
    return process.returncode if in_time else None


def iterations(out: Path) -> int:
    """Return the number of iterations of a training so far."""
    file = out / "models/state/last.pt"
    return int(torch.load(file, weights_only=True)["trainer"]["iteration"]) if file.exists() else 0


def outcome(out: Path) -> dict[str, Any]:
    """Return the files of a training, without run times."""
    last = torch.load(out / "models/state/last.pt", weights_only=True)
    last["trainer"].pop("seconds")
    with (out / "eval/training.csv").open(encoding="utf-8") as file:
        told = [
            [row["epoch"], row["learning_rate"], row["loss"], row["dice_annotated"]] for row in csv.DictReader(file)
        ]
    return {"last.pt": last, "model.pt": torch.load(out / "models/model.pt", weights_only=True), "training.csv": told}


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Return the names of nested values that are not identical bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
        return [found for key in a for found in differences(a[key], b[key], f"{name}/{key}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{name}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [name]


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--longest", type=float, default=4.0, help="maximum seconds until a kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        base = (arguments.epochs, arguments.workers)
        subprocess.run(command(whole, *base), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"undisturbed: {iterations(whole)} iterations", flush=True)
        kills = 0
        while kills < arguments.kills:
            number = signal.SIGTERM if kills % 4 == 3 else signal.SIGKILL
            delay = rng.uniform(0, arguments.longest)
            status = interrupt(command(killed, *base, "--resume"), delay, number)
            if status is None:
                break
            kills += 1
            name = signal.Signals(number).name
            print(
                f"{kills}: {name} after {delay:.2f} s, exit status {status}, {iterations(killed)} iterations kept",
                flush=True,
            )
        subprocess.run(command(killed, *base, "--resume"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        found = differences(outcome(whole), outcome(killed))
    print(f"{kills} interruptions; differences from the undisturbed training: {len(found)}")
    for name in found:
        print(name)
    sys.exit(1 if found or kills < arguments.kills else 0)


if __name__ == "__main__":
    main()
