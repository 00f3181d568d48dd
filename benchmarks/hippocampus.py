"""Dice after some minutes of training, from sparse and dense labels, on volumes not used for any choice.

    python benchmarks/hippocampus.py --minutes 3 10 --seeds 3
    python benchmarks/hippocampus.py --minutes 3 --seeds 1 --nnunet /path/to/environment/bin/python

Trains on the 160 training volumes of `--data` (Task04_Hippocampus of the Medical Segmentation Decathlon with a folder
of labels on three slices a volume) by `sparse3dunet run training --overlay cpu --minutes N`, validates once, after
these minutes, keeps the last model, and scores the 40 validation volumes against their dense labels: the mean Dice of
the two classes. Validation volumes choose neither an epoch nor a model. With `--nnunet`, nnU-Net trains on the same
volumes, labels and minutes in the same run (the Python named must have nnunetv2). Prints a table, the ratios and the
machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from augmentation import machine
from trainings import add_data, add_seeds, call, check_data, hippocampus, settings_in, show, spread, table, train

LABELS = {"sparse": "labelsTr_sparse", "dense": "labelsTr"}
GOALS = {3.0: 0.84, 10.0: 0.88}
"""Mean Dice from sparse labels, by minutes."""
LEAST_RATIO = 0.99
"""Ratio of Dice from sparse to Dice from dense labels."""


@dataclass
class Result:
    """One training, scored."""

    method: str
    annotation: str
    minutes: float
    seed: int
    dice: float
    iterations: int
    patches_per_second: float


def train_ours(data: Path, annotation: str, minutes: float, seed: int, folder: Path, settings: Sequence[str]) -> Result:
    """Train with the bundle, and score."""
    places = hippocampus(data, LABELS[annotation], data / "split.json")
    found = train(places, settings, minutes, seed, folder)
    return Result("sparse3dunet", annotation, minutes, seed, found.dice, found.iterations, found.patches_per_second)


def train_nnunet(python: Path, data: Path, annotation: str, minutes: float, seed: int, folder: Path) -> Result:
    """Train nnU-Net in its own environment, and score."""
    labels = data / LABELS[annotation]
    script = Path(__file__).with_name("nnunet_minutes.py")
    call([python, script, data, labels, folder, "--minutes", minutes, "--seed", seed])
    found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Result(
        found["name"], annotation, minutes, seed, found["dice"], found["iterations"], found["patches_per_second"]
    )


def show_results(results: Sequence[Result]) -> None:
    """Print a row for each method, annotation and number of minutes, then the ratios."""
    headings = ("method", "labels", "minutes", "Dice", "sd (min to max)", "seeds", "iterations", "patches/s")
    made = table("Mean Dice of the validation volumes", *headings, words=2)
    means = {}
    for key in sorted({(r.minutes, r.method, r.annotation) for r in results}):
        rows = [r for r in results if (r.minutes, r.method, r.annotation) == key]
        dice = [r.dice for r in rows]
        means[key] = float(np.mean(dice))
        speed, iterations = np.mean([r.patches_per_second for r in rows]), np.mean([r.iterations for r in rows])
        made.add_row(
            key[1],
            key[2],
            f"{key[0]:g}",
            f"{means[key]:.4f}",
            spread(dice),
            str(len(rows)),
            f"{iterations:.0f}",
            f"{speed:.1f}",
        )
    show(made)
    for (minutes, method, annotation), dice in means.items():
        ours = method == "sparse3dunet"
        if annotation == "sparse" and ours and minutes in GOALS:
            print(f"{minutes:g} minutes: {dice:.4f}, goal {GOALS[minutes]}: {met(dice, GOALS[minutes])}")
        dense = means.get((minutes, method, "dense"))
        if annotation == "sparse" and dense:
            goal = f", goal {LEAST_RATIO}: {met(dice / dense, LEAST_RATIO)}" if ours else ""
            print(f"{minutes:g} minutes, {method}: sparse / dense {dice / dense:.4f}{goal}")
        if not ours and (minutes, "sparse3dunet", annotation) in means:
            ratio = means[minutes, "sparse3dunet", annotation] / dice
            print(f"{minutes:g} minutes, {annotation}: sparse3dunet / {method} {ratio:.3f}")


def met(value: float, goal: float) -> str:
    """In words."""
    return "met" if value >= goal else "missed"


def main() -> None:
    """Train, score, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0, 10.0])
    add_seeds(parser)
    parser.add_argument("--annotation", nargs="+", choices=sorted(LABELS), default=["sparse", "dense"])
    parser.add_argument("--nnunet", type=Path, help="the Python of an environment with nnunetv2")
    parser.add_argument("--out", type=Path, help="folder for the files of the trainings; by default it is removed")
    parser.add_argument("--settings", default="--overlay cpu", help="settings of our training, in one string")
    arguments = parser.parse_args()
    check_data(arguments.data, {"labelsTr", *(LABELS[name] for name in arguments.annotation)})
    settings = settings_in(arguments.settings)
    print(machine(), flush=True)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        for minutes in arguments.minutes:
            for seed in range(arguments.seeds):
                for annotation in arguments.annotation:
                    folder = out / f"{minutes:g}_{annotation}_{seed}"
                    results.append(train_ours(arguments.data, annotation, minutes, seed, folder, settings))
                    print(results[-1], flush=True)
                    if arguments.nnunet:
                        folder = out / f"nnunet_{minutes:g}_{annotation}_{seed}"
                        found = train_nnunet(arguments.nnunet, arguments.data, annotation, minutes, seed, folder)
                        results.append(found)
                        print(found, flush=True)
        with (out / "hippocampus.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, asdict(results[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, results))
    show_results(results)


if __name__ == "__main__":
    main()
