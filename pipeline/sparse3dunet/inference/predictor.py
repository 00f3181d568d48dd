"""Segmentation of one image on its own grid, slab by slab to save memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import nibabel as nib
import numpy as np
import torch

from sparse3dunet.data.moments import channel_moments, channels_of, contrast_notes
from sparse3dunet.data.regions import output_count
from sparse3dunet.errors import DataError
from sparse3dunet.inference.resizing import SlabResizer, resize_linear
from sparse3dunet.inference.scale import check_scale
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io.volumes import Volume, check_channels
from sparse3dunet.losses.regions import Regions, class_logits
from sparse3dunet.transforms.components import clean_components
from sparse3dunet.transforms.spatial.resample import extent_shape

SAMPLED = 10**6
"""Number of voxels that are looked at to judge an image's intensities."""
LEAST_CONTRAST = 0.02
"""Standard deviation below which a normalised image contains nothing to see."""
SEGMENTATION, CONFIDENCE, PROBABILITIES = "segmentation", "confidence", "probabilities"
"""Kinds of results for an image."""
IN_MEMORY = 2**30
"""Bytes up to which an array is kept in memory; larger ones are on disk."""


@dataclass
class Prediction:
    """Results for an image, on the image's grid, with axes in the file's order.

    Attributes:
        segmentation: (X, Y, Z) the classes' values on disk.
        confidence: (X, Y, Z) uint8, the probability of the chosen class, times 255; None unless requested.
        probabilities: (X, Y, Z, K) float32, or (X, Y, Z, R) those of the regions; None unless requested.
        voxels: number of voxels of each class, by class number.
        mean_confidence: in [0, 1], over the foreground voxels before any clean-up; None if none is left after it.
        notes: what a user must know of it.
    """

    segmentation: np.ndarray
    confidence: np.ndarray | None
    probabilities: np.ndarray | None
    voxels: list[int]
    mean_confidence: float | None
    notes: tuple[str, ...] = ()


