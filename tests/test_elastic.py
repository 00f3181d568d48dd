"""Elastic deformation: equal to slow references, exact where nothing is deformed, and nothing labelled that was not."""

import json
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate, set_track_meta
from monai.transforms import AffineGrid, Resample
from scipy.interpolate import make_interp_spline
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import Deformation, RandBSplineElastic, RandBSplineElasticd

EVERYTHING = {
    "control_spacing": [9, 12, 16],
    "displacement": [1.5, 1, 2],
    "rotate_range": 0.4,
    "scale_range": 0.2,
    "shear_range": 0.1,
    "translate_range": 3,
    "flip_prob": 0.5,
}


def smooth_volume(shape, seed=0, channels=1):
    random = np.random.default_rng(seed)
    volume = np.stack([gaussian_filter(random.normal(size=shape), 2) for _ in range(channels)])
    return torch.from_numpy(volume / np.ptp(volume)).float()


def slow_points(deformation: Deformation, steps=(1, 1, 1)) -> np.ndarray:
    """(3, X, Y, Z): the definition, voxel by voxel, with SciPy's BSpline along each axis in turn."""
    offsets = [np.arange(0, n, step) - (n - 1) / 2 for n, step in zip(deformation.size, steps)]
    bend = deformation.displacements
    for axis in range(3):
        count = bend.shape[axis + 1]
        knots = (np.arange(count) - (count - 1) / 2) * deformation.control_spacing[axis]
        bend = make_interp_spline(knots, bend, k=3, axis=axis + 1)(offsets[axis])
    points = np.empty_like(bend)
    for voxel in np.ndindex(*points.shape[1:]):
        offset = deformation.linear @ [offsets[axis][voxel[axis]] for axis in range(3)]
        points[(slice(None), *voxel)] = deformation.center + offset + bend[(slice(None), *voxel)]
    return points


def drawings(shape, size, **arguments):
    """Three deformations, whose patch of `size` lies in the volume, at its border and partly outside."""
    for seed, center in enumerate((None, (2, 3, 4), (shape[0] - 1, -1, shape[2] + 2))):
        transform = RandBSplineElastic(size, **{**EVERYTHING, **arguments}).set_random_state(seed)
        yield transform, transform.draw(shape, (1, 1, 1), center)


@pytest.mark.parametrize("size", [(20, 17, 24), (1, 30, 9)])
def test_points_equal_the_slow_reference(size):
    for _, deformation in drawings((30, 26, 28), size):
        expected = torch.from_numpy(slow_points(deformation)).permute(1, 2, 3, 0)
        points = deformation.points()
        assert points.shape == (*size, 3)
        assert (points - expected).abs().max() < 1e-3


def test_large_patches_are_as_exact():
    transform = RandBSplineElastic((132, 132, 116), rotate_range=0.3, scale_range=0.2).set_random_state(0)
    deformation = transform.draw((300, 300, 300))
    expected = slow_points(deformation, (10, 10, 5))
    assert np.abs(deformation.points()[::10, ::10, ::5].permute(3, 0, 1, 2).numpy() - expected).max() < 1e-3


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("bicubic", 3)])
@pytest.mark.parametrize(("padding_mode", "numpy_mode"), [("border", "edge"), ("zeros", "constant")])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_intensities_equal_map_coordinates(mode, order, padding_mode, numpy_mode, threads):
    shape, size, width = (26, 31, 22), (16, 18, 21), 40
    volume = smooth_volume(shape, channels=2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for transform, deformation in drawings(shape, size, mode=mode, padding_mode=padding_mode):
            patch = transform(volume, deformation=deformation)
            points = slow_points(deformation) + width
            for channel, result in zip(volume, patch):
                padded = np.pad(channel.numpy(), width, mode=numpy_mode)
                expected = map_coordinates(padded, points, order=order, mode="nearest")
                assert np.abs(result.numpy() - expected).max() < 1e-5
    finally:
        torch.set_num_threads(before)


LARGE = {torch.int32: 2**24 + 1, torch.int64: 2**40 + 1, torch.float64: 0.1}
"""What float32 cannot hold."""


@pytest.mark.parametrize("prob", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64])
def test_every_type_is_moved_exactly(dtype, prob):
    shape = (9, 8, 7)
    label = (torch.randint(0, 4, (1, *shape)) + LARGE.get(dtype, 0)).to(dtype)
    for padding_mode in ("border", "zeros"):
        transform = RandBSplineElastic((12, 6, 9), prob, displacement=1, mode="nearest", padding_mode=padding_mode)
        patch = transform(label)
        assert patch.dtype == dtype
        assert set(patch.unique().tolist()) <= set(label.unique().tolist()) | (
            {0} if padding_mode == "zeros" else set()
        )


