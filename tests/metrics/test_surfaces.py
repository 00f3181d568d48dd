"""Distances of surfaces: MONAI's, those of an independent computation, and what is not defined."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from sparse3dunet.errors import DataError
from sparse3dunet.metrics import slice_distances, surface_distances, surface_tolerances
from sparse3dunet.metrics.measures import measure
from sparse3dunet.metrics.surfaces import SurfaceDistances, complete_slices, pooled

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.1, 3.0), (5.0, 0.4, 0.4)]


def blobs(seed, shape=(24, 19, 15)):
    """Two smooth random shapes that mostly agree, which also touch the border."""
    random = np.random.default_rng(seed)
    first, second = (gaussian_filter(random.normal(size=shape), 2) for _ in range(2))
    return first > 0.04, first + 0.4 * second > 0.04


def slow_distances(pred, true, spacing):
    """Both lists of distances, by distance transforms of whole, padded volumes."""
    pred, true = (np.pad(mask, 1) for mask in (pred, true))
    edges = [mask & ~binary_erosion(mask) for mask in (pred, true)]
    to_pred, to_true = (distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    return to_true[edges[0]], to_pred[edges[1]]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_distance_transforms_and_monai(seed, spacing):
    pred, true = blobs(seed)
    found = surface_distances(pred, true, spacing)
    from_pred, from_true = slow_distances(pred, true, spacing)
    assert np.allclose(np.sort(found.from_pred), np.sort(from_pred), atol=1e-5)
    assert np.allclose(np.sort(found.from_true), np.sort(from_true), atol=1e-5)
    assert found.hd95 == pytest.approx(max(np.percentile(from_pred, 95), np.percentile(from_true, 95)), abs=1e-5)
    assert found.average == pytest.approx(np.concatenate([from_pred, from_true]).mean(), abs=1e-5)
    assert found.unmatched == 0
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, true)]
    options = {"include_background": True, "spacing": spacing}
    assert found.hd95 == pytest.approx(float(compute_hausdorff_distance(*tensors, percentile=95, **options)), abs=1e-4)
    average = compute_average_surface_distance(*tensors, symmetric=True, **options)
    assert found.average == pytest.approx(float(average), abs=1e-5)
    for tolerance in (0.0, 0.9, 2.5):
        expected = compute_surface_dice(*tensors, [tolerance], **options)
        assert found.surface_dice(tolerance) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_largest_distance_is_that_of_simpleitk(spacing):
    pred, true = blobs(5)
    found = surface_distances(pred, true, spacing)
    images = []
    for mask in (pred, true):
        padded = np.pad(mask, 1)
        images.append(sitk.GetImageFromArray((padded & ~binary_erosion(padded)).astype(np.uint8).T))
        images[-1].SetSpacing(spacing)
    filter = sitk.HausdorffDistanceImageFilter()
    filter.Execute(*images)
    assert max(found.from_pred.max(), found.from_true.max()) == pytest.approx(filter.GetHausdorffDistance(), abs=1e-4)


def test_shifted_cubes():
    """Cubes of 10 voxels, one shifted by two voxels of 3 mm: known distances."""
    true = np.zeros((30, 20, 20), bool)
    true[5:15, 5:15, 5:15] = True
    found = surface_distances(np.roll(true, 2, 0), true, (3.0, 1.0, 1.0))
    # Of 488 voxels of a surface, 100 lie on the face that is 6 mm off; beside it, 36 are 3 mm from the edge of that
    # face. The others lie on the other surface, or inside of it, where its sides are nearer than its face.
    assert len(found.from_pred) == len(found.from_true) == 10**3 - 8**3
    assert found.from_pred.max() == 6
    assert (found.from_pred == 6).sum() == 100
    assert found.hd95 == 6
    assert found.surface_dice(6.0) == 1
    assert found.surface_dice(5.9) == pytest.approx(1 - 100 / 488)
    assert surface_distances(true, true, (3.0, 1.0, 1.0)).average == 0


def test_rounding_does_not_decide():
    """Three voxels of 0.1 mm are 0.3 mm, whatever 32 bits make of it."""
    true = np.zeros((20, 8, 8), bool)
    true[3:10] = True
    for size in (0.1, 0.3, 0.7, 1.1):
        found = surface_distances(np.roll(true, 3, 0), true, (size, 100.0, 100.0))
        assert found.surface_dice(3 * size) == 1
        assert found.surface_dice(2.99 * size) < 1


def test_only_the_counted_part_is_measured_by_the_whole_other_surface():
    pred, true = blobs(1)
    spacing = (0.7, 1.1, 3.0)
    counted = np.random.default_rng(0).random(pred.shape) < 0.4
    found = surface_distances(pred, true, spacing, counted)
    edges = [mask & ~binary_erosion(mask) for mask in (pred, true)]
    to_pred, to_true = (distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    assert np.allclose(np.sort(found.from_pred), np.sort(to_true[edges[0] & counted]), atol=1e-5)
    assert np.allclose(np.sort(found.from_true), np.sort(to_pred[edges[1] & counted]), atol=1e-5)
    both = surface_distances(pred, true, spacing, ~counted)
    whole = surface_distances(pred, true, spacing)
    assert len(found.from_pred) + len(both.from_pred) == len(whole.from_pred)


def test_slices_are_measured_by_themselves_and_pooled():
    pred, true = blobs(2)
    spacing = (0.7, 1.1, 3.0)
    found = slice_distances(pred, true, spacing, [[4, 5], [], [9]])
    parts = [
        *(slow_distances(pred[i], true[i], (1.1, 3.0)) for i in (4, 5)),
        slow_distances(pred[:, :, 9], true[:, :, 9], (0.7, 1.1)),
    ]
    for values, number in ((found.from_pred, 0), (found.from_true, 1)):
        assert np.allclose(np.sort(values), np.sort(np.concatenate([part[number] for part in parts])), atol=1e-5)


def test_an_outline_without_counterpart_is_an_error_that_is_told():
    """A class that the segmentation misses in one of four slices, which show outlines of the same length."""
    true = np.zeros((12, 12, 4), bool)
    true[3:9, 3:9] = True
    pred = true.copy()
    pred[..., 0] = False
    found = slice_distances(pred, true, (1.0, 1.0, 1.0), [[], [], [0, 1, 2, 3]])
    assert found.unmatched == pytest.approx(1 / 7)
    assert found.surface_dice(5.0) == pytest.approx(6 / 7)
    assert found.hd95 is None, "a quarter of the reference's outline is infinitely far"
    assert found.average == 0, "of what has a counterpart"


@pytest.mark.parametrize(("infinite", "is_defined"), [(0, True), (5, True), (6, False), (101, False)])
def test_hd95_is_defined_up_to_five_percent_without_counterpart(infinite, is_defined):
    distances = np.arange(101, dtype=np.float32)
    distances[101 - infinite :] = np.inf
    found = SurfaceDistances(distances, np.zeros(10, np.float32))
    assert found.hd95 == (pytest.approx(95) if is_defined else None)


def test_empty_masks():
    _, true = blobs(0)
    empty = np.zeros_like(true)
    missed = surface_distances(empty, true, (1, 1, 1))
    assert (missed.hd95, missed.average, missed.surface_dice(100.0), missed.unmatched) == (None, None, 0, 1)
    nothing = surface_distances(empty, empty, (1, 1, 1))
    assert (nothing.hd95, nothing.average, nothing.surface_dice(1.0), nothing.unmatched) == (None,) * 4
    assert pooled([nothing, nothing]).hd95 is None


def test_complete_slices():
    annotated = np.zeros((6, 5, 4), bool)
    annotated[2] = annotated[:, :, 3] = True
    annotated[4, 1:] = True
    assert complete_slices(annotated) == [[2], [], [3]]
    annotated[0, 0, 3] = False
    assert complete_slices(annotated) == [[2], [], []]


def test_shapes_that_do_not_fit():
    pred, true = blobs(0)
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(pred, true[1:], (1, 1, 1))


@pytest.mark.parametrize("spacing", [(1, 1), 1.0, (0, 1, 1), (-1, 1, 1), (math.nan, 1, 1), (math.inf, 1, 1)])
def test_spacings_that_are_none(spacing):
    pred, true = blobs(0)
    with pytest.raises(ValueError, match="spacing must be 3 numbers above 0"):
        surface_distances(pred, true, spacing)
    with pytest.raises(ValueError, match="spacing must be 3 numbers above 0"):
        slice_distances(pred, true, spacing, [[4], [], []])
    volumes = (torch.from_numpy(mask.astype(np.int16))[None] for mask in (pred, true))
    with pytest.raises(ValueError, match="spacing must be 3 numbers above 0"):
        measure(*volumes, 2, spacing)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("auto", [1.6, 1.6, 1.6]),
        (2, [2, 2, 2]),
        ({"liver": 3}, [1.6, 3, 1.6]),
        ({"liver": 3, "tumor": 0}, [1.6, 3, 0]),
    ],
)
def test_tolerances(setting, expected):
    spacings = [(0.8, 0.8, 5), (0.7, 0.7, 1), (2, 2, 2)]
    assert surface_tolerances(setting, ["background", "liver", "tumor"], spacings) == pytest.approx(expected)


@pytest.mark.parametrize("setting", [-1, math.inf, math.nan, "wide", True, {"spleen": 1}, {"liver": -1}, [1, 2]])
def test_bad_tolerances(setting):
    with pytest.raises(DataError, match="surface_tolerance"):
        surface_tolerances(setting, ["background", "liver"], [(1, 1, 1)])
