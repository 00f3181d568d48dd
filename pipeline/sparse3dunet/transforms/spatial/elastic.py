"""Elastic deformation, rotation, scaling, shear, flips and cropping of image, label and weight in one resampling."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.transforms.utils import create_rotate, create_scale, create_shear
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor, fall_back_tuple

from sparse3dunet.errors import DataError
from sparse3dunet.keys import CENTER, IMAGE, LABEL, WEIGHT
from sparse3dunet.transforms.arguments import axis_or_none, number, of_each, one_of, per_axis, ranges, size_in_voxels
from sparse3dunet.transforms.spatial.bspline_field import Deformation, control_shape
from sparse3dunet.transforms.spatial.warping import BILINEAR, BORDER, MODES, NEAREST, PADDING_MODES, ZEROS, warp

VOXELS, MM = UNITS = ("voxels", "mm")
SHEARS = ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
"""Axes of MONAI's six shear factors: which one is sheared by which."""


class RandBSplineElastic(RandomizableTransform):
    """Deform a patch smoothly by a random grid of control points and cubic B-splines (Çiçek et al. 2016, section 3).

    Rotation, scaling, shear, translation, flips and the crop to a patch are part of the same, single resampling of the
    volume, so that a patch needs no margin, and no part of the volume is lost. Drawing and applying are separate:
    ``draw`` returns a :class:`Deformation` of plain numbers, which can be stored, and applied any number of times:
    ``transform(volume, deformation=drawn)``.

    Rotation and shear are in mm, also for anisotropic voxels: the spacing is taken from the affine (1 mm for a plain
    tensor).

    A volume may be a batch (B, C, X, Y, Z), each of which is then deformed separately. The computation is on the
    volume's device, CPU or CUDA. Types are kept, except for integers that are interpolated: float32.

    Args:
        spatial_size: size of the patch in voxels; None, or -1 for an axis, for the volume's size.
        prob: probability that the patch is deformed; otherwise it is only cropped.
        control_spacing: distance between control points, for all axes or each; the paper's is 32 voxels.
        displacement: standard deviation of the normal distribution from which each component of the control points'
            displacements is drawn, for all axes or each; the paper's is 4 voxels. 0 for none.
        rotate_range: range of angles in radians: a number a for (-a, a) about each axis, or three numbers or pairs
            (least, largest).
        scale_range: range of relative changes in size, as `rotate_range`: 0.2 scales structures by 0.8 to 1.2.
        shear_range: range of shear factors, as `rotate_range`: of x by y, x by z, y by x, y by z, z by x and z by y. A
            number or six.
        translate_range: range of translations in `units`, as `rotate_range`.
        flip_prob: probability of a flip along each axis, for all axes or each.
        units: unit of `control_spacing`, `displacement` and `translate_range`: "voxels", or "mm" by the spacing.
        mode: "bilinear", "nearest" or "bicubic" (slow: SciPy, on the CPU); in three dimensions.
        padding_mode: how to extend the volume: "border" repeats its outermost voxels, or "zeros".
        slice_axis: axis across slices much thicker than the voxels in them: each slice then stays what it is, deformed,
            rotated and sheared in its plane only (scaling, flips and translations remain). None for none.

    Attributes:
        deformation: the last deformation applied, or a list of them for a batch; empty before.

    Raises:
        DataError: when an argument is out of range, or control points are closer than voxels.

    Warns:
        RuntimeWarning: when a drawn deformation folds: its Jacobian determinant changes sign, so that structures appear
            twice.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | int | None = None,
        prob: float = 1.0,
        control_spacing: Sequence[float] | float = 32.0,
        displacement: Sequence[float] | float = 4.0,
        rotate_range: Any = 0.0,
        scale_range: Any = 0.0,
        shear_range: Any = 0.0,
        translate_range: Any = 0.0,
        flip_prob: Sequence[float] | float = 0.0,
        units: str = VOXELS,
        mode: str = BILINEAR,
        padding_mode: str = BORDER,
        slice_axis: int | None = None,
    ) -> None:
        self.slice_axis = axis_or_none("slice_axis", slice_axis)
        self.spatial_size = size_in_voxels(spatial_size)
        self.control_spacing = per_axis("control_spacing", control_spacing, positive=True)
        self.displacement = per_axis("displacement", displacement)
        self.rotate_range = ranges("rotate_range", rotate_range)
        self.scale_range = ranges("scale_range", scale_range)
        self.shear_range = ranges("shear_range", shear_range, count=6)
        self.translate_range = ranges("translate_range", translate_range)
        self.flip_prob = per_axis("flip_prob", flip_prob, most=1)
        self.units = one_of("units", units, UNITS)
        self.mode = one_of("mode", mode, MODES)
        self.padding_mode = one_of("padding_mode", padding_mode, PADDING_MODES)
        self.deformation: Deformation | list[Deformation] = []
        if self.scale_range.min() <= -1:
            raise DataError(f"scale_range must be above -1, since -1 scales to size 0; got {scale_range}.")
        RandomizableTransform.__init__(self, number("prob", prob, 0, 1))

    def draw(
        self,
        shape: Sequence[int],
        spacing: Sequence[float] | np.ndarray = (1, 1, 1),
        center: Sequence[int] | np.ndarray | None = None,
    ) -> Deformation:
        """Draw a random deformation of a patch.

        Args:
            shape: shape of the volume, (X, Y, Z).
            spacing: its voxel size in mm.
            center: the voxel in the patch's middle (the latter of two); None for the volume's middle.
        """
        size = np.asarray(fall_back_tuple(self.spatial_size, shape))
        middle = np.asarray(shape) // 2 if center is None else np.asarray(center)
        crop = Deformation.crop(middle - size // 2, size)
        self.randomize(None)
        if not self._do_transform:
            return crop
        voxel = np.asarray(spacing, dtype=float)
        unit = voxel if self.units == MM else np.ones(3)
        control_spacing, displacement = self.control_spacing / unit, self.displacement / unit
        if control_spacing.min() < 1:
            raise DataError(
                f"control points {self.control_spacing.tolist()} {self.units} apart are closer than voxels of "
                f"{voxel.tolist()} mm; increase control_spacing."
            )
        linear = self._draw_linear(voxel)
        shift = self._uniform(self.translate_range) / unit
        displacements = self.R.normal(size=(3, *control_shape(size, control_spacing)))
        displacements *= displacement.reshape(3, 1, 1, 1)
        if self.slice_axis is not None:
            displacements[self.slice_axis] = 0
        drawn = Deformation(crop.size, crop.center - linear @ shift, linear, displacements, control_spacing)
        if drawn.folds():
            warnings.warn(
                "a drawn deformation folds, so that structures appear twice; decrease displacement "
                f"({self.displacement.tolist()} {self.units}) or increase control_spacing "
                f"({self.control_spacing.tolist()} {self.units}).",
                RuntimeWarning,
                stacklevel=2,
            )
        return drawn

    def __call__(
        self,
        img: Any,
        center: Any = None,
        deformation: Deformation | Sequence[Deformation] | None = None,
    ) -> torch.Tensor:
        """Return a random patch of (C, X, Y, Z), or of each volume of a batch (B, C, X, Y, Z).

        Args:
            img: the volume or volumes.
            center: see :meth:`draw`; for a batch (B, 3).
            deformation: deformation to apply instead of a random one; for a batch one for each volume.
        """
        return self.warp_alike([img], [self.mode], [self.padding_mode], center, deformation)[0]

    def warp_alike(
        self,
        images: Sequence[Any],
        modes: Sequence[str],
        padding_modes: Sequence[str],
        center: Any = None,
        deformation: Deformation | Sequence[Deformation] | None = None,
    ) -> list[torch.Tensor]:
        """Return patches of volumes, or of batches of them, that share one grid: see ``__call__``.

        Raises:
            ValueError: when the shapes differ, or are not those of volumes.
        """
        tensors = [convert_to_tensor(image, track_meta=get_track_meta()) for image in images]
        _check_alike(tensors)
        batched = tensors[0].ndim == 5
        plain = [tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor for tensor in tensors]
        batches = plain if batched else [tensor[None] for tensor in plain]
        count, shape = len(batches[0]), batches[0].shape[2:]
        if deformation is None:
            spacings, centers = _spacings(tensors[0], count), _centers(center, count)
            deformations = [self.draw(shape, spacing, voxel) for spacing, voxel in zip(spacings, centers)]
        else:
            deformations = [deformation] if isinstance(deformation, Deformation) else list(deformation)
            if len(deformations) != count:
                raise ValueError(f"each of {count} volumes needs a deformation; got {len(deformations)}.")
        self.deformation = deformations if batched else deformations[0]
        warped = [warp(volumes, drawn, modes, padding_modes) for volumes, drawn in zip(zip(*batches), deformations)]
        patches = [torch.stack(volumes) if batched else volumes[0] for volumes in zip(*warped)]
        matrices = torch.from_numpy(np.stack([drawn.voxel_matrix() for drawn in deformations]))
        return [_with_affine(*pair, matrices if batched else matrices[0]) for pair in zip(patches, tensors)]

    def _draw_linear(self, voxel: np.ndarray) -> np.ndarray:
        """Draw the matrix (3, 3) from a voxel to its position before flips, scaling, shear and rotation."""
        angles, shears = self._uniform(self.rotate_range), self._uniform(self.shear_range)
        if self.slice_axis is not None:
            angles[[axis for axis in range(3) if axis != self.slice_axis]] = 0
            shears[[axis for axis, pair in enumerate(SHEARS) if self.slice_axis in pair]] = 0
        body = create_rotate(3, angles.tolist())[:3, :3] @ create_shear(3, shears.tolist())[:3, :3]
        body = body @ create_scale(3, (1 + self._uniform(self.scale_range)).tolist())[:3, :3]
        flips = np.where(self.R.uniform(size=3) < self.flip_prob, -1.0, 1.0)
        return flips[:, None] * np.linalg.inv(body) * voxel / voxel[:, None]

    def _uniform(self, ranges: np.ndarray) -> np.ndarray:
        return self.R.uniform(ranges[:, 0], ranges[:, 1])


class RandBSplineElasticd(MapTransform, Randomizable):
    """Dictionary version of :class:`RandBSplineElastic`, with one draw and one resampling for all keys.

    Example::

        augment = RandBSplineElasticd(spatial_size=64, rotate_range=0.3, scale_range=0.2, flip_prob=[0.5, 0, 0])
        patch = augment({"image": image, "label": label, "weight": weight})

    Args:
        keys: keys of the volumes, which share one grid; the spacing is that of the first.
        spatial_size: see :class:`RandBSplineElastic`, as are `prob`, `control_spacing`, `displacement`,
            `rotate_range`, `scale_range`, `shear_range`, `translate_range`, `flip_prob`, `units` and `slice_axis`.
        mode: mode for the images, by default "bilinear"; the keys ``label`` and ``weight`` have "nearest". Or a list
            with the mode of each key.
        padding_mode: mode for images and label, by default "border", so that no intensity or class is made up; the key
            ``weight`` has "zeros": voxels from outside the volume are unlabeled. Or a list with the mode of each key.
        center_key: key of the voxel in the patch's middle, as set by :class:`RandPatchCenterd`, which is removed; if
            missing, the volume's middle is used.
        deformation_key: key for the drawn deformation as plain numbers, see :meth:`Deformation.to_dict` (for a batch, a
            list of these); if it exists already, this deformation is applied instead of a random one. None for neither.
        allow_missing_keys: whether keys may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection = (IMAGE, LABEL, WEIGHT),
        spatial_size: Sequence[int] | int | None = None,
        prob: float = 1.0,
        control_spacing: Sequence[float] | float = 32.0,
        displacement: Sequence[float] | float = 4.0,
        rotate_range: Any = 0.0,
        scale_range: Any = 0.0,
        shear_range: Any = 0.0,
        translate_range: Any = 0.0,
        flip_prob: Sequence[float] | float = 0.0,
        units: str = VOXELS,
        mode: Sequence[str] | str | None = None,
        padding_mode: Sequence[str] | str | None = None,
        center_key: str = CENTER,
        deformation_key: str | None = None,
        allow_missing_keys: bool = False,
        slice_axis: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.elastic = RandBSplineElastic(
            spatial_size,
            prob,
            control_spacing,
            displacement,
            rotate_range,
            scale_range,
            shear_range,
            translate_range,
            flip_prob,
            units,
            slice_axis=slice_axis,
        )
        self.mode = of_each("mode", self.keys, mode, {LABEL: NEAREST, WEIGHT: NEAREST}, MODES)
        self.padding_mode = of_each("padding_mode", self.keys, padding_mode, {WEIGHT: ZEROS}, PADDING_MODES)
        self.center_key = center_key
        self.deformation_key = deformation_key

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandBSplineElasticd:
        super().set_random_state(seed, state)
        self.elastic.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        present = list(self.key_iterator(d, self.mode, self.padding_mode))
        if not present:
            return d
        keys, modes, padding_modes = zip(*present)
        stored = d.get(self.deformation_key) if self.deformation_key else None
        replayed = stored and [Deformation.from_dict(n) for n in (stored if isinstance(stored, list) else [stored])]
        center = d.pop(self.center_key, None)
        d.update(zip(keys, self.elastic.warp_alike([d[key] for key in keys], modes, padding_modes, center, replayed)))
        if self.deformation_key:
            drawn = self.elastic.deformation
            d[self.deformation_key] = [one.to_dict() for one in drawn] if isinstance(drawn, list) else drawn.to_dict()
        return d


