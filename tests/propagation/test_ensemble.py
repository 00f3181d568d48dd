"""The methods together, on scans and annotation of all kinds."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from sparse3dunet.errors import DataError
from sparse3dunet.propagation import Ensemble, ensemble
from sparse3dunet.propagation.field import Field
from sparse3dunet.propagation.scan import enlarged, one_hot, pooled
from tests.propagation.scans import SHAPE, assert_probabilities, nested, on_slices, overlap, quick, scan_of

WEIGHT = on_slices(SHAPE, [12], [], [3, 8, 12])
SMALL = (16, 14, 12)


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    with quick():
        yield


def scores(prob, label, weight):
    return [overlap(prob.argmax(0), label, weight == 0, n) for n in range(1, int(label.max()) + 1)]


@pytest.fixture(scope="module")
def refined(few_trees):
    image, label = nested()
    told = []
    found = Ensemble().fit(image, label, WEIGHT).refine(told.append)
    return image, label, found, told


def test_it_segments_what_is_between_slices(refined):
    _, label, found, told = refined
    whole = found.whole(SHAPE)
    assert_probabilities(whole, SHAPE, 3)
    assert min(scores(whole, label, WEIGHT)) > 0.85
    known = WEIGHT > 0
    assert (whole.argmax(0) == label)[known].mean() > 0.97
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] == 1


def test_what_is_told_of_held_out_voxels(refined):
    _, label, found, _ = refined
    held, known = found.held, WEIGHT > 0
    assert_probabilities(held.prob, (len(held.label),), 3)
    place = tuple(held.place.T)
    assert known[place].all()
    np.testing.assert_array_equal(label[place], held.label)
    assert (held.distance > 0).all()
    assert (held.weight > 0).all()
    assert 0 < len(held.slices) < held.part.max() + 1
    assert min(overlap(held.prob.argmax(0), held.label, held.label >= 0, n) for n in (1, 2)) > 0.7
    for number in held.slices:  # whole slices; each voxel once
        places = held.place[held.part == number]
        assert len(np.unique(places, axis=0)) == len(places)


@pytest.mark.parametrize("work", [1e6, 1e4])
def test_what_cannot_be_known_is_not_known_of_held_out_voxels(work):
    """Parts overlap: a voxel of a slice is one of a block, too. Labels by chance are guessed by chance alone.

    So are they at full resolution, of a scan that was worked on coarsely.
    """
    random = np.random.default_rng(0)
    label = random.integers(0, 2, SHAPE)
    of_scan = Ensemble(work=work).fit(random.random(SHAPE), label, WEIGHT)
    assert of_scan._field.is_coarse == (work < 1e6)
    held = of_scan.refine().held
    assert (held.prob.argmax(0) == held.label).mean() == pytest.approx(0.5, abs=0.04)


def test_a_large_scan_is_judged_by_fewer_parts_at_full_resolution(monkeypatch):
    """By a block first, then by the slices that were given first, on which the network is judged."""
    image, label = nested()
    held = {}
    for count in (1, 2, 99):
        monkeypatch.setattr(ensemble, "WALKED", count * label.size * 3 / 1e4)
        of_scan = Ensemble(work=1e4, slices=[[[], [], [3]], [[], [], [8]]]).fit(image, label, WEIGHT)
        held[count] = of_scan.refine().held
    for of in (held[1], held[2]):  # one of each kind at least
        assert (len(of.slices), of.part.max()) == (1, 1)
    assert held[99].part.max() > 3
    judged = [of.place[of.part == of.judged] for of in (held[2], held[99])]
    assert set(judged[0][:, 2]) == {3}  # and none of the same coarse voxels, which the network may have learned
    np.testing.assert_array_equal(*judged)


@pytest.mark.parametrize("step", [1, 2])
def test_what_is_told_of_held_out_voxels_is_told_at_full_resolution(step):
    """Of a scan that was worked on coarsely as well: places, classes and distances are those of the scan's voxels."""
    image, label = nested()
    spacing = (1.0, 2.0, 1.5)
    of_scan = Ensemble(work=1e6 if step == 1 else 1e4).fit(image, label, WEIGHT, spacing)
    held = of_scan.refine().held
    x, y, z = held.place.T
    assert (WEIGHT[x, y, z] > 0).all()
    np.testing.assert_array_equal(held.label, label[x, y, z])
    assert len({tuple(place % 2) for place in held.place}) == 8  # not only the corners of coarse voxels
    for number in range(held.part.max() + 1):
        of_part = held.part == number
        left = WEIGHT > 0
        left[x[of_part], y[of_part], z[of_part]] = False
        distance = distance_transform_edt(~left, spacing)[x[of_part], y[of_part], z[of_part]]
        np.testing.assert_allclose(held.distance[of_part], distance, rtol=1e-5)
    assert min(overlap(held.prob.argmax(0), held.label, held.label >= 0, n) for n in (1, 2)) > 0.6


