"""Resampling to another spacing: images over exactly their field of view, sparse annotation without loss."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import InvertibleTransform, MapTransform, SpatialResample, Transform
from monai.transforms.utils import scale_affine

from sparse3dunet.data.label_and_weight import as_tensor, source_of
from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT
from sparse3dunet.transforms.arguments import entry, pixel_sizes

SAME_GRID = 1e-3
"""Largest distance, in source voxels, of grids that are considered the same."""

ALIGNED = 0.1
"""Largest distance, in source voxels, by which rotation and shear may move a destination voxel from its row."""


def extent_shape(shape: Sequence[int], spacing: Any, pixdim: Any) -> tuple[int, ...]:
    """Return the shape to which :class:`ExtentSpacing` resamples a volume for spacing `pixdim`, both in mm."""
    wanted = np.round(np.asarray(shape) * np.asarray(spacing) / np.asarray(pixdim))
    return tuple(int(n) for n in np.maximum(wanted, 1))


class ExtentSpacing(InvertibleTransform):
    """Resample an image to a spacing over exactly its field of view, as nnU-Net does.

    An axis of n voxels of s mm becomes one of n' = round(n s / pixdim), at least 1, of n s / n' mm: the outer borders
    stay in place. MONAI's ``Spacing`` (1.6.1) cannot do this: it keeps the spacing and moves a border; its
    ``scale_extent`` can misplace the image by a voxel near the world's origin, ``recompute_affine`` loses the affine.

    Args:
        pixdim: spacing in mm along each axis of the image; 0 or less keeps that of the axis.
        kwargs: see ``monai.transforms.SpatialResample`` (mode, padding_mode, align_corners, dtype).

    Shapes: (C, X, Y, Z) -> (C, X', Y', Z') float32, a MetaTensor with the new affine.
    """

    def __init__(self, pixdim: Sequence[float] | float, **kwargs: Any) -> None:
        self.pixdim = pixel_sizes("pixdim", pixdim)
        self.resample = SpatialResample(**kwargs)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        known, shape = _affine_of(img), tuple(img.shape[1:])
        affine = np.eye(4) if known is None else known
        spacing = affine_to_spacing(affine)
        new_shape = extent_shape(shape, spacing, np.where(self.pixdim > 0, self.pixdim, spacing))
        return self.resample(img, torch.as_tensor(affine @ scale_affine(shape, new_shape)), new_shape)

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        return self.resample.inverse(data)


class ExtentSpacingd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`ExtentSpacing`, to replace ``monai.transforms.Spacingd``.

    Args:
        keys: keys of the images; use :class:`AnnotationToMatchd` for a sparse label.
        pixdim: see :class:`ExtentSpacing`.
        allow_missing_keys: whether keys may be missing.
        kwargs: see :class:`ExtentSpacing`.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        *,
        pixdim: Sequence[float] | float,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.resample = ExtentSpacing(pixdim, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resample(d[key])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resample.inverse(d[key])
        return d


class ResampleAnnotation(Transform):
    """Resample a sparse label and its weight to another grid, without losing annotation and without gaps.

    Every output voxel takes label and weight from one annotated voxel, the nearest that claims it; if none does, it is
    unlabeled. Claims are determined axis by axis:

    - if the output is not coarser, a voxel claims the output voxels whose centres are inside it;
    - if the output is coarser, a voxel claims the output voxel whose centre it is nearest to, so that an annotated area
      keeps its size. So as not to lose thin annotation, a fully annotated plane across the axis, and any run of
      annotated voxels along the axis shorter than an output voxel, also claim the output voxels that contain their
      centres.

    The grids may differ only by scale and shift along each axis. If they are the same, the inputs are returned.

    Shapes: label, weight (1, X, Y, Z), the 4 x 4 affine and the shape (X', Y', Z') of the destination -> label, weight
    (1, X', Y', Z') MetaTensors with that affine; types and other metadata are kept. The label is a MetaTensor, as only
    these have an affine, and a weight that is one has the label's. The destination's affine is None if it has none:
    label and weight, without one too, are then returned if they have its shape.

    Raises:
        DataError: when the grids are rotated, sheared, flipped or permuted against each other, or only one of them has
            an affine; when label and weight are not on one grid of one channel; when all annotation lies outside of
            the destination.
    """

    def __call__(  # type: ignore[override]
        self, label: torch.Tensor, weight: torch.Tensor, dst_affine: Any, dst_shape: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        src_affine, src_shape, dst_shape = _grid_of(label, weight), tuple(label.shape[1:]), tuple(dst_shape)
        dst_affine = None if dst_affine is None else _checked(dst_affine, "the image")
        if src_affine is None or dst_affine is None:
            _check_without_affine(label, src_affine is None, dst_affine is None, dst_shape)
            return label, weight
        matrix = np.linalg.inv(src_affine) @ dst_affine
        if src_shape == dst_shape and _drift(matrix - np.eye(4), dst_shape) < SAME_GRID:
            return label, weight
        scale, shift = np.diag(matrix)[:3], matrix[:3, 3]
        shear = matrix.copy()
        shear[range(3), range(3)] = shear[:3, 3] = 0
        if (scale <= 0).any() or _drift(shear, dst_shape) > ALIGNED:
            raise DataError(
                f"{source_of(label)}: cannot resample the annotation, as its grid is rotated, flipped or permuted "
                "relative to the image's. Bring all keys to one orientation first (Orientationd on image and label); "
                "if they still differ, the label was not drawn on this image: resample it onto the image first."
            )
        rows = [_Row.between(*args) for args in zip(src_shape, dst_shape, scale, shift, affine_to_spacing(src_affine))]
        label, weight = as_tensor(label, "label"), as_tensor(weight, "weight")
        resampled = _resample(label[0].cpu().numpy(), weight[0].cpu().numpy(), rows)
        if bool((weight > 0).any()) and not (resampled[1] > 0).any():
            raise DataError(
                f"{source_of(label)}: all of its annotation lies outside of the image, so none is left; by their "
                "affines they are at different places. Give the label the image's affine if it was drawn on it."
            )
        return _on_grid(resampled[0], label, dst_affine), _on_grid(resampled[1], weight, dst_affine)


class AnnotationToMatchd(MapTransform):
    """Dictionary version of :class:`ResampleAnnotation`, to the grid of an image that was resampled before.

    Args:
        label_key: key of the label.
        weight_key: key of the weight.
        key_dst: key of the image with the new affine and shape.
        allow_missing_keys: whether to return a dictionary without label and weight unchanged.
    """

    def __init__(
        self, label_key: str = LABEL, weight_key: str = WEIGHT, key_dst: str = IMAGE, allow_missing_keys: bool = False
    ) -> None:
        super().__init__((label_key, weight_key), allow_missing_keys)
        self.label_key, self.weight_key, self.key_dst = label_key, weight_key, key_dst
        self.resample = ResampleAnnotation()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.allow_missing_keys and self.label_key not in d and self.weight_key not in d:
            return d
        label, weight, image = (entry(d, key, self) for key in (self.label_key, self.weight_key, self.key_dst))
        d[self.label_key], d[self.weight_key] = self.resample(label, weight, _affine_of(image), image.shape[1:])
        return d


class _Row(NamedTuple):
    """Relation of the voxels of two grids along one axis."""

    coarser: bool
    size: float
    """Length of an output voxel in source voxels."""
    source: np.ndarray
    """(n') source voxel that contains each output voxel's centre, -1 outside the source."""
    holder: np.ndarray
    """(n) output voxel that contains each source voxel's centre, -1 outside the output."""
    distance: np.ndarray
    """(n) distance in mm from each source voxel's centre to its holder's."""

    @classmethod
    def between(cls, n_src: int, n_dst: int, scale: float, shift: float, spacing: float) -> _Row:
        # Rounded, so that points halfway between two voxels go to the same side all along the axis.
        centers = np.round(scale * np.arange(n_dst) + shift, 6)
        source = np.floor(centers + 0.5).astype(int)
        source[(source < 0) | (source >= n_src)] = -1
        voxels = np.arange(n_src)
        holder = np.floor(np.round((voxels - shift) / scale, 6) + 0.5).astype(int)
        holder[(holder < 0) | (holder >= n_dst)] = -1
        if scale > 1:
            holder[source[source >= 0]] = np.flatnonzero(source >= 0)
        return cls(bool(scale > 1), float(scale), source, holder, np.abs(voxels - centers[holder]) * spacing)


def _resample(label: np.ndarray, weight: np.ndarray, rows: list[_Row]) -> tuple[np.ndarray, np.ndarray]:
    """Resample (X, Y, Z) to (X', Y', Z'); coarser axes first, which saves time for the others."""
    annotated = weight > 0
    cost = np.where(annotated, np.float32(0), np.float32(np.inf))
    for axis, row in enumerate(rows):
        if row.coarser:
            cost[~_claiming(annotated, axis, row)] = np.inf
    for axis, row in enumerate(rows):
        if row.coarser:
            cost, label, weight = _nearest_claim(cost, label, weight, axis, row)
    for axis, row in enumerate(rows):
        if not row.coarser:
            outside = np.expand_dims(row.source < 0, [a for a in range(3) if a != axis])
            label = label.take(row.source, axis)
            weight = np.where(outside, np.float32(0), weight.take(row.source, axis))
    return np.where(weight > 0, label, 0).astype(label.dtype), weight


def _claiming(annotated: np.ndarray, axis: int, row: _Row) -> np.ndarray:
    """Return which annotated voxels claim their holder along a coarser axis."""
    others = tuple(a for a in range(3) if a != axis)
    planes = np.asarray(annotated.all(axis=others))
    planes[row.source[row.source >= 0]] = True
    return np.expand_dims(planes, others) | (_run_lengths(annotated, axis) < row.size)


def _run_lengths(annotated: np.ndarray, axis: int) -> np.ndarray:
    """Return for each voxel the length of its run of annotated voxels along the axis, 0 if not annotated."""
    lengths = annotated.astype(np.int32)
    planes, inside = np.moveaxis(lengths, axis, 0), np.moveaxis(annotated, axis, 0)
    for i in range(1, len(planes)):
        planes[i] += planes[i - 1] * inside[i]
    for i in reversed(range(len(planes) - 1)):
        np.maximum(planes[i], planes[i + 1] * inside[i], out=planes[i])
    return lengths


def _nearest_claim(
    cost: np.ndarray, label: np.ndarray, weight: np.ndarray, axis: int, row: _Row
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cheapest claim of each output voxel along a coarser axis: cost (mm^2, inf for none), label, weight.

    Squared distances add up over the axes, so that taking the cheapest axis by axis finds the nearest voxel of all.
    """
    shape = (*cost.shape[:axis], len(row.source), *cost.shape[axis + 1 :])
    claims = np.full(shape, np.inf, cost.dtype), np.zeros(shape, label.dtype), np.zeros(shape, weight.dtype)
    best, *targets = (np.moveaxis(array, axis, 0) for array in claims)
    costs, *sources = (np.moveaxis(array, axis, 0) for array in (cost, label, weight))
    for i in np.flatnonzero(row.holder >= 0):
        claim = costs[i] + np.float32(row.distance[i] ** 2)
        holder = row.holder[i]
        better = claim < best[holder]
        np.copyto(best[holder], claim, where=better)
        for target, values in zip(targets, sources):
            np.copyto(target[holder], values[i], where=better)
    return claims


def _affine_of(image: Any) -> np.ndarray | None:
    """Return the affine of a MetaTensor; None for other arrays, which have none."""
    return _checked(image.affine.cpu(), source_of(image)) if isinstance(image, MetaTensor) else None


def _checked(affine: Any, source: str) -> np.ndarray:
    """Return an affine as an array; raise DataError, naming whose it is, if it places no voxels in space."""
    matrix = np.asarray(affine, dtype=float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise DataError(
            f"{source}: the affine {matrix.tolist()} places no voxels in space; expected 4 x 4 numbers, whose first "
            "three columns are an axis each. Correct it where the volume is loaded."
        )
    return matrix


def _grid_of(label: Any, weight: Any) -> np.ndarray | None:
    """Return the affine of an annotation, None without one; raise DataError unless label and weight are on one grid."""
    shape, other = (tuple(as_tensor(part, name).shape) for part, name in ((label, "label"), (weight, "weight")))
    if len(shape) != 4 or shape[0] != 1 or other != shape:
        raise DataError(
            f"{source_of(label)}: expected a label and a weight of the same shape (1, X, Y, Z), got {shape} and "
            f"{other}. Make both of one annotation, as SparseLabel does."
        )
    affine, of_weight = _affine_of(label), _affine_of(weight)
    if affine is None or of_weight is None or np.array_equal(of_weight, np.eye(4)):  # MONAI's default, for none
        return affine
    if _drift(np.linalg.inv(affine) @ of_weight - np.eye(4), shape[1:]) >= SAME_GRID:
        raise DataError(f"{source_of(label)}: its weight has another affine; expected the label's, for both.")
    return affine


def _check_without_affine(label: Any, label_has_none: bool, image_has_none: bool, dst_shape: tuple[int, ...]) -> None:
    """Raise DataError unless neither label nor image has an affine, and both have the same shape."""
    if label_has_none and image_has_none and tuple(label.shape[1:]) == dst_shape:
        return
    found = "neither has an affine, and their shapes differ" if label_has_none and image_has_none else ""
    found = found or f"the {'label' if label_has_none else 'image'} has none"
    raise DataError(
        f"{source_of(label)}: to bring a label {tuple(label.shape[1:])} to the grid of an image {dst_shape}, both need "
        f"an affine; {found}. Pass MetaTensors, as loaded by VolumeReader, without monai.data.set_track_meta(False)."
    )


def _drift(matrix: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance along an axis by which the matrix moves a voxel of a grid of that shape."""
    return float((np.abs(matrix[:3, :3]) @ np.array(shape) + np.abs(matrix[:3, 3])).max())


def _on_grid(values: np.ndarray, source: MetaTensor, affine: np.ndarray) -> torch.Tensor:
    result = MetaTensor(torch.from_numpy(values)[None].to(source.device))
    result.copy_meta_from(source)
    result.affine = torch.as_tensor(affine)
    return result
