"""Normalisation: MONAI's own by image, nnU-Net's for CT on an absolute scale."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity

from sparse3dunet.errors import DataError
from sparse3dunet.keys import MOMENTS
from sparse3dunet.models.normalization import intensity_of, normalization_names
from sparse3dunet.transforms import NormalizeImage, NormalizeImaged

SCALE = {"lower": -100, "upper": 300, "mean": 80, "std": 50}


def test_without_a_scale_as_monai():
    image = torch.randn(2, 5, 6, 7) * torch.tensor([3.0, 900]).view(2, 1, 1, 1) + 40
    torch.testing.assert_close(NormalizeImage()(image), NormalizeIntensity(channel_wise=True)(image.clone()))


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("moments", [None, [[3.0], [2.0]]])
def test_the_callers_image_stays(scale, moments):
    image = torch.randn(1, 5, 6, 7)
    given = {"image": image.clone()} if moments is None else {"image": image.clone(), MOMENTS: moments}
    NormalizeImaged("image", scale)(given)
    torch.testing.assert_close(given["image"], image, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_on_a_scale_by_the_definition(dtype):
    image = torch.linspace(-1024, 3000, 3 * 5 * 4).view(1, 3, 5, 4).to(dtype)
    found = NormalizeImaged("image", SCALE)(
        {"image": MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 1, 1, 1])))}
    )
    expected = (np.clip(image.numpy().astype(np.float32), -100, 300) - 80) / 50
    np.testing.assert_allclose(found["image"].numpy(), expected, atol=1e-5)
    assert found["image"].dtype == torch.float32
    assert found["image"].affine[0, 0] == 2


@pytest.mark.parametrize(
    "scale",
    [
        {},
        {"mean": 0, "std": 1},
        {**SCALE, "std": 0},
        {**SCALE, "upper": -100},
        {**SCALE, "mean": math.nan},
        {**SCALE, "mean": "80"},
        {**SCALE, "std": True},
        {**SCALE, "more": 1},
        [1, 2, 3, 4],
    ],
    ids=range(9),
)
def test_no_scale(scale):
    with pytest.raises(DataError, match="intensity must have the numbers lower, upper, mean, std"):
        NormalizeImage(scale)


def test_both_are_the_bundles_own():
    assert normalization_names([NormalizeImaged("image", SCALE)]) == normalization_names([NormalizeImaged()]) == []
    assert intensity_of([NormalizeImaged("image", SCALE)]) == SCALE
    assert intensity_of([NormalizeImaged()]) is intensity_of(None) is intensity_of([]) is None
