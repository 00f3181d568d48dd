"""Intensities that all methods get: scaled to 0 to 1 without what is extreme, but with all that is annotated."""

import numpy as np
import pytest
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.propagation import RandomWalker
from sparse3dunet.propagation.scan import Scan
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
    assert (np.diff(means) * sign > 0.05).all()
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


@pytest.mark.parametrize("metal", [1e2, 1e6])
def test_one_extreme_class_leaves_the_others_their_contrast(metal):
    image, label = dark_with_bright_cubes()
    tissue = np.where(np.arange(SHAPE[0]) < 20, 0.0, 8.0)[:, None, None] + image.clip(-3, 3)
    without = scan_of(tissue, label > 3, np.ones(SHAPE)).image[0].numpy()
    tissue[label == 3] = metal
    scaled = scan_of(tissue, np.where(label == 3, 1, 0), np.ones(SHAPE)).image[0].numpy()
    steps = [float(found[25:][label[25:] == 0].mean() - found[:15].mean()) for found in (without, scaled)]
    assert steps[1] > 0.75 * steps[0] > 0.3
    assert float(scaled[label == 3].min()) > float(scaled[label == 0].max())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_refused(value):
    image, label = dark_with_bright_cubes()
    image[20, 20, 20] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        scan_of(image, label, np.ones(SHAPE))


@pytest.mark.parametrize("value", [0.9, 1.9, np.nan, np.inf])
def test_labels_are_whole_numbers_where_annotated(value):
    image, label = dark_with_bright_cubes()
    odd, weight = label.astype(np.float32), np.ones(SHAPE)
    odd[label == 3], weight[label == 3] = value, 0
    assert torch.equal(scan_of(image, odd, weight).label, scan_of(image, label, weight).label)
    with pytest.raises(DataError, match=f"annotated voxel has label {value}; expected class numbers"):
        scan_of(image, odd, np.ones(SHAPE))


def test_labels_that_scaling_left_nearly_whole_are_rounded():
    image, label = dark_with_bright_cubes()
    assert torch.equal(scan_of(image, label * 0.9999, np.ones(SHAPE)).label, torch.from_numpy(label))


@pytest.mark.parametrize("of_label", [True, False])
def test_several_channels_of_a_label_or_weight_are_refused(of_label):
    """Such as those of a one-hot label, of which the first is the background's."""
    image, label = dark_with_bright_cubes()
    both = np.stack([label == 0, label > 0]).astype(int)
    given = (both, np.ones(SHAPE)) if of_label else (label, both)
    with pytest.raises(DataError, match=r"\(X, Y, Z\) or \(1, X, Y, Z\); got shapes .*\(2, 40, 40, 40\)"):
        scan_of(image, *given)
    assert torch.equal(scan_of(image, label[None], np.ones((1, *SHAPE))).label, torch.from_numpy(label))


def test_each_channel_has_its_own_scale():
    image, label = dark_with_bright_cubes()
    both = scan_of(np.stack([image, 5 - 3 * image]), label, np.ones(SHAPE)).image
    np.testing.assert_allclose(both[1], 1 - both[0], atol=1e-4)


def test_lists_are_taken_and_what_is_no_array_is_named():
    image, label = dark_with_bright_cubes()
    lists = Scan.of(image.tolist(), label.tolist(), np.ones(SHAPE).tolist(), (1, 1, 1))
    assert torch.equal(lists.label, torch.from_numpy(label))
    for name in ("image", "label", "weight"):
        given = {"image": image, "label": label, "weight": np.ones(SHAPE)} | {name: None}
        with pytest.raises(DataError, match=f"the {name} is no array of numbers"):
            RandomWalker().fit(**given)
