"""Resampling: the image over exactly its field of view, every annotated slice kept, and no label from elsewhere."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Spacingd

from sparse3dunet.errors import DataError
from sparse3dunet.transforms.spatial.resample import (
    AnnotationToMatchd,
    ExtentSpacing,
    ExtentSpacingd,
    ResampleAnnotation,
)


def random_affine(random, spacing):
    """An oblique grid of that spacing, axes flipped at random."""
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing * random.choice([-1, 1], 3)
    affine[:3, 3] = random.uniform(-100, 100, 3)
    return affine


def random_factors(random, low=0.4, high=2.5):
    return np.exp(random.uniform(np.log(low), np.log(high), 3))


def grid_affine(scale, shift):
    return np.array([[*row, t] for row, t in zip(np.diag(scale), shift)] + [[0, 0, 0, 1]], dtype=float)


def meta(values, affine, dtype):
    return MetaTensor(torch.as_tensor(values).to(dtype)[None], affine=torch.as_tensor(affine))


def weight_of(label):
    """A weight that tells which label it belongs to."""
    return (0.25 + label / np.float32(1024)).astype(np.float32)


def annotate(random, annotated):
    """A random label at the annotated voxels, and its weight; what is unlabeled has a label that must not get out."""
    label = random.integers(1, 30000, annotated.shape).astype(np.int16)
    return label, np.where(annotated, weight_of(label), np.float32(0))


def resample(label, weight, factors, affine=None, spacing_class=ExtentSpacingd):
    """As in a pipeline, the image resampled first."""
    affine = np.eye(4) if affine is None else affine
    pixdim = np.linalg.norm(affine[:3, :3], axis=0) * factors
    data = {
        "image": meta(np.zeros(label.shape), affine, torch.float32),
        "label": meta(label, affine, torch.int16),
        "weight": meta(weight, affine, torch.float32),
    }
    out = Compose([spacing_class("image", pixdim=pixdim), AnnotationToMatchd()])(data)
    grid = out["image"]
    for key, dtype in (("label", torch.int16), ("weight", torch.float32)):
        assert out[key].dtype == dtype
        assert out[key].shape == grid.shape
        assert torch.equal(out[key].affine, grid.affine)
    matrix = np.linalg.solve(affine, grid.affine.numpy())
    return SimpleNamespace(
        label=out["label"][0].numpy(),
        weight=out["weight"][0].numpy(),
        scale=np.diag(matrix)[:3],
        centers=[matrix[a, a] * np.arange(n) + matrix[a, 3] for a, n in enumerate(grid.shape[1:])],
    )


def holders(centers, scale, position):
    """The output voxels in whose extent the position lies: one, or two where it lies on the border between them."""
    return np.flatnonzero(np.abs(centers - position) <= scale / 2 + 1e-4)


def check_slice(out, shape, axis, plane, everywhere):
    """It survives, over its whole area, and as thick as it was where the output is finer."""
    inside = [(c > -0.5) & (c < n - 0.5) for c, n in zip(out.centers, shape)]
    inside[axis][:] = True
    assert not everywhere or all(i.all() for i in inside)
    full = (out.weight[np.ix_(*inside)] > 0).all(axis=tuple(a for a in range(3) if a != axis))
    centers, scale = out.centers[axis], out.scale[axis]
    assert full[holders(centers, scale, plane)].any(), f"slice {plane} of axis {axis} is lost"
    others = [a for a in range(3) if a != axis]
    area = np.prod([inside[a].sum() * out.scale[a] for a in others]) / np.prod([shape[a] for a in others])
    assert not everywhere or area == pytest.approx(1, rel=1e-6)
    if scale < 1 and everywhere:
        thickness = full[np.abs(centers - plane) < 0.5].sum() * scale
        assert abs(thickness - 1) < scale + 1e-6


def check_origin(out, label, weight, random, samples=3000):
    """Label and weight come from one annotated voxel within reach, which a mix-up of random labels would not pass."""
    annotated = out.weight > 0
    assert not out.label[~annotated].any()
    assert np.array_equal(out.weight[annotated], weight_of(out.label[annotated]))
    near = [
        np.abs(c[:, None] - np.arange(n)) <= max(scale, 1) / 2 + 1e-4
        for c, n, scale in zip(out.centers, label.shape, out.scale)
    ]
    within = np.einsum("ai,bj,ck,ijk->abc", *(n.astype(np.float32) for n in near), weight > 0, optimize=True)
    assert not (annotated & (within < 0.5)).any(), "annotated out of reach of any annotation"
    chosen = np.argwhere(annotated)
    chosen = chosen[random.choice(len(chosen), min(samples, len(chosen)), replace=False)]
    found = np.zeros(len(chosen), bool)
    for offset in itertools.product(range(-2, 3), repeat=3):
        voxel = [np.round(c[i]).astype(int) + o for c, i, o in zip(out.centers, chosen.T, offset)]
        valid = np.all([(v >= 0) & (v < n) for v, n in zip(voxel, label.shape)], axis=0)
        voxel = [v.clip(0, n - 1) for v, n in zip(voxel, label.shape)]
        valid &= np.all([n[i, v] for n, i, v in zip(near, chosen.T, voxel)], axis=0) & (weight[tuple(voxel)] > 0)
        found |= valid & (label[tuple(voxel)] == out.label[tuple(chosen.T)])
    assert found.all(), "a label that no annotated voxel within reach has"


@pytest.mark.parametrize(
    ("seed", "spacing_class"),
    [*((seed, ExtentSpacingd) for seed in range(30)), *((seed, Spacingd) for seed in range(30, 40))],
)
def test_every_annotated_slice_survives(seed, spacing_class):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(40, 65, 3))
    annotated = np.zeros(shape, bool)
    slices = []
    for axis in random.choice(3, random.integers(1, 4), replace=False):
        n = shape[axis]
        first = random.integers(1, n - 4)
        planes = {*random.integers(0, n, 3), *range(first, first + random.integers(1, 5))}
        planes |= {0} if random.random() < 0.3 else set()
        planes |= {n - 1} if random.random() < 0.3 else set()
        slices += [(axis, plane) for plane in planes]
    for axis, plane in slices:
        np.moveaxis(annotated, axis, 0)[plane] = True
    label, weight = annotate(random, annotated)
    factors = random_factors(random)
    out = resample(label, weight, factors, random_affine(random, random.uniform(0.5, 3, 3)), spacing_class)
    for axis, plane in slices:
        check_slice(out, shape, axis, plane, everywhere=spacing_class is ExtentSpacingd)
    check_origin(out, label, weight, random)


def test_nearest_neighbour_loses_slices():
    """Why the class exists: with voxels of twice the size or more, every second slice is gone at least."""
    kept = {}
    for factor in (2.0, 2.5):
        for plane in range(10, 16):
            weight = np.zeros((40, 40, 40), np.float32)
            weight[plane] = 1
            data = {"weight": meta(weight, np.eye(4), torch.float32)}
            nearest = Spacingd("weight", pixdim=factor, mode="nearest", padding_mode="zeros")(data)["weight"]
            ours = resample(weight.astype(np.int16), weight, [factor] * 3)
            kept.setdefault(factor, []).append((bool(nearest.any()), bool((ours.weight > 0).any())))
    for factor, pairs in kept.items():
        nearest, ours = np.array(pairs).mean(axis=0)
        assert nearest <= 0.5, factor
        assert ours == 1, factor


@pytest.mark.parametrize("seed", range(6))
def test_boxes_keep_their_area_on_average(seed):
    """Partly annotated slices survive too, and are neither widened nor narrowed."""
    random = np.random.default_rng(seed)
    before = after = 0.0
    for _ in range(12):
        weight = np.zeros((48, 48, 46), np.float32)
        axis = random.integers(3)
        volume = np.moveaxis(weight, axis, 0)
        for plane in range(3, len(volume), 8):
            (x, y), (width, height) = random.integers(1, 20, 2), random.integers(5, 24, 2)
            volume[plane, x : x + width, y : y + height] = 1
        out = resample(weight.astype(np.int16), weight, random_factors(random, 1, 2.5))
        pixel = np.prod(np.delete(out.scale, axis))
        for plane, box in enumerate(volume):
            if box.any():
                planes = np.moveaxis(out.weight, axis, 0)[holders(out.centers[axis], out.scale[axis], plane)]
                area = planes.sum(axis=(1, 2)).max() * pixel
                assert area > 0
                before, after = before + box.sum(), after + area
    assert after == pytest.approx(before, rel=0.04)


@pytest.mark.parametrize("seed", range(6))
def test_single_voxels_survive(seed):
    """Each in the output voxel that holds its centre."""
    random = np.random.default_rng(seed)
    shape = (44, 50, 40)
    voxels = 3 * random.integers(0, 13, (40, 3))  # never two next to each other
    annotated = np.zeros(shape, bool)
    annotated[tuple(voxels.T)] = True
    label, weight = annotate(random, annotated)
    out = resample(label, weight, random_factors(random))
    for voxel in voxels:
        near = np.ix_(*(holders(c, max(s, 1), v) for c, s, v in zip(out.centers, out.scale, voxel)))
        assert (out.weight[near] > 0).any()
    check_origin(out, label, weight, random)


@pytest.mark.parametrize("seed", range(6))
def test_a_thin_line_survives_without_a_gap(seed):
    random = np.random.default_rng(seed)
    axis = seed % 3
    annotated = np.zeros((44, 50, 40), bool)
    annotated[tuple(slice(8, 31) if a == axis else 20 for a in range(3))] = True
    label, weight = annotate(random, annotated)
    out = resample(label, weight, random_factors(random))
    along = (out.weight > 0).any(axis=tuple(a for a in range(3) if a != axis))
    centers = out.centers[axis]
    assert np.array_equal(along, (centers >= 7.5) & (centers < 30.5))
    check_origin(out, label, weight, random)


def slow_resample(label, weight, scale, shift, spacing, dst_shape):
    """The rule, voxel by voxel. Returns the weight and the labels that are allowed at each output voxel."""

    def run(voxel, axis):
        length = 1
        for step in (-1, 1):
            v = list(voxel)
            v[axis] += step
            while 0 <= v[axis] < weight.shape[axis] and weight[tuple(v)] > 0:
                length += 1
                v[axis] += step
        return length

    def claims(voxel, out):
        for axis in range(3):
            center = scale[axis] * out[axis] + shift[axis]
            distance = abs(center - voxel[axis])
            thin = scale[axis] > 1 and (full[axis][voxel[axis]] or runs[voxel][axis] < scale[axis])
            if distance >= (scale[axis] / 2 if thin else 0.5):
                return False
        return True

    def distance(voxel, out):
        return np.linalg.norm((scale * out + shift - voxel) * spacing)

    full = [[bool((weight.take(i, a) > 0).all()) for i in range(n)] for a, n in enumerate(weight.shape)]
    voxels = [tuple(map(int, v)) for v in np.argwhere(weight > 0)]
    runs = {v: [run(v, axis) for axis in range(3)] for v in voxels}
    allowed = {}
    for out in np.ndindex(*dst_shape):
        claiming = [v for v in voxels if claims(v, out)]
        nearest = min((distance(v, out) for v in claiming), default=0)
        allowed[out] = {int(label[v]) for v in claiming if distance(v, out) < nearest + 1e-4}
    return allowed


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_slow_way(seed):
    random = np.random.default_rng(seed)
    shape, dst_shape = (tuple(map(int, random.integers(3, 7, 3))) for _ in range(2))
    annotated = random.random(shape) < random.choice([0.05, 0.3, 0.7, 1])
    if seed % 2:
        np.moveaxis(annotated, random.integers(3), 0)[random.integers(3)] = True
    label, weight = annotate(random, annotated)
    scale, shift = random_factors(random, *random.choice([(0.4, 2.5), (1.5, 4)])), random.uniform(-2, 2, 3)
    spacing = random.uniform(0.5, 3, 3)
    affine = random_affine(random, spacing)
    grid = affine @ grid_affine(scale, shift)
    given = (meta(label, affine, torch.int16), meta(weight, affine, torch.float32), grid, dst_shape)
    expected = slow_resample(label, weight, scale, shift, spacing, dst_shape)
    if annotated.any() and not any(expected.values()):
        with pytest.raises(DataError, match="lies outside of the image"):
            ResampleAnnotation()(*given)
        return
    found, found_weight = ResampleAnnotation()(*given)
    for out in np.ndindex(*dst_shape):
        value = int(found[0][out])
        assert value in (expected[out] or {0})
        assert float(found_weight[0][out]) == (weight_of(np.int16(value)) if expected[out] else 0)


def test_three_orthogonal_planes_in_a_coarse_output():
    """The order of the axes does not matter: all three are whole, one voxel thick."""
    weight = np.zeros((40, 40, 40), np.float32)
    weight[11], weight[:, 17], weight[:, :, 31] = 1, 1, 1
    out = resample(weight.astype(np.int16), weight, [2.0, 2.5, 2.0])
    expected = np.zeros((20, 16, 20), bool)
    expected[5], expected[:, 7], expected[:, :, 15] = True, True, True
    assert np.array_equal(out.weight > 0, expected)


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_same_grid_is_a_no_op(noise):
    random = np.random.default_rng(0)
    affine = random_affine(random, [1, 0.7, 2])
    label, weight = annotate(random, random.random((12, 13, 14)) < 0.2)
    data = {"label": meta(label, affine, torch.int16), "weight": meta(weight, affine, torch.float32)}
    image = ExtentSpacing([1, 0.7, 0])(meta(np.ones(label.shape), affine, torch.float32))
    assert torch.allclose(image.affine, torch.as_tensor(affine), rtol=0, atol=1e-12)
    image.affine = affine + np.vstack([np.full((3, 4), noise), np.zeros(4)])
    out = AnnotationToMatchd()({**data, "image": image})
    assert out["label"] is data["label"]
    assert out["weight"] is data["weight"]


@pytest.mark.parametrize("change", ["rotated", "flipped", "permuted", "sheared"])
def test_other_orientation_is_an_error(change):
    matrix = np.diag([2.0, 2, 2, 1])
    if change == "rotated":
        c, s = np.cos(0.1), np.sin(0.1)
        matrix[:2, :2] = [[c, -s], [s, c]]
    elif change == "flipped":
        matrix[1] = [0, -1, 0, 19]
    elif change == "permuted":
        matrix[:3] = matrix[[1, 0, 2]]
    else:
        matrix[0, 1] = 0.3
    affine = random_affine(np.random.default_rng(1), [1, 2, 3])
    label = meta(np.ones((20, 20, 20)), affine, torch.int16)
    label.meta["filename_or_obj"] = "case_7.nii.gz"
    with pytest.raises(DataError, match=r"case_7\.nii\.gz.*Orientationd"):
        ResampleAnnotation()(label, label.float(), affine @ matrix, (10, 10, 10))


def test_dictionary_twin():
    random = np.random.default_rng(0)
    affine = random_affine(random, [1, 1, 3])
    label, weight = annotate(random, random.random((20, 20, 20)) < 0.2)
    annotation = {"y": meta(label, affine, torch.int16), "w": meta(weight, affine, torch.float32)}
    annotation["y"].meta["filename_or_obj"] = "case_7.nii.gz"
    image = ExtentSpacing(2)(meta(np.ones(label.shape), affine, torch.float32))
    twin = AnnotationToMatchd("y", "w", "scan", allow_missing_keys=True)
    out = twin({**annotation, "scan": image})
    for found, expected in zip(
        (out["y"], out["w"]),
        ResampleAnnotation()(*annotation.values(), image.affine, image.shape[1:]),
        strict=True,
    ):
        assert torch.equal(found, expected)
    assert out["y"].meta["filename_or_obj"] == "case_7.nii.gz"
    assert annotation["y"].shape == (1, 20, 20, 20)
    assert set(twin({"scan": image})) == {"scan"}
    with pytest.raises(KeyError):
        twin({"y": annotation["y"], "scan": image})
    with pytest.raises(KeyError):
        AnnotationToMatchd()({"image": image})


def world_coordinates(shape, affine):
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
    return (affine[:3, :3] @ voxels + affine[:3, 3:]).reshape(3, *shape)


@pytest.mark.parametrize("seed", range(8))
def test_image_covers_its_field_of_view_and_inverts(seed):
    """The borders stay, the values are those at the places that the affine says, and the way back is exact."""
    random = np.random.default_rng(seed)
    shape, factors = tuple(map(int, random.integers(40, 65, 3))), random_factors(random)
    # Around the world's origin lies where Spacing with scale_extent goes wrong.
    affine = random_affine(random, random.uniform(0.5, 3, 3)) if seed else np.eye(4)
    image = MetaTensor(torch.as_tensor(world_coordinates(shape, affine)), affine=torch.as_tensor(affine))
    transform = ExtentSpacingd("image", pixdim=np.linalg.norm(affine[:3, :3], axis=0) * factors)
    data = Compose([transform])({"image": image})
    out = data["image"]
    new_shape = tuple(out.shape[1:])
    assert new_shape == tuple(np.round(np.array(shape) / factors))
    for corner in itertools.product((0, 1), repeat=3):
        before, after = (np.array([*(np.array(corner) * n - 0.5), 1]) for n in (shape, new_shape))
        assert np.allclose(affine @ before, out.affine.numpy() @ after)
    inner = (slice(None), *[slice(2, -2)] * 3)
    assert np.allclose(out[inner], world_coordinates(new_shape, out.affine.numpy())[inner], atol=1e-3)

    segmentation = MetaTensor(torch.ones(1, *new_shape)).copy_meta_from(out)
    back = Invertd("pred", Compose([transform]), orig_keys="image", nearest_interp=True)
    pred = back({"image": out, "pred": segmentation})["pred"]
    assert pred.shape[1:] == shape
    assert torch.allclose(pred.affine, torch.as_tensor(affine), rtol=0, atol=1e-10)
    assert (pred == 1).all()
