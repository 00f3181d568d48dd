"""Elastic deformation of cases: labels, weights, batches, replay, and what is refused."""

import json
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate, set_track_meta
from scipy.ndimage import center_of_mass, map_coordinates

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import Deformation, RandBSplineElastic, RandBSplineElasticd
from tests.transforms.test_elastic import EVERYTHING, slow_points, smooth_volume, sparse_case


@pytest.mark.parametrize("seed", range(5))
def test_no_label_value_and_no_weight_is_made_up(seed):
    case = sparse_case((30, 20, 25), seed)
    transform = RandBSplineElasticd(spatial_size=(24, 28, 24), **EVERYTHING).set_random_state(seed)
    patch = transform(case)
    assert set(patch["label"].unique().tolist()) <= {1, 2, 3}
    assert set(patch["weight"].unique().tolist()) <= {0.0, 0.5, 1.0, 2.0}
    assert patch["weight"].any()


@pytest.mark.parametrize("seed", range(5))
def test_a_voxel_is_labelled_only_if_the_one_it_shows_was(seed):
    """Each weight is the one at the point shown, rounded, and outside of the volume 0: by the slow reference."""
    shape = (30, 20, 25)
    case = sparse_case(shape, seed)
    transform = RandBSplineElasticd(spatial_size=24, deformation_key="drawn", **EVERYTHING).set_random_state(seed)
    patch = transform(case)
    points = slow_points(Deformation.from_dict(patch["drawn"]))
    certain = (np.abs(points % 1 - 0.5) > 1e-3).all(0)
    nearest = np.rint(points).astype(int)
    inside = ((nearest >= 0) & (nearest < np.reshape(shape, (3, 1, 1, 1)))).all(0)
    expected = np.zeros((24, 24, 24))
    expected[inside] = case["weight"][0].numpy()[tuple(n[inside] for n in nearest)]
    assert (~inside).any()
    assert np.array_equal(patch["weight"][0].numpy()[certain], expected[certain])


@pytest.mark.parametrize("seed", range(4))
def test_a_blob_stays_aligned_to_half_a_voxel(seed):
    places = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in (64, 64, 64)], indexing="ij"), -1)
    ball = (places - torch.tensor([3.0, -4.0, 5.0])).norm(dim=-1)[None]
    case = {"image": torch.sigmoid(14 - ball), "label": (ball < 14).to(torch.uint8), "weight": (ball < 14).float()}
    transform = RandBSplineElasticd(rotate_range=0.3, scale_range=0.2, flip_prob=0.5).set_random_state(seed)
    patch = transform(case)
    image, label, weight = (center_of_mass(patch[key][0].numpy()) for key in ("image", "label", "weight"))
    assert np.abs(np.subtract(image, label)).max() < 0.5
    assert label == weight
    seen = patch["image"] > 0.5
    both = (seen & (patch["label"] > 0)).sum() * 2 / (seen.sum() + patch["label"].sum())
    assert both > 0.95


def test_affine_says_what_is_shown():
    """Without a bend, a voxel of the patch lies where its affine puts it: there the volume has the same intensity."""
    affine = torch.tensor([[0.0, -2, 0, 5], [1.5, 0, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]], dtype=torch.float64)
    volume = MetaTensor(smooth_volume((40, 40, 40)), affine=affine)
    transform = RandBSplineElastic(
        24, displacement=0, rotate_range=0.4, scale_range=0.2, shear_range=0.1, translate_range=2, flip_prob=0.5
    ).set_random_state(1)
    patch = transform(volume, center=(22, 18, 20))
    assert patch.affine.shape == (4, 4)
    voxels = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij")).reshape(3, -1)
    homogeneous = np.concatenate([voxels, np.ones((1, voxels.shape[1]))])
    source = (torch.linalg.inv(affine) @ patch.affine).numpy() @ homogeneous
    expected = map_coordinates(volume[0].numpy(), source[:3], order=1, mode="nearest")
    assert np.abs(patch.numpy().ravel() - expected).max() < 1e-4
    assert torch.equal(volume.affine, affine)


