"""Parts of the annotation that are held out."""

import numpy as np
import pytest
import torch

from sparse3dunet.data.slices import runs, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.propagation import Ensemble
from sparse3dunet.propagation.parts import deal, deal_slices
from tests.propagation.scans import SHAPE, nested, on_slices, scan_of

ANNOTATED = {
    "one direction": ([], [], [3, 8, 12]),
    "three directions": ([12], [10], [8]),
    "many": ([], [], [1, 3, 5, 8, 10, 12, 14]),
    "adjacent": ([], [], [3, 4, 9, 10, 11]),
    "two": ([], [], [5, 10]),
    "one": ([], [], [8]),
}


def scan_on(*slices, label=None, spacing=(1, 1, 1)):
    image, dense = nested()
    return scan_of(image, dense if label is None else label, on_slices(SHAPE, *slices), spacing)


def assert_sound(scan, parts):
    classes = set(scan.classes())
    for part in parts:
        assert not (part.held & part.left).any()
        assert torch.equal(part.held | part.left, scan.known)
        assert part.held.any()
        assert set(scan.label[part.left].numpy()) == classes
    blocks = [part for part in parts if part.kind == "blocks"]
    assert len(blocks) % 2 == 0
    for black, white in zip(blocks[::2], blocks[1::2], strict=True):
        assert torch.equal(black.held | white.held, scan.known)
        assert not (black.held & white.held).any()


@pytest.mark.parametrize("name", ANNOTATED)
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 5)])
def test_parts_are_sound(name, spacing):
    scan = scan_on(*ANNOTATED[name], spacing=spacing)
    parts = deal(scan, boards=2)
    assert_sound(scan, parts)
    kinds = [part.kind for part in parts]
    assert "blocks" in kinds
    assert ("slices" in kinds) == (name != "one")


@pytest.mark.parametrize("rows", [slice(2, 3), slice(3, 5), slice(10, 12), slice(12, 14), slice(19, 21)])
def test_a_class_of_few_voxels_does_not_change_the_blocks_of_the_others(rows):
    """If it cannot be held out, all else can, in blocks of the same size."""
    _, label = nested()
    usual = deal(scan_on([], [], [3, 8, 12], label=label), boards=2)
    label[rows, 2, 8] = 3
    scan = scan_on([], [], [3, 8, 12], label=label)
    parts = deal(scan, boards=2)
    assert [part.kind for part in parts] == [part.kind for part in usual]
    few = scan.label == 3
    for part, before in zip(parts, usual, strict=True):
        assert bool((part.left & few).any())
        assert torch.equal(part.held & ~few, before.held & ~few)


@pytest.mark.parametrize("name", ANNOTATED)
def test_each_slice_is_held_out_once_and_with_its_neighbours(name):
    slices = ANNOTATED[name]
    dealt = deal_slices(scan_on(*slices))
    for axis in range(3):
        held = [set(part[axis]) for part in dealt]
        if name != "one":
            assert sorted(i for one in held for i in one) == list(slices[axis])
            assert all(sum(bool(one & set(run)) for one in held) == 1 for run in runs(slices[axis]))
    assert len(dealt) == {"one": 0, "three directions": 3, "many": 3}.get(name, 2)


def test_a_class_on_one_slice_is_never_held_out_whole():
    _, label = nested()
    label[label == 2] = 1
    label[10:14, 8:12, 8] = 2
    scan = scan_on([], [], [3, 8, 12], label=label)
    parts = deal(scan, boards=2)
    assert_sound(scan, parts)
    whole = [part for part in parts if part.kind == "slices"]
    assert whole
    assert not any(part.held[..., 8].any() for part in whole)
    held_blocks = [part for part in parts if part.kind == "blocks"]
    assert held_blocks
    assert all((scan.label[part.held] == 2).any() for part in held_blocks)


def test_slices_may_be_given():
    """But for those that are not annotated, and those without which a class would hardly be shown."""
    scan = scan_on([], [], [3, 8, 12])
    parts = deal(scan, [[[], [], [3]], [[], [], [1]], [[], [], [8]]], boards=0)
    assert [part.kind for part in parts] == ["slices"]
    assert torch.equal(parts[0].held, torch.from_numpy(slices_mask(SHAPE, [[], [], [3]])))


def test_scribbles_are_held_out_in_blocks():
    image, label = nested()
    weight = np.zeros(SHAPE)
    weight[2:22, 10, 8] = weight[12, 3:17, 5] = weight[1, 2:18, 12] = weight[5:20, 9, 10] = 1
    scan = scan_of(image, label, weight)
    parts = deal(scan, boards=2)
    assert_sound(scan, parts)
    assert {part.kind for part in parts} == {"blocks"}


def test_nothing_is_held_out_of_what_is_annotated_whole_or_once():
    image, label = nested()
    assert deal(scan_of(image, label, np.ones(SHAPE))) == []
    weight = np.zeros(SHAPE)
    weight[12, 10, 8] = 1
    assert deal(scan_of(image, label, weight), boards=2) == []


@pytest.mark.parametrize("part", [[3], [[], [], [-1]], [[], [], [99]], [[], [3]], [[], [], [1.5]], "axial"])
def test_slices_to_hold_out_are_the_scans_own(part):
    image, label = nested()
    with pytest.raises(DataError, match=r"part 1 to hold out: the slices are .*; expected a list of indices for each"):
        Ensemble(slices=[[[], [], [3]], part]).fit(image, label, on_slices(SHAPE, [], [], [3, 8]))
