"""Shared parts of the training benchmarks: one training of the bundle, and its scores."""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sparse3dunet.bundle import check_settings as checking
from sparse3dunet.bundle.running import config_path, parse_settings
from sparse3dunet.errors import DataError
from sparse3dunet.planning import read_plan

OF_DATA = {"dataset_dir", "label_dir", "reference_dir", "split_file", "val_fraction"}
OWN = OF_DATA | {"minutes", "max_epochs", "seed", "keep", "val_interval", "ckpt_dir", "output_dir"}
"""Settings of a training that its benchmark sets."""


@dataclass
class Scores:
    """Scores of a training: mean Dice of the foreground classes and mean IoU of all, by the dense labels."""

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
            os._exit(130)  # otherwise waiting commands would start


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data``: the hippocampus volumes."""
    data = Path(__file__).resolve().parents[2] / "shared" / "hippocampus"
    parser.add_argument("--data", type=Path, default=data, help="imagesTr, labelsTr, labelsTr_sparse, split.json")


def check_data(data: Path, labels: Iterable[str]) -> None:
    """Exit with a message if the hippocampus volumes, or a folder of labels, are missing."""
    if missing := [name for name in ("imagesTr", *labels, "split.json") if not (data / name).exists()]:
        sys.exit(f"{data}: no {', '.join(missing)}; pass the folder of the hippocampus volumes with --data.")


def hippocampus(data: Path, labels: str, split: Path) -> list[object]:
    """Return the options for the hippocampus volumes, for training and scoring."""
    named = ["--dataset_dir", data.resolve(), "--label_dir", labels, "--reference_dir", "labelsTr"]
    return [*named, "--split_file", split.resolve()]


def settings_in(text: str) -> list[str]:
    """The settings of trainings in one text, as ``--overlay cpu --batch_size 2``; where there is no such one, or the
    benchmark gives it, the program ends.
    """
    words = shlex.split(text)
    try:
        given = parse_settings(words)
        overlays = [given.pop("overlay")] if "overlay" in given else []
        if text.count("--overlay") > 1:
            raise DataError(f"{text}: expected one --overlay.")
        files = [config_path(name) for name in ("train", *overlays)]
        checking.check_plain(files, given)
        checking.check_settings(files, given)
    except DataError as error:
        sys.exit(str(error))
    if taken := OWN & given.keys():
        sys.exit(f"--{min(taken)} is set by the benchmark itself.")
    return words


def spread(values: Sequence[float]) -> str:
    """Return standard deviation, minimum and maximum for a table; empty for a single value."""
    if len(values) == 1:
        return ""
    return f"{np.std(values, ddof=1):.4f} ({min(values):.3f} to {max(values):.3f})"


def table(title: str, *headings: str, words: int = 1) -> Table:
    """Return an empty table whose first columns are text."""
    made = Table(title=title)
    for column, heading in enumerate(headings):
        made.add_column(heading, justify="left" if column < words else "right")
    return made


def show(made: Table) -> None:
    """Print a table independently of the terminal's width."""
    Console(width=max(Console().width, 120)).print(made)


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """``--seeds``: how many trainings of each kind."""
    told = "trainings of each kind"
    parser.add_argument("--seeds", type=int, choices=range(1, 65), metavar="N", default=3, help=told)


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """``--jobs``: how many of `what` run side by side."""
    told = f"{what} at once, each on its share of the cores"
    parser.add_argument("--jobs", type=int, choices=range(1, 65), metavar="N", default=1, help=told)


def call(command: Sequence[object]) -> None:
    """Run a command; print its output if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def train(
    places: Sequence[object], settings: Sequence[object], minutes: float | None, seed: int, folder: Path
) -> Scores:
    """Train for some minutes, or for the epochs in the settings, keep the last model, and score it.

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
        epochs = list(csv.DictReader(file))
    batch = read_plan(folder / "models/plan.json").batch_size
    with (folder / "eval/scores.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["region"] == "all"]
    dice = np.mean([float(row["dice"]) for row in rows if row["class"] != "background" and row["dice"]])
    iou = np.mean([float(row["iou"]) for row in rows if row["iou"]])
    timed = epochs[-2] if len(epochs) > 1 else epochs[-1]  # the last one's seconds hold the validation
    speed = int(timed["iteration"]) * batch / float(timed["seconds"])
    return Scores(float(dice), float(iou), int(epochs[-1]["iteration"]), speed)
