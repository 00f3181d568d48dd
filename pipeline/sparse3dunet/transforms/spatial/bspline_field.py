"""Deformation of a patch, as plain numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

_NEARLY_FOLDED = 0.3
"""Jacobian determinant, relative to the linear part's, below which a map is checked more closely."""


def _without_autocast(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Disable autocast for a function: coordinates need full precision also in a training step."""
    for kind in ("cpu", "cuda"):
        function = torch.autocast(kind, enabled=False)(function)
    return function


@dataclass(frozen=True, eq=False)
class Deformation:
    """Map from each voxel of a patch to a point of the volume, as plain numbers that can be logged, stored and reused.

    A voxel v of a patch of size m (per axis) takes the value at ``center + linear @ u + bend(u)`` of the volume, where
    u = v - (m - 1) / 2 is its position relative to the patch's middle. The bend is the cubic spline through the
    displacements at a grid of control points, which Çiçek et al. (2016) draw from a normal distribution.

    Attributes:
        size: (3,) size of the patch in voxels.
        center: (3,) point of the volume in the patch's middle, in voxels.
        linear: (3, 3) the inverse of rotation, scaling, shear and flips, in voxels.
        displacements: (3, kx, ky, kz) displacements at the control points, in voxels of the volume.
        control_spacing: (3,) distance of control points in voxels of the patch; they are symmetric about its middle.
    """

    size: np.ndarray
    center: np.ndarray
    linear: np.ndarray
    displacements: np.ndarray
    control_spacing: np.ndarray

    @classmethod
    def crop(cls, start: Sequence[int] | np.ndarray, size: Sequence[int] | np.ndarray) -> Deformation:
        """Return the deformation that only crops the patch of the given size from voxel `start` on."""
        patch = np.asarray(size)
        spacing = np.maximum(patch, 1.0)
        none = np.zeros((3, *control_shape(patch, spacing)))
        return cls(patch, np.asarray(start) + (patch - 1) / 2, np.eye(3), none, spacing)

    def to_dict(self) -> dict[str, list]:
        """Return lists of numbers, which JSON can store."""
        return {name: array.tolist() for name, array in asdict(self).items()}

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> Deformation:
        """Return the deformation that ``to_dict`` was called on, exactly.

        Raises:
            ValueError: when `numbers` are not those of a deformation.
        """
        names = list(cls.__dataclass_fields__)
        if not isinstance(numbers, Mapping) or set(names) - set(numbers):
            raise ValueError(f"a deformation has the entries {', '.join(names)}; got {str(numbers)[:100]}.")
        try:
            size = np.asarray(numbers["size"]).astype(int)
            center, linear, displacements, spacing = (np.asarray(numbers[name], dtype=float) for name in names[1:])
        except (TypeError, ValueError) as error:
            raise ValueError(f"the entries of a deformation must be numbers; got {str(numbers)[:100]}.") from error
        shapes = (size.shape, center.shape, spacing.shape, linear.shape, displacements.shape[:1])
        if (
            shapes != ((3,), (3,), (3,), (3, 3), (3,))
            or not ((size > 0) & (spacing > 0)).all()
            or len(displacements.shape) != 4
            or np.less(displacements.shape[1:], control_shape(size, spacing)).any()
        ):
            raise ValueError(
                "the entries of a deformation do not fit together: size, center and control_spacing must be three "
                "numbers, linear 3 x 3, and displacements three numbers for each control point that covers the size."
            )
        return cls(size, center, linear, displacements, spacing)

    def voxel_matrix(self) -> np.ndarray:
        """Return the matrix (4, 4) from voxels of the patch to those of the volume, without the bend.

        The volume's affine times this is the patch's.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = self.linear
        matrix[:3, 3] = self.center - self.linear @ ((self.size - 1) / 2)
        return matrix

    def crop_start(self) -> np.ndarray | None:
        """Return the first voxel of the patch in the volume if it is a crop and nothing more; else None."""
        start = self.voxel_matrix()[:3, 3]
        if self.displacements.any() or not np.array_equal(self.linear, np.eye(3)) or (start % 1).any():
            return None
        return start.astype(int)

    def points(self) -> torch.Tensor:
        """Return the point (X, Y, Z, 3) of each voxel of the patch, float32, in voxels of the volume."""
        return self.grid_rows().view(*self.size, 3).flip(-1) + torch.from_numpy(self.center).float()

    def grid_rows(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return ``points`` relative to ``center``, (X, Y * Z * 3) float32, in ``grid_sample``'s order z, y, x."""
        return self._spline(self._targets()[::-1].copy(), device=device)

    def folds(self) -> bool:
        """Return whether the map folds somewhere: its Jacobian determinant vanishes or changes sign.

        It is checked at four points between control points along each axis, and at eight if it comes close.
        """
        if not self.displacements.any():
            return False
        least = self._least_determinant(points=4)
        return least <= 0 or (least < _NEARLY_FOLDED and self._least_determinant(points=8) <= 0)

    def _least_determinant(self, points: int) -> float:
        """Return the least Jacobian determinant, relative to the linear part's, at `points` per control point."""
        steps = [max(int(spacing / points), 1) for spacing in self.control_spacing]
        targets = self._targets()
        x, y, z = (self._spline(targets, steps, axis).view(-1, 3) for axis in range(3))
        determinants = (torch.linalg.cross(x, y) * z).sum(1) / np.linalg.det(self.linear)
        return determinants.min().item()

    def _targets(self) -> np.ndarray:
        """Return where control points go, (3, kx, ky, kz), from ``center``; a cubic spline keeps the linear part."""
        axes = [_knots(*axis) for axis in zip(self.displacements.shape[1:], self.control_spacing)]
        return np.einsum("ij,jxyz->ixyz", self.linear, np.stack(np.meshgrid(*axes, indexing="ij"))) + self.displacements

    @_without_autocast
    def _spline(
        self,
        targets: np.ndarray,
        steps: Sequence[int] = (1, 1, 1),
        derivative: int | None = None,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """Evaluate the spline through the targets, or its derivative along an axis, at every `steps`-th voxel.

        Axis by axis, with the last and by far largest product in ``grid_sample``'s order. Returns (X, Y * Z * 3).
        """
        x, y, z = (
            _spline_matrix(int(size), count, float(spacing), derivative == axis)[:: steps[axis]].to(device)
            for axis, (size, count, spacing) in enumerate(zip(self.size, targets.shape[1:], self.control_spacing))
        )
        along_z = torch.from_numpy(targets).to(device) @ z.T
        along_y = (y @ along_z).permute(1, 2, 3, 0)
        along_y = along_y.reshape(len(along_y), -1)
        # On a GPU, matrices of float32 may be multiplied with fewer digits (TF32).
        precision = torch.float32 if along_y.device.type == "cpu" else torch.float64
        return (x.to(precision) @ along_y.to(precision)).float()


def control_shape(size: Sequence[int] | np.ndarray, spacing: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    """Return the number of control points per axis that cover a patch of `size` voxels, with one more on each side.

    With these the spline's ends, where it is less smooth, are outside the patch.
    """
    x, y, z = (max(math.ceil((n - 1) / h - 1e-9) + 3, 4) for n, h in zip(size, spacing))
    return x, y, z


def _knots(count: int, spacing: float) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * spacing


@functools.lru_cache(maxsize=512)
def _spline_matrix(size: int, count: int, spacing: float, derivative: bool) -> torch.Tensor:
    """Return the matrix (size, count) from values at control points to the spline or its slope at an axis's voxels."""
    voxels = np.arange(size) - (size - 1) / 2
    return torch.from_numpy(make_interp_spline(_knots(count, spacing), np.eye(count), k=3)(voxels, nu=int(derivative)))
