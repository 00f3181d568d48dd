"""What the network adds to propagation."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from sparse3dunet.densify.network import _to_file_order, choose_share, network_on_held_out
from sparse3dunet.densify.propagated import combined, mixed, own_calibration, to_file_order
from sparse3dunet.keys import IMAGE, REFERENCE
from sparse3dunet.propagation.ensemble import Held
from tests.conftest import write_nifti

COUNT = 3000
ALL = np.ones(COUNT, bool)
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def unsure(label, wrong=None, sure=0.6):
    """(2, N) probabilities of the label, or of its opposite."""
    said = label if wrong is None else np.where(wrong, 1 - label, label)
    foreground = np.where(said == 1, sure, 1 - sure)
    return np.stack([1 - foreground, foreground]).astype(np.float32)


def held_out(wrong_share=0.3, seed=0):
    random = np.random.default_rng(seed)
    label, wrong = (random.random(COUNT) < 0.4).astype(int), random.random(COUNT) < wrong_share
    place = np.zeros((COUNT, 3), int)
    held = Held(
        unsure(label, wrong), label, random.uniform(1, 5, COUNT), np.ones(COUNT), place, np.zeros(COUNT, int), (0,)
    )
    return held, label, wrong


def test_a_useless_network_has_no_share():
    held, label, _ = held_out()
    random = np.random.default_rng(1)
    noise = random.dirichlet([1, 1], COUNT).T
    opposite = unsure(1 - label, sure=0.9)
    for prob in (noise, opposite, np.full((2, COUNT), 0.5)):
        assert choose_share({"a": held}, {"a": (ALL, prob)}, 2) == 0
    assert choose_share({"a": held}, {}, 2) == 0


def test_a_few_voxels_are_noise():
    """The network is right on three voxels more."""
    held, label, wrong = held_out()
    prob = np.full((2, COUNT), 0.5)
    few = np.flatnonzero(wrong)[:3]
    prob[:, few] = unsure(label[few], sure=0.99)
    assert choose_share({"a": held}, {"a": (ALL, prob)}, 2) == 0


def test_a_network_that_does_no_harm_has_a_share():
    """The final one learns from more slices, and is better than the one that is measured."""
    held, label, wrong = held_out(wrong_share=0.1)
    assert choose_share({"a": held}, {"a": (ALL, held.prob)}, 2) > 0
    random = np.random.default_rng(1)
    harmful = unsure(label, wrong | (random.random(COUNT) < 0.08), sure=0.99)
    assert choose_share({"a": held}, {"a": (ALL, harmful)}, 2) == 0


@pytest.mark.parametrize(("shown", "chosen"), [(0.3, True), (0.02, False)])
def test_a_network_that_is_far_behind_must_help_clearly(shown, chosen):
    """It calls what it does not know background, but is right on some voxels that propagation mistakes."""
    held, label, wrong = held_out(wrong_share=0.2)
    prob = np.tile(np.array([[0.52], [0.48]]), (1, COUNT))
    knows = np.random.default_rng(1).random(COUNT) < shown
    prob[:, knows] = unsure(label[knows], sure=0.99)
    assert (choose_share({"a": held}, {"a": (ALL, prob)}, 2) > 0) == chosen


def test_a_network_that_is_right_where_propagation_is_wrong_has_one():
    held, label, wrong = held_out()
    prob = unsure(label, sure=0.95)
    assert choose_share({"a": held}, {"a": (ALL, prob)}, 2) > 0
    random = np.random.default_rng(2)
    often = unsure(label, random.random(COUNT) < 0.05, sure=0.95)
    share = choose_share({"a": held}, {"a": (ALL, often)}, 2)
    assert share > 0
    both = mixed(own_calibration(held), held.prob, held.distance, often, share)
    assert (both.argmax(0) == label).mean() > (held.prob.argmax(0) == label).mean() + 0.05
    np.testing.assert_allclose(both.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_network_that_is_too_sure_does_not_make_the_result_so(share):
    """Right in 4 of 5 voxels and always sure: where both agree, half of propagation's doubt is left at least."""
    held, label, _ = held_out()
    wrong = np.random.default_rng(3).random(COUNT) < 0.2
    sure = unsure(label, wrong, sure=0.9999)
    calibration = own_calibration(held)
    alone = calibration(held.prob, held.distance)
    both = mixed(calibration, held.prob, held.distance, sure, share)
    np.testing.assert_array_equal(mixed(calibration, held.prob, held.distance, sure, 0.0), alone)
    np.testing.assert_array_equal(mixed(calibration, held.prob, held.distance, None, share), alone)
    assert (1 - both.max(0) >= 0.5 * (1 - alone.max(0)) - 1e-6)[both.argmax(0) == alone.argmax(0)].all()


