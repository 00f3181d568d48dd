"""Simulation of sparse annotation from dense labels, for experiments on how much annotation is needed.

Each call draws again. To train on one fixed annotation, apply these before training and keep the result: in the
transform of a data set they would disclose the whole dense label over the epochs; so too in MONAI's ``CacheDataset``,
which caches only what comes before the first random transform.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy.ndimage import binary_dilation

from sparse3dunet.data.label_and_weight import source_of
from sparse3dunet.data.slices import crossed, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.keys import LABEL, WEIGHT

PLACEMENTS = ("equidistant", "random", "foreground")


def choose_slices(
    foreground: np.ndarray,
    slices: int | Sequence[int] = 3,
    placement: str = "equidistant",
    random: np.random.RandomState | None = None,
) -> list[list[int]]:
    """Choose slices to annotate; return their ascending indices per axis.

    Args:
        foreground: (X, Y, Z), nonzero in the foreground.
        slices: number of slices along each axis, or one number per axis; 0 is allowed, but not for all.
        placement: "equidistant" for equally spaced slices strictly within the extent of the foreground; "random" for
            any slices; "foreground" for random ones that cross the foreground.
        random: random state; None for a new, unseeded one.

    Raises:
        DataError: when an axis has fewer such slices than requested, there is no foreground although `placement`
            depends on it, or a setting is not one of the above.

    Example:
        >>> choose_slices(np.ones((9, 5, 7)), [3, 1, 0])
        [[2, 4, 6], [2], []]
    """
    counts = _counts_per_axis(slices, foreground.ndim)
    _check_placement(placement)
    if placement != "random" and not foreground.any():
        raise DataError(_NO_FOREGROUND)
    random = np.random.RandomState() if random is None else random
    return [
        _choose_along(axis, crossed(foreground, axis), count, placement, random) for axis, count in enumerate(counts)
    ]


def _counts_per_axis(slices: int | Sequence[int], axes: int = 3) -> list[int]:
    counts = list(slices) if isinstance(slices, (Sequence, np.ndarray)) else [slices] * axes
    if len(counts) != axes or not all(_is_whole(n) and n >= 0 for n in counts) or not any(counts):
        raise DataError(
            f"slices must be a whole number above 0, or {axes} of them, one for each axis, of which some may be 0; "
            f"got {slices!r}. 3 keeps three along each axis; 7,5,21 are for the first, second and third axis."
        )
    return [int(n) for n in counts]


def _check_placement(placement: str) -> None:
    if placement not in PLACEMENTS:
        raise DataError(f"placement must be one of {', '.join(PLACEMENTS)}; got {placement!r}.")


def _choose_along(axis: int, shown: np.ndarray, count: int, placement: str, random: np.random.RandomState) -> list[int]:
    """Choose `count` slices of an axis; `shown` (n,) is true for the slices that cross the foreground."""
    occupied = np.flatnonzero(shown)
    if placement == "random":
        candidates, where = np.arange(len(shown)), "there"
    elif placement == "foreground":
        candidates, where = occupied, "that cross the foreground (label > 0)"
    else:
        candidates = np.arange(occupied[0] + 1, occupied[-1])
        where = f"strictly within the foreground (label > 0), which spans slices {occupied[0]} to {occupied[-1]}"
    if count > len(candidates):
        raise DataError(
            f"axis {axis} has {len(candidates)} slices {where}, but {count} were requested; request fewer"
            + ("." if placement == "random" else ", or choose another placement.")
        )
    if placement == "equidistant":
        return [int(i) for i in np.rint(np.linspace(occupied[0], occupied[-1], count + 2)[1:-1])]
    return sorted(int(i) for i in random.choice(candidates, count, replace=False))


class _Keep(Randomizable, Transform):
    """Make a weight that keeps part of a dense label; the subclass chooses the part."""

    def __call__(self, label: Any) -> torch.Tensor:
        values = convert_to_tensor(label, track_meta=True)
        if values.ndim != 4 or values.shape[0] != 1:
            raise DataError(f"{source_of(values)}: expected a label (1, X, Y, Z), found shape {tuple(values.shape)}.")
        try:
            kept = self.choose(values[0].detach().cpu().numpy())
        except DataError as error:
            raise DataError(f"{source_of(values)}: {error}") from error
        return convert_to_dst_type(kept[None], values, dtype=torch.float32)[0]

    @abstractmethod
    def choose(self, label: np.ndarray) -> np.ndarray:
        """Return where the label (X, Y, Z) is kept: (X, Y, Z), 1 or True there, 0 or False elsewhere."""


class KeepSlices(_Keep):
    """Keep a dense label in some slices along each axis, as in table 2 of the 3D U-Net paper (Çiçek et al. 2016).

    Args:
        slices: number of slices along each axis of the array, or one number per axis; 0 is allowed, but not for all.
        placement: see :func:`choose_slices`.

    Shapes: dense label (1, X, Y, Z) -> weight (1, X, Y, Z) float32, 1 where kept, else 0, with the label's metadata.

    Raises:
        DataError: as :func:`choose_slices`; for the settings on construction, for the label when called.

    Example:
        >>> weight = KeepSlices(slices=[0, 0, 2])(torch.ones(1, 4, 4, 9))  # two axial slices
        >>> weight[0, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, slices: int | Sequence[int] = 3, placement: str = "equidistant") -> None:
        _check_placement(placement)
        self.slices = _counts_per_axis(slices)
        self.placement = placement

    def choose(self, label: np.ndarray) -> np.ndarray:
        return slices_mask(label.shape, choose_slices(label > 0, self.slices, self.placement, self.R))