@pytest.mark.parametrize("prob", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.int16, torch.float32), (torch.uint8, torch.float32), (torch.float16, torch.float16)],
)
def test_the_type_does_not_depend_on_the_draw(dtype, expected, prob):
    """Else the patches of a batch could not be put together."""
    image = torch.randint(0, 9, (1, 8, 8, 8)).to(dtype)
    for mode in ("bilinear", "bicubic"):
        assert RandBSplineElastic(prob=prob, displacement=1, mode=mode)(image).dtype == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_nothing_changes(dtype):
    """As in a training step that computes with half the digits."""
    case = sparse_case((30, 31, 32))
    transform = RandBSplineElasticd(**EVERYTHING)
    expected = transform.set_random_state(0)(case)
    with torch.autocast("cpu", dtype=dtype):
        patch = transform.set_random_state(0)(case)
    for key in case:
        assert torch.equal(patch[key], expected[key])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64, torch.bool])
def test_labels_equal_map_coordinates(dtype):
    shape, size = (26, 31, 22), (16, 18, 21)
    label = torch.randint(0, 4, (1, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    for transform, deformation in drawings(shape, size, mode="nearest"):
        patch = transform(label, deformation=deformation)
        assert patch.dtype == dtype
        points = slow_points(deformation)
        certain = (np.abs(points % 1 - 0.5) > 1e-3).all(0)
        expected = map_coordinates(label[0].double().numpy(), points, order=0, mode="nearest")
        assert certain.mean() > 0.95
        assert np.array_equal(patch[0].double().numpy()[certain], expected[certain])


@pytest.mark.parametrize(
    ("shape", "size"), [((12, 13, 14), None), ((12, 13, 14), (8, 8, 8)), ((9, 10, 7), (12, 6, 12))]
)
@pytest.mark.parametrize("settings", [{"prob": 0}, {"displacement": 0}, {"displacement": 0, "control_spacing": 5}])
def test_nothing_drawn_is_the_identity_bit_for_bit(shape, size, settings):
    data = {
        "image": torch.rand(2, *shape),
        "label": torch.randint(0, 9, (1, *shape), dtype=torch.uint8),
        "weight": torch.rand(1, *shape),
    }
    patch = RandBSplineElasticd(spatial_size=size, **settings)(data)
    start = [n // 2 - m // 2 for n, m in zip(shape, size or shape)]
    for key, volume in data.items():
        assert patch[key].dtype == volume.dtype
        for voxel in np.ndindex(*(size or shape)):
            source = [v + s for v, s in zip(voxel, start)]
            inside = all(0 <= s < n for s, n in zip(source, shape))
            if inside or key != "weight":
                source = [min(max(s, 0), n - 1) for s, n in zip(source, shape)]
                assert torch.equal(patch[key][(slice(None), *voxel)], volume[(slice(None), *source)])
            else:
                assert patch[key][(slice(None), *voxel)] == 0
    assert patch["image"].data_ptr() != data["image"].data_ptr()


def test_zero_displacement_through_the_resampling_keeps_labels():
    """A shift too small to see, so that it is no crop: the way that every deformation takes."""
    label = torch.randint(0, 5, (1, 20, 21, 22), dtype=torch.int16)
    identity = Deformation.crop((0, 0, 0), (20, 21, 22))
    nearly = Deformation.from_dict({**identity.to_dict(), "center": identity.center + 1e-7})
    assert nearly.crop_start() is None
    assert torch.equal(RandBSplineElastic(mode="nearest")(label, deformation=nearly), label)
    torch.testing.assert_close(
        RandBSplineElastic()(label.float(), deformation=nearly), label.float(), atol=1e-4, rtol=0
    )


def test_flips_alone_are_flips():
    volume = torch.rand(1, 10, 11, 12)
    for axis in range(3):
        flip_prob = [1.0 if a == axis else 0.0 for a in range(3)]
        flipped = RandBSplineElastic(displacement=0, flip_prob=flip_prob)(volume)
        torch.testing.assert_close(flipped, volume.flip(axis + 1), atol=1e-5, rtol=0)


def test_rotation_shear_and_scaling_equal_monais():
    """MONAI's grid says where voxels come from; ours where the body goes: the inverse matrix."""
    volume = smooth_volume((24, 22, 26))
    angles, shears, scales = (0.2, -0.3, 0.1), (0.1, 0, 0.05, 0, -0.1, 0.02), (0.1, -0.15, 0.05)
    transform = RandBSplineElastic(
        displacement=0,
        rotate_range=[(a, a) for a in angles],
        shear_range=[(s, s) for s in shears],
        scale_range=[(s, s) for s in scales],
    )
    ours = transform(volume)
    _, matrix = AffineGrid(rotate_params=angles, shear_params=shears, scale_params=[1 + s for s in scales])(
        (24, 22, 26)
    )
    inverse = AffineGrid(affine=torch.linalg.inv(torch.as_tensor(matrix)))((24, 22, 26))[0]
    theirs = Resample(mode="bilinear", padding_mode="border")(volume, inverse)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-4, rtol=0)


def test_ranges_may_mix_numbers_and_pairs():
    drawn = RandBSplineElastic(displacement=0, rotate_range=[[0.2, 0.2], 0, 0]).draw((8, 8, 8))
    np.testing.assert_allclose(drawn.linear[1:, 1:], [[np.cos(0.2), np.sin(0.2)], [-np.sin(0.2), np.cos(0.2)]])


def test_larger_scale_makes_larger_and_translation_moves():
    volume = torch.zeros(1, 40, 40, 40)
    volume[:, 15:25, 15:25, 15:25] = 1
    larger = RandBSplineElastic(displacement=0, scale_range=[(0.5, 0.5), (0, 0), (0, 0)])(volume)
    assert larger.sum().item() == pytest.approx(1500, rel=0.02)
    moved = RandBSplineElastic(displacement=0, translate_range=[(4, 4), (0, 0), (-2, -2)])(volume)
    assert center_of_mass(moved[0].numpy()) == pytest.approx((23.5, 19.5, 17.5))


def test_the_body_is_rotated_not_the_voxels():
    """A ball, in voxels three times as long along z, turned about any axis, is the same ball."""
    spacing = torch.tensor([1.0, 1.0, 3.0])
    places = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in (48, 48, 16)], indexing="ij"), -1)
    ball = ((places * spacing).norm(dim=-1)[None] - 15).neg().clamp(-3, 3)
    volume = MetaTensor(ball, affine=torch.diag(torch.tensor([-1.0, 1.0, 3.0, 1.0])))
    rotated = RandBSplineElastic(displacement=0, rotate_range=[(0.9, 0.9), (0.5, 0.5), (-0.4, -0.4)])(volume)
    assert (rotated - ball).abs().max() < 0.8  # interpolated across voxels of 3 mm
    plain = RandBSplineElastic(displacement=0, rotate_range=[(0.9, 0.9), (0.5, 0.5), (-0.4, -0.4)])(ball)
    assert (plain - ball).abs().max() > 3