@pytest.mark.parametrize("meta", [False, True])
def test_a_batch_is_deformed_one_by_one(meta):
    volumes = [smooth_volume((30, 32, 34), seed, channels=2) for seed in range(3)]
    if meta:
        volumes = [MetaTensor(v, affine=torch.diag(torch.tensor([1.0, 1, s, 1]))) for v, s in zip(volumes, (1, 2, 3))]
    items = [{"image": v, "label": (v[:1] > 0).float(), "weight": torch.ones(1, 30, 32, 34)} for v in volumes]
    batch = list_data_collate(items)
    transform = RandBSplineElasticd(spatial_size=20, deformation_key="drawn", units="mm", **EVERYTHING)
    together = transform.set_random_state(0)(batch)
    assert together["image"].shape == (3, 2, 20, 20, 20)
    single = transform.set_random_state(0)
    for number, item in enumerate(items):
        alone = single(item)
        for key in ("image", "label", "weight"):
            assert torch.equal(torch.as_tensor(together[key][number]), torch.as_tensor(alone[key]))
        assert together["drawn"][number] == alone["drawn"]
        if meta:
            assert torch.equal(together["image"].affine[number], alone["image"].affine)
    assert not torch.equal(together["image"][0], together["image"][1])
    again = transform({**batch, "drawn": together["drawn"]})
    assert torch.equal(torch.as_tensor(again["image"]), torch.as_tensor(together["image"]))


def test_a_deformation_is_stored_as_json_and_replayed(tmp_path):
    case = sparse_case((30, 31, 32))
    transform = RandBSplineElasticd(spatial_size=20, deformation_key="drawn", **EVERYTHING).set_random_state(0)
    patch = transform(case)
    (tmp_path / "drawn.json").write_text(json.dumps(patch["drawn"]))
    stored = json.loads((tmp_path / "drawn.json").read_text())
    replayed = RandBSplineElasticd(deformation_key="drawn")({**case, "drawn": stored})
    for key in ("image", "label", "weight"):
        assert torch.equal(replayed[key], patch[key])
    assert not torch.equal(transform(case)["image"], patch["image"])
    assert "drawn" not in RandBSplineElasticd()(case)


def test_folding_is_warned_of():
    volume = torch.rand(1, 40, 40, 40)
    with pytest.warns(RuntimeWarning, match=r"folds.*decrease displacement \(\[12.0, 12.0, 12.0\] voxels\)"):
        RandBSplineElastic(control_spacing=10, displacement=12).set_random_state(0)(volume)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            RandBSplineElastic(rotate_range=0.5, scale_range=0.2, flip_prob=0.5).set_random_state(seed)(volume)


@pytest.mark.parametrize(("amount", "folded"), [(0.9, False), (1.1, True)])
def test_folds_by_the_jacobian(amount, folded):
    """A displacement linear in x: the map's slope along x is 1 - amount, whatever the rotation."""
    places = (np.arange(5) - 2) * 10.0
    displacements = np.zeros((3, 5, 5, 5))
    displacements[0] = -amount * places[:, None, None]
    deformation = Deformation(np.full(3, 30), np.full(3, 14.5), np.eye(3), displacements, np.full(3, 10.0))
    assert deformation.folds() == folded
    flip = np.diag([-1.0, 1, 1])
    flipped = Deformation(deformation.size, deformation.center, flip, -displacements, deformation.control_spacing)
    assert flipped.folds() == folded


def test_a_local_fold_is_found():
    """One control point of many, moved past its neighbour: the map folds between these two alone."""
    displacements = np.zeros((3, 8, 8, 8))
    displacements[1, 4, 3, 5] = 15
    deformation = Deformation(np.full(3, 51), np.full(3, 25.0), np.eye(3), displacements, np.full(3, 10.0))
    assert deformation.folds()
    displacements[1, 4, 3, 5] = 5
    assert not deformation.folds()


def test_one_mode_is_for_images():
    """Asking for cubic images must not interpolate labels, nor asking for border annotate what lies outside."""
    case = sparse_case((12, 12, 12))
    for arguments in ({"mode": "bicubic"}, {"mode": "nearest"}, {"padding_mode": "border"}):
        patch = RandBSplineElasticd(spatial_size=20, displacement=0.5, control_spacing=8, **arguments)(case)
        assert set(patch["label"].unique().tolist()) <= {1, 2, 3}
        assert set(patch["weight"].unique().tolist()) == {0.0, 0.5, 1.0, 2.0}
        assert not patch["weight"][:, 0].any()
    with pytest.raises(
        DataError, match=r"a list with one for each of \('image', 'label', 'weight'\); got \['bilinear'\]"
    ):
        RandBSplineElasticd(mode=["bilinear"])


def test_the_center_is_used_and_used_up():
    case = {**sparse_case((30, 30, 30)), "center": np.array([9, 10, 11])}
    patch = RandBSplineElasticd(spatial_size=6, prob=0)(case)
    assert torch.equal(patch["image"], case["image"][:, 6:12, 7:13, 8:14])
    assert "center" not in patch
    assert "center" in case
    inner = RandBSplineElasticd(spatial_size=2, prob=0)(patch)
    assert torch.equal(inner["image"], case["image"][:, 8:10, 9:11, 10:12])


