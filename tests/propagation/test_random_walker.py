"""A random walk is scikit-image's; what is annotated stays; how a scan lies, and its brightness, do not matter."""

import numpy as np
import pytest
import torch
from skimage.segmentation import random_walker

from sparse3dunet.errors import DataError
from sparse3dunet.propagation import Ensemble, Forest, PriorWalker, RandomWalker, ShapeInterpolation
from sparse3dunet.propagation.random_walker import conductances, solve
from tests.propagation.scans import SHAPE, assert_probabilities, nested, on_slices, overlap, scan_of

WEIGHT = on_slices(SHAPE, [12], [], [3, 8, 12])


def walked(image, label, weight=WEIGHT, spacing=(1, 1, 1), **options):
    return RandomWalker(**options).fit(image, label, weight, spacing).predict_proba()


@pytest.mark.filterwarnings("ignore:The probability range is outside")
def test_it_is_scikit_images_walker():
    image, label = nested(noise=0.3)
    scan = scan_of(image, label, WEIGHT)
    gray = scan.image[0].numpy().astype(np.float64)
    seeds = np.where(WEIGHT > 0, label + 1, 0)
    exact = random_walker(gray, seeds, beta=100, mode="cg_j", tol=1e-6, return_full_prob=True)
    found = walked(image, label, beta=100, iterations=500)
    assert (found.argmax(0) == exact.argmax(0)).mean() > 0.97
    assert np.abs(found - exact).mean() < 0.02


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 4)])
def test_probabilities_and_annotation(spacing):
    image, label = nested()
    prob = walked(image, label, spacing=spacing)
    assert_probabilities(prob, SHAPE, 3)
    known = WEIGHT > 0
    np.testing.assert_array_equal(prob.argmax(0)[known], label[known])
    np.testing.assert_allclose(prob.max(0)[known], 1, atol=1e-5)
    assert overlap(prob.argmax(0), label, ~known, 1) > 0.85
    assert overlap(prob.argmax(0), label, ~known, 2) > 0.85


@pytest.mark.parametrize("shape", [SHAPE, (10, 9, 8)])
def test_a_class_that_is_not_annotated_is_impossible(shape):
    """However few the iterations, and however hard the image is to walk."""
    image, label = nested(shape=shape, noise=1)
    weight = on_slices(shape, [], [], [4])
    prob = walked(image, label * (label < 2) + 3 * (label == 2), weight, num_classes=5, iterations=2)
    assert_probabilities(prob, shape, 5)
    assert prob[2].max() == 0
    assert prob[4].max() == 0


def test_axes_may_be_flipped_and_swapped():
    image, label = nested()
    weight = on_slices(SHAPE, [], [], [4, 11])
    first = walked(image, label, weight, (1, 1.25, 2.0), beta=200, iterations=200)
    order = (2, 0, 1)
    turned = [np.ascontiguousarray(a.transpose(order)) for a in (image, label, weight)]
    second = walked(*turned, (2.0, 1, 1.25), beta=200, iterations=200)
    np.testing.assert_allclose(second, first.transpose(0, 3, 1, 2), atol=1e-3)
    flipped = [np.ascontiguousarray(a[::-1, :, ::-1]) for a in (image, label, weight)]
    third = walked(*flipped, (1, 1.25, 2.0), beta=200, iterations=200)
    np.testing.assert_allclose(third, first[:, ::-1, :, ::-1], atol=5e-3)


def test_neither_brightness_nor_contrast_matter():
    image, label = nested()
    np.testing.assert_allclose(walked(image * 3 + 7, label), walked(image, label), atol=5e-3)


def test_what_is_not_annotated_does_not_matter():
    image, label = nested()
    other = np.where(WEIGHT > 0, label, 77)
    np.testing.assert_array_equal(walked(image, label), walked(image, other))


def test_an_edge_in_any_channel_counts():
    """The first channel shows nothing."""
    image, label = nested(noise=0.02)
    dull = np.random.default_rng(1).normal(0, 0.02, SHAPE).astype(np.float32)
    prob = walked(np.stack([dull, image]), label)
    assert_probabilities(prob, SHAPE, 3)
    assert overlap(prob.argmax(0), label, WEIGHT == 0, 2) > 0.8


def test_channels_do_not_add_up():
    """The same ones change nothing, and more that show the same with other noise make it better."""
    channels = [nested(seed, noise=0.4)[0] for seed in range(4)]
    label = nested()[1]
    one = walked(channels[0], label, beta=200)
    np.testing.assert_allclose(walked(np.stack(channels[:1] * 3), label, beta=200), one, atol=1e-4)
    more = walked(np.stack(channels), label, beta=200)
    assert (more.argmax(0) == label).mean() > (one.argmax(0) == label).mean()