def test_only_what_both_did_not_know_counts():
    """The network is right on the first part, and of the second nothing is told."""
    held, label, _ = held_out()
    inside = np.arange(COUNT) < COUNT // 2
    prob = unsure(label, sure=0.95)[:, inside]
    assert choose_share({"a": held, "b": held_out(seed=1)[0]}, {"a": (inside, prob)}, 2) > 0


def test_a_class_that_nothing_shows():
    held, _, _ = held_out()
    empty = Held(held.prob, held.label * 0, held.distance, held.weight, held.place, held.part, (0,), 0)
    assert choose_share({"a": empty}, {"a": (ALL, held.prob)}, 2) == 0


def test_a_share_of_the_network():
    held, label, _ = held_out()
    network = unsure(label, sure=0.95)
    assert combined(held.prob, None, 1.0) is held.prob
    assert combined(held.prob, network, 0.0) is held.prob
    product = held.prob * network
    np.testing.assert_allclose(combined(held.prob, network, 1.0), product / product.sum(0), atol=1e-5)


def affine_of(order, signs):
    """Of a file whose axis i goes along the world's axis order[i], that way or the other."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs)):
        affine[world, axis] = sign * (1.0 + axis)
    affine[:3, 3] = (5, -7, 11)
    return affine


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_the_files_order(order, signs):
    """Of volumes and of slices, there and back."""
    affine, random = affine_of(order, signs), np.random.default_rng(0)
    in_file = random.random((4, 5, 6)).astype(np.float32)
    ras = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(in_file, affine)).dataobj)
    np.testing.assert_array_equal(_to_file_order(np.stack([ras, 1 - ras]), affine), np.stack([in_file, 1 - in_file]))
    slices = [[0, 2], [1], [0, 1, 3]]
    marked = np.zeros(ras.shape)
    for axis, indices in enumerate(slices):
        for index in indices:
            marked[(slice(None),) * axis + (index,)] += 10**axis
    found = np.zeros(in_file.shape)
    for axis, indices in enumerate(to_file_order(slices, affine, in_file.shape)):
        assert indices == sorted(indices)
        for index in indices:
            found[(slice(None),) * axis + (index,)] += 10 ** order[axis]
    np.testing.assert_array_equal(found, _to_file_order(marked[None], affine)[0])


@pytest.mark.parametrize(("order", "signs"), [TURNS[0], TURNS[13], TURNS[42]])
def test_the_network_on_held_out_voxels(tmp_path, order, signs):
    """Its probabilities are those of the voxels that the first part holds, wherever they lie in the file."""
    affine, random = affine_of(order, signs), np.random.default_rng(0)
    data = random.normal(size=(6, 5, 4)).astype(np.float32)
    path = str(write_nifti(tmp_path / "a.nii.gz", data, affine))
    place = np.stack([random.integers(0, n, 40) for n in data.shape], 1)
    part, label = np.repeat([0, 1], 20), np.zeros(40, int)
    held = Held(np.full((2, 40), 0.5), label, np.ones(40), np.ones(40), place, part, (0,), 0)

    def load(item):
        assert REFERENCE not in item
        canonical = nib.as_closest_canonical(nib.load(item[IMAGE]))
        return {IMAGE: torch.from_numpy(np.ascontiguousarray(canonical.get_fdata(dtype=np.float32)))[None]}

    def inferer(batch, network):
        return network(torch.cat([batch, -batch], 1))

    cases = [{IMAGE: path, REFERENCE: "secret"}, {IMAGE: str(tmp_path / "other.nii.gz")}]
    network = torch.nn.Identity()
    found = network_on_held_out(network, cases, {"a": held}, "cpu", load, inferer)
    assert list(found) == ["a"]
    inside, prob = found["a"]
    np.testing.assert_array_equal(inside, part == 0)
    values = data[tuple(place[:20].T)]
    np.testing.assert_allclose(prob, torch.softmax(torch.tensor(np.stack([values, -values])), 0), atol=1e-6)
    unknown = Held(held.prob, label, held.distance, held.weight, place, part, ())
    assert network_on_held_out(network, cases, {"a": unknown}, "cpu", load, inferer) == {}
    outside = Held(held.prob, label, held.distance, held.weight, place + 6, part, (0,), 0)
    assert network_on_held_out(network, cases, {"a": outside}, "cpu", load, inferer) == {}
