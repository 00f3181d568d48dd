"""Clean-up by connected components, against a slow and obvious reference."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import KeepLargestConnectedComponent, RemoveSmallObjects

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import CleanComponents, CleanComponentsd
from sparse3dunet.transforms.components import clean_components


def components(mask):
    """The connected components, as lists of voxels, by flooding each from its first voxel."""
    left = {tuple(v) for v in np.argwhere(mask)}
    for seed in map(tuple, np.argwhere(mask)):
        if seed in left:
            left.remove(seed)
            found, front = [seed], [seed]
            while front:
                voxel = front.pop()
                for step in itertools.product((-1, 0, 1), repeat=3):
                    near = tuple(a + b for a, b in zip(voxel, step))
                    if near in left:
                        left.remove(near)
                        found.append(near)
                        front.append(near)
            yield found


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 3)
    segmentation = rng.choice([0, 1, 5, 9], shape, p=[0.8, 0.08, 0.08, 0.04]).astype(np.int16)
    largest, min_ml, voxel_ml = [1], {1: 0.02, 5: 0.025}, 0.01
    expected = segmentation.copy()
    for value in (1, 5):
        found = list(components(segmentation == value))
        most = max(map(len, found), default=0)
        kept = next((c for c in found if len(c) == most), [])
        for component in found:
            if (value in largest and component is not kept) or len(component) * voxel_ml < min_ml[value]:
                expected[tuple(np.transpose(component))] = 0
    before = segmentation.copy()
    result = clean_components(segmentation, voxel_ml, largest, min_ml)
    assert np.array_equal(result, expected)
    assert result.dtype == np.int16
    assert np.array_equal(segmentation, before)


@pytest.mark.parametrize("seed", range(3))
def test_equals_monai(seed):
    pytest.importorskip("skimage")
    rng = np.random.default_rng(seed)
    segmentation = torch.from_numpy(rng.choice(4, (1, 14, 13, 12), p=[0.82, 0.06, 0.06, 0.06]))
    sizes = {value: sorted(map(len, components(segmentation[0].numpy() == value))) for value in (1, 2, 3)}
    untied = [value for value, found in sizes.items() if found[-1] > found[-2]]  # of equal ones MONAI keeps the last
    assert untied
    keep = KeepLargestConnectedComponent(applied_labels=untied, is_onehot=False, connectivity=3)
    theirs = keep(segmentation.clone())  # which it changes
    assert not torch.equal(theirs, segmentation)
    assert torch.equal(CleanComponents(largest=untied)(segmentation), theirs)
    mask = segmentation > 1
    for component in components(mask[0].numpy()):
        if len(component) == 8:  # of exactly that size, scikit-image keeps them up to 0.25, and removes them since 0.26
            mask[0][tuple(np.transpose(component))] = False
    theirs = RemoveSmallObjects(min_size=8, connectivity=3)(mask)
    assert theirs.any()
    assert torch.equal(CleanComponents(min_ml=0.008)(mask.long()), theirs.long())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">i2"])
@pytest.mark.parametrize("value", [-3, 2, 100_000])
def test_any_class_value_and_type(dtype, value):
    """Negative ones, ones that are too large for a list of all, and ones that the type cannot hold."""
    dtype = np.dtype(dtype)
    there = np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    segmentation = np.full((5, 5, 5), 7, dtype)
    if there:
        segmentation[0, 0, :2] = segmentation[4, 4, 4] = value
    expected = segmentation.copy()
    expected[4, 4, 4] = 7
    result = clean_components(segmentation, 1.0, [value, 300], {value: 1.0, 7: 1.0}, background=7)
    assert np.array_equal(result, expected)
    assert result.dtype == dtype


def test_equal_components_and_exact_volumes():
    segmentation = np.zeros((9, 1, 1), np.uint8)
    segmentation[[0, 1, 3, 4, 6, 7]] = 1
    assert np.flatnonzero(clean_components(segmentation, 1.0, [1])).tolist() == [0, 1], "of equal ones the first"
    for voxel_ml in (0.1, 0.07, 1 / 3, 0.0009765):
        exactly = sum([voxel_ml] * 2)
        assert clean_components(segmentation, voxel_ml, (), {1: exactly}).sum() == 6, "not smaller"
        assert clean_components(segmentation, voxel_ml, (), {1: exactly * 1.001}).sum() == 0


def test_sizes_are_counted_in_chunks(monkeypatch):
    monkeypatch.setattr("sparse3dunet.transforms.components._CHUNK", 5)
    segmentation = np.random.default_rng(0).integers(0, 2, (9, 8, 7), dtype=np.uint8)
    segmentation[4:6] = 0
    found = list(components(segmentation))
    kept = np.zeros_like(segmentation)
    kept[tuple(np.transpose(max(found, key=len)))] = 1
    assert np.array_equal(clean_components(segmentation, 1.0, [1]), kept)


def test_volumes_by_class():
    segmentation = torch.tensor([[[[1, 1, 0, 1, 0, 2, 2, 0, 2]]]])
    for min_ml in ({2: 0.002}, [0.0, 0.0, 0.002], (9, 0, 0.002)):
        assert CleanComponents(min_ml=min_ml)(segmentation).flatten().tolist() == [1, 1, 0, 1, 0, 2, 2, 0, 0]


@pytest.mark.parametrize("kind", [np.uint8, np.float32, bool])
def test_arrays_keep_their_type(kind):
    segmentation = np.array([[[[1, 1, 0, 1]]]], kind)
    result = CleanComponents(largest=True)(segmentation)
    assert (type(result), result.dtype) == (np.ndarray, np.dtype(kind))
    assert result.tolist() == [[[[1, 1, 0, 0]]]]


def test_transform_goes_by_the_affine():
    segmentation = MetaTensor(
        torch.zeros(1, 9, 9, 9, dtype=torch.uint8), affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))
    )
    segmentation[0, :2, :2, :2] = 1  # 0.064 ml
    segmentation[0, 5, 5, 5] = 1  # 0.008 ml
    segmentation[0, 8, 8, 8] = 2
    result = CleanComponentsd(min_ml=0.01)({"pred": segmentation})["pred"]
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.uint8
    assert torch.equal(result.affine, segmentation.affine)
    assert int((result == 1).sum()) == 8
    assert int((result == 2).sum()) == 0
    kept = CleanComponents(largest=True)(segmentation)
    assert [int((kept == n).sum()) for n in (1, 2)] == [8, 1]
    assert torch.equal(CleanComponents(largest=[7])(segmentation), segmentation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_ml": -1}, "min_ml must be a number at least 0; got -1"),
        ({"min_ml": float("nan")}, "min_ml must be a number"),
        ({"min_ml": {1: -0.5}}, "min_ml must be a number at least 0; got -0.5"),
        ({"min_ml": [0, "much"]}, "min_ml must be a number"),
        ({"min_ml": {"1": 3}}, r"the classes of min_ml must be .* got \['1'\]"),
        ({"largest": ["tumor"]}, r"largest must be .* got \['tumor'\]"),
        ({"largest": "tumor"}, "largest must be .* got 'tumor'"),
        ({"largest": [1.5]}, r"largest must be .* got \[1.5\]"),
        ({"largest": 1}, "largest must be a list"),
        ({"background": 0.5}, "background must be a whole number"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(DataError, match=words):
        CleanComponents(**arguments)


def test_bad_segmentations():
    clean = CleanComponents(largest=True)
    for content in (0.5, float("nan"), float("inf")):
        with pytest.raises(DataError, match="not all are whole"):
            clean(torch.full((1, 3, 3, 3), content))
    for shape in ((3, 4, 4, 4), (4, 4, 4), (1, 4, 4)):
        with pytest.raises(DataError, match=r"shape \(1, X, Y, Z\), got"):
            clean(torch.ones(shape))
    with pytest.raises(DataError, match=r"integer volume .* float64"):
        clean_components(np.ones((3, 3, 3)), 1.0, [1])