def test_thick_slices_are_farther_apart():
    """Halfway between planes of two classes both are as likely; where voxels are longer that way, the other is."""
    shape, label, weight = (9, 9, 9), np.zeros((9, 9, 9), int), np.zeros((9, 9, 9))
    label[..., 0] = weight[..., 0] = weight[0] = 1
    label[0, :, 0] = weight[0, :, 0] = 0
    image = np.zeros(shape)
    halves = [walked(image, label, weight, s, iterations=300)[1, 4, 4, 4] for s in ((1, 1, 1), (1, 1, 4), (4, 1, 1))]
    assert halves[0] == pytest.approx(0.5, abs=0.01)
    assert halves[1] < 0.45
    assert halves[2] > 0.55


@pytest.mark.parametrize("options", [{"beta": 0}, {"beta": -1}, {"iterations": 0}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be .*, got"):
        RandomWalker(**options)


def matrix(edges, shape):
    """The graph's Laplacian."""
    index = np.arange(np.prod(shape)).reshape(shape)
    result = np.zeros((index.size, index.size))
    for axis, edge in enumerate(edges):
        a, b = (np.take(index, range(s, shape[axis] - 1 + s), axis).ravel() for s in (0, 1))
        for i, j, value in zip(a, b, edge.numpy().ravel()):
            result[[i, j], [i, j]] += value
            result[i, j] -= value
            result[j, i] -= value
    return result


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_solver_solves(gamma):
    random, shape = np.random.default_rng(3), (4, 4, 3)
    image = torch.from_numpy(random.random((1, *shape)).astype(np.float32))
    edges = conductances(image, (1.0, 2.0, 1.5), 4.0)
    fixed = torch.zeros(shape, dtype=torch.bool)
    fixed[0, 0, 0] = fixed[3, 2, 1] = fixed[1, 3, 2] = True
    start = torch.from_numpy(random.random((2, *shape)).astype(np.float32))
    prior = torch.from_numpy(random.random((2, *shape)).astype(np.float32)) if gamma else None
    found = solve(edges, fixed, start, 200, gamma, prior, tolerance=1e-7)
    whole, free = matrix(edges, shape) + gamma * np.eye(48), ~fixed.numpy().ravel()
    for number in range(2):
        value = start[number].numpy().ravel().astype(float)
        right = -whole[free][:, ~free] @ value[~free]
        if prior is not None:
            right += gamma * prior[number].numpy().ravel()[free]
        value[free] = np.linalg.solve(whole[free][:, free], right)
        np.testing.assert_allclose(found[number].numpy().ravel(), value, atol=1e-4)


def test_a_prior_moves_to_the_edge():
    """Of two halves, whose border is told two voxels off and blurred."""
    image = np.zeros(SHAPE, np.float32)
    image[12:] = 1
    image += np.random.default_rng(0).normal(0, 0.02, SHAPE).astype(np.float32)
    label, weight = np.zeros(SHAPE, int), np.zeros(SHAPE)
    label[23], weight[[0, 23]] = 1, 1
    upper = np.broadcast_to(np.clip((np.arange(24) - 10) / 8 + 0.5, 0, 1)[:, None, None], SHAPE)
    prior = np.stack([1 - upper, upper]).astype(np.float32)
    assert np.flatnonzero(prior.argmax(0)[:, 5, 5])[0] < 12
    prob = PriorWalker(prior, gamma=0.1, iterations=60).fit(image, label, weight).predict_proba()
    assert_probabilities(prob, SHAPE, 2)
    assert ((prob.argmax(0) == 1) == (np.arange(24) >= 12)[:, None, None]).mean() > 0.99
    np.testing.assert_array_equal(prob[1][23], 1)


def test_without_edges_a_prior_stays():
    random = np.random.default_rng(0)
    prior = np.full((2, *SHAPE), 0.5, np.float32)
    prior[0, :12], prior[1, :12] = 0.9, 0.1
    weight = np.zeros(SHAPE)
    weight[0] = 1
    image = random.random(SHAPE).astype(np.float32)
    prob = PriorWalker(prior, gamma=1e4).fit(image, np.zeros(SHAPE, int), weight).predict_proba()
    np.testing.assert_allclose(prob[:, 1:], prior[:, 1:], atol=0.01)


def test_data_that_cannot_be_used():
    image, label = nested()
    walker = RandomWalker()
    cases = [
        (image[:-1], label, WEIGHT, (1, 1, 1), "got shapes"),
        (image, label[..., :-1], WEIGHT, (1, 1, 1), "got shapes"),
        (image[0], label, WEIGHT, (1, 1, 1), "got shapes"),
        (image, label, WEIGHT * 0, (1, 1, 1), "no voxel is annotated"),
        (image, label, WEIGHT, (1, 1), "spacing must be three numbers above 0"),
        (image, label, WEIGHT, (1, 0, 1), "spacing must be three numbers above 0"),
        (image, label, WEIGHT, (1, -1, 1), "spacing must be three numbers above 0"),
        (image, label, WEIGHT, (1, np.nan, 1), "spacing must be three numbers above 0"),
        (image, label - 1, WEIGHT, (1, 1, 1), "labels are -1"),
    ]
    for *given, words in cases:
        with pytest.raises(DataError, match=words):
            walker.fit(*given)
    with pytest.raises(DataError, match="expected 0 to 1"):
        RandomWalker(num_classes=2).fit(image, label, WEIGHT)
    for shape in ((3, 5, 5, 5), SHAPE):
        with pytest.raises(DataError, match=r"prior has shape .*; expected \(\d+, 24, 20, 16\)"):
            PriorWalker(np.ones(shape)).fit(image, label * 0, WEIGHT)


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf])
def test_numbers_of_a_walk_are_above_zero(value):
    prior = np.full((2, *SHAPE), 0.5)
    for make in (
        lambda: RandomWalker(beta=value),
        lambda: PriorWalker(prior, beta=value),
        lambda: PriorWalker(prior, gamma=value),
    ):
        with pytest.raises(ValueError, match="must be a number above 0, got"):
            make()
    if value:
        with pytest.raises(DataError, match="the prior has values that are negative, NaN or infinite"):
            PriorWalker(np.where(np.arange(16) == 3, value, prior))


