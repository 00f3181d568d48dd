"""Resampling plane by plane: equal to the transform that has the whole volume in memory."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd

from sparse3dunet.inference.resizing import nearest_indices, resize_linear, take_rows
from sparse3dunet.transforms import ExtentSpacing, ExtentSpacingd

SHAPE = (40, 23, 31)
PIXDIMS = [(1.3, 0.7, 2.2), (0.3, 0.4, 1), (3.3, 1, 1), (9, 9, 9), (60, 1.5, 0.5), (1, 1, 1)]


@pytest.fixture(scope="module")
def source():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def extent_spacing(source, pixdim):
    image = MetaTensor(torch.from_numpy(source.astype(np.float32))[None], affine=torch.eye(4))
    return ExtentSpacing(pixdim)(image)[0].numpy()


@pytest.mark.parametrize("pixdim", PIXDIMS)
def test_linear_is_extent_spacing(source, pixdim):
    expected = extent_spacing(source, pixdim)
    target = np.empty(expected.shape, np.float32)
    assert resize_linear(source, target) is target
    assert np.abs(target - expected).max() < 1e-4


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float64])
def test_linear_of_files(dtype, order, tmp_path):
    """Of any type, also turned, into another file."""
    values = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    (tmp_path / "source").write_bytes(values.tobytes(order))
    source = np.memmap(tmp_path / "source", dtype, "r", shape=SHAPE, order=order).transpose(2, 0, 1)[:, ::-1]
    expected = extent_spacing(np.array(source), (0.8, 1.7, 1.1))
    target = np.memmap(tmp_path / "target", np.float32, "w+", shape=expected.shape, order=order)
    resize_linear(source, target).flush()
    written = np.memmap(tmp_path / "target", np.float32, "r", shape=expected.shape, order=order)
    assert np.abs(written - expected).max() < 1e-4 * 200


def test_linear_keeps_what_has_the_shape_already(source):
    assert np.array_equal(resize_linear(source, np.empty(SHAPE, np.float32)), source)


@pytest.mark.parametrize("value", [0, 7, -1024, 0.1])
def test_linear_of_a_constant_is_constant(value):
    """As ExtentSpacing's: normalisation would make noise of differences in the last bit."""
    source = np.full((20, 22, 24), value, np.float32)
    assert np.unique(extent_spacing(source, (1.3, 0.9, 1.7))).size == 1
    assert np.unique(resize_linear(source, np.empty((15, 24, 14), np.float32))).size == 1


@pytest.mark.parametrize("shapes", [((1, 1, 1), (5, 4, 3)), ((5, 4, 3), (1, 1, 1)), ((1, 9, 2), (33, 1, 2))])
def test_linear_of_single_voxels(shapes):
    before, after = shapes
    source = np.random.default_rng(0).normal(size=before).astype(np.float32)
    expected = extent_spacing(source, np.array(before) / after)
    assert expected.shape == after
    assert np.abs(resize_linear(source, np.empty(after, np.float32)) - expected).max() < 1e-4


@pytest.mark.parametrize("planes", [1, 7, 1000])
def test_linear_whatever_is_in_memory_at_once(source, planes, monkeypatch):
    expected = resize_linear(source, np.empty((53, 17, 29), np.float32))
    monkeypatch.setattr("sparse3dunet.inference.resizing.PLANES", planes)
    assert np.abs(resize_linear(source, np.empty((53, 17, 29), np.float32)) - expected).max() < 1e-6


def test_nearest():
    """By exact arithmetic, halves to the latter."""
    for length in [1, 2, 3, 4, 9, 16, 31]:
        for target_length in [1, 2, 3, 5, 8, 9, 16, 30, 64]:
            expected = []
            for i in range(target_length):
                position = (i + Fraction(1, 2)) * length / target_length - Fraction(1, 2)
                expected.append(min(range(length), key=lambda j: (abs(j - position), -j)))
            assert nearest_indices(length, target_length).tolist() == expected, (length, target_length)


@pytest.mark.parametrize("thickness", [1, 3, 100])
@pytest.mark.parametrize("shape", [(9, 12, 7), (20, 5, 31), (3, 2, 1), (40, 33, 26)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_make_up_the_volume(axis, shape, thickness):
    """In a slab of a finer volume there may be no voxel of the target, all the same."""
    lengths = (9, 12, 7)
    volume = np.random.default_rng(0).integers(0, 99, lengths).astype(np.uint8)
    expected = volume[np.ix_(*(nearest_indices(n, m) for n, m in zip(lengths, shape)))]
    found, following = np.zeros(shape, np.uint8), 0
    for start in range(0, lengths[axis], thickness):
        rows = slice(start, min(start + thickness, lengths[axis]))
        values = volume.take(range(rows.start, rows.stop), axis)
        within, taken = take_rows(values, rows, axis, shape, lengths)
        assert taken.shape == tuple(within.stop - within.start if i == axis else n for i, n in enumerate(shape))
        assert within.start == within.stop or within.start == following
        following = max(following, within.stop)
        np.moveaxis(found, axis, 0)[within] = np.moveaxis(taken, axis, 0)
    assert following == shape[axis]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "pixdim", [(40 / 31, 23 / 33, 31 / 15), (40 / 133, 23 / 57, 1), (40 / 13, 1, 1), (1, 23 / 9, 31 / 91)]
)
def test_nearest_is_the_inverse_of_extent_spacing(pixdim):
    """Where no voxel lies half-way between two others."""
    resample = ExtentSpacingd("image", pixdim=pixdim)
    image = resample({"image": MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4))})["image"]
    lengths = image.shape[1:]
    for n, m in zip(lengths, SHAPE):
        assert n == m or ((2 * np.arange(m) + 1) * n % (2 * m)).all()
    volume = np.random.default_rng(0).integers(0, 5, lengths).astype(np.float32)
    pred = MetaTensor(torch.from_numpy(volume)[None], meta=image.meta, applied_operations=image.applied_operations)
    case = {"image": image, "pred": pred}
    expected = Invertd("pred", resample, orig_keys="image", nearest_interp=True)(case)["pred"][0].numpy()
    rows, found = take_rows(volume, slice(0, lengths[0]), 0, SHAPE, lengths)
    assert rows == slice(0, SHAPE[0])
    assert np.array_equal(found, expected)
