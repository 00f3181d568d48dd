"""One training of the bundle, and its scores; what the benchmarks of training share."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml


@dataclass
class Scores:
    """Of a training: mean Dice of the foreground classes and mean IoU of all, over volumes, by the dense labels."""

    dice: float
    iou: float
    iterations: int
    patches_per_second: float


def side_by_side(function: Callable[[Any], Any], items: Iterable[Any], jobs: int) -> Iterator[Any]:
    """The results in the items' order, of which `jobs` are computed at once, each on its share of the cores."""
    if jobs == 1:
        yield from map(function, items)
        return
    os.environ["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // jobs, 1))  # of the commands that it runs
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(function, items)
        except KeyboardInterrupt:
            os._exit(130)  # else commands that wait their turn would begin


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data``: the hippocampus volumes."""
    data = Path(__file__).resolve().parents[2] / "shared" / "hippocampus"
    parser.add_argument("--data", type=Path, default=data, help="imagesTr, labelsTr, labelsTr_sparse, split.json")


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """``--jobs``: how many of `what` run side by side."""
    told = f"{what} at once, each on its share of the cores"
    parser.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", default=1, help=told)


def call(command: Sequence[object]) -> None:
    """Run a command; its output is shown where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def train(
    places: Sequence[object], settings: Sequence[object], minutes: float | None, seed: int, folder: Path
) -> Scores:
    """Train for some minutes, or for the epochs that the settings say, keep the last model, and score it.

    Args:
        places: options that name the data, for training and for scoring.
        settings: options of the training alone.
        minutes: of training; None for epochs.
        seed: of all that is random.
        folder: for what comes out.
    """
    places = [*places, "--ckpt_dir", folder / "models", "--output_dir", folder / "eval"]
    run = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", "run"]
    length = ["--minutes", minutes, "--seed", seed, "--keep", "last", "--val_interval", "None"]
    call([*run, "training", *settings, *places, *length])
    call([*run, "evaluating", *places])
    with (folder / "eval/training.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    batch = yaml.safe_load((folder / "eval/config.yaml").read_text(encoding="utf-8"))["batch_size"]
    with (folder / "eval/scores.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "all"]
    dice = np.mean([float(row["dice"]) for row in rows if row["class"] != "background" and row["dice"]])
    iou = np.mean([float(row["iou"]) for row in rows if row["iou"]])
    iterations = int(last["iteration"])
    return Scores(float(dice), float(iou), iterations, iterations * batch / float(last["seconds"]))