@pytest.mark.parametrize(
    "method", [RandomWalker(), PriorWalker(np.ones((2, *SHAPE))), Forest(), ShapeInterpolation(), Ensemble()]
)
def test_a_fit_comes_first(method):
    with pytest.raises(DataError, match=rf"this {type(method).__name__} was not fitted yet; call fit\(image, label"):
        method.predict_proba()


@pytest.mark.parametrize("shape", [SHAPE, (600, 4, 4)])
def test_gray_values_that_are_no_numbers(shape):
    """One of them is enough, also between the slices of a long scan that its range is told by."""
    image, weight = np.random.default_rng(0).random(shape), np.zeros(shape)
    weight[:, 2] = 1
    image[1, 2, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        RandomWalker().fit(image, weight, weight)


def test_conductances_are_those_of_cubes_along_the_finest_axis():
    image = torch.zeros(1, 3, 4, 5)
    image[:, 1:] = 0.5
    edges = conductances(image, (2.0, 1.0, 4.0), beta=3.0)
    assert [tuple(edge.shape) for edge in edges] == [(2, 4, 5), (3, 3, 5), (3, 4, 4)]
    for edge, expected in zip(edges, ((np.exp(-0.75) + 1e-4) / 2**0.5, 1 + 1e-4, (1 + 1e-4) / 2)):
        assert float(edge.flatten()[0]) == pytest.approx(expected, rel=1e-5)


def test_the_solver_ends_when_it_is_as_exact_as_asked():
    """Whatever the number of voxels: a looser tolerance is less exact, and a tighter one reaches the solution."""
    random = torch.Generator().manual_seed(0)
    edges = conductances(torch.rand(1, 8, 9, 10, generator=random), (1, 1, 1), beta=1.0)
    fixed = torch.rand(8, 9, 10, generator=random) < 0.05
    start = torch.rand(2, 8, 9, 10, generator=random)
    exact = solve(edges, fixed, start, 2000, tolerance=0.0)
    off = [float((solve(edges, fixed, start, 2000, tolerance=t) - exact).abs().max()) for t in (0.3, 1e-1, 1e-2, 1e-5)]
    assert off[0] > off[1] > off[2] > off[3]
    assert off[2] > 1e-5
    assert off[3] < 1e-3
    for scale in (1e-3, 1e3):  # of the problem, which is linear
        found = solve(edges, fixed, scale * start, 2000, tolerance=0.1) / scale
        torch.testing.assert_close(found, solve(edges, fixed, start, 2000, tolerance=0.1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("shape", "spacing"), [((40, 40, 40), (1, 1, 1)), ((64, 64, 9), (1, 1, 4))])
def test_coarser_grids_bring_annotation_far(shape, spacing):
    """They begin with the classes' shares of what is annotated in a block, however little it is."""
    image, label = nested(shape=shape, noise=0.1)
    weight = np.zeros(image.shape)
    weight[::9, ::9, :: 9 if shape[2] > 9 else 2] = 1  # single voxels
    prob = walked(image, label, weight, spacing, iterations=1)
    assert overlap(prob.argmax(0), label, weight == 0, 1) > 0.6


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 2, 1), (1, 3, 2)])
@pytest.mark.parametrize(("shape", "order"), [((128, 120, 1), (0, 1, 2)), ((128, 120, 4), (2, 0, 1))])
def test_annotation_reaches_far_in_thin_volumes(shape, order, spacing):
    """Also if the thin axis has the finest voxels."""
    label = np.zeros(shape, int)
    label[:, 60:] = 1
    image = label + np.random.default_rng(0).normal(0, 0.02, shape)
    weight = on_slices(shape, [3])
    given = [a.transpose(order) for a in (image, label, weight)]
    prob = walked(*given, [spacing[axis] for axis in order], beta=200)
    assert (prob.argmax(0) == given[1]).mean() > 0.99
    assert prob.max(0).mean() > 0.9
