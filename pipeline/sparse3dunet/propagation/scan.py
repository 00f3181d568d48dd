"""Input of all propagation methods, their base class, and functions that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from sparse3dunet.data.label_and_weight import as_tensor
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import whole_labels
from sparse3dunet.losses.target import label_numbers

PERCENTILES = (0.5, 99.5)
"""Percentiles of the intensities between which these are scaled linearly; values far outside are clipped."""
OF_CLASS = (5, 95)
"""Percentiles of each class's annotated intensities that are not clipped either, however rare the class."""
TAIL = 0.25
"""Maximum share of the range between the percentiles to which the intensities beyond are scaled, on either side."""
THICK = 2.5
"""Multiple of the median voxel size above which slices are thick: filters work only within them."""
Self = TypeVar("Self", bound="Propagator")


@dataclass(frozen=True)
class Scan:
    """Image and its annotation.

    Attributes:
        image: (C, X, Y, Z) float32, each channel scaled to 0 to 1.
        label: (X, Y, Z) int64 class numbers; 0 where unlabeled.
        known: (X, Y, Z) bool, whether a voxel is annotated.
        spacing: voxel size by axis, in mm (or any other unit of length).
        num_classes: K.
    """

    image: torch.Tensor
    label: torch.Tensor
    known: torch.Tensor
    spacing: np.ndarray
    num_classes: int

    @classmethod
    def of(cls, image: Any, label: Any, weight: Any, spacing: Sequence[float], num_classes: int | None = None) -> Scan:
        """Check the arguments, and scale the intensities.

        Args:
            image: (X, Y, Z) or (C, X, Y, Z).
            label: (X, Y, Z) or (1, X, Y, Z) class numbers; meaningless where the weight is 0.
            weight: the same shape; above 0 where the label counts.
            spacing: three numbers above 0.
            num_classes: K; None: one more than the highest label.

        Raises:
            DataError: when shapes or values are not as above, or nothing is annotated.
        """
        given = {"image": image, "label": label, "weight": weight}
        gray, numbers, counts = (as_tensor(values, name).as_tensor().cpu() for name, values in given.items())
        gray = gray[None] if gray.ndim == 3 else gray
        numbers, counts = (x[0] if x.ndim == 4 and len(x) == 1 else x for x in (numbers, counts))
        size = np.asarray(spacing, float)
        if gray.ndim != 4 or not gray.shape[1:] == numbers.shape == counts.shape:
            raise DataError(
                f"expected an image ([C,] X, Y, Z), and a label and a weight (X, Y, Z) or (1, X, Y, Z); got shapes "
                f"{tuple(gray.shape)}, {tuple(numbers.shape)} and {tuple(counts.shape)}."
            )
        if size.shape != (3,) or not (np.isfinite(size) & (size > 0)).all():
            raise DataError(f"spacing must be three numbers above 0, got {spacing!r}.")
        known = counts > 0
        if not known.any():
            raise DataError("no voxel is annotated (the weight is 0 everywhere); annotate at least one slice.")
        numbers = torch.where(known, numbers, 0)
        if numbers.is_floating_point():
            numbers = torch.from_numpy(whole_labels(numbers.double().numpy()))
        numbers = label_numbers(numbers)
        classes = int(numbers.max()) + 1 if num_classes is None else num_classes
        if int(numbers.min()) < 0 or int(numbers.max()) >= classes:
            raise DataError(f"labels are {int(numbers.min())} to {int(numbers.max())}, expected 0 to {classes - 1}.")
        return cls(torch.stack([_rescaled(c, numbers, known) for c in gray.float()]), numbers, known, size, classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.label.shape)  # type: ignore[return-value]

    @property
    def plane_spacing(self) -> float:
        """Geometric mean of the voxel size in mm; only within the slices if these are thick."""
        sizes = [self.spacing[axis] for axis in self.filtered_axes]
        return float(np.exp(np.log(sizes).mean()))

    @property
    def filtered_axes(self) -> list[int]:
        """Axes along which neighbours are near enough to be filtered together."""
        near = self.spacing <= THICK * np.median(self.spacing)
        return [axis for axis in range(3) if near[axis] and self.shape[axis] > 2] or [0, 1, 2]

    def only(self, known: torch.Tensor) -> Scan:
        """Return the scan with only these voxels annotated."""
        return Scan(self.image, self.label, known, self.spacing, self.num_classes)

    def classes(self) -> np.ndarray:
        """Return the annotated classes in ascending order."""
        return np.unique(self.label[self.known].numpy())


