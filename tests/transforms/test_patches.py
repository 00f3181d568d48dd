"""Patches: never one without annotation, every annotated voxel reached, and nothing from outside annotated."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import ClassesToIndicesd, Compose, RandWeightedCropd

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import RandBSplineElasticd, RandPatchCenter, RandPatchCenterd, UntilAnnotated
from tests.conftest import ROOT, make_dataset, write_nifti


def cropping(size, class_balance=0.0, classes=10):
    """The bundle's way to draw patches, without deformation."""
    return Compose(
        [
            ClassesToIndicesd("label", image_key="weight", num_classes=classes),
            RandPatchCenterd("weight", spatial_size=size, class_balance=class_balance),
            RandBSplineElasticd(("label", "weight"), spatial_size=size, prob=0),
        ]
    )


@pytest.mark.parametrize("shape", [(20, 20, 20), (9, 31, 14), (5, 6, 7), (8, 8, 8), (9, 9, 9)])
@pytest.mark.parametrize("size", [(8, 8, 8), (7, 8, 5)])
def test_never_an_empty_patch(shape, size):
    crop = cropping(size).set_random_state(0)
    for axis in range(3):
        for index in (0, shape[axis] // 3, shape[axis] - 1):
            weight = torch.zeros(1, *shape)
            weight[(slice(None),) * (axis + 1) + (index,)] = 1
            for _ in range(10):
                patch = crop({"weight": weight, "label": weight})
                assert patch["weight"].shape[1:] == size
                assert patch["weight"].any(), f"empty patch for slice {index} of axis {axis} in {shape}"


def test_patches_lie_inside_the_volume():
    """A patch shows nothing from outside, unless it is larger: then the volume is in its middle."""
    weight = torch.ones(1, 12, 9, 5)
    crop = cropping((8, 9, 8)).set_random_state(0)
    for _ in range(30):
        patch = crop({"weight": weight, "label": weight})
        assert patch["weight"].sum() == 8 * 9 * 5
        assert patch["weight"][..., 2:7].all()


def test_every_annotated_voxel_is_reached():
    random = np.random.default_rng(0)
    for _ in range(5):
        weight = torch.zeros(1, 11, 12, 13)
        voxels = torch.from_numpy(random.integers(0, 11, (6, 3)))
        weight[0][tuple(voxels.T)] = torch.arange(1.0, 7.0)
        crop = cropping((6, 6, 6)).set_random_state(0)
        seen = set()
        for _ in range(300):
            seen |= set(crop({"weight": weight, "label": weight})["weight"].unique().tolist())
        assert seen >= set(weight.unique().tolist())


def test_annotated_voxels_count_alike():
    """Whatever their weight, and whatever their class."""
    weight = torch.zeros(1, 30, 30, 30)
    weight[0, 10, 10, 10:14] = torch.tensor([1.0, 0.1, 5.0, 1.0])
    label = (torch.arange(30).expand(1, 30, 30, 30) // 11).float()
    draw = Compose(cropping(8).transforms[:2]).set_random_state(0)
    drawn = Counter(tuple(draw({"weight": weight, "label": label})["center"].tolist()) for _ in range(4000))
    assert set(drawn) == {(10, 10, z) for z in range(10, 14)}
    assert all(abs(count - 1000) < 120 for count in drawn.values())


@pytest.mark.parametrize(
    ("size", "shape"), [((4, 5, 11), (9, 14, 11)), ((8, 3, 20), (8, 8, 8)), ((1, 2, 7), (6, 5, 30))]
)
def test_the_patch_shows_the_voxel_that_it_was_drawn_for(size, shape):
    center = RandPatchCenter(size).set_random_state(0)
    for voxel in np.ndindex(*shape):
        index = np.ravel_multi_index(voxel, shape)
        for c, v, n, m in zip(center([np.array([index])], shape), voxel, shape, size, strict=True):
            start = c - m // 2
            assert start <= v < start + m
            if m <= n:
                assert 0 <= start <= n - m
                assert c == v or start in (0, n - m)
            else:
                assert start == n // 2 - m // 2


def test_monais_weighted_crop_would_give_empty_patches():
    """Why RandPatchCenter exists: should MONAI mend this, the class can go."""
    weight = torch.zeros(1, 40, 40, 40)
    weight[:, 1] = 1
    crop = RandWeightedCropd(["weight"], "weight", (8, 8, 8), num_samples=50)
    crop.set_random_state(0)
    assert not all(patch["weight"].any() for patch in crop({"weight": weight}))


def test_nothing_annotated():
    with pytest.raises(DataError, match="no voxel is annotated"):
        RandPatchCenter(4)([np.array([], dtype=int)] * 3, (8, 8, 8))


def training_config(*overlays, **changes):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundle/configs" / name) for name in ("train.yaml", *overlays)])
    parser.update({"patch_size": [16, 16, 16], "num_classes": 3, **changes})
    return parser


@pytest.mark.parametrize("shape", [(40, 44, 42), (20, 40, 18), (10, 30, 30)])
@pytest.mark.parametrize("warp", [0.0, 1.0])
def test_the_bundle_draws_no_empty_patch(shape, warp):
    """One annotated slice, next to each border and inside, through the training config's own steps."""
    parser = training_config()
    parser["train#deform"]["prob"] = warp
    transform = parser.get_parsed_content("train#preprocessing")
    names = [type(step).__name__ for step in transform.transforms]
    transform = Compose(transform.transforms[names.index("ClassesToIndicesd") :])
    transform.set_random_state(0)
    for axis in range(3):
        for index in (0, 1, shape[axis] // 2, shape[axis] - 2, shape[axis] - 1):
            weight = torch.zeros(1, *shape)
            weight[(slice(None),) * (axis + 1) + (index,)] = 1
            for _ in range(4):
                patch = transform({"image": torch.rand(1, *shape), "label": weight, "weight": weight})
                assert patch["weight"].shape == (1, 16, 16, 16)
                assert patch["weight"].any(), f"empty patch for slice {index} of axis {axis} in {shape}"


def test_until_annotated_gives_up():
    calls = []
    transform = UntilAnnotated(lambda data: calls.append(1) or data, attempts=3)
    assert transform({"weight": torch.zeros(1, 2, 2, 2)})["weight"].sum() == 0
    assert len(calls) == 3
    transform([{"weight": torch.ones(1)}][0])
    assert len(calls) == 4


def test_until_annotated_wants_each_of_several_patches():
    counts = iter([(1, 0), (0, 1), (1, 1), (0, 0)])
    transform = UntilAnnotated(lambda _: [{"weight": torch.full((1,), float(n))} for n in next(counts)])
    assert [patch["weight"].item() for patch in transform({})] == [1, 1]


@pytest.fixture(scope="module")
def training_patches(tmp_path_factory):
    """Patches as the bundle's training config makes them, of volumes smaller than the patch in two axes.

    Without the intensity transforms, the image being the dense label: what the label says must be what is seen.
    """
    root = make_dataset(tmp_path_factory.mktemp("data") / "set", 2)
    for image in root.glob("imagesTr/*"):
        image.write_bytes((root / "labelsDense" / image.name).read_bytes())
    parser = training_config(patch_size=[24, 24, 16], dataset_dir=str(root), val_fraction=0, epoch_length=30)
    parser["train#deform"]["prob"] = 1.0
    parser["train#intensity"] = []
    torch.manual_seed(0)
    return list(parser.get_parsed_content("train#dataloader"))


def test_patches_have_the_networks_shape(training_patches):
    assert len(training_patches) == 30
    for batch in training_patches:
        for key in ("image", "label", "weight"):
            assert tuple(batch[key].shape) == (2, 1, 24, 24, 16)
        assert set(batch) == {"image", "label", "weight"}


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


@pytest.mark.parametrize("overlay", [(), (ROOT / "benchmarks/rand3delastic.yaml",)])
@pytest.mark.parametrize("shape", [(12, 40, 12), (60, 60, 60)])
def test_dense_annotation_from_outside_is_unlabeled(shape, overlay):
    """Rotated, scaled and cropped next to the border: where the image is not, the weight is 0.

    In the larger volume the patch and its margin lie within, so that only the warp brings in what is outside of them.
    """
    parser = training_config(*overlay, margin=2)  # so little that MONAI's rotation leaves it
    for step in parser["train#draw"][1:] if overlay else [parser["train#deform"]]:
        if "rotate_range" in step:
            step.update(prob=1.0, rotate_range=[1.0] * 3)
        if "Elastic" in step["_target_"]:  # the image shows what is outside; label and weight stay as configured
            configured = step.get("padding_mode", "border")
            step["padding_mode"] = [
                "zeros",
                *([configured, "zeros"] if isinstance(configured, str) else configured[1:]),
            ]
    parser["steps"] = {"_target_": "Compose", "transforms": "$@train#locate + [@train#patch]"}
    transform = parser.get_parsed_content("steps")
    transform.set_random_state(0)
    outside = 0
    for _ in range(10):
        patch = transform({key: torch.ones(1, *shape) for key in ("image", "label", "weight")})
        assert not patch["weight"][patch["image"] == 0].any()
        assert patch["label"].all()  # by the border: no class that was not there
        outside += int((patch["image"] == 0).sum())
    assert outside > 200


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
    draw = Compose(cropping(5, balance).transforms[:2]).set_random_state(0)
    centers = [draw({"weight": weight, "label": label})["center"] for _ in range(1500)]
    drawn = torch.tensor([int(label[0][tuple(center)]) for center in centers])
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    voxels = torch.bincount(label[weight > 0].long(), minlength=3)
    expected = (1 - balance) * voxels / voxels.sum() + balance / 3
    assert len(shares) == 3
    assert (shares - expected).abs().max() < 0.05


@pytest.mark.parametrize("balance", [-0.1, 1.1, float("nan"), "much"])
def test_wrong_class_balance(balance):
    with pytest.raises(DataError, match=f"class_balance must be a number from 0 to 1; got .?{balance}"):
        RandPatchCenterd(spatial_size=4, class_balance=balance)


def test_center_of_meta_tensors_and_other_keys():
    weight, label = (MetaTensor(v, affine=torch.diag(torch.tensor([1.0, 2, 3, 1]))) for v in imbalanced_volume())
    locate = ClassesToIndicesd("classes", "_of", num_classes=3, image_key="weight")
    data = locate({"weight": weight, "classes": label})
    transform = RandPatchCenterd(spatial_size=5, indices_key="classes_of", center_key="middle").set_random_state(0)
    result = transform(data)
    assert set(result) == {"weight", "classes", "classes_of", "middle"}
    assert weight[0][tuple(result["middle"])] > 0
    assert "middle" not in data
    assert RandPatchCenterd(spatial_size=5, allow_missing_keys=True)({}) == {}
    with pytest.raises(ValueError, match="one key"):
        RandPatchCenterd(["weight", "label"], spatial_size=5)


def test_without_classes_patches_are_drawn_around_the_weight():
    weight = torch.zeros(1, 20, 20, 20)
    weight[0, 1, 18, 10] = 1
    drawn = RandPatchCenterd(spatial_size=6)({"weight": weight})
    assert drawn["center"].tolist() == [3, 17, 10]
    with pytest.raises(DataError, match="ClassesToIndicesd"):
        RandPatchCenterd(spatial_size=6, class_balance=0.5)({"weight": weight})


def test_the_readme_cuts_patches_around_the_annotation(tmp_path, monkeypatch):
    """All of the example runs as it is copied."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## Use it in your own MONAI code\n```python\n(.*?)^```$", text, re.S | re.M)
    label = np.full((90, 90, 90), 255, np.uint8)
    label[:30, :30, 2] = 0
    label[5:9, 5:9, 2] = 1
    files = {"image": "scan.nii.gz", "label": "annotation.nii.gz"}
    write_nifti(tmp_path / files["image"], np.random.rand(90, 90, 90).astype(np.float32))
    write_nifti(tmp_path / files["label"], label)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert float(names["value"].detach()) > 0
    assert names["image"].shape == (1, 1, 64, 64, 64)
    assert all(parameter.grad is not None for parameter in names["network"].parameters())
    cases = Dataset([files] * 2, Compose([names["split"], names["augment"]]))
    batch = next(iter(DataLoader(cases, batch_size=2)))
    assert [batch[key].shape for key in ("image", "label", "weight")] == [(2, 1, 64, 64, 64)] * 3
    item = names["split"](files)
    names["augment"].set_random_state(1)  # of which one patch loses the annotation by its rotation
    shares = [float(names["augment"](item)["weight"].sum()) for _ in range(6)]
    assert min(shares) > 0
    assert sum(shares) > 1000
