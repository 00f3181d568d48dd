"""Classes of few voxels, or on one slice only, through all methods together: none is lost, or costs another one."""

import numpy as np
import pytest

from sparse3dunet.propagation import Ensemble, ensemble
from tests.propagation.scans import SHAPE, assert_probabilities, nested, on_slices, overlap, quick


@pytest.fixture(autouse=True, scope="module")
def few_trees():
    with quick():
        yield


def test_a_class_on_one_slice_is_not_lost():
    _, label = nested()
    label = (label > 0).astype(int)
    label[9:15, 7:13, 6:11] = 2
    image = label + np.random.default_rng(0).normal(0, 0.15, SHAPE)
    weight = on_slices(SHAPE, [], [], [3, 8, 13])
    prob = Ensemble().fit(image, label, weight).predict_proba()
    assert overlap(prob.argmax(0), label, weight == 0, 2) > 0.6


def test_a_class_of_one_voxel():
    """It cannot be held out; all else can."""
    image, label = nested()
    label = (label > 0).astype(int)
    label[12, 10, 8] = 2
    weight = on_slices(SHAPE, [], [], [4, 8])
    ensemble = Ensemble().fit(image, label, weight)
    prob = ensemble.refine().whole(SHAPE)
    assert_probabilities(prob, SHAPE, 3)
    assert overlap(prob.argmax(0), label, weight == 0, 1) > 0.8


@pytest.mark.parametrize("boards", [0, ensemble.BOARDS])
def test_a_class_of_one_voxel_costs_no_other_class(boards, monkeypatch):
    """Where blocks could not be held out because of it, and no slice of another class, that other one was lost."""
    monkeypatch.setattr(ensemble, "BOARDS", boards)
    _, label = nested()
    label = (label > 0).astype(int)
    label[9:15, 7:13, 6:11] = 2
    image = label + np.random.default_rng(0).normal(0, 0.5, SHAPE)
    weight = on_slices(SHAPE, [6], [4], [8])
    label[2, 2, 8] = 3
    with quick(32):
        prob = Ensemble(slices=[[[6], [], []], [[], [4], []]]).fit(image, label, weight).predict_proba()
    assert overlap(prob.argmax(0), label, weight == 0, 2) > 0.7
    assert_probabilities(prob, SHAPE, 4)
