"""Draw the pictures of docs/annotations.md from the built-in data: python docs/make_images.py (needs nilearn)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from sparse3dunet.mni152 import load_template
from sparse3dunet.pictures import CLASS_COLORS, UNLABELED
from sparse3dunet.slices import PLANES, slices_mask
from sparse3dunet.transforms.simulate import choose_slices, scribble

FOLDER = Path(__file__).parent / "images"
BACKGROUND = "#8c8c8c"
"""For background where somebody said that it is background."""


def plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice as it is looked at."""
    return np.rot90(volume.take(index, axis))


def draw(ax, scan: np.ndarray, label: np.ndarray, annotated: np.ndarray, axis: int, index: int) -> None:
    """The scan with annotated classes in colour, annotated background in gray, and what nobody looked at dark."""
    ax.imshow(plane(scan, axis, index), cmap="gray", vmin=0, vmax=0.9)
    shown = plane(np.where(annotated, label + 1, 0), axis, index)
    colors = ListedColormap([UNLABELED, BACKGROUND, *CLASS_COLORS[:2]])
    ax.imshow(shown, cmap=colors, vmin=-0.5, vmax=3.5, alpha=0.62, interpolation="nearest")
    ax.set_axis_off()


def save(figure: Figure, name: str) -> None:
    """Write a picture of the page."""
    FigureCanvasAgg(figure).print_png(FOLDER / name)
    print(FOLDER / name)


def conventions(scan: np.ndarray, label: np.ndarray) -> None:
    """What an annotated slice, one that merely crosses it, and scribbles look like."""
    slices = choose_slices(label > 0, 1)
    annotated = slices_mask(label.shape, slices)
    axial = slices[2][0]
    scribbled, random = np.zeros(label.shape, bool), np.random.RandomState(3)
    for number, count, length in ((0, 2, 70), (1, 3, 40), (2, 3, 40)):
        for _ in range(count):
            scribbled[:, :, axial] |= scribble(label[:, :, axial] == number, length, 2, random)
    panels = (
        (f"an annotated slice (axial {axial}):\nevery voxel has a class", annotated, 2, axial),
        (f"axial {axial + 12} is not annotated:\nothers merely cross it", annotated, 2, axial + 12),
        ("scribbles: some voxels of\neach class, background too", scribbled, 2, axial),
    )
    figure = Figure(figsize=(8.4, 4.3), dpi=110, facecolor="white", layout="constrained")
    for ax, (title, where, axis, index) in zip(figure.subplots(1, 3), panels):
        draw(ax, scan, label, where, axis, index)
        ax.set_title(title, fontsize=10)
    legend = (("gray matter", CLASS_COLORS[0]), ("white matter", CLASS_COLORS[1]), ("background", BACKGROUND),
              ("unlabeled", UNLABELED))  # fmt: skip
    for number, (name, color) in enumerate(legend):
        figure.text(0.14 + 0.2 * number, 0.012, f"■ {name}", color=color, fontsize=10)
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.9))
    save(figure, "conventions.png")


def which_slices(scan: np.ndarray, label: np.ndarray) -> None:
    """Three slices an axis: equally spaced within the structure, each drawn where it cuts the other views."""
    slices = choose_slices(label > 0, 3)
    figure = Figure(figsize=(8.4, 3.5), dpi=110, facecolor="white", layout="constrained")
    for ax, axis in zip(figure.subplots(1, 3), range(3)):
        index = slices[axis][1]
        across, up = (a for a in range(3) if a != axis)
        ax.imshow(plane(scan, axis, index), cmap="gray", vmin=0, vmax=0.9)
        height = scan.shape[up]
        for at in slices[across]:
            ax.axvline(at, color=CLASS_COLORS[across], lw=1.6)
        for at in slices[up]:
            ax.axhline(height - 1 - at, color=CLASS_COLORS[up], lw=1.6)
        for spine in ax.spines.values():
            spine.set(color=CLASS_COLORS[axis], linewidth=3)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{PLANES[axis]}: {', '.join(map(str, slices[axis]))}", fontsize=10, color=CLASS_COLORS[axis])
    save(figure, "which_slices.png")


if __name__ == "__main__":
    image, dense = load_template()
    values = np.asarray(image.dataobj, dtype=np.float32)
    conventions(values, dense)
    which_slices(values, dense)