def test_millimetres():
    """In units of mm the deformation is the same body's, whatever the voxels' size."""
    arguments = {"displacement": 1.5, "control_spacing": 16, "translate_range": 4, "rotate_range": 0.3, "units": "mm"}
    fine, coarse = (RandBSplineElastic(**arguments).set_random_state(0) for _ in range(2))
    one = fine.draw((64, 64, 64), (1, 1, 1))
    other = coarse.draw((64, 64, 32), (1, 1, 2))
    np.testing.assert_allclose(other.control_spacing, [16, 16, 8])
    np.testing.assert_allclose(other.displacements[:2], one.displacements[:2])
    np.testing.assert_allclose(other.displacements[2], one.displacements[2] / 2)
    spacing = np.array([1, 1, 2])
    np.testing.assert_allclose(np.diag(spacing) @ other.linear @ np.diag(1 / spacing), one.linear, atol=1e-12)
    np.testing.assert_allclose((other.center - [31.5, 31.5, 15.5]) * spacing, one.center - 31.5, atol=1e-12)


def test_displacements_at_control_points_are_as_drawn():
    """With the standard deviation asked for, and the spline goes through them."""
    transform = RandBSplineElastic(201, control_spacing=20, displacement=[3, 2, 0]).set_random_state(0)
    drawn = transform.draw((201, 201, 201))
    assert drawn.displacements.shape == (3, 13, 13, 13)  # 11 from border to border, one more on each side
    assert drawn.displacements.std(axis=(1, 2, 3)) == pytest.approx([3, 2, 0], rel=0.05)
    at_points = drawn.points()[::20, ::20, ::20]
    identity = torch.stack(torch.meshgrid(*[torch.arange(0.0, 201, 20)] * 3, indexing="ij"), -1)
    expected = torch.from_numpy(drawn.displacements[:, 1:-1, 1:-1, 1:-1]).permute(1, 2, 3, 0).float()
    torch.testing.assert_close(at_points - identity, expected, atol=1e-3, rtol=0)


def test_only_what_the_patch_shows_is_read():
    """Far from the patch the volume may hold anything: also what no arithmetic survives."""
    volume = torch.full((1, 100, 100, 100), float("nan"))
    volume[:, 20:70, 20:70, 20:70] = smooth_volume((50, 50, 50))
    transform = RandBSplineElastic(16, displacement=2, rotate_range=0.3).set_random_state(0)
    assert transform(volume, center=(45, 45, 45)).isfinite().all()


