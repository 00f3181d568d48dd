"""Clean-up by connected components, against a slow and obvious reference."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

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


def test_bad_arguments():
    with pytest.raises(DataError, match="min_ml"):
        CleanComponents(min_ml=-1)
    with pytest.raises(DataError, match="not all are whole"):
        CleanComponents(largest=True)(torch.full((1, 3, 3, 3), 0.5))