def test_the_preview_of_a_larger_scan_changes_nothing_of_what_follows(refined, monkeypatch):
    monkeypatch.setattr(ensemble, "PREVIEW_WORK", 1.0)
    image, label, found, _ = refined
    both = Ensemble().fit(image, label, WEIGHT)
    preview = both.preview()
    assert preview.method == "forest and random walk"
    assert min(scores(preview.whole(SHAPE), label, WEIGHT)) > 0.7
    np.testing.assert_array_equal(both.refine().prob, found.prob)
    again = both.fit(image[::-1].copy(), label[::-1].copy(), WEIGHT[::-1].copy()).preview()
    assert min(scores(again.whole(SHAPE)[:, ::-1], label, WEIGHT)) > 0.7  # nothing is left of the former scan


def test_it_is_the_same_again(refined):
    image, label, found, _ = refined
    other = np.where(WEIGHT > 0, label, 55)  # labels that do not count
    ensemble = Ensemble(num_classes=3).fit(image, other, WEIGHT)
    again = ensemble.refine()
    assert again is ensemble.refine()
    np.testing.assert_array_equal(again.prob, found.prob)
    np.testing.assert_array_equal(again.held.prob, found.held.prob)
    np.testing.assert_array_equal(ensemble.predict_proba(), found.whole(SHAPE))