def _with_affine(patch: torch.Tensor, volume: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Return the patch with the volume's metadata and its own affine; a plain tensor if the volume is one."""
    if not isinstance(volume, MetaTensor):
        return patch
    result = convert_to_dst_type(patch, volume, dtype=patch.dtype)[0]
    result.is_batch = matrices.ndim == 3
    result.affine = volume.affine @ matrices.to(volume.affine)
    return result


def _spacings(volume: torch.Tensor, count: int) -> list[np.ndarray]:
    """Return the spacing (3,) in mm of each volume of a batch; 1 without an affine."""
    if not isinstance(volume, MetaTensor):
        return [np.ones(3)] * count
    return [affine_to_spacing(affine).cpu().numpy() for affine in volume.affine.expand(count, 4, 4)]


def _centers(center: Any, count: int) -> Sequence[np.ndarray | None]:
    """Return the centre (3,) for each volume of a batch."""
    if center is None:
        return [None] * count
    centers = np.asarray(convert_to_numpy(center))
    if centers.size != 3 * count or (centers % 1).any():
        raise ValueError(f"a center is a voxel, three whole numbers, for each of {count} volumes; got {center}.")
    return list(centers.reshape(count, 3))


def _check_alike(tensors: Sequence[torch.Tensor]) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if any(len(shape) not in (4, 5) or 0 in shape for shape in shapes):
        raise ValueError(
            f"volumes are (C, X, Y, Z), or (B, C, X, Y, Z) in a batch, and not empty; got shapes {shapes}."
        )
    if len({(len(shape), *shape[-3:], *shape[:-4]) for shape in shapes}) > 1:
        raise ValueError(f"volumes that are deformed alike must have the same spatial shape; got shapes {shapes}.")
