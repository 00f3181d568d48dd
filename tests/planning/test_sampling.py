"""How often patches are drawn around each class."""

from types import SimpleNamespace

import numpy as np
import pytest

from sparse3dunet.data.sampling import SeededSampler
from sparse3dunet.planning.sampling import EVERY, class_balance, class_shares, draw_shares
from sparse3dunet.transforms import RandPatchCenter

COUNTS = [[9000, 1000, 0], [9500, 450, 50], [8000, 2000, 0], [7000, 3000, 0]]


@pytest.mark.parametrize("balance", [0, 0.3, 1])
def test_shares_are_those_that_sampler_and_patches_draw(balance):
    """The sampler draws a case, RandPatchCenter a class: together they draw each class as often as predicted."""
    weights = draw_shares(COUNTS, [1.0, 1, 1, 3], balance)
    cases = [case for case, _ in SeededSampler(weights.tolist(), 4000, seed=1)]
    center = RandPatchCenter(1, balance).set_random_state(seed=2)
    drawn = np.zeros(3)
    for case in cases:
        voxels = np.split(np.arange(10000), np.cumsum(COUNTS[case])[:2])
        index = int(np.ravel_multi_index(center(voxels, (100, 10, 10)), (100, 10, 10)))
        drawn[next(k for k, own in enumerate(voxels) if index in own)] += 1
    assert drawn / 4000 == pytest.approx(class_shares(COUNTS, [1.0, 1, 1, 3], balance), abs=0.025)


def test_extremes():
    assert draw_shares(COUNTS, [1.0, 1, 1, 1], 0) == pytest.approx([0.25] * 4)
    # The third class is in the second case alone: it is drawn for a third of the patches, and its share of others.
    assert draw_shares(COUNTS, [1.0, 1, 1, 1], 1)[1] == pytest.approx(1 / 3 + 2 / 3 / 4)


def a_report(counts):
    return SimpleNamespace(cases=[SimpleNamespace(class_counts=row) for row in counts])


def test_every_class_is_seen_every_few_iterations():
    rare = [[99_950, 50], *[[100_000, 0]] * 19]  # one of twenty cases, 0.05 % of its voxels
    for batch_size in (1, 2, 4):
        balance = class_balance(a_report(rare), batch_size)
        assert class_shares(rare, [1.0] * 20, balance)[1] * batch_size * EVERY >= 1
    assert class_balance(a_report(COUNTS), 2) > class_balance(a_report(COUNTS), 4) > 0
    assert class_balance(a_report([[500, 500]]), 2) == 0


def test_a_class_that_nobody_annotated():
    assert class_balance(a_report([[900, 100, 0]]), 2) == 0


def test_a_class_that_nobody_annotated_asks_for_nothing():
    """Beside a rare one, which is drawn as often as if there were only the others."""
    rare = [[99_950, 50], *[[100_000, 0]] * 19]
    assert class_balance(a_report([[*row, 0] for row in rare]), 2) == class_balance(a_report(rare), 2) > 0
