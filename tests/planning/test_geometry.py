"""Patches and networks for voxels of any shape."""

import itertools
import math

import numpy as np
import pytest
import torch

from sparse3dunet.networks import UNet3D
from sparse3dunet.planning.geometry import coarsened, patch_lengths, steps, whole_lengths

VOXELS = 64**3
SHAPES = [
    (500, 500, 500),
    (512, 512, 20),
    (35, 50, 36),
    (320, 320, 11),
    (7, 5, 5),
    (20, 400, 400),
    (91, 109, 91),
    (2000, 4, 4),
]
SPACINGS = [(1, 1, 1), (0.98, 0.98, 2), (0.5, 0.5, 7.5), (5, 1, 1), (0.3, 0.9, 2.7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_patch_is_as_large_as_allowed(shape, spacing):
    lengths = np.array(patch_lengths(shape, spacing, VOXELS))
    assert (lengths >= 1).all()
    assert (lengths <= np.array(shape) + 1e-9).all()
    full = lengths >= np.array(shape) - 1e-9
    assert full.all() or lengths.prod() == pytest.approx(VOXELS)
    extents = (lengths * spacing)[~full]
    assert extents.size == 0 or extents.max() == pytest.approx(extents.min())
    # An axis that ends at the volume would be longer otherwise.
    assert full.all() or not full.any() or (lengths * spacing)[full].max() <= extents.min() + 1e-6


def test_known_patches():
    assert patch_lengths((500, 500, 500), (1, 1, 1), VOXELS) == pytest.approx([64, 64, 64])
    assert patch_lengths((512, 512, 20), (1, 1, 2), VOXELS) == pytest.approx([114.487, 114.487, 20], rel=1e-4)
    assert patch_lengths((500, 500, 500), (1, 1, 1), math.inf, (48, 64, 32)) == [48, 64, 32]


@pytest.mark.parametrize(
    ("lengths", "shape", "multiple_of", "expected"),
    [
        ((35, 50, 36), (35, 50, 36), 8, [32, 48, 32]),
        ((35, 50, 36), (35, 50, 36), (16, 16, 4), [32, 48, 36]),
        ((64, 64, 13), (100, 100, 13), 8, [64, 64, 16]),  # 8 would be too little of 13
        ((64, 64, 5), (100, 100, 5), 8, [64, 64, 8]),
        ((57, 61, 31), (57, 61, 31), 8, [56, 56, 32]),  # 24 would be too little of 31
        ((57, 61, 31), (100, 100, 100), 8, [56, 56, 24]),  # there is more of the volume beside it
        ((30, 29, 79), (30, 29, 79), (8, 8, 16), [32, 24, 80]),
        ((64, 64, 9), (100, 100, 9), 8, [64, 64, 16]),  # 8 would be a single voxel in the end
        ((63.9, 60, 4), (300, 300, 300), 8, [56, 56, 8]),
        ((63.9999999999, 1, 1), (300, 1, 1), (8, 1, 2), [64, 1, 2]),
    ],
)
def test_whole_lengths(lengths, shape, multiple_of, expected):
    assert whole_lengths(lengths, shape, multiple_of) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("levels", [2, 4, 6])
def test_networks_mix_only_what_lies_together(shape, spacing, levels):
    """No axis is pooled, or reached along, while its voxels are twice as long as the finest axis's."""
    lengths = patch_lengths(shape, spacing, 16**3)
    strides, kernels = steps(lengths, spacing)
    voxel, size = np.array(spacing, float), np.array(lengths)
    assert len(strides) >= levels - 1
    assert {k for kernel in kernels for k in kernel} <= {1, 3}
    for kernel, stride in zip(kernels[:levels], strides[: levels - 1]):
        finest = voxel[size >= 2].min() if (size >= 2).any() else voxel.min()
        assert all(k == 3 for k, v in zip(kernel, voxel) if v < 2 * finest)
        for axis in range(3):
            if stride[axis] == 2:
                assert size[axis] > 8 - 1e-6
                assert voxel[axis] < 2 * voxel[size > 8 - 1e-6].min()
        voxel, size = voxel * stride, size / stride
    assert all(a <= b for first, second in itertools.pairwise(kernels) for a, b in zip(first, second))
    network = UNet3D(
        1, 2, [2] * levels, strides[: levels - 1], "instance", padding="same", kernel_sizes=kernels[:levels]
    )
    patch = whole_lengths(lengths, shape, network.size_multiple)
    assert network(torch.rand(1, 1, *patch)).shape[2:] == tuple(patch)


def test_the_paper_s_network_for_cubes():
    strides, kernels = steps((64, 64, 64), (1, 1.2, 0.9))
    assert set(kernels) == {(3, 3, 3)}
    assert strides == [(2, 2, 2)] * 4 + [(1, 1, 1)] * 2  # down to 4 voxels


def test_lengths_that_are_padded_a_little_are_pooled_as_what_they_become():
    lengths = (88.0, 88.0, 31.0)
    assert steps(lengths, (1, 1, 1), (122, 101, 31))[0][:3] == [(2, 2, 2)] * 3
    assert steps(lengths, (1, 1, 1), (122, 101, 60))[0][:3] == [(2, 2, 2), (2, 2, 2), (2, 2, 1)]
    for n in range(8, 200):
        for levels in range(1, 5):
            strides = steps((n, n, n), (1, 1, 1), (n, n, n))[0][:levels]
            multiple = math.prod(stride[0] for stride in strides)
            assert whole_lengths((n, n, n), (n, n, n), multiple)[0] >= 4 * multiple, "4 voxels are left"


def test_a_bound_that_is_a_cube():
    lengths = patch_lengths((24, 20, 18), (2, 2, 2), 16**3, (16, 16, 16))
    assert steps(lengths, (2, 2, 2))[0][:3] == [(2, 2, 2), (2, 2, 2), (1, 1, 1)]
    assert whole_lengths(lengths, (16, 16, 16), 4) == [16, 16, 16]


def test_thick_slices_stay_apart_at_first():
    strides, kernels = steps((158, 158, 11), (0.5, 0.5, 7.5))
    assert strides[:4] == [(2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)]
    assert kernels[:5] == [(3, 3, 1)] * 3 + [(3, 3, 3)] * 2


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1, 0.01])
def test_coarser_voxels_are_as_fine_as_allowed(spacing, share):
    """The finest axes become coarser, up to one length; coarser ones stay; the number of voxels is nearly reached.

    Little changes are left out: resampling to voxels 2 % coarser made a training no faster, and its result worse.
    """
    extents = [[100, 120, 90], [200.0, 180, 150]]

    def voxels(size):
        return np.prod(np.array(extents) / size, axis=1).sum()

    most = share * voxels(spacing)
    found = np.array(coarsened(extents, spacing, most))
    changed = found != np.array(spacing)
    assert changed.any() == (share <= 0.5)
    assert 0.99 * most < voxels(found) < 1.15**3 * most
    if changed.any():
        assert np.ptp(found[changed]) == 0
        assert (found[changed] > 1.149 * np.array(spacing)[changed]).all()
        assert (np.array(spacing)[~changed] > found[changed].max() / 1.151).all()
    assert coarsened(extents, spacing, voxels(spacing) + 1) == list(spacing)


def test_a_patch_of_less_than_a_voxel_has_one():
    assert patch_lengths((500, 500, 500), (1, 1, 50), 8) == pytest.approx([10, 10, 1], rel=0.5)
    assert patch_lengths((500, 500, 500), (1, 1, 50), 8)[2] == 1
    assert len(steps((64, 64, 64), (1, 1, 1))[1]) == len(steps((64, 64, 64), (1, 1, 1))[0]) + 1
