"""How sure methods are, and the decision that is best."""

import numpy as np
import pytest

from sparse3dunet.propagation.calibration import Calibration, decide, dice, importance
from sparse3dunet.propagation.scan import softmax


def likelihood(prob, label):
    return -np.log(np.maximum(prob[label, np.arange(len(label))], 1e-4)).mean()


def sample(prob, random):
    """A class of each voxel, as probable as (K, N) says."""
    return (random.random(prob.shape[1]) > prob.cumsum(0)).sum(0).clip(max=len(prob) - 1)


def calibrated(random, classes=3, count=5000, spread=2.0):
    return softmax(random.normal(0, spread, (classes, count))).astype(np.float32)


def test_too_sure_methods_are_made_less_sure():
    random = np.random.default_rng(0)
    true = calibrated(random)
    label = sample(true, random)
    prob = softmax(2 * np.log(true))
    distance, weight = random.uniform(0, 10, len(label)), np.ones(len(label))
    fitted = Calibration.fit(prob, label, distance, weight)
    assert fitted.near + fitted.far / 2 == pytest.approx(np.log(2), abs=0.25)
    better = fitted(prob, distance)
    np.testing.assert_allclose(better.sum(0), 1, atol=1e-5)
    assert likelihood(better, label) < likelihood(prob, label) - 0.03
    np.testing.assert_array_equal(better.argmax(0), prob.argmax(0))


def test_it_depends_on_the_distance():
    """Sure beside the annotation with reason; too sure far from it."""
    random = np.random.default_rng(1)
    true = calibrated(random)
    label = sample(true, random)
    distance = random.uniform(0, 10, len(label))
    prob = softmax(np.log(true) * (1 + distance / 10))
    fitted = Calibration.fit(prob, label, distance, np.ones(len(label)))
    assert fitted.far > 0.25
    assert abs(fitted.near) < 0.25
    far = distance > 7
    assert likelihood(fitted(prob, distance)[:, far], label[far]) < likelihood(prob[:, far], label[far])
    grid = np.full((2, 3, 4), 50.0)
    out = fitted(prob[:, :24].reshape(3, 2, 3, 4), grid)
    np.testing.assert_allclose(out, fitted(prob[:, :24], np.full(24, fitted.reach)).reshape(3, 2, 3, 4), atol=1e-6)


def test_what_is_calibrated_stays():
    random = np.random.default_rng(2)
    prob = calibrated(random)
    label, distance = sample(prob, random), random.uniform(0, 10, prob.shape[1])
    np.testing.assert_allclose(Calibration()(prob, distance), prob, atol=1e-3)
    nothing = Calibration.fit(prob[:, :0], label[:0], distance[:0], distance[:0])
    assert nothing == Calibration()
    fitted = Calibration.fit(prob, label, distance, np.ones(len(label)))
    assert abs(fitted.near) <= 0.2 + 1e-9
    assert abs(fitted.near + fitted.far) <= 0.3


def test_held_out_voxels_weigh_as_the_others_distances():
    random = np.random.default_rng(0)
    held, target = random.uniform(0, 10, 20000), random.triangular(0, 2, 10, 5000)
    weight = importance(held, target)
    assert weight.min() > 0
    edges = np.linspace(0, 10, 6)
    wanted = np.histogram(target, edges)[0] / len(target)
    found = np.histogram(held, edges, weights=weight)[0] / weight.sum()
    assert np.abs(found - wanted).max() < 0.05
    assert np.abs(np.histogram(held, edges)[0] / len(held) - wanted).max() > 0.1


@pytest.mark.parametrize(("held", "target"), [([], [1.0]), ([1.0, 2.0], []), ([1.0, 2.0], [3.0, 3.0])])
def test_importance_where_nothing_can_be_told(held, target):
    np.testing.assert_array_equal(importance(np.array(held), np.array(target)), np.ones(len(held)))


def expected_dice(prob, classes):
    """Of each class but the background."""
    found = [2 * prob[n][classes == n].sum() / ((classes == n).sum() + prob[n].sum()) for n in range(1, len(prob))]
    return np.mean(found)


