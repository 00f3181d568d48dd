"""Draw the gallery of the documentation: python docs/make_gallery.py, in the repository (needs nilearn).

One picture for each kind of scan that is there, from previews (seconds each), before and after a round of suggestions;
and the learning curves in benchmarks/results/learning_curves.json, which benchmarks/learning_curves.py measures.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

from learning_curves import OURS, annotate, cases, means, preview, suggestions, with_suggestions  # noqa: E402
from scans import Scan  # noqa: E402

from sparse3dunet.colors import CLASS_COLORS  # noqa: E402
from sparse3dunet.report.pictures import UNLABELED  # noqa: E402

FOLDER = Path(__file__).parent / "images"
TITLES = {
    "mni152": "MNI152, brain MRI",
    "ct3mm": "abdominal CT, 3 mm",
    "hippocampus": "hippocampus, MRI",
    "nuclei": "nuclei, light-sheet microscopy",
}
STYLES = {
    OURS: ("#d62728", "o-", 2.4),
    "random walker (2000)": ("#7f7f7f", "s--", 1.3),
    "random walker (200)": ("#bcbd22", "v--", 1.3),
    "fill between slices": ("#8c564b", "D--", 1.3),
    "forest": ("#1f77b4", "^--", 1.3),
}
WRONG = "#d62728"


def save(figure: Figure, name: str, colors: int = 200) -> None:
    """Write a picture as PNG with few colours, so that it is small."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    picture = Image.open(buffer).convert("RGB").quantize(colors)
    picture.save(FOLDER / name, optimize=True)
    print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB", flush=True)


def plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as it is looked at."""
    return np.rot90(volume.take(index, axis))


def shown_slice(scan: Scan, axis: int) -> int:
    """Return the unannotated slice with most foreground."""
    others = tuple(a for a in range(3) if a != axis)
    foreground = (scan.dense > 0).sum(others) * (scan.annotated.mean(others) < 0.5)
    return int(foreground.argmax())


def draw_layer(ax: Any, scan: Scan, classes: np.ndarray, axis: int, index: int, alpha: float) -> None:
    """The gray values with classes in colour; -1 for unlabeled voxels, which are dark."""
    sizes = np.delete(scan.spacing, axis)
    ax.imshow(plane(scan.gray, axis, index), cmap="gray", vmin=0, vmax=1, aspect=sizes[1] / sizes[0])
    drawn = plane(classes, axis, index)
    names = [UNLABELED, *(CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(int(scan.dense.max())))]
    shown = np.where(drawn == 0, np.nan, np.maximum(drawn, 0))
    cmap = ListedColormap(names)
    ax.imshow(
        shown, cmap=cmap, vmin=-0.5, vmax=len(names) - 0.5, alpha=alpha, interpolation="nearest", aspect=ax.get_aspect()
    )
    ax.set(xticks=[], yticks=[])


def draw_errors(ax: Any, scan: Scan, found: np.ndarray, axis: int, index: int) -> None:
    """The gray values with wrong voxels in red."""
    sizes = np.delete(scan.spacing, axis)
    ax.imshow(plane(scan.gray, axis, index), cmap="gray", vmin=0, vmax=1, aspect=sizes[1] / sizes[0])
    wrong = np.where(plane(found != scan.dense, axis, index), 1.0, np.nan)
    ax.imshow(wrong, cmap=ListedColormap([WRONG]), alpha=0.9, interpolation="nearest", aspect=ax.get_aspect())
    ax.set(xticks=[], yticks=[])


def draw_round(kind: str, first: Scan, seed: int) -> None:
    """Annotation, segmentation and errors before and after a round, and the dense label, on one slice."""
    fitted = preview(first, seed)
    second = with_suggestions(first, suggestions(first, fitted))
    found = [fitted.segmentation(), preview(second, seed).segmentation()]
    axis = 2
    index = shown_slice(second, axis)
    figure = Figure(figsize=(8.4, 4.9), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(2, 4)
    for row, (scan, segmentation) in enumerate(zip((first, second), found)):
        when = ("before", "after the suggestions")[row]
        annotation = np.where(scan.annotated, scan.dense.astype(int), -1)
        draw_layer(axes[row, 0], scan, annotation, axis, index, 0.6)
        draw_layer(axes[row, 1], scan, segmentation, axis, index, 0.6)
        draw_errors(axes[row, 2], scan, segmentation, axis, index)
        axes[row, 0].set_title(f"annotated: {scan.annotated.mean():.1%}", fontsize=9)
        axes[row, 1].set_title(f"axial {index}, {when}", fontsize=9)
        axes[row, 2].set_title(f"errors; Dice {second.mean_dice(segmentation):.3f}", fontsize=9)
    draw_layer(axes[0, 3], second, second.dense, axis, index, 0.6)
    axes[0, 3].set_title("dense label, for scoring", fontsize=9)
    draw_layer(axes[1, 3], second, np.zeros_like(second.dense, int), axis, index, 0)
    axes[1, 3].set_title("the scan alone", fontsize=9)
    figure.suptitle(f"{TITLES.get(kind, kind)}: preview, before and after a round", fontsize=10)
    save(figure, f"gallery_{kind}.png")


def draw_curves(results: dict[str, Any]) -> None:
    """Dice against slices per axis, a panel for each kind of scan."""
    by_kind = means(results)
    num_rows = math.ceil(len(by_kind) / 2)
    figure = Figure(figsize=(8.4, 3.2 * num_rows), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(num_rows, 2).ravel()
    for ax in axes[len(by_kind) :]:
        ax.remove()
    for ax, (kind, rows) in zip(axes, by_kind.items()):
        for name, (color, style, width) in STYLES.items():
            points = [(count, row[name]) for count, row in rows.items() if name in row]
            if points:
                ax.plot(*zip(*points), style, color=color, lw=width, ms=4, label=name)
        ax.set_title(TITLES.get(kind, kind), fontsize=10)
        labels = [f"{count}\n{row['annotated']:.0%}" for count, row in rows.items()]
        ax.set_xticks(list(rows), labels, fontsize=8)
        ax.set(ylim=(0, 1), xlabel="slices per axis; share of the voxels")
        ax.set_ylabel("mean Dice, unlabeled voxels", fontsize=9)
        ax.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, loc="lower right")
    save(figure, "learning_curves.png", 64)


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder of the other data")
    parser.add_argument("--kinds", nargs="*", choices=list(TITLES), default=list(TITLES), help="kinds of scans")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    drawn = set()
    for kind, case, loaded in cases(given.shared, given.kinds):
        if kind not in drawn:
            drawn.add(kind)
            draw_round(kind, annotate(case, loaded, 1), given.seed)
    file = ROOT / "benchmarks/results/learning_curves.json"
    if file.is_file():
        draw_curves(json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
