"""Figures for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparse3dunet.errors import DataError
from sparse3dunet.report.pictures import draw_picture


def show(
    image: Any,
    label: Any = None,
    pred: Any = None,
    *,
    reference: Any = None,
    ignore_index: int | Sequence[int] = 255,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    class_names: Sequence[str] = (),
    title: str = "",
    slices: Sequence[int] | None = None,
) -> Figure:
    """Return a figure of three planes of a volume with its annotation and its segmentation.

    A notebook shows it. The arrays' axes are taken for left-right, posterior-anterior and inferior-superior.

    Args:
        image: (X, Y, Z) or (C, X, Y, Z), of which the first channel is shown.
        label: (X, Y, Z) annotation, with `ignore_index` where unlabeled; None for none.
        pred: (X, Y, Z) segmentation, values as in the annotation; None for none.
        reference: (X, Y, Z) dense label, with which errors are shown everywhere; None for none.
        ignore_index: value, or values, of unlabeled voxels.
        spacing: voxel size, for correct proportions.
        class_names: names of the classes by rising value, background first.
        title: title above the figure.
        slices: indices of the slices to show, by axis; None: those without annotation that show most of the structures.

    Raises:
        DataError: when there is neither annotation nor segmentation, or shapes differ.
    """
    volumes = {"label": label, "pred": pred, "reference": reference}
    arrays = {name: np.asarray(array) for name, array in volumes.items() if array is not None}
    shape = np.shape(image)[-3:]
    if not {"label", "pred"} & arrays.keys():
        raise DataError("there is nothing to show on the image; pass label, pred or both.")
    for name, array in arrays.items():
        if array.shape != shape:
            raise DataError(f"{name} has shape {array.shape}, image {np.shape(image)}; expected the same (X, Y, Z).")
    ignored = np.atleast_1d(np.asarray(ignore_index))
    values = np.unique(np.concatenate([np.unique(array) for array in arrays.values()]))
    values = values[~np.isin(values, ignored)]
    numbers = {name: np.searchsorted(values, array).clip(0, len(values) - 1) for name, array in arrays.items()}
    if "reference" in numbers and "label" not in numbers:
        numbers["label"], arrays["label"] = numbers["reference"], arrays["reference"]
    weight = ~np.isin(arrays["label"], ignored) if "label" in arrays else np.ones(shape, bool)
    drawn = np.where(weight, numbers.get("label", 0), 0)
    guess = numbers.get("pred", drawn)
    chosen = _slices(guess, weight) if slices is None and "pred" in numbers else slices
    label, dense = numbers.get("label"), numbers.get("reference")
    return draw_picture(image, guess, label, weight, dense, class_names, title, spacing, sides=False, slices=chosen)


def _slices(guess: np.ndarray, weight: np.ndarray) -> list[int]:
    """Return by axis the slice with most foreground among those of which most is unlabeled, if there are any."""
    chosen = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        foreground, unlabeled = (guess > 0).sum(others), weight.mean(others) < 0.5
        chosen.append(int((foreground * (unlabeled if (foreground * unlabeled).any() else 1)).argmax()))
    return chosen
