"""Without MONAI's metadata, which ``monai.data.set_track_meta(False)`` turns off, every transform still works."""

import pytest
import torch
from monai.data import MetaTensor, set_track_meta

from sparse3dunet import transforms
from tests.transforms.test_walker import sparse_item

KEYS = ("image", "label", "weight")
TRANSFORMS = {
    "AnnotationToMatchd": {},
    "ChannelWised": {"transform": transforms.RandNoise(1.0)},
    "ClassWeightd": {"weights": [1, 2, 3]},
    "CleanComponentsd": {"keys": "label", "largest": True},
    "ExtentSpacingd": {"pixdim": 2},
    "HoldOutSlicesd": {},
    "ImageGridd": {"keys": ["label", "weight"]},
    "KeepFractiond": {"fraction": 0.1},
    "KeepScribblesd": {"count": 6},
    "KeepSlicesd": {"slices": 1, "placement": "random"},
    "NormalizeImaged": {},
    "RandBSplineElasticd": {"spatial_size": 8},
    "RandPatchCenterd": {"spatial_size": 8},
    "RandomWalkerLabeld": {"num_classes": 3, "beta": 20},
    "SparseLabeld": {"classes": 3},
}


@pytest.mark.parametrize("given", [torch.as_tensor, MetaTensor, torch.Tensor.numpy])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_same_values_without_metadata(name, given):
    found = []
    for tracked in (True, False):
        transform = getattr(transforms, name)(**TRANSFORMS[name])
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(0)
        case = {key: given(volume.clone()) for key, volume in zip(KEYS, sparse_item()[0])}
        set_track_meta(tracked)
        try:
            found.append(transform(case))
        finally:
            set_track_meta(True)
    for key in KEYS:
        with_meta, without = (torch.as_tensor(case[key]) for case in found)
        assert torch.equal(with_meta, without), key
