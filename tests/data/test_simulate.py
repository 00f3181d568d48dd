"""Sparse annotations made from dense ones: the right amount, in the right places, the same for the same seed."""

import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from sparse3dunet.data.slices import slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.transforms.simulate import (
    KeepFraction,
    KeepFractiond,
    KeepScribbles,
    KeepScribblesd,
    KeepSlices,
    KeepSlicesd,
    choose_slices,
)

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def dense_label(shape=(24, 20, 18), **meta):
    """Background, a shell and a core."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    classes = (radius < 0.8).astype(np.int16) + (radius < 0.45)
    return MetaTensor(classes[None].astype(np.int16), affine=AFFINE, meta={"filename_or_obj": "a.nii", **meta})


def draw(transform, label, seed=0):
    transform.set_random_state(seed)
    return transform(label)[0].numpy()


ALL = [
    (lambda: KeepSlices(2, "equidistant"), lambda: KeepSlicesd(slices=2)),
    (lambda: KeepSlices(2, "random"), lambda: KeepSlicesd(slices=2, placement="random")),
    (lambda: KeepSlices([1, 0, 2], "foreground"), lambda: KeepSlicesd(slices=[1, 0, 2], placement="foreground")),
    (lambda: KeepFraction(0.1), lambda: KeepFractiond(fraction=0.1)),
    (lambda: KeepScribbles(6, 15, 2), lambda: KeepScribblesd(count=6, length=15, width=2)),
]
NAMES = ["equidistant", "random", "foreground", "fraction", "scribbles"]


@pytest.mark.parametrize(("array", "dictionary"), ALL, ids=NAMES)
class TestAll:
    def test_gives_a_weight_with_the_labels_metadata(self, array, dictionary):
        label = dense_label()
        before = label.clone()
        weight = array()(label)
        assert (weight.shape, weight.dtype) == (label.shape, torch.float32)
        assert set(weight.unique().tolist()) == {0, 1}
        assert torch.equal(weight.affine, label.affine)
        assert weight.meta["filename_or_obj"] == "a.nii"
        assert torch.equal(label, before)

    def test_a_seed_repeats_the_draw(self, array, dictionary):
        label = dense_label()
        draws = [draw(array(), label, seed) for seed in (1, 1, 2, 3)]
        assert np.array_equal(draws[0], draws[1])
        differ = [not np.array_equal(draws[0], other) for other in draws[2:]]
        assert any(differ) == (getattr(array(), "placement", None) != "equidistant")

    def test_draws_anew_at_each_call(self, array, dictionary):
        transform = array().set_random_state(0)
        label = dense_label()
        draws = [transform(label) for _ in range(3)]
        differ = [not torch.equal(draws[0], other) for other in draws[1:]]
        assert any(differ) == (getattr(transform, "placement", None) != "equidistant")

    def test_dictionary_twin(self, array, dictionary):
        label = dense_label()
        data = {"label": label, "image": "untouched"}
        result = dictionary().set_random_state(5)(data)
        assert result["image"] == "untouched"
        assert result["label"] is label
        assert "weight" not in data
        assert np.array_equal(result["weight"][0].numpy(), draw(array(), label, 5))
        assert torch.equal(result["weight"].affine, label.affine)

    def test_dictionary_twin_multiplies_the_weight_that_is_there(self, array, dictionary):
        label = dense_label()
        there = MetaTensor(torch.rand(label.shape), affine=AFFINE, meta={"filename_or_obj": "weight.nii"})
        before = there.clone()
        twin = dictionary().set_random_state(5)
        result = twin({"label": label, "weight": there})["weight"]
        assert torch.equal(result.as_tensor(), there.as_tensor() * torch.from_numpy(draw(array(), label, 5)))
        assert result.dtype == torch.float32
        assert torch.equal(result.affine, label.affine)
        assert result.meta["filename_or_obj"] == "weight.nii"
        assert torch.equal(there, before)

    def test_seeded_by_compose(self, array, dictionary):
        label = dense_label()
        steps = [Compose([dictionary()]).set_random_state(7)({"label": label})["weight"] for _ in range(2)]
        assert torch.equal(*steps)

    def test_dictionary_twin_without_the_label(self, array, dictionary):
        twin = dictionary()
        with pytest.raises(KeyError):
            twin({"image": 1})
        twin.allow_missing_keys = True
        assert twin({"image": 1}) == {"image": 1}

    def test_names_the_file_with_a_wrong_shape(self, array, dictionary):
        label = MetaTensor(torch.ones(2, 5, 5, 5), meta={"filename_or_obj": "two.nii"})
        with pytest.raises(DataError, match=r"two\.nii.*\(2, 5, 5, 5\)"):
            array()(label)


@pytest.mark.parametrize("twin", [KeepSlicesd, lambda k: KeepFractiond(k, fraction=1), KeepScribblesd])
def test_one_key(twin):
    with pytest.raises(ValueError, match="one key"):
        twin(["label", "other"])


@pytest.mark.parametrize("make", [ALL[0][0], ALL[2][0], ALL[4][0]], ids=["equidistant", "foreground", "scribbles"])
def test_no_foreground(make):
    label = MetaTensor(torch.zeros(1, 9, 9, 9, dtype=torch.int16), meta={"filename_or_obj": "empty.nii"})
    with pytest.raises(DataError, match=r"empty\.nii: no voxel is foreground"):
        make()(label)


def test_random_slices_need_no_foreground():
    assert KeepSlices(1, "random")(torch.zeros(1, 9, 9, 9)).sum() == 9**3 - 8**3


def test_slices_are_those_asked_for():
    """Any counts and placements: as many slices as asked for, none twice, all where they may be."""
    random = np.random.RandomState(0)
    for _ in range(300):
        foreground = random.rand(*random.randint(3, 15, 3)) < random.choice([0.01, 0.2, 1])
        foreground[tuple(random.randint(n) for n in foreground.shape)] = True
        counts = random.randint(0, 6, 3).tolist()
        counts[random.randint(3)] += 1
        for placement in ("equidistant", "random", "foreground"):
            allowed = []
            for axis, n in enumerate(foreground.shape):
                crossing = [i for i in range(n) if foreground.take(i, axis).any()]
                allowed.append(
                    {
                        "equidistant": list(range(crossing[0] + 1, crossing[-1])),
                        "random": list(range(n)),
                        "foreground": crossing,
                    }[placement]
                )
            short = [f"axis {a} has {len(s)} slices" for a, (s, n) in enumerate(zip(allowed, counts)) if len(s) < n]
            if short:
                with pytest.raises(DataError, match=short[0]):
                    choose_slices(foreground, counts, placement, random)
                continue
            chosen = choose_slices(foreground, counts, placement, random)
            for indices, count, candidates in zip(chosen, counts, allowed, strict=True):
                assert len(set(indices)) == len(indices) == count
                assert indices == sorted(indices)
                assert set(indices) <= set(candidates)
                assert all(type(i) is int for i in indices)


def test_equidistant_slices():
    box = np.zeros((20, 30, 40), bool)
    box[3:16, 10:21, 20] = box[3:16, 10, 10:31] = True
    assert choose_slices(box, 1) == [[9], [15], [20]]
    assert choose_slices(box, [3, 9, 2]) == [[6, 9, 12], list(range(11, 20)), [17, 23]]
    with pytest.raises(DataError, match=r"axis 1 has 9 slices strictly within .* slices 10 to 20, but 10 were"):
        choose_slices(box, [0, 10, 0])


def test_every_slice_is_drawn_sometimes():
    foreground = np.zeros((6, 1, 1), bool)
    foreground[[1, 2, 4]] = True
    random = np.random.RandomState(0)
    for placement, expected in (("random", set(range(6))), ("foreground", {1, 2, 4})):
        drawn = [choose_slices(foreground, [1, 0, 0], placement, random)[0][0] for _ in range(100)]
        assert set(drawn) == expected


def test_slices_become_a_mask():
    weight = slices_mask((4, 5, 6), [[1], [], [0, 5]])
    expected = [[[x == 1 or z in (0, 5) for z in range(6)] for _ in range(5)] for x in range(4)]
    assert weight.tolist() == expected


def test_keep_slices_keeps_the_chosen_slices():
    label = dense_label()
    for placement in ("equidistant", "random", "foreground"):
        chosen = choose_slices(label[0].numpy() > 0, [3, 0, 2], placement, np.random.RandomState(4))
        kept = draw(KeepSlices([3, 0, 2], placement), label, 4)
        assert np.array_equal(kept, slices_mask(label.shape[1:], chosen))


def test_too_many_slices_of_a_case_name_it():
    with pytest.raises(DataError, match=r"a\.nii: axis 2 has 18 slices there, but 19"):
        KeepSlices([0, 0, 19], "random")(dense_label())


@pytest.mark.parametrize(
    "slices", [0, -1, [0, 0, 0], [1, -1, 1], [1, 2], [1, 2, 3, 4], 1.5, [1, 2, 0.5], "3", None, True]
)
def test_wrong_slices(slices):
    with pytest.raises(DataError, match="slices must be a whole number above 0, or 3 of them"):
        KeepSlices(slices)


def test_wrong_placement():
    with pytest.raises(DataError, match="equidistant, random, foreground; got 'middle'"):
        KeepSlices(3, "middle")


@pytest.mark.parametrize("fraction", [1e-9, 0.001, 0.1, 1 / 3, 0.5, 1 - 1e-9, 1])
def test_fraction_is_exact(fraction):
    shape = (1, 7, 11, 13)
    assert draw(KeepFraction(fraction), torch.zeros(shape)).sum() == max(1, round(fraction * 1001))


def test_fraction_is_the_same_everywhere():
    label = dense_label()
    kept = draw(KeepFraction(0.3), label) > 0
    for number in range(3):
        assert kept[label[0].numpy() == number].mean() == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_wrong_fraction(fraction):
    with pytest.raises(DataError, match=f"above 0 and at most 1, got {fraction}"):
        KeepFraction(fraction)


def pieces(voxels):
    """The groups of voxels that touch, be it at a corner."""
    left, groups = set(map(tuple, voxels.tolist())), []
    while left:
        group, rim = set(), [left.pop()]
        while rim:
            voxel = rim.pop()
            group.add(voxel)
            near = {v for v in left if max(abs(a - b) for a, b in zip(v, voxel)) == 1}
            left -= near
            rim += near
        groups.append(group)
    return groups


@pytest.mark.parametrize("seed", range(10))
def test_a_scribble_is_one_stroke_in_one_structure_and_slice(seed):
    label = dense_label()
    classes = label[0].numpy()
    kept = draw(KeepScribbles(count=3, length=15), label, seed) > 0
    for number in range(3):
        stroke = np.argwhere(kept & (classes == number))
        assert len(pieces(stroke)) == 1
        (axis,) = np.flatnonzero(np.ptp(stroke, axis=0) == 0)[:1]
        plane = np.argwhere(classes == number)
        plane = plane[plane[:, axis] == stroke[0, axis]]
        assert (classes.take(stroke[0, axis], axis) > 0).any()
        assert len(stroke) == 15 or set(map(tuple, stroke.tolist())) in pieces(plane)


def test_classes_take_turns():
    label = dense_label((60, 60, 60))
    classes = label[0].numpy()
    totals = np.zeros(3)
    for seed in range(5):
        kept = draw(KeepScribbles(count=12, length=20), label, seed) > 0
        totals += [(kept & (classes == number)).sum() for number in range(3)]
    assert (totals <= 5 * 4 * 20).all()
    assert (totals > 0.9 * 5 * 4 * 20).all()


def test_a_stroke_is_no_blob():
    label = torch.ones(1, 80, 80, 80)
    extents = [np.ptp(np.argwhere(draw(KeepScribbles(1, 49), label, seed)), axis=0).max() for seed in range(30)]
    assert np.mean(extents) > 20  # a blob has 7


@pytest.mark.parametrize("length", [1, 5, 16, 100])
def test_a_small_structure_is_filled_and_no_more(length):
    """Two squares of 4 x 4 x 1 voxels: a scribble fills the one it starts in."""
    label = torch.zeros(1, 20, 20, 20)
    label[0, 2:6, 2:6, 9] = label[0, 12:16, 12:16, 9] = 1
    for seed in range(10):
        kept = draw(KeepScribbles(2, length), label, seed) * label[0].numpy()
        voxels = np.argwhere(kept)
        assert len(pieces(voxels)) == 1
        lines = 0 if np.ptp(voxels[:, 2]) else min(length, 4)
        assert lines <= len(voxels) <= min(length, 16)
    assert draw(KeepScribbles(2, length), label[..., 9:10]).sum() >= min(length, 4)


def test_a_wide_brush_follows_the_same_stroke():
    label = dense_label((30, 30, 30))
    classes = label[0].numpy()
    thin, wide = (draw(KeepScribbles(3, 15, width), label, 1) > 0 for width in (1, 5))
    assert (wide | ~thin).all()
    for number in range(3):
        stroke, painted = (np.argwhere(kept & (classes == number)) for kept in (thin, wide))
        (axis,) = np.flatnonzero(np.ptp(stroke, axis=0) == 0)[:1]
        region = np.argwhere(classes == number)
        distance = np.linalg.norm(region[:, None] - stroke, axis=2).min(1)
        expected = region[(region[:, axis] == stroke[0, axis]) & (distance <= 2.5)]
        assert np.array_equal(painted, expected)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_the_brush_is_as_wide_as_asked(width):
    label = torch.ones(1, 30, 30, 30)
    spot = np.argwhere(draw(KeepScribbles(1, 1, width), label, 3))
    assert sorted(np.ptp(spot, axis=0) + 1) == [1, width, width]


def test_background_has_scribbles_only_where_slices_cross_the_foreground():
    label = torch.zeros(1, 20, 20, 20)
    label[0, :, :, 8:11] = 1
    label[0, 9, 9, 9] = 2
    for seed in range(20):
        kept = draw(KeepScribbles(3, 10), label, seed) > 0
        assert set(label[0].numpy()[kept]) == {0, 1, 2}
        background = np.argwhere(kept & (label[0].numpy() == 0))
        assert not (background[:, :2] == background[0, :2]).all() or len(background) == 1
        assert (np.ptp(background[:, :2], axis=0) == 0).any()


def test_more_classes_than_scribbles():
    with pytest.raises(DataError, match=r"a\.nii: 2 scribbles are too few for the 3 classes .* set count to 3"):
        KeepScribbles(count=2)(dense_label())


@pytest.mark.parametrize("name", ["count", "length", "width"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
def test_wrong_scribbles(name, value):
    with pytest.raises(DataError, match=f"{name} must be a whole number above 0, got {value!r}"):
        KeepScribbles(**{name: value})


def test_scribbles_in_a_large_volume_need_little():
    """Masks and single slices, no list of its voxels (24 bytes each), which would take time and memory."""
    label = dense_label((120, 120, 120))
    KeepScribbles()(dense_label())  # what the first call allows itself
    tracemalloc.start()
    try:
        KeepScribbles()(label)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 12 * label.numel()