class KeepFraction(_Keep):
    """Keep a dense label in a random share of all voxels: round(fraction * voxels) of them, at least one.

    Args:
        fraction: share of the voxels, above 0, at most 1.

    Shapes: dense label (1, X, Y, Z) -> weight (1, X, Y, Z) float32, 1 where kept, else 0, with the label's metadata.

    Raises:
        DataError: when `fraction` is out of range.
    """

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise DataError(
                f"fraction must be above 0 and at most 1, got {fraction}; 0.05, for example, keeps a twentieth."
            )
        self.fraction = float(fraction)

    def choose(self, label: np.ndarray) -> np.ndarray:
        kept = np.zeros(label.size, bool)
        kept[self.R.permutation(label.size)[: max(1, round(self.fraction * label.size))]] = True
        return kept.reshape(label.shape)


class KeepScribbles(_Keep):
    """Keep a dense label along scribbles, as an annotator draws them: each inside one structure, within one slice.

    The classes take turns, including the background. A scribble is in a random slice, along a random axis, that crosses
    both the foreground (label > 0) and its class. It starts in a random voxel of the class and continues to neighbours
    of the same class (also diagonal ones), mostly straight on, never to the same voxel twice; if it is trapped it
    branches off farther back.

    Args:
        count: number of scribbles in the volume, at least one for each class in it.
        length: voxels along each scribble; fewer only if the structure has fewer in the slice.
        width: diameter of the brush in voxels, within the slice; the stroke is clipped to its class.

    Shapes: dense label (1, X, Y, Z) -> weight (1, X, Y, Z) float32, 1 where kept, else 0, with the label's metadata.

    Raises:
        DataError: when there is no foreground, the volume has more classes than scribbles, or a setting is not a whole
            number above 0.
    """

    def __init__(self, count: int = 12, length: int = 50, width: int = 1) -> None:
        for name, value in (("count", count), ("length", length), ("width", width)):
            if not _is_whole(value) or value < 1:
                raise DataError(f"{name} must be a whole number above 0, got {value!r}.")
        self.count = int(count)
        self.length = int(length)
        self.width = int(width)

    def choose(self, label: np.ndarray) -> np.ndarray:
        foreground = label > 0
        if not foreground.any():
            raise DataError(_NO_FOREGROUND)
        classes = np.unique(label)
        if len(classes) > self.count:
            raise DataError(
                f"{self.count} scribbles are too few for the {len(classes)} classes in the volume; "
                f"set count to {len(classes)} or more."
            )
        shown = [crossed(foreground, axis) for axis in range(3)]
        kept = np.zeros(label.shape, bool)
        for turn, number in enumerate(classes):
            region = label == number
            slices = [np.flatnonzero(crossed(region, axis) & shown[axis]) for axis in range(3)]
            axes = [axis for axis in range(3) if len(slices[axis])]
            for _ in range(turn, self.count, len(classes)):
                axis = self.R.choice(axes)
                plane = _plane(axis, self.R.choice(slices[axis]))
                kept[plane] |= scribble(region[plane], self.length, self.width, self.R)
        return kept


