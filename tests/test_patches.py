"""Patches: never one without annotation, every annotated voxel reached, and nothing from outside annotated."""

from collections import Counter

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import BorderPadd, Compose, RandWeightedCrop, RandWeightedCropd, SpatialPadd

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import PatchCenters, PatchCentersd, UntilAnnotated
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


def training_config(**changes):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle/configs/train.yaml"))
    parser.update({"patch_size": [16, 16, 16], "train#margin": 8, **changes})
    return parser


@pytest.mark.parametrize("shape", [(40, 44, 42), (20, 40, 18), (10, 30, 30)])
@pytest.mark.parametrize("warp", [0.0, 1.0])
def test_the_bundle_draws_no_empty_patch(shape, warp):
    """One annotated slice, next to each border and inside, through the training config's own steps."""
    parser = training_config()
    parser["train#draw"][1]["prob"] = warp
    transform = parser.get_parsed_content("train#preprocessing")
    names = [type(step).__name__ for step in transform.transforms]
    transform = Compose(transform.transforms[names.index("BorderPadd") :])
    transform.set_random_state(0)
    for axis in range(3):
        for index in (0, 1, shape[axis] // 2, shape[axis] - 2, shape[axis] - 1):
            weight = torch.zeros(1, *shape)
            weight[(slice(None),) * (axis + 1) + (index,)] = 1
            for _ in range(4):
                (patch,) = transform({"image": torch.rand(1, *shape), "label": weight, "weight": weight})
                assert patch["weight"].shape == (1, 16, 16, 16)
                assert patch["weight"].any(), f"empty patch for slice {index} of axis {axis} in {shape}"


def test_until_annotated_gives_up():
    calls = []
    transform = UntilAnnotated(lambda data: calls.append(1) or data, attempts=3)
    assert transform({"weight": torch.zeros(1, 2, 2, 2)})["weight"].sum() == 0
    assert len(calls) == 3
    transform([{"weight": torch.ones(1)}][0])
    assert len(calls) == 4


@pytest.fixture(scope="module")
def training_patches(tmp_path_factory):
    """Patches as the bundle's training config makes them, of volumes smaller than the patch in two axes.

    Without the intensity transforms, the image being the dense label: what the label says must be what is seen.
    """
    root = make_dataset(tmp_path_factory.mktemp("data") / "set", 2)
    for image in root.glob("imagesTr/*"):
        image.write_bytes((root / "labelsDense" / image.name).read_bytes())
    parser = training_config(patch_size=[24, 24, 16], dataset_dir=str(root), val_fraction=0, epoch_length=30)
    parser["train#draw"][1]["prob"] = 1.0
    parser["train#intensity"] = []
    torch.manual_seed(0)
    return list(parser.get_parsed_content("train#dataloader"))


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


@pytest.mark.parametrize("shape", [(12, 40, 12), (60, 60, 60)])
def test_dense_annotation_from_outside_is_unlabeled(shape):
    """Rotated, scaled and cropped next to the border: where the image is not, the weight is 0.

    In the larger volume the patch and its margin lie within, so that only the warp brings in what is outside of them.
    """
    parser = training_config()
    parser["train#draw"][1].update(prob=1.0, rotate_range=[1.0] * 3)
    parser["train#draw"][1]["padding_mode"][0] = "zeros"  # so that the image shows what is outside
    parser["steps"] = {"_target_": "Compose", "transforms": "$@train#pad + [@train#patch]"}
    transform = parser.get_parsed_content("steps")
    transform.set_random_state(0)
    outside = 0
    for _ in range(10):
        (patch,) = transform({key: torch.ones(1, *shape) for key in ("image", "label", "weight")})
        assert not patch["weight"][patch["image"] == 0].any()
        assert torch.equal(patch["weight"] > 0, patch["label"] > 0)
        outside += int((patch["image"] == 0).sum())
    assert outside > 200


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_folding_equals_moving_each_voxel(balance):
    """The fast way against the obvious one: each annotated voxel within reach counted at its nearest centre."""
    random = torch.Generator().manual_seed(0)
    for shape, size in (((9, 14, 11), (4, 5, 11)), ((8, 8, 8), (8, 3, 20)), ((6, 5, 30), (1, 2, 7))):
        weight = (torch.rand(1, *shape, generator=random) < 0.2).float()
        label = (torch.rand(1, *shape, generator=random) ** 3 * 4).to(torch.int16)
        moved = []
        for voxel in torch.nonzero(weight[0]).tolist():
            center = []
            for v, n, patch in zip(voxel, shape, size):
                patch = min(patch, n)
                first, last = patch // 2, patch // 2 + max(n - patch, 1) - 1
                center.append(min(max(v, first), last) if v < last - first + patch else None)
            if None not in center:
                moved.append((tuple(center), int(label[0][tuple(voxel)])))
        voxels = Counter(number for _, number in moved)
        expected = torch.zeros(shape, dtype=torch.float64)
        for center, number in moved:
            expected[center] += 1 - balance + balance * len(moved) / (len(voxels) * voxels[number])
        centers = PatchCenters(size, balance)(weight, label)
        torch.testing.assert_close(centers[0].double(), expected, rtol=1e-12, atol=0)
        assert centers.dtype == (torch.float64 if balance else torch.float32)
        assert centers.sum().item() == pytest.approx(len(moved))


def imbalanced_volume():
    """Three slices, annotated but for the border: 1 voxel in 50 of class 1, two of class 2; 9 where unlabeled."""
    weight = torch.zeros(1, 40, 40, 40)
    weight[:, 3:-3, 3:-3, [10, 20, 30]] = 1
    random = torch.Generator().manual_seed(0)
    label = (torch.rand(weight.shape, generator=random) < 0.02).to(torch.int16)
    label[0, 20, 20:22, 20] = 2
    label[weight == 0] = 9
    return weight, label


@pytest.mark.parametrize("balance", [0.0, 0.4, 1.0])
def test_classes_are_drawn_by_the_mixture(balance):
    weight, label = imbalanced_volume()
    centers = PatchCenters(5, balance)(weight, label)
    crop = RandWeightedCrop((5, 5, 5), num_samples=3000).set_random_state(0)
    drawn = torch.stack([patch[0, 2, 2, 2] for patch in crop(label, centers)]).long()
    shares = torch.bincount(drawn) / len(drawn)
    voxels = torch.bincount(label[weight > 0].long(), minlength=3)
    expected = (1 - balance) * voxels / voxels.sum() + balance / 3
    assert (shares - expected).abs().max() < 0.04


def test_a_class_out_of_reach_takes_no_share():
    """The last plane is never drawn (see PatchCenters): a class only there must not thin out the others."""
    weight = torch.ones(1, 10, 10, 10)
    label = torch.zeros(1, 10, 10, 10, dtype=torch.int16)
    label[0, 4, 4, 4] = 1
    label[0, 9] = 2
    centers = PatchCenters(4, class_balance=1)(weight, label)
    assert centers[0, 4, 4, 4] == pytest.approx(9**3 / 2)
    assert centers.sum() == pytest.approx(9**3)


def test_one_class_is_drawn_alike_with_any_balance():
    weight = (torch.rand(1, 9, 9, 9) < 0.3).float()
    label = torch.where(weight > 0, 1, 255)
    assert torch.equal(PatchCenters(4, class_balance=0.7)(weight, label).float(), PatchCenters(4)(weight))


def test_class_balance_needs_the_label():
    weight = torch.ones(1, 8, 8, 8)
    with pytest.raises(ValueError, match="needs the label"):
        PatchCenters(4, class_balance=0.5)(weight)
    with pytest.raises(ValueError, match="needs the label"):
        PatchCentersd(spatial_size=4, class_balance=0.5)({"weight": weight})
    assert PatchCentersd(spatial_size=4)({"weight": weight})["centers"].any()


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan")])
def test_wrong_class_balance(balance):
    with pytest.raises(DataError, match=f"class_balance must be between 0 and 1, got {balance}"):
        PatchCentersd(spatial_size=4, class_balance=balance)


def test_class_balance_of_the_dictionary_twin():
    weight, label = (MetaTensor(v, affine=torch.diag(torch.tensor([1.0, 2, 3, 1]))) for v in imbalanced_volume())
    data = {"weight": weight, "classes": label}
    twin = PatchCentersd(spatial_size=5, class_balance=0.5, label_key="classes")
    centers = twin(data)["centers"]
    assert torch.equal(centers, PatchCenters(5, 0.5)(weight, label))
    assert torch.equal(centers.affine, weight.affine)
    assert set(data) == {"weight", "classes"}
