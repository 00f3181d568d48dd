"""How much annotation is enough: scores against the number of annotated slices, as table 2 of Cicek et al. 2016.

    python benchmarks/slices.py --epochs 20 --seeds 3
    python benchmarks/slices.py --epochs 10 --seeds 3 --jobs 2 \\
        --settings "--overlay cpu --batch_size 2 --largest_patch_size [48,48,48]"

All learn for the same number of iterations (25 an epoch), however busy the machine is. Slices are kept equally spaced
along each axis (1, 2, 3, 5, or all) of the built-in volume's dense label, whose other voxels the network then learns to
segment (the paper's semi-automated use), and of the hippocampus volumes' (`--data`; 160 are learned from, 40 others
scored). Prints a table (mean IoU of all classes, by the dense labels) and draws it as OUT/slices.png. A score may fall
with more slices by no more than the spread of the seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from augmentation import machine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from trainings import add_data, add_jobs, add_seeds, call, settings_in, show, side_by_side, spread, table, train

from sparse3dunet.datasets.mni152 import DEFAULT_DIR, ensure_default

COUNTS = ("1", "2", "3", "5", "all")
BUILT_IN, HIPPOCAMPUS = "built-in volume", "hippocampus"


def sparse_labels(dense: Path, count: str, folder: Path) -> Path:
    """Return a folder with label maps of `count` slices per axis; the dense ones for "all"."""
    if count == "all":
        return dense
    target = folder / f"labels_{count}"
    options = ["--placement", "equidistant", "--slices", count, "-o", target]
    call([sys.executable, "-W", "ignore", "-m", "sparse3dunet", "simulate", dense, *options])
    return target


def annotated_share(labels: Path, dense: Path) -> float:
    """Return the share of annotated voxels over all volumes."""
    unlabeled = 1 + max(int(np.asarray(nib.load(file).dataobj).max()) for file in sorted(dense.glob("*.nii.gz")))
    volumes = [np.asarray(nib.load(file).dataobj) for file in sorted(labels.glob("*.nii.gz"))]
    return sum(int((volume != unlabeled).sum()) for volume in volumes) / sum(volume.size for volume in volumes)


def show_scores(scores: Mapping[tuple[str, str], list[float]], shares: Mapping[tuple[str, str], float]) -> None:
    """Print the table, and whether scores grow with the number of slices."""
    headings = ("data", "slices", "share of the voxels", "mean IoU", "sd (min to max)", "seeds")
    made = table("Mean IoU by annotated slices per axis", *headings)
    for (data, count), found in scores.items():
        cells = (f"{shares[data, count]:.1%}", f"{np.mean(found):.4f}", spread(found), str(len(found)))
        made.add_row(data, count, *cells)
    show(made)
    for data in dict.fromkeys(data for data, _ in scores):
        rows = [found for (name, _), found in scores.items() if name == data]
        falls = [
            np.mean(fewer) - np.mean(more) > max(np.ptp(fewer), np.ptp(more), 0.001) for fewer, more in pairwise(rows)
        ]
        print(f"{data}: {'not monotone' if any(falls) else 'monotone within the spread of the seeds'}")


def draw(scores: Mapping[tuple[str, str], list[float]], file: Path) -> None:
    """Draw the means as lines, and each seed as a dot."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for data in dict.fromkeys(data for data, _ in scores):
        rows = {count: found for (name, count), found in scores.items() if name == data}
        places = [COUNTS.index(count) for count in rows]
        (line,) = axes.plot(places, [np.mean(found) for found in rows.values()], label=data)
        for place, found in zip(places, rows.values()):
            axes.plot([place] * len(found), found, "o", color=line.get_color(), markersize=4)
    axes.set_xticks(range(len(COUNTS)), COUNTS)
    axes.set(xlabel="annotated slices per axis", ylabel="mean IoU of all classes, by the dense label")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Train, score, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training, of 25 iterations")
    add_seeds(parser)
    parser.add_argument("--slices", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--out", type=Path, default=Path("slices"), help="folder for the picture")
    parser.add_argument("--settings", default="--overlay cpu", help="settings of the training, in one string")
    add_data(parser)
    add_jobs(parser, "trainings")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    sets = {BUILT_IN: (Path(ensure_default(DEFAULT_DIR)).resolve(), "labelsTr_dense", ["--val_fraction", "0"])}
    if (arguments.data / "split.json").is_file():
        data = arguments.data.resolve()
        sets[HIPPOCAMPUS] = (data, "labelsTr", ["--split_file", data / "split.json"])
    else:
        print(f"{arguments.data}: no hippocampus data; using only the built-in volume.")
    settings = [*settings_in(arguments.settings), "--max_epochs", arguments.epochs]
    scores: dict[tuple[str, str], list[float]] = {}
    shares: dict[tuple[str, str], float] = {}

    def learn(job: tuple[str, str, int]) -> float:
        name, count, seed = job
        data, dense, split = sets[name]
        with tempfile.TemporaryDirectory() as temporary:
            labels = sparse_labels(data / dense, count, Path(temporary))
            shares[name, count] = annotated_share(labels, data / dense)
            places = ["--dataset_dir", data, "--label_dir", labels, "--reference_dir", dense, *split]
            found = train(places, settings, None, seed, Path(temporary))
        print(f"{name}, {count} slices per axis, seed {seed}: {found}", flush=True)
        return found.iou

    jobs = [(name, count, seed) for name in sets for count in arguments.slices for seed in range(arguments.seeds)]
    for (name, count, _), iou in zip(jobs, side_by_side(learn, jobs, arguments.jobs)):
        scores.setdefault((name, count), []).append(iou)
    show_scores(scores, shares)
    draw(scores, arguments.out / "slices.png")
    print(f"Picture: {arguments.out / 'slices.png'}")


if __name__ == "__main__":
    main()