class Propagator(ABC):
    """Base class of the methods that compute class probabilities of all voxels from the annotated ones.

    Subclasses define :meth:`fit_scan` and :meth:`predict_proba`.
    """

    def fit(self: Self, image: Any, label: Any, weight: Any, spacing: Sequence[float] = (1, 1, 1)) -> Self:
        """Fit to an image and its annotation; see :meth:`Scan.of` for the arguments and exceptions."""
        return self.fit_scan(Scan.of(image, label, weight, spacing, getattr(self, "num_classes", None)))

    @abstractmethod
    def fit_scan(self: Self, scan: Scan) -> Self:
        """Fit to a checked scan."""

    @abstractmethod
    def predict_proba(self) -> np.ndarray:
        """Return probabilities (K, X, Y, Z), float32, that sum to 1; 0 for a class that is annotated nowhere."""

    def _check_fitted(self) -> None:
        """Raise DataError before a fit, which leaves attributes that begin with an underscore."""
        if not any(name.startswith("_") for name in vars(self)):
            raise DataError(f"this {type(self).__name__} was not fitted yet; call fit(image, label, weight) first.")


def one_hot(label: torch.Tensor, known: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return (K, X, Y, Z), float32: 1 for the class of a voxel, 0 for other classes and unlabeled voxels."""
    return torch.stack([((label == number) & known).float() for number in range(num_classes)])


def log_prob(prob: np.ndarray, least: float = 2e-3) -> np.ndarray:
    """Return the natural logarithm of probabilities, clipped at `least` as no method is surer of unseen voxels."""
    return np.log(np.clip(single(prob), least, 1))


def single(values: np.ndarray) -> np.ndarray:
    """Return an array as float32; NumPy converts float16 many times more slowly."""
    return torch.from_numpy(np.ascontiguousarray(values)).float().numpy()


def half(values: np.ndarray) -> np.ndarray:
    """Return an array as float16; NumPy is slow at that, too."""
    return torch.from_numpy(np.ascontiguousarray(values)).half().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the first axis."""
    shifted = np.exp(logits - logits.max(0))
    return shifted / shifted.sum(0)


def pooled(values: torch.Tensor, step: Sequence[int]) -> torch.Tensor:
    """Return means over blocks of (C, X, Y, Z); blocks at the end may be smaller."""
    window = tuple(int(s) for s in step)
    return F.avg_pool3d(values[None].float(), window, window, ceil_mode=True, count_include_pad=False)[0]


def enlarged(values: torch.Tensor, step: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Return (C, x, y, z) upsampled linearly to (C, X, Y, Z), the opposite of :func:`pooled`."""
    size = [n * int(s) for n, s in zip(values.shape[1:], step)]
    fine = F.interpolate(values[None].float(), size=size, mode="trilinear")[0]
    return fine[:, : shape[0], : shape[1], : shape[2]]


def _rescaled(channel: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return intensities from 0 to 1: linear between the percentiles, and flatter up to those of annotated classes.

    Clipped, small bright structures would all look alike; in proportion, metal would leave no contrast to others.
    """
    if not torch.isfinite(channel).all():
        raise DataError("the image contains NaN or infinity; expected finite numbers.")
    values, shown, classes = channel.numpy(), channel[known].numpy(), label[known].numpy()
    low, high = np.percentile(values[:: max(1, values.shape[0] // 256)], PERCENTILES)
    if high <= low:
        low, high = float(values.min()), float(values.max())
    span = max(float(high - low), 1e-20)
    ends = np.array([np.percentile(shown[classes == number], OF_CLASS) for number in np.unique(classes)])
    below, above = max(low - ends.min(), 0.0) / span, max(ends.max() - high, 0.0) / span
    scaled = (channel - low) / span
    before, after = min(below, TAIL), min(above, TAIL)
    darker = (-scaled).clamp(0, below) * (before / max(below, 1e-20))
    brighter = (scaled - 1).clamp(0, above) * (after / max(above, 1e-20))
    return (scaled.clamp(0, 1) + brighter - darker + before) / (1 + before + after)
