"""Patches that reach beyond the volume, or lie outside of it: by NumPy's own padding, on every side."""

import itertools

import numpy as np
import pytest
import torch

from sparse3dunet.transforms import Deformation
from sparse3dunet.transforms.spatial.warping import BILINEAR, BORDER, NEAREST, ZEROS, warp

SHAPE, SIZE = (7, 9, 8), (4, 5, 6)
WIDE = 30
"""Voxels of padding that any patch here stays within."""
PLACES = {"inside": 1, "below": -2, "above": 5, "wholly below": -11, "wholly above": 12}
"""First voxel along an axis."""
SIDES = [sides for sides in itertools.product(PLACES, repeat=3) if sum(side.startswith("wholly") for side in sides) < 2]


def numbered(channels=1):
    return torch.arange(1.0, 1 + channels * np.prod(SHAPE)).view(channels, *SHAPE)


def cropped(volume, start, mode):
    """The patch of SIZE that begins at a voxel, by NumPy."""
    padded = np.pad(volume.numpy(), [(0, 0), *[(WIDE, WIDE)] * 3], mode="edge" if mode == BORDER else "constant")
    return padded[(slice(None), *(slice(WIDE + a, WIDE + a + n) for a, n in zip(start, SIZE)))]


@pytest.mark.parametrize("sides", SIDES)
def test_a_crop_beyond_the_border_is_padded(sides):
    """Along one axis, two or three, below, above or wholly outside: no voxel is shifted, and none is made up."""
    start = [PLACES[side] for side in sides]
    image, weight = numbered(2), torch.ones(1, *SHAPE)
    found = warp([image, weight], Deformation.crop(start, SIZE), [BILINEAR, NEAREST], [BORDER, ZEROS])
    assert [tuple(part.shape) for part in found] == [(2, *SIZE), (1, *SIZE)]
    np.testing.assert_allclose(found[0], cropped(image, start, BORDER), rtol=1e-5)
    np.testing.assert_array_equal(found[1], cropped(weight, start, ZEROS))
    inside = np.prod([len({*range(a, a + n)} & {*range(m)}) for a, n, m in zip(start, SIZE, SHAPE)])
    assert found[1].sum() == inside, "what lies outside of the volume counts for nothing"


@pytest.mark.parametrize("sides", SIDES[::7])
@pytest.mark.parametrize("mode", [BILINEAR, NEAREST])
@pytest.mark.parametrize("padding_mode", [BORDER, ZEROS])
def test_half_a_voxel_beside_a_crop(sides, mode, padding_mode):
    """What is resampled is padded as what is only cropped: linearly between two crops, the nearest as one of them."""
    start = np.array([PLACES[side] for side in sides])
    shift = np.array([0.25, 0, 0])
    volume = torch.ones(1, *SHAPE) if padding_mode == ZEROS else numbered()
    crop = Deformation.crop(start, SIZE)
    moved = Deformation(crop.size, crop.center + shift, crop.linear, crop.displacements, crop.control_spacing)
    (found,) = warp([volume], moved, [mode], [padding_mode])
    first, second = (cropped(volume, start + step, padding_mode) for step in ([0, 0, 0], [1, 0, 0]))
    if mode == NEAREST:
        np.testing.assert_array_equal(found, first)
    else:
        np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64])
def test_values_that_are_not_interpolated_are_exact(dtype):
    """Also where they are padded; up to the largest that the type, or float64, can hold."""
    largest = min(torch.iinfo(dtype).max, 2**53) if not dtype.is_floating_point else 2**53
    volume = torch.full((1, *SHAPE), largest - 1, dtype=dtype)
    for shift in (0.0, 0.2):
        crop = Deformation.crop([-2, 3, 4], SIZE)
        moved = Deformation(crop.size, crop.center + shift, crop.linear, crop.displacements, crop.control_spacing)
        found, weight = warp([volume, (volume > 0).float()], moved, [NEAREST] * 2, [ZEROS] * 2)
        assert found.dtype == dtype
        assert weight.any()
        assert set(found[weight > 0].tolist()) == {largest - 1}
        assert not found[weight == 0].any()
