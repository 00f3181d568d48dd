"""Responses of filters: the eigenvalues of the Hessian, however a scan is turned, and within thick slices."""

import numpy as np
import pytest
import torch

from sparse3dunet.propagation.responses import (
    DISTANCES,
    SCALES,
    SMOOTHED,
    filter_responses,
    gaussian,
    positions,
    surroundings,
)
from tests.propagation.scans import raw_scan

SHAPE = (18, 16, 14)


def random_image(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_one_gray_value_and_five_descriptors_by_scale():
    image = random_image((2, *SHAPE))
    found = filter_responses(raw_scan(image))
    assert found.shape == (2 * (1 + 5 * len(SCALES)), *SHAPE)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    for channel, start in ((0, 0), (1, len(found) // 2)):
        np.testing.assert_array_equal(found[start].numpy(), image[channel])
        alone = filter_responses(raw_scan(image[channel]))
        np.testing.assert_array_equal(found[start : start + len(alone)].numpy(), alone.numpy())


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1.5, 2)])
def test_eigenvalues_of_the_hessian(spacing):
    """In units of the scale, so that they compare across scans."""
    scale = 1.5
    scan = raw_scan(random_image(), spacing)
    _, smooth, length, *found = filter_responses(scan, [scale]).numpy().astype(float)
    unit = scale * scan.plane_spacing / np.asarray(spacing)
    first = [np.gradient(smooth, axis=a) * unit[a] for a in range(3)]
    hessian = np.array([[np.gradient(first[a], axis=b) * unit[b] for b in range(3)] for a in range(3)])
    exact = np.linalg.eigvalsh(np.moveaxis(hessian, (0, 1), (-2, -1)))[..., ::-1]
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(length[inner], np.sqrt(np.square(first).sum(0))[inner], atol=1e-5)
    np.testing.assert_allclose(np.stack(found, -1)[inner], exact[inner], atol=2e-4)
    assert (np.diff(found, axis=0) <= 1e-6).all()


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (0, 2)])
def test_a_turned_scan_looks_the_same(axes):
    image = random_image()
    first = filter_responses(raw_scan(image)).numpy()
    second = filter_responses(raw_scan(np.rot90(image, axes=axes).copy())).numpy()
    back = np.rot90(second, -1, axes=tuple(a + 1 for a in axes))
    inner = (slice(None), *(slice(3, -3),) * 3)
    np.testing.assert_allclose(back[inner], first[inner], atol=2e-4)


def test_thick_slices_do_not_see_their_neighbours():
    image = random_image()
    other = image.copy()
    other[..., 6] = random_image(seed=1)[..., 6]
    first, second = (filter_responses(raw_scan(i, (0.5, 0.5, 7.5))) for i in (image, other))
    assert first.shape == (1 + 4 * len(SCALES), *SHAPE)
    kept = [z for z in range(SHAPE[2]) if z != 6]
    assert torch.equal(first[..., kept], second[..., kept])
    assert not torch.equal(first[..., 6], second[..., 6])
    first, second = (filter_responses(raw_scan(i)) for i in (image, other))
    assert not torch.equal(first[..., 5], second[..., 5])


def test_what_lies_to_either_side():
    """In voxels of the plane, however thick the voxels of an axis; beyond the border, its value."""
    spacing = (1, 1, 2)
    image = random_image((2, *SHAPE))
    scan = raw_scan(image, spacing)
    found = surroundings(scan).numpy()
    assert found.shape == (2 * 2 * 3 * len(DISTANCES), *SHAPE)
    smooth = gaussian(scan.image, SMOOTHED * scan.plane_spacing, scan.spacing).numpy()
    expected = []
    for distance in DISTANCES:
        for axis, size in enumerate(spacing):
            step = round(distance * scan.plane_spacing / size)
            for way in (-step, step):
                places = np.clip(np.arange(SHAPE[axis]) + way, 0, SHAPE[axis] - 1)
                expected += list(np.take(smooth, places, axis + 1))
    np.testing.assert_array_equal(found, expected)


def test_what_lies_across_thick_slices_is_not_looked_at():
    scan = raw_scan(random_image(), (0.5, 0.5, 7.5))
    assert len(surroundings(scan)) == 2 * 2 * len(DISTANCES)


@pytest.mark.parametrize("shape", [(12, 12, 1), (12, 12, 2), (12, 1, 1), (2, 2, 2)])
def test_thin_scans(shape):
    scan = raw_scan(random_image(shape))
    found = torch.cat([filter_responses(scan), surroundings(scan)])
    assert found.shape[1:] == shape
    assert torch.isfinite(found).all()


def test_smoothing_keeps_the_mean_and_constants():
    values = torch.full((1, *SHAPE), 3.0)
    assert torch.allclose(gaussian(values, 4.0, np.ones(3)), values, atol=1e-5)
    point = torch.zeros(1, 25, 25, 25)
    point[0, 12, 12, 12] = 1
    smooth = gaussian(point, 2.0, np.array([1.0, 1.0, 2.0]))
    assert smooth.sum() == pytest.approx(1, abs=1e-4)
    place = torch.arange(25.0) - 12
    for axis, wide in ((0, 2.0), (2, 1.0)):
        others = tuple(a for a in range(3) if a != axis)
        assert (smooth[0].sum(others) * place**2).sum().sqrt() == pytest.approx(wide, rel=0.05)


def test_positions_are_in_mm():
    found = positions(raw_scan(random_image(), (1, 2, 0.5)))
    assert found[:, 3, 4, 5].tolist() == [3.0, 8.0, 2.5]
