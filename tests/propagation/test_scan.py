"""Intensities that all methods get: scaled to 0 to 1 without what is extreme, but with all that is annotated."""

import numpy as np
import pytest

from tests.propagation.scans import scan_of

SHAPE = (40, 40, 40)
BRIGHT = [(8, 100.0), (20, 200.0), (30, 300.0)]
"""Place and intensity of the cubes of 3 x 3 x 3 voxels that are the classes 1, 2 and 3."""


def dark_with_bright_cubes():
    image, label = np.random.default_rng(0).normal(0, 1, SHAPE), np.zeros(SHAPE, int)
    for number, (place, intensity) in enumerate(BRIGHT, 1):
        cube = (slice(place, place + 3),) * 3
        label[cube], image[cube] = number, intensity
    return image, label


@pytest.mark.parametrize("sign", [1, -1])
def test_small_structures_are_not_clipped(sign):
    """They are a thousandth of the scan, beyond the percentiles of which they lie."""
    image, label = dark_with_bright_cubes()
    found = scan_of(sign * image, label, np.ones(SHAPE)).image[0].numpy()
    means = [float(found[label == number].mean()) for number in range(4)]
    np.testing.assert_allclose(np.diff(means), [sign * 1 / 3] * 3, atol=0.03)
    assert found.min() == 0
    assert found.max() == 1


def test_what_is_extreme_and_not_annotated_is_clipped():
    """So is what is extreme in a class."""
    image, label = dark_with_bright_cubes()
    before = scan_of(image, label, label > 0).image
    image[label == 0] = image[label == 0].clip(-3, 3)
    image[0, 0, 0] = 1e6
    image[8, 8, 8] = 5e3  # one voxel in 27 of class 1
    found = scan_of(image, label, label > 0).image
    assert found[0, 0, 0, 0] == 1
    assert float((found - before)[0, 20:].abs().max()) < 0.01


def test_each_channel_has_its_own_scale():
    image, label = dark_with_bright_cubes()
    both = scan_of(np.stack([image, 5 - 3 * image]), label, np.ones(SHAPE)).image
    np.testing.assert_allclose(both[1], 1 - both[0], atol=1e-4)