def scribble(region: np.ndarray, length: int, width: int, random: np.random.RandomState) -> np.ndarray:
    """Draw one scribble in pixels (X, Y): a random walk inside `region` (X, Y) with a round brush of `width`."""
    return _paint(_walk(region, length, random), region, width)


def _walk(region: np.ndarray, length: int, random: np.random.RandomState) -> list[tuple[int, int]]:
    """Walk over up to `length` different pixels of `region` (X, Y), from a random one, each next to an earlier one."""
    free = np.pad(region, 1)  # the border stops the walk
    starts = np.argwhere(free)
    x, y = (int(i) for i in starts[random.randint(len(starts))])
    free[x, y] = False
    stroke = [(x - 1, y - 1)]
    path = [(x, y, random.randint(len(_STEPS)))]
    while path and len(stroke) < length:
        x, y, heading = path[-1]
        open_ways = [way for way, (i, j) in enumerate(_STEPS) if free[x + i, y + j]]
        if not open_ways:
            path.pop()
            continue
        odds = _STEADINESS[[way - heading for way in open_ways]]
        way = random.choice(open_ways, p=odds / odds.sum())
        x, y = x + _STEPS[way][0], y + _STEPS[way][1]
        free[x, y] = False
        stroke.append((x - 1, y - 1))
        path.append((x, y, way))
    return stroke


def _paint(stroke: list[tuple[int, int]], region: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels (X, Y) of `region` under a round brush of diameter `width` along the stroke."""
    across = np.arange(width) - (width - 1) / 2
    drawn = np.zeros(region.shape, bool)
    drawn[tuple(np.transpose(stroke))] = True
    return binary_dilation(drawn, np.hypot(across[:, None], across) <= width / 2, origin=width % 2 - 1) & region


class _Keepd(Randomizable, MapTransform):
    """Dictionary version of an array class: adds the weight, or multiplies an existing weight by it.

    Args:
        keys: key of the dense label.
        weight_key: key of the weight.
        allow_missing_keys: whether to return a dictionary without the label unchanged.
        settings: see the array class.
    """

    kind: Callable[..., _Keep]

    def __init__(
        self,
        keys: KeysCollection = LABEL,
        *,
        weight_key: str = WEIGHT,
        allow_missing_keys: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"{type(self).__name__} takes one key, got {self.keys}.")
        self.keep = type(self).kind(**settings)
        self.weight_key = weight_key

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> _Keepd:
        super().set_random_state(seed, state)
        self.keep.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            kept = self.keep(d[key])
            if self.weight_key in d:
                kept = convert_to_tensor(d[self.weight_key], dtype=torch.float32, track_meta=True) * kept
            d[self.weight_key] = kept
        return d


class KeepSlicesd(_Keepd):
    """Dictionary version of :class:`KeepSlices`: adds the weight, or multiplies an existing weight by it."""

    kind = KeepSlices


class KeepFractiond(_Keepd):
    """Dictionary version of :class:`KeepFraction`: adds the weight, or multiplies an existing weight by it."""

    kind = KeepFraction


class KeepScribblesd(_Keepd):
    """Dictionary version of :class:`KeepScribbles`: adds the weight, or multiplies an existing weight by it."""

    kind = KeepScribbles


def _plane(axis: int, index: int) -> tuple[slice | int, ...]:
    return (slice(None),) * axis + (index,)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


_NO_FOREGROUND = "no voxel is foreground (label > 0), so there is nothing to annotate; remove the case."

_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
"""Steps to the eight neighbours of a pixel, by the angle in eighths of a turn."""

_STEADINESS = np.exp(6 * np.cos(np.arange(8) * np.pi / 4))
"""Odds that a scribble turns by so many eighths: 3 of 4 steps go straight on, and few turn sharply."""
