"""Draw the pictures of docs/ from the built-in data: python docs/make_images.py, in the repository (needs nilearn)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.transforms import Compose, NormalizeIntensity

from sparse3dunet.colors import CLASS_COLORS
from sparse3dunet.data.slices import PLANES, slices_mask
from sparse3dunet.datasets.mni152 import load_template
from sparse3dunet.report.pictures import UNLABELED
from sparse3dunet.transforms import RandBSplineElasticd
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


def gallery_case(scan: np.ndarray, label: np.ndarray) -> dict[str, torch.Tensor]:
    """The volume as it is trained on, with a grid of lines 12 voxels apart, and 1 wherever the volume is."""
    places = np.indices(scan.shape)
    volumes = {
        "image": NormalizeIntensity()(scan[None]).numpy(),
        "grid": ((places[0] % 12 == 1) | (places[1] % 12 == 3))[None],
        "label": label[None],
        "weight": slices_mask(label.shape, choose_slices(label > 0, 3))[None],
        "inside": np.ones_like(scan)[None],
    }
    return {key: torch.as_tensor(np.array(volume, dtype=np.float32)) for key, volume in volumes.items()}


def warp_case(case: dict[str, torch.Tensor], seed: int = 0, **arguments: Any) -> dict[str, torch.Tensor]:
    """The case as RandBSplineElasticd deforms it."""
    transform = RandBSplineElasticd(
        tuple(case),
        mode=("bilinear", "bilinear", "nearest", "nearest", "nearest"),
        padding_mode=("border", "border", "border", "zeros", "zeros"),
        **arguments,
    )
    return transform.set_random_state(seed)(case)


def draw_patch(ax, patch: dict[str, torch.Tensor], title: str) -> None:
    """An axial slice of a patch: scan, annotated structures and grid; dark where there is no volume."""
    image, grid, label, weight, inside = (plane(patch[key][0].numpy(), 2, 49) for key in patch)
    ax.imshow(np.where(inside > 0, image, np.nan), cmap="gray", vmin=0.2, vmax=2.7)
    shown = np.where((weight > 0) & (label > 0), label, np.nan)
    ax.imshow(shown, cmap=ListedColormap(CLASS_COLORS[:2]), vmin=0.5, vmax=2.5, alpha=0.85, interpolation="nearest")
    ax.imshow(np.ones_like(grid), cmap=ListedColormap(["#f2c14e"]), alpha=0.6 * (grid * inside).clip(0, 1))
    ax.set(xticks=[], yticks=[], facecolor=UNLABELED)
    ax.set_title(title, fontsize=9)


def gallery(scan: np.ndarray, label: np.ndarray) -> None:
    """A slice under each random transform of the bundle's train.yaml, with its settings, and under all."""
    config = ConfigParser()
    config.read_config(Path(__file__).parents[1] / "bundle/configs/train.yaml")
    recipe = {key: value for key, value in config["train#deform"].items() if key not in ("_target_", "keys")}
    recipe |= {"spatial_size": None, "prob": 1.0}
    angle, scale = recipe["rotate_range"], recipe["scale_range"]
    case = gallery_case(scan, label)
    rigid = {"displacement": 0.0}
    panels = {
        "as it is": case,
        f"elastic: {recipe['displacement']} voxels": warp_case(
            case, 1, displacement=recipe["displacement"], control_spacing=recipe["control_spacing"]
        ),
        "elastic: twice as much": warp_case(case, 1, displacement=2 * recipe["displacement"]),
        "rotated": warp_case(case, rotate_range=[(0, 0), (0, 0), (angle, angle)], **rigid),
        "scaled": warp_case(case, scale_range=[(scale, scale), (-scale, -scale), (0, 0)], **rigid),
        "sheared (not in the recipe)": warp_case(case, shear_range=[(0.2, 0.2)] + [(0, 0)] * 5, **rigid),
        "flipped": warp_case(case, flip_prob=[1, 0, 0], **rigid),
    }
    gray_values = config.get_parsed_content("train#gray_values")
    for number, transform in enumerate(gray_values.values()):
        transform.prob = 1.0
        transform.set_random_state(number + 2)
        name = type(transform).__name__.removeprefix("Rand")
        name += ", inverted" if getattr(transform, "invert_image", False) else ""
        panels[name] = {**case, "image": transform(case["image"].clone())}
    chain = Compose(list(gray_values.values()))
    for seed in range(4):
        patch = warp_case(case, seed, **recipe)
        for transform in chain.transforms:
            transform.prob = 0.5
        panels[f"all of them, draw {seed + 1}"] = {**patch, "image": chain.set_random_state(seed)(patch["image"])}
    figure = Figure(figsize=(8.4, 10.6), dpi=110, facecolor="white", layout="constrained")
    axes = figure.subplots(5, 4).ravel()
    for ax, (title, patch) in zip(axes, panels.items(), strict=True):
        draw_patch(ax, patch, title)
    save(figure, "augmentation.png")


if __name__ == "__main__":
    image, dense = load_template()
    values = np.asarray(image.dataobj, dtype=np.float32)
    conventions(values, dense)
    which_slices(values, dense)
    gallery(values, dense)
