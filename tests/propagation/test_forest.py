"""Forests learn from annotated voxels, and trees from what other methods say of held-out ones."""

import numpy as np
import pytest
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.propagation import AutoContext, Forest
from sparse3dunet.propagation.forest import context, draw, features, mean_prob
from tests.propagation.scans import SHAPE, assert_probabilities, nested, on_slices, overlap, quick, scan_of

WEIGHT = on_slices(SHAPE, [], [], [3, 8, 12])


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    with quick(12):
        yield


def test_a_forest_learns_from_slices():
    image, label = nested()
    prob = Forest().fit(image, label, WEIGHT).predict_proba()
    assert_probabilities(prob, SHAPE, 3)
    unknown = WEIGHT == 0
    assert min(overlap(prob.argmax(0), label, unknown, n) for n in (1, 2)) > 0.85
    other = Forest().fit(image, np.where(unknown, 77, label), WEIGHT).predict_proba()
    np.testing.assert_array_equal(prob, other)  # the same seed, and labels that do not count


def test_a_class_that_is_not_annotated_is_impossible():
    image, label = nested()
    prob = Forest(num_classes=5).fit(image, np.where(label == 2, 3, label), WEIGHT).predict_proba()
    assert_probabilities(prob, SHAPE, 5)
    assert prob[[2, 4]].max() == 0


def test_position_tells_apart_what_looks_alike():
    """Two blobs of one gray value, of two classes."""
    label = np.zeros(SHAPE, int)
    label[2:10, 6:14, 4:12], label[14:22, 6:14, 4:12] = 1, 2
    image = (label > 0) + np.random.default_rng(0).normal(0, 0.1, SHAPE)
    weight = on_slices(SHAPE, [], [], [5, 10])
    scores = []
    for position in (True, False):
        found = Forest(position=position).fit(image, label, weight).predict_proba().argmax(0)
        scores.append(np.mean([overlap(found, label, weight == 0, n) for n in (1, 2)]))
    assert scores[0] > 0.95
    assert 1 - scores[0] < 0.5 * (1 - scores[1])


def test_how_many_voxels_are_drawn():
    """Few of each class; their weights stand for all."""
    label = np.zeros(SHAPE, int)
    label[:4], label[4, 0, :3] = 1, 2
    mask = np.ones(SHAPE, bool)
    mask[..., -1] = False
    drawn = draw(mask, label, 0, most=50, most_background=80)
    assert np.bincount(drawn.label).tolist() == [80, 50, 3]
    assert len(np.unique(drawn.index)) == len(drawn.index)
    assert mask.ravel()[drawn.index].all()
    np.testing.assert_array_equal(label.ravel()[drawn.index], drawn.label)
    totals = np.bincount(drawn.label, drawn.weight)
    np.testing.assert_allclose(totals, np.bincount(label[mask]))


def test_the_mean_of_methods_does_not_depend_on_their_order():
    random = np.random.default_rng(0)
    members = random.dirichlet(np.ones(3), (2, 4, 4, 4)).transpose(0, 4, 1, 2, 3).astype(np.float16)
    mean = mean_prob(members)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(mean, mean_prob(members[::-1]), atol=1e-6)
    same = mean_prob(np.stack([members[0], members[0]]))
    np.testing.assert_allclose(same, np.clip(members[0], 2e-3, 1) / np.clip(members[0], 2e-3, 1).sum(0), atol=2e-3)


def test_trees_learn_which_method_is_right():
    """One method says the truth, the other its opposite, and the image shows noise."""
    random = np.random.default_rng(0)
    _, label = nested()
    label = (label > 0).astype(int)
    scan = scan_of(random.random(SHAPE), label, WEIGHT)
    right = np.stack([1 - 0.6 * label - 0.2, 0.6 * label + 0.2]).astype(np.float32)
    members = np.stack([right, right[::-1]])
    columns = context(scan, members, mean_prob(members))
    assert columns.shape[0] == label.size
    np.testing.assert_allclose(columns[:, -1].reshape(SHAPE)[0, 0, :9], [3, 2, 1, 0, 1, 2, 2, 1, 0])
    looks, held = features(scan), torch.from_numpy(WEIGHT > 0)
    trees = AutoContext()
    drawn = trees.draw(scan, held)
    rows = np.concatenate([columns[drawn.index], looks[drawn.index]], 1)
    found = trees.fit([rows], [drawn]).predict([columns, looks], 2).reshape(2, *SHAPE)
    assert_probabilities(found, SHAPE, 2)
    assert overlap(found.argmax(0), label, WEIGHT == 0, 1) > 0.95


def test_trees_that_were_not_fitted():
    with pytest.raises(DataError, match=r"this AutoContext was not fitted yet; call fit\(rows, drawn\)"):
        AutoContext().predict([np.zeros((4, 3))], 2)
