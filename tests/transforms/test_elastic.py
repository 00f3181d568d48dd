"""Elastic deformation: equal to slow references, exact where nothing is deformed, and nothing labelled that was not."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AffineGrid, Resample
from scipy.interpolate import make_interp_spline
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import Deformation, RandBSplineElastic, RandBSplineElasticd
from sparse3dunet.transforms.spatial.bspline_field import control_shape
from sparse3dunet.transforms.spatial.warping import warp

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


def sparse_case(shape, seed=0):
    """Every voxel its own intensity class, three annotated slices."""
    random = np.random.default_rng(seed)
    label = torch.from_numpy(random.integers(1, 4, (1, *shape)).astype(np.int16))
    weight = torch.zeros(1, *shape)
    weight[:, shape[0] // 2] = 1
    weight[:, :, 0] = 0.5
    weight[..., -1] = 2
    return {"image": label * 100.0, "label": label, "weight": weight}


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
            for channel, result in zip(volume, patch, strict=True):
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


@pytest.mark.filterwarnings("ignore:a drawn deformation folds")
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


def test_defaults_are_the_papers():
    """Displacements of 4 voxels' deviation on a grid of 32 (Cicek et al. 2016, section 2.2)."""
    deform = RandBSplineElastic()
    assert (deform.control_spacing.tolist(), deform.displacement.tolist()) == ([32] * 3, [4] * 3)


@pytest.mark.parametrize("spacing", [1, 1.5])
def test_control_points_as_close_as_voxels(spacing):
    drawn = RandBSplineElastic(control_spacing=spacing, displacement=0.1).set_random_state(0).draw((5, 6, 7))
    assert drawn.displacements.any()
    with pytest.raises(DataError, match="closer than voxels"):
        RandBSplineElastic(control_spacing=0.99, displacement=0.1).draw((5, 6, 7))


def test_control_points_around_the_smallest_patches():
    assert control_shape((1, 2, 33), (32, 32, 32)) == (4, 4, 4)
    assert control_shape((34, 65, 66), (32, 32, 32)) == (5, 5, 6)


@pytest.mark.parametrize("size", range(1, 14))
def test_any_number_of_voxels_on_several_threads(size):
    image = smooth_volume((16, 3, 3))
    deformation = RandBSplineElastic(displacement=1).set_random_state(0).draw((size, 1, 1))
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(warp([image], deformation, ["bilinear"], ["border"])[0])
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
