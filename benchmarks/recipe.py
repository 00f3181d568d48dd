"""What helps, and what does not: the preset cpu with one thing changed at a time, as in docs/recipe.md.

    python benchmarks/recipe.py --minutes 10 --seeds 3 --jobs 2
    python benchmarks/recipe.py --lines "weight decay 0.3" "Dice alone" --also="--learning_rate 0.01"

Of the 160 training volumes of `--data` (Task04_Hippocampus of the Medical Segmentation Decathlon with a folder of
labels on three slices a volume), 120 are learned from and 40 scored by their dense labels: the 40 validation volumes
that benchmarks/hippocampus.py scores choose nothing here. All lines learn for as many minutes, the preset as it is
among them. Prints the mean Dice of the two classes by line, and what it gains over the preset with the same seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from augmentation import machine
from trainings import (
    Scores,
    add_data,
    add_jobs,
    add_seeds,
    check_data,
    hippocampus,
    settings_in,
    show,
    side_by_side,
    spread,
    table,
    train,
)

PRESET, DENSE = "(none)", "dense labels"
LINES = {
    DENSE: "",  # folders of labels are no settings of a line
    "half the channels in first convolutions": "--network_def#halved True",
    "deformed twice as much": (
        "--train#deform#displacement 4 --train#deform#rotate_range 0.3 --train#deform#scale_range 0.2"
    ),
    "gray values unchanged": "--train#intensity []",
    "cross-entropy alone": "--loss#lambda_dice 0",
    "Dice alone": "--loss#lambda_ce 0",
    "learning rate 0.006": "--learning_rate 0.006",
    "weight decay 0.3": "--optimizer#weight_decay 0.3",
    "batches of 2": "--batch_size 2",
}
"""Changed settings by line of the table."""
SCORED = 40
"""Volumes of the 160."""


def development_split(data: Path) -> dict[str, list[str]]:
    """Of the training volumes alone; the same each time."""
    training = json.loads((data / "split.json").read_text(encoding="utf-8"))["train"]
    names = list(np.random.default_rng(0).permutation(training))
    return {"train": sorted(names[:-SCORED]), "val": sorted(names[-SCORED:])}


def show_scores(scores: Mapping[str, Sequence[Scores]]) -> None:
    """Print a row for each line."""
    headings = ("change", "Dice", "sd (min to max)", "gain", "gain (min to max)", "seeds", "iterations")
    made = table("Mean Dice of the development split", *headings)
    preset = [found.dice for found in scores[PRESET]]
    for line, found in scores.items():
        dice = [score.dice for score in found]
        gains = np.subtract(dice, preset)
        made.add_row(
            line,
            f"{np.mean(dice):.4f}",
            spread(dice),
            f"{gains.mean():+.4f}",
            f"{gains.min():+.3f} to {gains.max():+.3f}",
            str(len(dice)),
            f"{np.mean([score.iterations for score in found]):.0f}",
        )
    show(made)


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--minutes", type=float, default=10.0, help="duration of each training")
    add_seeds(parser)
    parser.add_argument("--lines", nargs="*", choices=LINES, default=list(LINES), metavar="LINE", help=", ".join(LINES))
    told = 'further lines, each in one text: --also="--batch_size 1"'
    parser.add_argument("--also", action="append", default=[], metavar="SETTINGS", help=told)
    add_jobs(parser, "trainings")
    arguments = parser.parse_args()
    check_data(arguments.data, ["labelsTr", "labelsTr_sparse"])
    texts = {PRESET: "", **{line: LINES[line] for line in arguments.lines}, **{line: line for line in arguments.also}}
    lines = {line: settings_in(f"--overlay cpu {text}") for line, text in texts.items()}
    print(machine(), flush=True)

    jobs = [(line, seed) for seed in range(arguments.seeds) for line in lines]
    scores: dict[str, list[Scores]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        split = Path(temporary) / "split.json"
        split.write_text(json.dumps(development_split(arguments.data)), encoding="utf-8")

        def learn(job: tuple[str, int]) -> Scores:
            line, seed = job
            places = hippocampus(arguments.data, "labelsTr" if line == DENSE else "labelsTr_sparse", split)
            with tempfile.TemporaryDirectory(dir=temporary) as folder:
                found = train(places, lines[line], arguments.minutes, seed, Path(folder))
            print(f"{line}, seed {seed}: {found}", flush=True)
            return found

        for (line, _), found in zip(jobs, side_by_side(learn, jobs, arguments.jobs)):
            scores.setdefault(line, []).append(found)
    show_scores(scores)


if __name__ == "__main__":
    main()
