"""A drawn deformation as plain numbers, and its application: one resampling for all that is deformed alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.utils import GridSamplePadMode
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates
from torch.nn.functional import grid_sample, pad

BILINEAR, NEAREST, BICUBIC = MODES = ("bilinear", "nearest", "bicubic")
BORDER, ZEROS = PADDING_MODES = (GridSamplePadMode.BORDER.value, GridSamplePadMode.ZEROS.value)

_CUBIC_REACH = 12  # voxels, after which a cubic spline's coefficients depend on an intensity by less than 1e-6


@dataclass(frozen=True, eq=False)
class Deformation:
    """Where each voxel of a patch takes its value from. Plain numbers: to be logged, stored and replayed.

    A voxel v of a patch of size m (per axis) shows what lies at ``center + linear @ u + bend(u)`` of the volume, where
    u = v - (m - 1) / 2 is its place seen from the patch's middle. The bend is the cubic spline (Çiçek et al. 2016: of
    vectors drawn from a normal distribution) through the displacements at a grid of control points.

    Attributes:
        size: (3,) of the patch, in voxels.
        center: (3,) the point of the volume that the patch's middle shows, in voxels.
        linear: (3, 3) the inverse of rotation, scaling, shear and flips, in voxels.
        displacements: (3, kx, ky, kz) at the control points, in voxels of the volume.
        control_spacing: (3,) between control points, in voxels of the patch; they lie symmetrically about its middle.
    """

    size: np.ndarray
    center: np.ndarray
    linear: np.ndarray
    displacements: np.ndarray
    control_spacing: np.ndarray

    @classmethod
    def crop(cls, start: Sequence[int] | np.ndarray, size: Sequence[int] | np.ndarray) -> Deformation:
        """That which takes the patch of the given size from voxel `start` on, as it is."""
        patch = np.asarray(size)
        spacing = np.maximum(patch, 1.0)
        none = np.zeros((3, *control_shape(patch, spacing)))
        return cls(patch, np.asarray(start) + (patch - 1) / 2, np.eye(3), none, spacing)

    def to_dict(self) -> dict[str, list]:
        """As lists of numbers, which JSON can hold."""
        return {name: array.tolist() for name, array in asdict(self).items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> Deformation:
        """The deformation that ``to_dict`` was called on, to the last bit.

        Raises:
            ValueError: when `numbers` are not those of a deformation.
        """
        names = list(cls.__dataclass_fields__)
        if not isinstance(numbers, Mapping) or set(names) - set(numbers):
            raise ValueError(f"a deformation has the entries {', '.join(names)}; got {str(numbers)[:100]}.")
        return cls(**{name: np.asarray(numbers[name]) for name in names})

    def voxel_matrix(self) -> np.ndarray:
        """(4, 4): from voxels of the patch to those of the volume, but for the bend.

        The volume's affine times this is the patch's.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = self.linear
        matrix[:3, 3] = self.center - self.linear @ ((self.size - 1) / 2)
        return matrix

    def crop_start(self) -> np.ndarray | None:
        """The first voxel of the volume that the patch shows, where it is a crop and nothing more; else None."""
        start = self.voxel_matrix()[:3, 3]
        if self.displacements.any() or not np.array_equal(self.linear, np.eye(3)) or (start % 1).any():
            return None
        return start.astype(int)

    def points(self) -> torch.Tensor:
        """(X, Y, Z, 3) float32: what each voxel of the patch shows, in voxels of the volume."""
        return self.grid_rows().view(*self.size, 3).flip(-1) + torch.from_numpy(self.center).float()

    def grid_rows(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """(X, Y * Z * 3) float32: as ``points``, but from ``center``, and z before y before x as in ``grid_sample``."""
        return self._spline(self._targets()[::-1].copy(), device=device)

    def folds(self) -> bool:
        """Whether the map turns inside out somewhere: its Jacobian determinant vanishes or changes sign.

        Looked for at four points from a control point to the next, along each axis.
        """
        if not self.displacements.any():
            return False
        steps = tuple(max(int(spacing / 4), 1) for spacing in self.control_spacing)
        targets = self._targets()
        x, y, z = (self._spline(targets, steps, axis).view(-1, 3) for axis in range(3))
        determinants = (torch.linalg.cross(x, y) * z).sum(1)
        return bool((determinants * np.linalg.det(self.linear) <= 0).any())

    def _targets(self) -> np.ndarray:
        """(3, kx, ky, kz): what control points show, from ``center``. A cubic spline keeps the linear part as it is."""
        axes = [_knots(*axis) for axis in zip(self.displacements.shape[1:], self.control_spacing)]
        return np.einsum("ij,jxyz->ixyz", self.linear, np.stack(np.meshgrid(*axes, indexing="ij"))) + self.displacements

    def _spline(
        self,
        targets: np.ndarray,
        steps: Sequence[int] = (1, 1, 1),
        derivative: int | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """(X, Y * Z * 3): the spline through the targets, or its derivative along an axis, at every `steps`-th voxel.

        Axis by axis, the last and by far the largest product already in the order that ``grid_sample`` reads.
        """
        x, y, z = (
            _spline_matrix(int(size), count, float(spacing), derivative == axis)[:: steps[axis]].to(device)
            for axis, (size, count, spacing) in enumerate(zip(self.size, targets.shape[1:], self.control_spacing))
        )
        along_z = torch.from_numpy(targets).to(device) @ z.T
        along_y = (y @ along_z).permute(1, 2, 3, 0).float()
        return x.float() @ along_y.reshape(len(along_y), -1)


def control_shape(size: Sequence[int] | np.ndarray, spacing: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    """How many control points cover a patch of `size` voxels, with one more on each side.

    With these the spline's ends, where it is less smooth, lie outside of the patch.
    """
    x, y, z = (max(math.ceil((n - 1) / h - 1e-9) + 3, 4) for n, h in zip(size, spacing))
    return x, y, z


def _knots(count: int, spacing: float) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * spacing


@functools.lru_cache(maxsize=512)
def _spline_matrix(size: int, count: int, spacing: float, derivative: bool) -> torch.Tensor:
    """(size, count) float64: from values at the control points to the spline, or its slope, at an axis's voxels."""
    voxels = np.arange(size) - (size - 1) / 2
    return torch.from_numpy(make_interp_spline(_knots(count, spacing), np.eye(count), k=3)(voxels, nu=int(derivative)))


def warp(
    volumes: Sequence[torch.Tensor],
    deformation: Deformation,
    modes: Sequence[str],
    padding_modes: Sequence[str],
) -> list[torch.Tensor]:
    """Patches of volumes that share one grid, deformed alike. Only the part of them that is needed is read.

    Args:
        volumes: each (C, X, Y, Z), plain tensors of one spatial shape on one device.
        deformation: of the patch.
        modes: for each volume "bilinear" (of the eight neighbours), "nearest", or "bicubic" (SciPy, on the CPU).
        padding_modes: for each volume what lies outside of it: "border", the nearest voxel of it, or "zeros".

    Returns:
        For each volume (C, *deformation.size), of the same type; float32 where integers were interpolated.
    """
    start, shape = deformation.crop_start(), volumes[0].shape[1:]
    if start is not None and (start < shape).all() and (start + deformation.size > 0).all():
        boxes = [_box(v, start, start + deformation.size, p) for v, p in zip(volumes, padding_modes)]
        return [box.to(volume.dtype, copy=True) for box, volume in zip(boxes, volumes)]
    rows = deformation.grid_rows(volumes[0].device)
    first, behind = _reach(rows, deformation.center, shape, _CUBIC_REACH if BICUBIC in modes else 1)
    center = deformation.center - first
    results: dict[int, torch.Tensor] = {}
    for mode, sample in {BICUBIC: _sample_cubic, NEAREST: _sample_nearest, BILINEAR: _sample_linear}.items():
        members = [index for index, m in enumerate(modes) if m == mode]
        if not members:
            continue
        boxes = [_box(volumes[index], first, behind, padding_modes[index]) for index in members]
        box = boxes[0] if len(boxes) == 1 else torch.cat(boxes)
        for index, part in zip(members, sample(box, rows, center).split([len(b) for b in boxes])):
            dtype = volumes[index].dtype
            whole = mode == NEAREST or dtype.is_floating_point
            results[index] = part.reshape(-1, *deformation.size).to(dtype if whole else torch.float32)
    return [results[index] for index in range(len(volumes))]


def _reach(rows: torch.Tensor, center: np.ndarray, shape: Sequence[int], margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The box of voxels (first, behind the last) that the points touch; at most `margin` voxels out of the volume."""
    # Along the rows first: torch is slow at reducing to the last axis of three.
    extremes = (rows.amin(0).view(-1, 3).amin(0), rows.amax(0).view(-1, 3).amax(0))
    low, high = (extreme.flip(-1).double().cpu().numpy() + center for extreme in extremes)
    first = np.clip(np.floor(low).astype(int) - margin, -margin, np.asarray(shape) - 1)
    behind = np.clip(np.ceil(high).astype(int) + margin + 1, first + margin + 1, np.asarray(shape) + margin)
    return first, behind


def _box(volume: torch.Tensor, first: np.ndarray, behind: np.ndarray, padding_mode: str) -> torch.Tensor:
    """The voxels from `first` to before `behind`, of (C, X, Y, Z), as float; padded where they lie outside of it."""
    shape = np.asarray(volume.shape[1:])
    start, stop = np.clip(first, 0, shape), np.clip(behind, 0, shape)
    box = volume[(slice(None), *(slice(a, b) for a, b in zip(start, stop)))].float()
    before, after = start - first, behind - stop
    if not (before.any() or after.any()):
        return box
    widths = [int(w) for pair in zip(before[::-1], after[::-1]) for w in pair]
    if padding_mode == ZEROS:
        return pad(box, widths)
    return pad(box[None], widths, mode="replicate")[0]


def _sample_cubic(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """(C, number of points): the box at the points that `rows` hold relative to `center`, by cubic splines."""
    coordinates = rows.view(-1, 3).flip(-1).double().cpu().numpy().T + center[:, None]
    channels = [map_coordinates(channel, coordinates, order=3, mode="nearest") for channel in box.cpu().numpy()]
    return torch.from_numpy(np.stack(channels)).to(rows.device)


def _sample_nearest(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """As :func:`_sample_cubic`, the nearest voxel, and of two the even: as ``grid_sample``, in half its time."""
    _, x, y, z = box.shape
    places = torch.add(rows, _along(center, rows)).round_()
    places.clamp_(torch.zeros((), device=rows.device), _along(np.array([x, y, z]) - 1, rows))
    # The place in the flattened box, which float32 can count up to 2^24.
    exact = places.view(-1, 3) if x * y * z < 2**24 else places.view(-1, 3).double()
    index = (exact @ torch.tensor([1, z, y * z]).to(exact)).to(torch.int32 if x * y * z < 2**31 else torch.int64)
    return torch.stack([channel.reshape(-1).index_select(0, index) for channel in box])


def _sample_linear(box: torch.Tensor, rows: torch.Tensor, center: np.ndarray) -> torch.Tensor:
    """As :func:`_sample_cubic`, between the eight neighbours. Changes `rows`: new memory costs more than the work."""
    # To the coordinates of grid_sample, from -1 to 1 between the outer borders of the outer voxels.
    shape = np.asarray(box.shape[1:])
    grid = torch.addcmul(_along((2 * center + 1) / shape - 1, rows), rows, _along(2 / shape, rows), out=rows)
    # grid_sample works on several cores only where there are several volumes: so the one is passed as many.
    threads = torch.get_num_threads() if rows.device.type == "cpu" else 1
    parts = next(n for n in range(threads, 0, -1) if grid.numel() // 3 % n == 0)
    sampled = grid_sample(
        box.expand(parts, *box.shape),
        grid.view(parts, 1, 1, -1, 3),
        mode=BILINEAR,
        padding_mode=BORDER,  # the box has what lies outside already
        align_corners=False,
    )
    return sampled.transpose(0, 1).reshape(len(box), -1)


def _along(numbers: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
    """Numbers by axis, in the order of a row's: torch is slow at broadcasting to a last axis of three."""
    return torch.from_numpy(numbers[::-1].copy()).to(rows).repeat(rows.shape[1] // 3)