def test_the_preview_is_told_at_once():
    """And in larger scans without learning from parts."""
    image, label = nested()
    for work in (1e6, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparse3dunet.propagation.ensemble.PREVIEW_WORK", work)
            found = Ensemble().fit(image, label, WEIGHT).preview()
        assert found.held is None
        whole = found.whole(SHAPE)
        assert_probabilities(whole, SHAPE, 3)
        assert min(scores(whole, label, WEIGHT)) > 0.8


@pytest.mark.parametrize("work", [1e6, 1])
def test_a_method_that_is_lost_does_no_harm(work, monkeypatch):
    """Scattered voxels are told by their gray value alone, and no walk finds them."""
    monkeypatch.setattr(ensemble, "PREVIEW_WORK", work)
    random = np.random.default_rng(0)
    label = (random.random(SHAPE) < 0.1).astype(int)
    image = label + random.normal(0, 0.2, SHAPE)
    fitted = Ensemble().fit(image, label, WEIGHT)
    for found in (fitted.preview(), fitted.refine()):
        assert scores(found.whole(SHAPE), label, WEIGHT)[0] > 0.65  # with the walk in equal parts 0.3


def test_channels_are_looked_at_together():
    """Each shows one of two structures."""
    image, label = nested()
    random = np.random.default_rng(1)
    channels = np.stack([(label > 0), (label > 1)]) + random.normal(0, 0.15, (2, *SHAPE))
    prob = Ensemble().fit(channels, label[None], WEIGHT[None]).predict_proba()
    assert_probabilities(prob, SHAPE, 3)
    assert min(scores(prob, label, WEIGHT)) > 0.85


def test_thick_slices():
    """Of 5 mm, of which every other one is annotated; the spacing may be of any kind of numbers."""
    shape = (40, 44, 6)
    image, label = nested(shape=shape)
    weight = on_slices(shape, [], [], [1, 3])
    found = Ensemble().fit(image.astype(np.float64), label.astype(np.uint8), weight > 0, np.array([1, 1, 5])).refine()
    prob = found.whole(shape)
    assert_probabilities(prob, shape, 3)
    assert overlap(prob.argmax(0), label, np.arange(6) == 2 + 0 * label, 1) > 0.85
    assert found.held is not None


def test_scribbles():
    image, label = nested()
    weight = np.zeros(SHAPE)
    weight[2:22, 10, 8] = weight[12, 3:17, 5] = weight[1, 2:18, 12] = weight[5:20, 9, 10] = weight[12, 10] = 1
    found = Ensemble().fit(image, label, weight).refine()
    prob = found.whole(SHAPE)
    assert_probabilities(prob, SHAPE, 3)
    assert min(scores(prob, label, weight)) > 0.75
    assert found.held is not None
    assert found.held.slices == ()


@pytest.mark.parametrize("number", [0, 1])
def test_annotation_of_one_class(number):
    """All is what is annotated; of other classes nothing is known."""
    image, label = nested(shape=SMALL)
    weight = on_slices(SMALL, [], [], [3, 7])
    prob = Ensemble(num_classes=3).fit(image, np.full(SMALL, number), weight).predict_proba()
    assert_probabilities(prob, SMALL, 3)
    assert (prob.argmax(0) == number).all()
    assert np.delete(prob, number, 0).max() < 0.01


def test_five_voxels():
    image, label = nested(shape=SMALL)
    weight = np.zeros(SMALL)
    for place in ((8, 7, 6), (0, 0, 0), (8, 7, 1), (15, 13, 11), (8, 11, 6)):
        weight[place] = 1
    prob = Ensemble().fit(image, label, weight).predict_proba()
    assert_probabilities(prob, SMALL, int(label[weight > 0].max()) + 1)


def test_all_is_annotated():
    image, label = nested(shape=SMALL)
    found = Ensemble().fit(image, label, np.ones(SMALL)).refine()
    assert_probabilities(found.whole(SMALL), SMALL, 3)
    assert (found.prob.argmax(0) == label).mean() > 0.9
    assert found.held is None


@pytest.mark.parametrize("value", [0.0, -1000.0, 3e8])
def test_an_image_that_shows_nothing(value):
    _, label = nested(shape=SMALL)
    prob = Ensemble().fit(np.full(SMALL, value), label, on_slices(SMALL, [], [], [3, 6, 8])).predict_proba()
    assert_probabilities(prob, SMALL, 3)
    assert overlap(prob.argmax(0), label, label >= 0, 1) > 0.5  # by position and shape


@pytest.mark.parametrize("shape", [(20, 18, 1), (1, 20, 18), (20, 18, 2)])
def test_flat_scans(shape):
    image, label = nested(shape=(20, 18, 9))
    image, label = (np.take(a, range(3, 3 + min(shape)), 2).reshape(shape) for a in (image, label))
    weight = np.zeros(shape)
    weight.reshape(20, 18, -1)[[4, 9, 14]] = 1
    prob = Ensemble().fit(image, label, weight).predict_proba()
    assert_probabilities(prob, shape, int(label[weight > 0].max()) + 1)


def test_a_large_scan_is_worked_on_coarsely():
    """Around its foreground, and its result is as fine as the scan."""
    shape = (56, 52, 40)
    image, label = np.random.default_rng(0).normal(0, 0.15, shape).astype(np.float32), np.zeros(shape, int)
    label[16:40, 16:36, 12:28] = nested()[1]
    image += label
    weight = on_slices(shape, [], [], [13, 16, 20, 24, 27])
    ensemble = Ensemble(work=3e4).fit(image, label, weight)
    found = ensemble.refine()
    assert found.prob.shape == (3, *(b.stop - b.start for b in found.box))
    assert found.prob[0].size < label.size
    whole = found.whole(shape)
    assert_probabilities(whole, shape, 3)
    assert min(scores(whole, label, weight)) > 0.75
    assert overlap(whole.argmax(0) > 0, label > 0, weight == 0, True) > 0.85
    assert (whole.argmax(0) == label)[weight > 0].all()
    place = tuple(found.held.place.T)
    assert overlap(label[place] > 0, found.held.label > 0, found.held.label >= 0, True) > 0.8
    assert (found.held.place < shape).all()


def test_coarse_borders_move_to_the_edges_of_the_image():
    shape, step = (48, 48, 24), (4, 4, 2)
    image, label = nested(shape=shape, noise=0.05)
    scan = scan_of(image, label, on_slices(shape, [], [], [12]))
    votes = pooled(one_hot(torch.from_numpy(label), torch.ones(shape, dtype=torch.bool), 3), step)
    coarse = one_hot(votes.argmax(0), torch.ones(votes.shape[1:], dtype=torch.bool), 3)
    fine = Field(tuple(slice(0, n) for n in shape), step).fine(coarse.numpy(), scan)
    free = ~scan.known.numpy()
    before, after = (float((p.argmax(0) != label)[free].mean()) for p in (enlarged(coarse, step, shape).numpy(), fine))
    assert after < 0.5 * before


@pytest.mark.parametrize("axis", range(3))
def test_a_large_stack_is_finest_across_its_slices(axis):
    """Only a few voxels lie between two annotated ones; slices on three axes prefer none of them."""
    shape = [64, 64, 64]
    shape[axis] = 24
    spacing = np.where(np.arange(3) == axis, 2.0, 0.8)
    image, label = np.zeros(shape), np.zeros(shape, int)
    label[8:-8, 8:-8, 8:-8] = 1
    stack = [range(2, 24, 4) if a == axis else [] for a in range(3)]
    weight = on_slices(shape, *stack)
    crossing = on_slices(shape, *([n // 2] for n in shape))
    steps = [Field.of(scan_of(image, label, given, spacing=spacing), 3e4).step for given in (weight, crossing)]
    assert steps[0][axis] == 1
    assert min(np.delete(steps[0], axis)) >= 3
    assert steps[1][axis] == 2


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("annotated", "below", "above"),
    [
        ([30], 40, 40),
        ([30, 31], 39, 39),
        ([20, 30, 40], 10, 10),
        ([10, 30, 50], 20, 20),
        ([29, 30, 31, 32], 8, 8),
        ([38, 39, 40], 39, 8),
    ],
)
def test_what_is_seen_on_one_slice_may_reach_far(axis, annotated, below, above):
    """As far as it is wide; with several slices, as far as these are apart. It ends within a run of slices."""
    shape, spacing = [60, 60, 60], [1.0, 1.0, 1.0]
    spacing[axis] = 0.5
    label = np.zeros(shape, int)
    label[20:40, 20:40, 20:40] = 1
    if len(annotated) == 4:
        np.moveaxis(label, axis, 0)[[29, 32]] = 0
    weight = np.zeros(shape)
    np.moveaxis(weight, axis, 0)[annotated] = 1
    box = Field.of(scan_of(label, label, weight, spacing), most=1e5).box[axis]
    shown = [index for index in annotated if np.moveaxis(label, axis, 0)[index].any()]
    assert (box.start, box.stop) == (max(shown[0] - below, 0), min(shown[-1] + 1 + above, 60))


def test_what_is_scribbled_on_one_slice_may_reach_far():
    shape = (60, 60, 60)
    label, weight = np.zeros(shape, int), np.zeros(shape)
    label[0:40, 20:40] = 1  # up to the border, beyond which nothing is
    weight[::3, ::3, 30] = 1
    box = Field.of(scan_of(label, label, weight), most=1e5).box
    assert [(b.start, b.stop) for b in box] == [(0, 48), (13, 48), (0, 60)]


def test_slices_to_hold_out_may_be_given():
    """Also where a scan is worked on coarsely."""
    image, label = nested()
    weight = on_slices(SHAPE, [], [], [4, 8, 11])
    given = [[[], [], [4]], [[], [], [11]]]
    for work in (1e6, 2e4):
        held = Ensemble(slices=given, work=work).fit(image, label, weight).refine().held
        assert len(held.slices) == 2
        for number, (_, _, indices) in zip(held.slices, given, strict=True):
            assert np.abs(held.place[held.part == number][:, 2] - indices[0]).max() <= (0 if work == 1e6 else 2)


def test_data_that_cannot_be_used():
    image, label = nested(shape=SMALL)
    weight = on_slices(SMALL, [], [], [3])
    broken = image.copy()
    broken[3, 3, 3] = np.nan
    cases = [
        (image[:-1], label, weight, (1, 1, 1), "expected an image"),
        (image, label, weight * 0, (1, 1, 1), "annotate at least one slice"),
        (image, label, weight, (1, 1, 0), "three numbers above 0"),
        (image, label, weight, (1, 1), "three numbers above 0"),
        (broken, label, weight, (1, 1, 1), "NaN or infinity"),
    ]
    for *given, words in cases:
        with pytest.raises(DataError, match=words):
            Ensemble().fit(*given)
    with pytest.raises(DataError, match="labels are 0 to 2, expected 0 to 1"):
        Ensemble(num_classes=2).fit(image, label, on_slices(SMALL, [], [], [5]))


def test_a_share_above_one_makes_nothing_surer():
    first = np.array([0.45, 0.55], np.float32)[:, None]
    second = np.array([0.6, 0.4], np.float32)[:, None]
    for share in (0.0, 0.3, 1.0, 4.0, 100.0):
        found = ensemble.product(first, second, share)
        assert found.sum() == pytest.approx(1)
        assert (found[0] > 0.5) == (share >= 1)
        assert found.max() < 0.65
    np.testing.assert_allclose(ensemble.product(first, second, 0.0), first, rtol=1e-5)