@pytest.mark.parametrize("kind", ["numpy", "tensor", "meta"])
@pytest.mark.parametrize("tracked", [True, False])
def test_metadata_as_with_monais_transforms(kind, tracked):
    """A MetaTensor, unless tracking is off."""
    volume = torch.rand(1, 8, 9, 10)
    given = {"numpy": volume.numpy(), "tensor": volume, "meta": MetaTensor(volume, meta={"filename_or_obj": "a.nii"})}
    set_track_meta(tracked)
    try:
        patch = RandBSplineElastic(6, prob=0)(given[kind])
    finally:
        set_track_meta(True)
    assert isinstance(patch, MetaTensor) == tracked
    assert torch.equal(torch.as_tensor(patch), volume[:, 1:7, 1:7, 2:8])
    if tracked and kind == "meta":
        assert patch.meta["filename_or_obj"] == "a.nii"
        assert patch.affine[:3, 3].tolist() == [1, 1, 2]


def test_a_batch_that_was_not_collated():
    batch = RandBSplineElastic(6)(MetaTensor(torch.rand(2, 1, 9, 9, 9)))
    assert batch.affine.shape == (2, 4, 4)
    assert batch[0].affine.shape == (4, 4)


def test_replay_after_a_loader():
    """The loader makes tensors of the numbers; MONAI's decollate_batch gives them back."""
    case = {key: value[:, :16, :16, :16] for key, value in sparse_case((24, 24, 24)).items()}
    transform = RandBSplineElasticd(deformation_key="drawn", displacement=1)
    (batch,) = DataLoader(Dataset([case] * 2, transform), batch_size=2)
    for item in decollate_batch(batch):
        again = transform({**case, "drawn": item["drawn"]})
        assert torch.equal(again["image"], torch.as_tensor(item["image"]))


def test_seeds():
    case = sparse_case((24, 24, 24))
    transform = RandBSplineElasticd(**EVERYTHING)
    first, second, other = (transform.set_random_state(seed)(case)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(other, transform(case)["image"])


def test_workers_and_epochs_differ():
    case = {key: value[:, :16, :16, :16] for key, value in sparse_case((24, 24, 24)).items()}
    dataset = Dataset([case] * 4, RandBSplineElasticd(**{**EVERYTHING, "translate_range": 1}))
    loader = DataLoader(dataset, batch_size=1, num_workers=2)
    patches = [batch["image"].flatten() for _ in range(2) for batch in loader]
    assert len({tuple(patch.tolist()) for patch in patches}) == 8


def test_input_is_left_as_it_is():
    case = sparse_case((20, 20, 20))
    copies = {key: value.clone() for key, value in case.items()}
    for prob in (0, 1):
        patch = RandBSplineElasticd(prob=prob)(case)
        for value in patch.values():
            value += 1
    assert all(torch.equal(case[key], copies[key]) for key in case)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu_as_on_the_cpu():
    case = sparse_case((40, 40, 40))
    transform = RandBSplineElasticd(spatial_size=24, **EVERYTHING)
    expected = transform.set_random_state(0)(case)
    patch = transform.set_random_state(0)({key: value.cuda() for key, value in case.items()})
    assert all(value.is_cuda for value in patch.values())
    torch.testing.assert_close(patch["image"].cpu(), expected["image"], atol=0.1, rtol=0)
    assert (patch["label"].cpu() == expected["label"]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"control_spacing": 0}, "control_spacing must be above 0; got 0"),
        ({"control_spacing": [4, 4]}, "control_spacing must be one or three numbers"),
        ({"displacement": -1}, "displacement must be one or three numbers, none negative; got -1"),
        ({"displacement": "much"}, "displacement must be one or three numbers"),
        ({"displacement": float("nan")}, "displacement must be one or three numbers"),
        (
            {"rotate_range": [0.1, 0.2]},
            r"rotate_range must be a number a.* or 3 such numbers or pairs.*got \[0.1, 0.2\]",
        ),
        ({"rotate_range": [(0.3, 0.1)] * 3}, "rotate_range must be a number a"),
        ({"spatial_size": 4.5}, "spatial_size must be one or three whole numbers of voxels, .* got 4.5"),
        ({"spatial_size": True}, "spatial_size must be .* got True"),
        ({"spatial_size": [4, 0, 4]}, r"spatial_size must be .* above 0, .* got \[4, 0, 4\]"),
        ({"spatial_size": [4, 4]}, "spatial_size must be one or three whole numbers"),
        ({"rotate_range": -0.1}, "rotate_range must be a number a"),
        ({"rotate_range": "wide"}, "rotate_range must be a number a"),
        ({"shear_range": [0.1] * 3}, "shear_range must be a number a.* or 6 such"),
        ({"scale_range": 1}, "scale_range must be above -1"),
        ({"flip_prob": 2}, "flip_prob must be one or three numbers, none negative, at most 1; got 2"),
        ({"prob": 1.5}, "prob must be a number from 0 to 1; got 1.5"),
        ({"units": "cm"}, "units must be one of voxels, mm; got 'cm'"),
        ({"mode": "linear"}, "mode must be one of bilinear, nearest, bicubic; got 'linear'"),
        ({"padding_mode": "reflection"}, "padding_mode must be one of border, zeros; got 'reflection'"),
    ],
)
def test_wrong_arguments(arguments, message):
    for transform in (RandBSplineElastic, RandBSplineElasticd):
        with pytest.raises(DataError, match=message):
            transform(**arguments)