class Scratch:
    """Arrays for results: in memory, or, above `in_memory` bytes, in temporary files in `folder`."""

    def __init__(self, folder: str | Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=folder, prefix="scratch-")
        self.in_memory = in_memory
        self.count = 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.folder.cleanup()

    def array(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Return zeros in Fortran order, as in the files that they are written to."""
        shape = tuple(shape)
        if np.prod(shape, dtype=float) * np.dtype(dtype).itemsize <= self.in_memory:
            return np.zeros(shape, dtype, order="F")
        self.count += 1
        path = Path(self.folder.name) / f"{self.count}.raw"
        path.parent.mkdir(
            parents=True, exist_ok=True
        )  # another run into the same place may have removed it while empty
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # else writing to a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
            else:
                file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(path, dtype, "r+", shape=shape, order="F")


class Predictor:
    """Segment images with one network.

    Images are turned to RAS, resampled to `spacing` over exactly their field of view, normalised and segmented by
    `inferer`. As soon as a slab is complete, its logits are resampled onto the image's grid and the classes taken from
    them. The result is that of the bundle's transforms, but without the logits of a whole volume in memory.

    Args:
        network: network that takes (B, C, X, Y, Z) in RAS order.
        inferer: inferer that runs it.
        class_values: values on disk by class number.
        num_channels: channels of the images.
        spacing: spacing in mm that the network was trained at; None for images as they are.
        device: device of the network.
        normalize: function of the whole image, (C, X, Y, Z) float32, for networks trained with another normalisation
            than the bundle's; None for the bundle's: each channel to mean 0 and standard deviation 1.
        confidence: whether to make a confidence map.
        probabilities: whether to keep all probabilities; 4 K bytes per voxel.
        largest: numbers of classes of which only the largest connected component is kept.
        min_ml: by class number, volume in ml below which a component becomes background.
        intensity: absolute scale of a network trained on one, see :class:`~sparse3dunet.transforms.NormalizeImage`;
            without effect if `normalize` is given.
        regions: class numbers by the name of the region, if the network has an output for each; None for classes.
        voxel_size: voxel size in mm of the images that the network was trained on, if `spacing` is None; images of
            which it is far off are noted. None if unknown.
    """

    def __init__(
        self,
        network: Callable[..., torch.Tensor],
        inferer: SlabInferer,
        class_values: Sequence[int],
        num_channels: int = 1,
        spacing: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
        confidence: bool = False,
        probabilities: bool = False,
        largest: Sequence[int] = (),
        min_ml: dict[int, float] | None = None,
        intensity: Mapping[str, float] | None = None,
        regions: Regions | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        self.voxel_size = spacing or voxel_size
        self.intensity = intensity
        self.network, self.inferer, self.device = network, inferer, torch.device(device)
        self.class_values = np.asarray(class_values, dtype=smallest_type(class_values))
        self.num_channels, self.spacing, self.normalize = num_channels, spacing, normalize
        self.confidence, self.probabilities = confidence, probabilities
        self.largest, self.min_ml = list(largest), dict(min_ml or {})
        self.regions = regions

    def kinds(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Return the requested kinds of results, and for each its axes besides X, Y and Z, and its type."""
        found: dict[str, tuple[tuple[int, ...], Any]] = {SEGMENTATION: ((), self.class_values.dtype)}
        if self.confidence:
            found[CONFIDENCE] = ((), np.dtype(np.uint8))
        if self.probabilities:
            found[PROBABILITIES] = ((self.num_outputs(),), np.dtype(np.float32))
        return found

    def num_outputs(self) -> int:
        """Return the number of outputs of the network."""
        return output_count(self.regions, len(self.class_values))

    def __call__(self, volumes: Sequence[Volume], scratch: Scratch) -> Prediction:
        """Segment an image.

        Args:
            volumes: the image, as one volume or one for each channel.
            scratch: place for results too large for memory; they last as long as it does.

        Raises:
            DataError: when the image has other channels than the network, contains NaN or infinity, or has voxels of
                another order of magnitude than those of the training.
        """
        check_channels(volumes, self.num_channels)
        image = volumes[0]
        grid = Grid.of(image, self.spacing)
        channels = [grid.to_network(array, scratch) for volume in volumes for array in channels_of(volume.data)]
        means, deviations = channel_moments(channels, image.path)  # also checks for NaN
        prepare: Callable[[np.ndarray], np.ndarray] | None = ZScore.by(means, deviations)
        if self.intensity is not None:
            prepare = AbsoluteScale(**self.intensity)
            prepare.check(channels[0], image.path)
        if self.normalize is not None:
            stack = torch.from_numpy(np.stack([np.asarray(c, np.float32) for c in channels]))
            channels, prepare = list(np.asarray(self.normalize(stack), np.float32)), None
        result = _Result(self, image, grid, scratch)
        row_axis = self.inferer.windows(grid.shape, self.network).row_axis
        resizer = SlabResizer(row_axis, grid.shape, grid.ras_shape) if grid.resampled else None
        for rows, logits in self.inferer.slabs(channels, self.network, self.device, prepare):
            for part in [(rows, logits)] if resizer is None else resizer.add(rows, logits):
                result.add(part[0], row_axis, part[1])
        return replace(result.finish(), notes=contrast_notes(means, deviations, image.path))


@dataclass(frozen=True)
class Grid:
    """Relation between an image's voxels and those that the network sees."""

    orientation: np.ndarray
    ras_shape: tuple[int, ...]
    shape: tuple[int, ...]
    """Shape that the network sees."""

    @classmethod
    def of(cls, image: Volume, spacing: Sequence[float] | None) -> Grid:
        shape = image.in_ras_order(image.spatial_shape)
        if spacing:
            check_scale(image, spacing)
        network_shape = extent_shape(shape, image.in_ras_order(image.spacing), spacing) if spacing else shape
        return cls(nib.io_orientation(image.affine), shape, network_shape)

    @property
    def resampled(self) -> bool:
        return self.shape != self.ras_shape

    def to_ras(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array in the file's order, in RAS order."""
        return nib.apply_orientation(array, self.orientation)

    def to_network(self, channel: Any, scratch: Scratch) -> np.ndarray:
        return self.resized(self.to_ras(channel), scratch)

    def resized(self, channel: Any, scratch: Scratch) -> Any:
        """Return an array in RAS order, in memory or on disk, as the network sees it."""
        return resize_linear(channel, scratch.array(self.shape, np.float32)) if self.resampled else channel


@dataclass(frozen=True)
class ZScore:
    """Normalise each channel to mean 0 and standard deviation 1 over the volume; a constant one to 0."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def by(cls, means: Sequence[float], deviations: Sequence[float]) -> ZScore:
        """Return the normalisation by the mean and standard deviation of each channel."""
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1, 1) for values in (means, deviations))
        return cls(mean, np.where(std == 0, 1, std).astype(np.float32))

    def __call__(self, window: np.ndarray) -> np.ndarray:
        window -= self.mean
        window /= self.std
        return window


@dataclass(frozen=True)
class AbsoluteScale:
    """Normalise as :class:`~sparse3dunet.transforms.NormalizeImage` on an absolute scale."""

    lower: float
    upper: float
    mean: float
    std: float

    def __call__(self, window: np.ndarray) -> np.ndarray:
        np.clip(window, np.float32(self.lower), np.float32(self.upper), out=window)
        window -= np.float32(self.mean)
        window /= np.float32(self.std)
        return window

    def check(self, image: np.ndarray, path: str) -> None:
        """Raise DataError if an image has no contrast on this scale, as one of 0 to 1 on that of CT."""
        step = max(round((image.size / SAMPLED) ** (1 / 3)), 1)
        sample = np.asarray(image[::step, ::step, ::step], np.float32)
        if self(sample.copy()).std() < LEAST_CONTRAST:
            raise DataError(
                f"{path}: its intensities, {sample.min():.4g} to {sample.max():.4g}, do not fit the scale on which the "
                f"model was trained, {self.lower:g} to {self.upper:g}; expected Hounsfield units, as of CT. Convert "
                "the image, or use a model for such images."
            )


class _Result:
    """Collect the requested results from slabs of logits."""

    def __init__(self, predictor: Predictor, image: Volume, grid: Grid, scratch: Scratch) -> None:
        self.predictor, self.image, self.grid, self.scratch = predictor, image, grid, scratch
        shape, num_classes = image.spatial_shape, len(predictor.class_values)
        self.arrays = {kind: scratch.array((*shape, *more), dtype) for kind, (more, dtype) in predictor.kinds().items()}
        self.tally = Tally(num_classes)

    def add(self, rows: slice, axis: int, logits: torch.Tensor) -> None:
        """Add the slab (K, X, Y, Z) at `rows` along an axis of the image in RAS order."""
        for kind, values in decide(self.predictor, logits, self.tally, self.image.path).items():
            self._put(self.arrays[kind], values, rows, axis)

    def _put(self, target: np.ndarray, values: np.ndarray, rows: slice, axis: int) -> None:
        np.moveaxis(self.grid.to_ras(target), axis, 0)[rows] = np.moveaxis(values, axis, 0)

    def finish(self) -> Prediction:
        """Return the prediction, once all slabs were added."""
        segmentation, voxels = self.arrays[SEGMENTATION], self.tally.voxels
        if self.predictor.largest or self.predictor.min_ml:
            values = self.predictor.class_values
            segmentation = clean_components(
                segmentation,
                float(abs(np.linalg.det(self.image.affine[:3, :3]))) / 1000,
                largest=[int(values[number]) for number in self.predictor.largest],
                min_ml={int(values[number]): ml for number, ml in self.predictor.min_ml.items()},
                background=int(values[0]),
            )
            voxels = count_classes(segmentation, values)
        mean = self.tally.mean_confidence if voxels[1:].any() else None
        confidence, probabilities = self.arrays.get(CONFIDENCE), self.arrays.get(PROBABILITIES)
        return Prediction(segmentation, confidence, probabilities, voxels.tolist(), mean)


@dataclass
class Tally:
    """Counts over the slabs of an image so far.

    Attributes:
        num_classes: number of classes.
        voxels: number of voxels of each class.
        sum_of_confidence: sum over the foreground voxels.
        foreground: number of these.
    """

    num_classes: int
    voxels: np.ndarray = None  # type: ignore[assignment]
    sum_of_confidence: float = 0.0
    foreground: int = 0

    def __post_init__(self) -> None:
        self.voxels = np.zeros(self.num_classes, np.int64) if self.voxels is None else self.voxels

    @property
    def mean_confidence(self) -> float | None:
        return self.sum_of_confidence / self.foreground if self.foreground else None


def decide(predictor: Predictor, logits: torch.Tensor, tally: Tally, path: str) -> dict[str, np.ndarray]:
    """Return the results for some voxels by their kind, see :meth:`Predictor.kinds`, and count them.

    Args:
        predictor: what is to be made.
        logits: (K, X, Y, Z).
        tally: counts, which are increased.
        path: file of the image, for messages.

    Raises:
        DataError: when a logit is NaN or infinite.
    """
    regions = predictor.regions
    classes, confidence = most_probable(class_logits(logits, regions) if regions else logits)
    if not torch.isfinite(confidence).all():
        raise DataError(
            f"{path}: the network returns NaN or infinity. Its weights may contain such values, or the "
            "image differs from those of its training; in bfloat16, try --precision float32."
        )
    foreground = classes > 0
    tally.foreground += int(foreground.sum())
    tally.sum_of_confidence += float(confidence[foreground].sum(dtype=torch.float64))
    found = {SEGMENTATION: predictor.class_values[classes.cpu().numpy()]}
    tally.voxels += count_classes(found[SEGMENTATION], predictor.class_values)
    if predictor.confidence:
        found[CONFIDENCE] = (confidence * 255).round().to(torch.uint8).cpu().numpy()
    if predictor.probabilities:
        prob = logits.sigmoid() if regions else logits.softmax(0)
        found[PROBABILITIES] = prob.movedim(0, -1).cpu().numpy()
    return found


def most_probable(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable class, uint8 or int16, and its probability, float32; the first of equal ones.

    Shapes: (K, X, Y, Z) -> (X, Y, Z), (X, Y, Z).
    """
    best = logits[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.uint8 if len(logits) <= 256 else torch.int16, device=logits.device)
    for number in range(1, len(logits)):  # several times faster than torch.max, which goes voxel by voxel
        better = logits[number] > best
        classes.masked_fill_(better, number)
        torch.maximum(best, logits[number], out=best)
    total = torch.zeros_like(best)
    for logit in logits:
        total += (logit - best).exp_()
    return classes, total.reciprocal_()


def count_classes(segmentation: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count the voxels of each class."""
    return np.array([np.count_nonzero(segmentation == value) for value in values])


def smallest_type(values: Sequence[int]) -> type[np.integer]:
    """Return the smallest integer type for all values, among those that every format supports."""
    kinds = (np.uint8, np.int16, np.int32)
    fitting = (k for k in kinds if np.iinfo(k).min <= min(values) and max(values) <= np.iinfo(k).max)
    return next(fitting, np.int64)
