"""Shapes between annotated slices."""

import numpy as np
import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.propagation import Ensemble, ShapeInterpolation
from sparse3dunet.propagation.shape import distance_from
from tests.propagation.scans import assert_probabilities, on_slices, quick, scan_of

SHAPE = (24, 22, 13)


def disc(radius, center=(12, 11)):
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return ((x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2).astype(np.int64)


def two_discs(small=4, large=8):
    label = np.zeros(SHAPE, np.int64)
    label[..., 2], label[..., 10] = disc(small), disc(large)
    return label, on_slices(SHAPE, [], [], [2, 10])


def interpolated(label, weight, spacing=(1, 1, 1), axes=(0, 1, 2), **options):
    label, weight = (np.ascontiguousarray(a.transpose(axes)) for a in (label, weight))
    spacing = tuple(spacing[a] for a in axes)
    prob = ShapeInterpolation(**options).fit(np.zeros(label.shape), label, weight, spacing).predict_proba()
    return prob.transpose(0, *(1 + np.argsort(axes)))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("thickness", [1, 5])
def test_between_two_discs(axes, thickness):
    label, weight = two_discs()
    prob = interpolated(label, weight, (1, 1, thickness), axes)
    assert_probabilities(np.ascontiguousarray(prob), SHAPE, 2)
    areas = (prob.argmax(0) == 1).sum((0, 1))
    assert disc(5).sum() <= areas[6] <= disc(7).sum()
    assert (np.diff(areas[2:11]) >= 0).all()
    for place, number in ((0, 2), (2, 2), (10, 10), (12, 10)):  # on the slices, and beyond the last ones
        np.testing.assert_array_equal(prob[..., place].argmax(0), label[..., number])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_slices_across_a_dense_stack_do_not_count(axes):
    """Each shows half of its voxels, of which the others would get the nearest one's class."""
    label = np.stack([disc(4 if place % 4 else 8) for place in range(SHAPE[2])], -1)
    prob = interpolated(label, on_slices(SHAPE, [], [], list(range(0, SHAPE[2], 2))), axes=axes)
    areas = (prob.argmax(0) == 1).sum((0, 1))
    assert all(disc(5).sum() <= area <= disc(7).sum() for area in areas[1:-1:2])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_slices_of_a_dense_stack_that_are_annotated_in_part_count(axes):
    label = np.repeat(disc(3)[..., None], SHAPE[2], -1)
    weight = np.zeros(SHAPE)
    weight[8:17, :, ::3] = 1  # 0.375 of every third slice
    prob = interpolated(label, weight, axes=axes)
    np.testing.assert_array_equal(prob.argmax(0), label)


def test_voxels_that_are_no_squares():
    """A disc of 6 mm becomes one of 12 mm; halfway it is one of 9 mm."""
    x, y = np.ogrid[:24, :22]
    square = ((x - 12) * 2) ** 2 + ((y - 11) * 1.5) ** 2
    label = np.zeros(SHAPE, np.int64)
    label[..., 2], label[..., 10] = square <= 6**2, square <= 12**2
    prob = interpolated(label, on_slices(SHAPE, [], [], [2, 10]), (2, 1.5, 2))
    middle = prob[..., 6].argmax(0) == 1
    assert square[middle].max() <= 10.5**2
    assert middle[square <= 7.5**2].all()


def test_gray_values_do_not_matter():
    label, weight = two_discs()
    image = np.random.default_rng(0).random(SHAPE)
    first, second = (ShapeInterpolation().fit(i, label, weight).predict_proba() for i in (image, image * 0))
    np.testing.assert_array_equal(first, second)


def test_slices_of_two_directions():
    """Each axis tells of what is near its slices."""
    x, y, z = np.ogrid[:24, :22, :13]
    label = (((x - 12) ** 2 + (y - 11) ** 2) / 64 + (z - 6) ** 2 / 25 <= 1).astype(np.int64)
    prob = interpolated(label, on_slices(SHAPE, [5, 9, 12, 15, 19], [], [2, 6, 10]))
    found = prob.argmax(0)
    assert 2 * (found & label).sum() / (found.sum() + label.sum()) > 0.9


def test_unfinished_slices_and_absent_classes():
    """Half of a slice is annotated: the rest is like what is nearest. No class appears that nobody annotated."""
    label, weight = two_discs()
    weight[:, 14:] = 0
    prob = interpolated(label, weight, num_classes=4)
    assert prob[2:].max() == 0
    assert (prob[:, :, :14, 10].argmax(0) == label[:, :14, 10]).all()
    np.testing.assert_allclose(prob.sum(0), 1, atol=1e-5)


def test_scribbles_tell_no_shape():
    label, weight = two_discs()
    weight[:] = 0
    weight[10:14, 11, 2] = weight[0, :5, 3] = 1
    prob = ShapeInterpolation().fit_scan(scan_of(np.zeros(SHAPE), label, weight)).predict_proba()
    np.testing.assert_allclose(prob, 0.5, atol=1e-6)


def test_distances_are_in_mm():
    weight = on_slices(SHAPE, [], [], [4])
    scan = scan_of(np.zeros(SHAPE), np.zeros(SHAPE, int), weight, (1, 2, 3))
    distance = distance_from(scan.known, scan.spacing)
    np.testing.assert_allclose(distance[5, 5], 3 * np.abs(np.arange(13) - 4))


def test_without_slices_there_are_no_shapes():
    """Rather than the same probability for all; the ensemble has other members that learn from scribbles."""
    label, scribbles = two_discs()[0], np.zeros(SHAPE)
    scribbles[::4, ::5, ::4] = 1
    with pytest.raises(DataError, match="no slices are annotated"):
        interpolated(label, scribbles)
    with quick():
        assert_probabilities(Ensemble(num_classes=2).fit(label + 0.0, label, scribbles).predict_proba(), SHAPE, 2)


@pytest.mark.parametrize("reach", [0, -1, np.nan, np.inf])
def test_reach_is_above_zero(reach):
    with pytest.raises(ValueError, match="reach must be a number above 0"):
        ShapeInterpolation(reach=reach)