def test_control_points_closer_than_voxels():
    with pytest.raises(DataError, match=r"control points \[4.0, 4.0, 4.0\] mm apart .* voxels of \[1.0, 1.0, 5.0\] mm"):
        RandBSplineElastic(control_spacing=4, units="mm").draw((8, 8, 8), (1, 1, 5))


def test_wrong_volumes():
    with pytest.raises(ValueError, match=r"same spatial shape; got shapes \[\(1, 8, 8, 8\), \(1, 8, 8, 9\)\]"):
        RandBSplineElasticd(("image", "label"))({"image": torch.rand(1, 8, 8, 8), "label": torch.rand(1, 8, 8, 9)})
    with pytest.raises(ValueError, match=r"volumes are \(C, X, Y, Z\).*got shapes \[\(8, 8, 8\)\]"):
        RandBSplineElastic()(torch.rand(8, 8, 8))
    drawn = RandBSplineElastic().draw((8, 8, 8))
    with pytest.raises(ValueError, match="each of 3 volumes needs a deformation; got 1"):
        RandBSplineElastic()(torch.rand(3, 1, 8, 8, 8), deformation=drawn)
    with pytest.raises(ValueError, match=r"a deformation has the entries size, center, .*; got \{'size': 3\}"):
        RandBSplineElasticd(deformation_key="drawn")({**sparse_case((8, 8, 8)), "drawn": {"size": 3}})
    with pytest.raises(ValueError, match="do not fit together"):
        Deformation.from_dict({**drawn.to_dict(), "size": [80, 8, 8]})
    with pytest.raises(ValueError, match="must be numbers"):
        Deformation.from_dict({**drawn.to_dict(), "center": ["a", 0, 0]})
    with pytest.raises(ValueError, match=r"three whole numbers, for each of 1 volumes; got \(3.5, 3, 3\)"):
        RandBSplineElastic()(torch.rand(1, 8, 8, 8), center=(3.5, 3, 3))
    with pytest.raises(ValueError, match=r"not empty; got shapes \[\(0, 1, 8, 8, 8\)\]"):
        RandBSplineElastic()(torch.rand(0, 1, 8, 8, 8))
    with pytest.raises(KeyError, match="label"):
        RandBSplineElasticd()({"image": torch.rand(1, 8, 8, 8)})
    patch = RandBSplineElasticd(allow_missing_keys=True)({"image": torch.rand(1, 8, 8, 8)})
    assert patch["image"].shape == (1, 8, 8, 8)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_thick_slices_stay_whole(axis, seed):
    """With a slice axis, every voxel of a patch shows its own slice, whatever is drawn: only within, slices move."""
    shape = (14, 13, 12)
    number = torch.arange(shape[axis]).view([-1 if a == axis else 1 for a in range(3)]).expand(shape)[None].float()
    inside = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *shape))).float()
    drawn = RandBSplineElastic(
        control_spacing=6, displacement=1, rotate_range=0.6, shear_range=0.3, slice_axis=axis
    ).set_random_state(seed)
    numbers, values = drawn.warp_alike([number, inside], ["bilinear"] * 2, ["border"] * 2)
    torch.testing.assert_close(numbers, number, atol=1e-4, rtol=0)
    assert (values - inside).abs().mean() > 0.1


@pytest.mark.parametrize("axis", [3, -1, True, "z"])
def test_no_such_slice_axis(axis):
    with pytest.raises(DataError, match="slice_axis"):
        RandBSplineElasticd(slice_axis=axis)
