"""Pictures of a segmented volume: image, annotation, prediction and error in three orthogonal planes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from sparse3dunet.colors import class_color
from sparse3dunet.data.slices import PLANES
from sparse3dunet.io.writing import replacing

SIDES = ("LR", "PA", "IS")
"""Patient sides at the start and the end of each axis in RAS order."""
WRONG, UNLABELED = "#d62728", "#3b3b58"


class Picture(Figure):
    """Figure that notebooks show without pyplot, and that shows any name as it is."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure."""
        for text in self.findobj(Text):
            text.set_parse_math(False)  # names may have dollar signs
            text.set_text(text.get_text().encode(errors="backslashreplace").decode())  # and be no UTF-8
        super().draw(renderer)

    def png(self) -> bytes:
        """Return the figure as a PNG."""
        buffer = io.BytesIO()
        FigureCanvasAgg(self).print_png(buffer)
        return buffer.getvalue()

    _repr_png_ = png

    def save(self, path: str | Path) -> None:
        """Write the figure as a PNG that is always whole; its folder is created if missing."""
        with replacing(path, ".png") as draft:
            draft.write_bytes(self.png())


def draw_picture(
    image: Any,
    segmentation: Any,
    label: Any = None,
    weight: Any = None,
    reference: Any = None,
    class_names: Sequence[str] = (),
    title: str = "",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    step: int = 1,
    sides: bool = True,
    slices: Sequence[int] | None = None,
) -> Picture:
    """Return a figure of a volume, with a row for each plane, and columns for image, annotation, prediction and error.

    Args:
        image: (X, Y, Z) or (C, X, Y, Z), of which the first channel is shown; RAS orientation.
        segmentation: (X, Y, Z) or (1, X, Y, Z) classes.
        label: annotation, shaped like `segmentation`; with it, the columns "annotation" and "error" are drawn.
        weight: weight of the annotation; unlabeled voxels are tinted, and not marked as errors.
        reference: dense label; with it, errors are shown on all voxels.
        class_names: class names by class number, for the legend.
        title: title above the picture.
        spacing: voxel size, for correct proportions.
        step: subsampling step of the given volume, for the slice numbers in the whole one.
        sides: whether to mark the patient's sides, which not all files state.
        slices: indices of the slices to show, by axis; None: chosen by the foreground.
    """
    scan, guess = _volume(image), _volume(segmentation)
    annotation = None if label is None else _volume(label)
    counted = np.ones(guess.shape, bool) if weight is None else _volume(weight) > 0
    dense = None if reference is None else _volume(reference)
    colors = _class_colormap(max(int(guess.max()), len(class_names) - 1, 1))
    columns = _columns(guess, annotation, counted, dense, colors)
    low, high = np.percentile(scan, (0.5, 99.5))

    figure = Picture(figsize=(2.2 * len(columns), 6.9), dpi=100, facecolor="black", layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for row, axis in zip(axes, (2, 1, 0)):
        index = slices[axis] if slices else _most_informative_slice(guess, annotation, counted, dense, axis)
        across, up = (a for a in range(3) if a != axis)
        for ax, (name, layers) in zip(row, columns.items()):
            ax.imshow(_plane(scan, axis, index), cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            for layer in layers:
                layer.draw(ax, axis, index)
            ax.set_aspect(spacing[up] / spacing[across])
            ax.set_axis_off()
            if axis == 2:
                ax.set_title(name, color="white", fontsize=10)
        _name_plane(row[0], f"{PLANES[axis]} {index * step}")
        if sides:
            mark_sides(row[0], axis)
    figure.suptitle(title, color="white", fontsize=10)
    _add_legend(figure, colors, class_names, annotation is not None)
    return figure


def _name_plane(ax: Any, name: str) -> None:
    box = {"facecolor": "black", "edgecolor": "none", "pad": 1.5}
    ax.text(0.02, 0.98, name, color="white", fontsize=8, bbox=box, va="top", transform=ax.transAxes)


def mark_sides(ax: Any, axis: int) -> None:
    """Mark the patient's sides on a slice perpendicular to an axis in RAS order, see :func:`draw_picture`."""
    across, up = (a for a in range(3) if a != axis)
    box = {"facecolor": "black", "edgecolor": "none", "pad": 1.0, "alpha": 0.6}
    look: dict[str, Any] = {"color": "white", "fontsize": 8, "bbox": box, "transform": ax.transAxes}
    ax.text(0.02, 0.5, SIDES[across][0], ha="left", va="center", **look)
    ax.text(0.98, 0.5, SIDES[across][1], ha="right", va="center", **look)
    ax.text(0.5, 0.02, SIDES[up][0], ha="center", va="bottom", **look)
    ax.text(0.5, 0.98, SIDES[up][1], ha="center", va="top", **look)


@dataclass(frozen=True)
class _Layer:
    """Translucent colours over the image: a masked volume of colour numbers from 1."""

    volume: np.ma.MaskedArray
    colors: ListedColormap
    alpha: float

    def draw(self, ax: Any, axis: int, index: int) -> None:
        plane, last = _plane(self.volume, axis, index), max(self.colors.N, 2)
        ax.imshow(plane, cmap=self.colors, vmin=1, vmax=last, alpha=self.alpha, interpolation="nearest")


def _columns(
    guess: np.ndarray, annotation: np.ndarray | None, counted: np.ndarray, dense: np.ndarray | None, colors: Any
) -> dict[str, list[_Layer]]:
    """Return the layers drawn over the image in each column."""

    def classes(volume: np.ndarray) -> _Layer:
        return _Layer(np.ma.masked_equal(volume, 0), colors, 0.6)

    def mark(where: np.ndarray, color: str, alpha: float) -> _Layer:
        return _Layer(np.ma.masked_equal(where.astype(np.uint8), 0), ListedColormap([color, color]), alpha)

    if annotation is None:
        return {"image": [], "prediction": [classes(guess)]}
    unlabeled = mark(~counted, UNLABELED, 0.55)
    if dense is not None:
        error = [mark(guess != dense, WRONG, 0.9)]
    else:
        error = [mark(counted & (guess != annotation), WRONG, 0.9), unlabeled]
    known = classes(np.where(counted, annotation, 0))
    return {"image": [], "annotation": [known, unlabeled], "prediction": [classes(guess)], "error": error}


def _volume(values: Any) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    return array[0] if array.ndim == 4 else array


def _plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return a slice for display, with the second remaining axis (superior, or anterior) upwards."""
    return np.rot90(volume[(slice(None),) * axis + (index,)])


def _most_informative_slice(
    guess: np.ndarray, annotation: np.ndarray | None, counted: np.ndarray, dense: np.ndarray | None, axis: int
) -> int:
    """Return the index along `axis` of the slice to show.

    It is the one with most foreground: among slices *without* annotation if there is a dense label, among annotated
    voxels if there is only an annotation, otherwise in the prediction.
    """
    others = tuple(a for a in range(3) if a != axis)
    if dense is not None:
        amounts = (dense > 0).sum(axis=others) * (counted.mean(axis=others) < 0.5)
    elif annotation is not None:
        amounts = ((annotation > 0) & counted).sum(axis=others)
    else:
        amounts = (guess > 0).sum(axis=others)
    return int(amounts.argmax()) if amounts.any() else guess.shape[axis] // 2


def _class_colormap(num_classes: int) -> ListedColormap:
    return ListedColormap([class_color(number) for number in range(1, num_classes + 1)])


def _add_legend(figure: Figure, colors: ListedColormap, names: Sequence[str], errors: bool) -> None:
    handles = [
        Patch(color=colors(i), label=names[i + 1] if i + 1 < len(names) else f"class {i + 1}") for i in range(colors.N)
    ]
    if errors:
        handles.append(Patch(color=WRONG, label="wrong"))
        handles.append(Patch(color=UNLABELED, label="unlabeled"))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_color("white")