def test_a_patch_is_the_part_of_the_deformed_volume():
    """Deforming the patch that is needed gives what deforming everything, then cropping, gives."""
    volume = smooth_volume((60, 60, 60))
    transform = RandBSplineElastic(**{**EVERYTHING, "control_spacing": 12}).set_random_state(0)
    whole = transform.draw((60, 60, 60))
    inner = {**whole.to_dict(), "size": [32, 32, 32]}
    part = transform(volume, deformation=Deformation.from_dict(inner))
    torch.testing.assert_close(part, transform(volume, deformation=whole)[:, 14:46, 14:46, 14:46], atol=1e-5, rtol=0)


def sparse_case(shape, seed=0):
    """Every voxel its own intensity class, three annotated slices."""
    random = np.random.default_rng(seed)
    label = torch.from_numpy(random.integers(1, 4, (1, *shape)).astype(np.int16))
    weight = torch.zeros(1, *shape)
    weight[:, shape[0] // 2] = 1
    weight[:, :, 0] = 0.5
    weight[..., -1] = 2
    return {"image": label * 100.0, "label": label, "weight": weight}


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
    with pytest.warns(RuntimeWarning, match=r"folds.*displacement \(\[12.0, 12.0, 12.0\] voxels\) less"):
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
        ({"control_spacing": [4, 4]}, "control_spacing must be a number or three"),
        ({"displacement": -1}, "displacement must be a number or three, none negative; got -1"),
        ({"displacement": "much"}, "displacement must be a number or three"),
        ({"displacement": float("nan")}, "displacement must be a number or three"),
        (
            {"rotate_range": [0.1, 0.2]},
            r"rotate_range must be a number a.* or 3 such numbers or pairs.*got \[0.1, 0.2\]",
        ),
        ({"rotate_range": [(0.3, 0.1)] * 3}, "rotate_range must be a number a"),
        ({"spatial_size": 4.5}, "spatial_size must be whole numbers of voxels, one for all axes or three; got 4.5"),
        ({"spatial_size": [4, 4]}, "spatial_size must be whole numbers"),
        ({"rotate_range": -0.1}, "rotate_range must be a number a"),
        ({"rotate_range": "wide"}, "rotate_range must be a number a"),
        ({"shear_range": [0.1] * 3}, "shear_range must be a number a.* or 6 such"),
        ({"scale_range": 1}, "scale_range must be above -1"),
        ({"flip_prob": 2}, "flip_prob must be a number or three, none negative, 1 at most; got 2"),
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
    with pytest.raises(ValueError, match=r"one spatial shape; got shapes \[\(1, 8, 8, 8\), \(1, 8, 8, 9\)\]"):
        RandBSplineElasticd(("image", "label"))({"image": torch.rand(1, 8, 8, 8), "label": torch.rand(1, 8, 8, 9)})
    with pytest.raises(ValueError, match=r"volumes are \(C, X, Y, Z\).*got shapes \[\(8, 8, 8\)\]"):
        RandBSplineElastic()(torch.rand(8, 8, 8))
    drawn = RandBSplineElastic().draw((8, 8, 8))
    with pytest.raises(ValueError, match="each of 3 volumes needs a deformation; got 1"):
        RandBSplineElastic()(torch.rand(3, 1, 8, 8, 8), deformation=drawn)
    with pytest.raises(ValueError, match=r"a deformation has the entries size, center, .*; got \{'size': 3\}"):
        RandBSplineElasticd(deformation_key="drawn")({**sparse_case((8, 8, 8)), "drawn": {"size": 3}})
    with pytest.raises(ValueError, match="do not belong together"):
        Deformation.from_dict({**drawn.to_dict(), "size": [80, 8, 8]})
    with pytest.raises(ValueError, match="are numbers"):
        Deformation.from_dict({**drawn.to_dict(), "center": ["a", 0, 0]})
    with pytest.raises(ValueError, match=r"three whole numbers, for each of 1 volumes; got \(3.5, 3, 3\)"):
        RandBSplineElastic()(torch.rand(1, 8, 8, 8), center=(3.5, 3, 3))
    with pytest.raises(ValueError, match=r"not empty; got shapes \[\(0, 1, 8, 8, 8\)\]"):
        RandBSplineElastic()(torch.rand(0, 1, 8, 8, 8))
    with pytest.raises(KeyError, match="label"):
        RandBSplineElasticd()({"image": torch.rand(1, 8, 8, 8)})
    patch = RandBSplineElasticd(allow_missing_keys=True)({"image": torch.rand(1, 8, 8, 8)})
    assert patch["image"].shape == (1, 8, 8, 8)
