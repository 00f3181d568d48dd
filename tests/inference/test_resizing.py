"""Resampling plane by plane: equal to the transform that has the whole volume in memory."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd

from sparse3dunet.inference.resizing import SlabResizer, resize_linear
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


@pytest.mark.parametrize("thickness", [1, 3, 100])
@pytest.mark.parametrize("shape", [(9, 12, 7), (20, 5, 31), (3, 2, 1), (40, 33, 26)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_make_up_the_volume(axis, shape, thickness, monkeypatch):
    """In a slab of a finer volume there may be no voxel of the target, all the same; several channels at once."""
    monkeypatch.setattr("sparse3dunet.inference.resizing.PLANES", 5)
    lengths = (9, 12, 7)
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *lengths)).astype(np.float32))
    found, following = np.full((2, *shape), np.nan, np.float32), 0
    resizer = SlabResizer(axis, lengths, shape)
    for start in range(0, lengths[axis], thickness):
        rows = slice(start, min(start + thickness, lengths[axis]))
        for within, values in resizer.add(rows, volume.narrow(axis + 1, rows.start, rows.stop - rows.start)):
            assert within.start == following
            following = within.stop
            np.moveaxis(found, axis + 1, 1)[:, within] = np.moveaxis(values.numpy(), axis + 1, 1)
    assert following == shape[axis]
    for channel in range(2):
        expected = resize_linear(volume[channel].numpy(), np.empty(shape, np.float32))
        assert np.abs(found[channel] - expected).max() < 1e-5


@pytest.mark.parametrize("pixdim", PIXDIMS)
def test_slabs_are_brought_back_as_by_extent_spacing(pixdim):
    resample = ExtentSpacingd("image", pixdim=pixdim)
    image = resample({"image": MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4))})["image"]
    lengths = image.shape[1:]
    logits = torch.randn(3, *lengths, generator=torch.Generator().manual_seed(0))
    case = {"image": image, "pred": MetaTensor(logits, meta=image.meta, applied_operations=image.applied_operations)}
    expected = Invertd("pred", resample, orig_keys="image", nearest_interp=False)(case)["pred"].numpy()
    parts = list(SlabResizer(0, lengths, SHAPE).add(slice(0, lengths[0]), logits))
    found = np.concatenate([values.numpy() for _, values in parts], 1)
    assert np.abs(found - expected).max() < 1e-4