@pytest.mark.parametrize("seed", range(4))
def test_the_decision_is_better_than_the_most_probable_class(seed):
    """Where much is in doubt, and the background likely: by probabilities, and by labels drawn from them."""
    random = np.random.default_rng(seed)
    prob = softmax(random.normal(0, 1.2, (3, 4000)) + np.array([[1.2], [0], [-0.5]])).astype(np.float32)
    classes, told = decide(prob, np.ones(4000, bool))
    assert expected_dice(prob, classes) > expected_dice(prob, prob.argmax(0)) + 0.01
    np.testing.assert_allclose(np.mean(told[1:]), expected_dice(prob, classes), atol=1e-5)
    draws = [sample(prob, random) for _ in range(10)]
    real = [np.mean(dice(classes, label, np.ones(4000), 3)[1:]) for label in draws]
    plain = [np.mean(dice(prob.argmax(0), label, np.ones(4000), 3)[1:]) for label in draws]
    assert np.mean(real) > np.mean(plain)
    assert np.mean(real) == pytest.approx(np.mean(told[1:]), abs=0.02)


def test_the_decision_is_optimal_for_one_class():
    """Of all thresholds of the foreground's probability, that of the highest expected Dice."""
    random = np.random.default_rng(5)
    foreground = random.beta(0.6, 1.2, 3000).astype(np.float32)
    prob = np.stack([1 - foreground, foreground])
    classes, _ = decide(prob, np.ones(3000, bool), rounds=30)
    best = max(expected_dice(prob, (foreground > t).astype(int)) for t in np.linspace(0.3, 0.7, 81))
    assert expected_dice(prob, classes) == pytest.approx(best, abs=1e-3)


def test_there_are_no_gaps_between_classes():
    """Where two are equally probable, neither may gain by the voxel: but the background is not there either."""
    prob = np.full((3, 3000), 0.005, np.float32)
    prob[1, :1400] = prob[2, 1400:2800] = prob[0, 2900:] = 0.99
    prob[:, 2800:2900] = np.array([[0.06], [0.475], [0.465]])
    classes, _ = decide(prob, np.ones(3000, bool))
    np.testing.assert_array_equal(classes, prob.argmax(0))


def test_labeled_voxels_keep_their_class():
    random = np.random.default_rng(0)
    prob = calibrated(random, spread=0.7)
    unlabeled = random.random(prob.shape[1]) < 0.5
    before = prob.copy()
    classes, told = decide(prob, unlabeled)
    np.testing.assert_array_equal(classes[~unlabeled], prob.argmax(0)[~unlabeled])
    alone, same = decide(prob[:, unlabeled], np.ones(unlabeled.sum(), bool))
    np.testing.assert_array_equal(classes[unlabeled], alone)
    np.testing.assert_allclose(told, same)
    np.testing.assert_array_equal(prob, before)


def test_decisions_of_little():
    sure = np.zeros((3, 50), np.float32)
    sure[0] = 1
    classes, told = decide(sure, np.ones(50, bool))
    assert not classes.any()
    assert told[0] == pytest.approx(1)
    assert np.isnan(told[1:]).all()
    classes, told = decide(sure, np.zeros(50, bool))
    assert not classes.any()
    assert np.isnan(told).all()
    classes, told = decide(np.ones((1, 5), np.float32), np.ones(5, bool))
    assert classes.tolist() == [0] * 5
    assert told.tolist() == [1]


def test_dice_is_that_of_a_loop():
    random = np.random.default_rng(0)
    classes, label, weight = random.integers(0, 4, 500), random.integers(0, 3, 500), random.random(500)
    found = dice(classes, label, weight, 5)
    for number in range(5):
        hits = total = there = 0.0
        for c, t, w in zip(classes, label, weight):
            hits += w * (c == number and t == number)
            total += w * (int(c == number) + int(t == number))
            there += w * (t == number)
        if there:
            assert found[number] == pytest.approx(2 * hits / total)
        else:
            assert np.isnan(found[number])


def test_no_held_out_voxel_weighs_more_than_ten_times():
    """However few are as near to annotation as most of the others are."""
    held, target = np.r_[0.5, np.full(9999, 9.5)], np.linspace(0, 10, 1000)
    assert importance(held, target).max() == 10
    assert importance(held, target).min() >= 0.1
