"""Patches: never one without annotation, every annotated voxel reached, and nothing from outside annotated."""

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import BorderPadd, Compose, RandWeightedCropd, SpatialPadd

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import PatchCenters, PatchCentersd
from tests.conftest import ROOT, make_dataset


def cropping(size, keys=("weight",)):
    """The bundle's way to draw patches."""
    return Compose(
        [
            BorderPadd(keys, spatial_border=[0, 1, 0, 1, 0, 1]),
            SpatialPadd(keys, size),
            PatchCentersd("weight", spatial_size=size),
            RandWeightedCropd(keys, "centers", size, num_samples=20),
        ]
    )


@pytest.mark.parametrize("shape", [(20, 20, 20), (9, 31, 14), (5, 6, 7), (8, 8, 8), (9, 9, 9)])
@pytest.mark.parametrize("size", [(8, 8, 8), (7, 8, 5)])
def test_never_an_empty_patch(shape, size):
    for axis in range(3):
        for index in (0, shape[axis] // 3, shape[axis] - 1):
            weight = torch.zeros(1, *shape)
            weight[(slice(None),) * (axis + 1) + (index,)] = 1
            crop = cropping(size)
            crop.set_random_state(0)
            for patch in crop({"weight": weight}):
                assert patch["weight"].shape[1:] == size
                assert patch["weight"].any(), f"empty patch for slice {index} of axis {axis} in {shape}"


def test_every_annotated_voxel_is_reached():
    random = np.random.default_rng(0)
    for _ in range(5):
        weight = torch.zeros(1, 11, 12, 13)
        voxels = torch.from_numpy(random.integers(0, 11, (6, 3)))
        weight[0][tuple(voxels.T)] = torch.arange(1.0, 7.0)
        crop = cropping((6, 6, 6))
        crop.set_random_state(0)
        seen = set()
        for _ in range(20):
            seen |= {v for patch in crop({"weight": weight}) for v in patch["weight"].unique().tolist()}
        assert seen >= set(weight.unique().tolist())


def test_annotated_voxels_count_alike():
    weight = torch.zeros(1, 30, 30, 30)
    weight[0, 10, 10, 10:14] = torch.tensor([1.0, 0.1, 5.0, 1.0])
    centers = PatchCenters(8)(weight)
    assert centers.sum() == 4
    assert torch.equal(centers > 0, weight > 0)


def test_the_weight_itself_would_give_empty_patches():
    """Why PatchCenters exists: should MONAI mend this, the class can go."""
    weight = torch.zeros(1, 40, 40, 40)
    weight[:, 1] = 1
    crop = RandWeightedCropd(["weight"], "weight", (8, 8, 8), num_samples=50)
    crop.set_random_state(0)
    assert not all(patch["weight"].any() for patch in crop({"weight": weight}))


def test_nothing_annotated():
    with pytest.raises(DataError, match="no voxel"):
        PatchCenters(4)(torch.zeros(1, 8, 8, 8))


@pytest.fixture(scope="module")
def training_patches(tmp_path_factory):
    """Patches as the bundle's training config makes them, of volumes smaller than the patch in one axis."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "set", 2)
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle/configs/train.yaml"))
    parser.update(
        {"dataset_dir": str(root), "val_fraction": 0, "patch_size": [24, 24, 16], "train#margin": 4, "epoch_length": 30}
    )
    parser["train#augment"] = [t for t in parser["train#augment"] if "keys" in t and isinstance(t["keys"], list)]
    parser["train#augment"][0]["prob"] = 1.0
    # the image is the dense label: what the label says must be what is seen
    for case in root.glob("imagesTr/*"):
        case.write_bytes((root / "labelsDense" / case.name).read_bytes())
    monai_loader = parser.get_parsed_content("train#dataloader")
    torch.manual_seed(0)
    return list(monai_loader)


def test_patches_have_the_networks_shape(training_patches):
    assert len(training_patches) == 30
    for batch in training_patches:
        for key in ("image", "label", "weight"):
            assert tuple(batch[key].shape) == (2, 1, 24, 24, 16)
        assert not {"centers", "reference"} & set(batch)


def test_deformed_image_and_label_stay_aligned(training_patches):
    """Where the deformed image is flat it must have one class's intensity, and the label must be that class."""
    counts = torch.zeros(3)
    for batch in training_patches:
        image, label, weight = (batch[key].as_tensor() for key in ("image", "label", "weight"))
        assert set(label.unique().tolist()) <= {0, 1, 2}
        assert set(weight.unique().tolist()) <= {0, 1}
        values = image[weight > 0]
        classes = label[weight > 0]
        low, middle, high = (values[classes == c].median() for c in range(3))
        assert low < middle < high
        nearest = (values[:, None] - torch.stack([low, middle, high])).abs()
        certain = nearest.min(1).values < 0.02 * (high - low)
        assert (nearest.argmin(1)[certain] == classes[certain]).float().mean() > 0.97
        counts += torch.bincount(classes.long(), minlength=3)
    assert (counts > 0).all()


def test_what_comes_from_outside_has_weight_zero(training_patches):
    """The volumes have 18 voxels along z of which one plane is annotated: no padding may add to that."""
    for batch in training_patches:
        assert batch["weight"].flatten(1).any(1).all()
        share = batch["weight"].mean(dim=(1, 2, 3, 4))
        assert (share < 0.35).all()


def test_dense_annotation_padding_is_unlabeled():
    """A densely annotated volume of ones, rotated and padded: wherever the image is not, the weight is 0."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle/configs/train.yaml"))
    parser.update({"patch_size": [32, 32, 32], "train#margin": 8})
    steps = [*parser["train#crop"], parser["train#augment"][0], *parser["train#finish"]]
    steps[4]["prob"] = 1.0
    steps[4]["padding_mode"][0] = "zeros"
    parser["steps"] = {"_target_": "Compose", "transforms": steps}
    transform = parser.get_parsed_content("steps")
    transform.set_random_state(0)
    outside = 0
    for _ in range(10):
        volume = {key: torch.ones(1, 20, 24, 22) for key in ("image", "label", "weight")}
        patch = transform(volume)[0]
        assert not patch["weight"][patch["image"] == 0].any()
        assert torch.equal(patch["weight"] > 0, patch["label"] > 0)
        outside += int((patch["image"] == 0).sum())
    assert outside > 1000
