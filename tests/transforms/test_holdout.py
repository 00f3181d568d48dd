"""Slices held out: every one once, none trained on, whole, and the same each time."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.data.slices import find_slices, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.transforms import HoldOutSlices, HoldOutSlicesd

SLICES = [[3, 7, 8], [5], [2, 11]]
SHAPE = (14, 12, 13)


def weight(slices=None, shape=SHAPE):
    return torch.from_numpy(slices_mask(shape, slices or SLICES))[None].float() * 2.5


def parts(fold, folds, w, **more):
    return [HoldOutSlices(fold, folds, part, **more)(w, "a") for part in ("training", "validation")]


@pytest.mark.parametrize("folds", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", [0, 1])
def test_folds(folds, seed):
    """The parts have no voxel in common and add up to the whole; over the folds each slice is held out once."""
    w = weight()
    held_out = []
    for fold in range(folds):
        training, validation = parts(fold, folds, w, seed=seed)
        assert torch.equal(training + validation, w)
        assert not ((training > 0) & (validation > 0)).any()
        slices = find_slices(validation[0].numpy() > 0)
        held_out += [(axis, i) for axis, indices in enumerate(slices) for i in indices]
        for axis, indices in enumerate(slices):
            for i in indices:
                plane = (0, *(slice(None),) * axis, i)
                assert (validation[plane] > 0).all(), "whole"
                assert not training[plane].any(), "crossing lines are lost to training"
        sizes = sum(map(len, slices))
        assert sizes in (6 // folds, -(-6 // folds))
    assert sorted(held_out) == [(0, 3), (0, 7), (0, 8), (1, 5), (2, 2), (2, 11)]


def test_outermost_slices_are_spread_over_the_folds():
    """Three slices an axis in three folds: none holds out the first, or the last, of two directions."""
    slices = [[2, 5, 8]] * 3
    for fold in range(3):
        held_out = HoldOutSlices(fold, 3, "validation")(weight(slices), "a")
        assert sorted(find_slices(held_out[0].numpy() > 0)) == [[2], [5], [8]]


@pytest.mark.parametrize("slices", [[[3], [], [4]], [[], [2, 6], []], [[1, 9], [], []], [[3], [4], []]])
@pytest.mark.parametrize("folds", [2, 3])
def test_no_fold_takes_all_of_a_case(slices, folds):
    for name in ("a", "b", "c", "d"):
        for fold in range(folds):
            assert (HoldOutSlices(fold, folds)(weight(slices), name) > 0).any()


def test_what_became_of_one_slice_stays_together():
    """Resampled to half the voxel size, a slice is two adjacent ones: never one trained on and the other scored."""
    fine = [[24, 25], [20, 21], [18, 19]]
    w = weight(fine, (48, 40, 36))
    for fold in range(3):
        training, validation = parts(fold, 3, w, adjacent_together=True)
        assert torch.equal(training + validation, w)
        held_out = find_slices(validation[0].numpy() > 0)
        assert [s for s in held_out if s] == [fine[axis] for axis in range(3) if held_out[axis]]
        assert sum(map(bool, held_out)) == 1


def test_cases_begin_with_different_folds():
    """With one slice an axis, no fold holds out the same direction of all cases."""
    w = weight([[3], [4], [5]])
    directions = set()
    for number in range(20):
        validation = HoldOutSlices(0, 3, "validation")(w, f"case_{number}")
        directions.add(tuple(map(bool, find_slices(validation[0].numpy() > 0))))
    assert len(directions) == 3


def test_dictionary_twin_goes_by_the_files_name():
    def data(path):
        return {"weight": MetaTensor(weight(), affine=np.diag([1, 2, 3, 1]), meta={"filename_or_obj": path}), "x": 1}

    hold_out = HoldOutSlicesd("weight", fold=1, folds=3, part="validation")
    here, there = hold_out(data("/here/a.nii.gz")), hold_out(data("/there/a.nii.gz"))
    assert torch.equal(here["weight"], there["weight"])
    assert torch.equal(here["weight"], HoldOutSlices(1, 3, "validation")(weight(), "a.nii.gz"))
    assert here["weight"].affine[2, 2] == 3
    assert HoldOutSlicesd("weight", fold=0, allow_missing_keys=True)({"x": 1}) == {"x": 1}


def test_what_cannot_be_held_out():
    hold_out = HoldOutSlices(0, 3)
    with pytest.raises(DataError, match="b: every voxel is annotated"):
        hold_out(torch.ones(1, 5, 5, 5), "b")
    with pytest.raises(DataError, match="not made of slices"):
        hold_out((torch.rand(1, 9, 9, 9) > 0.5).float(), "b")
    with pytest.raises(DataError, match=r"only one slice .* is annotated"):
        hold_out(weight([[3], [], []]), "b")
    for fold, folds in ((3, 3), (-1, 3), (0, 1), ("0", 3)):
        with pytest.raises(DataError, match="fold must be"):
            HoldOutSlices(fold, folds)
    with pytest.raises(ValueError, match="part"):
        HoldOutSlices(0, 3, "test")


@pytest.mark.parametrize("slices", [[3], [[], [], [-1]], [[], [], [99]], [[], [], [], [1]], [[], [], ["1"]], "axial"])
def test_listed_slices_are_the_cases_own(slices):
    hold_out = HoldOutSlices(listed={"a": slices, "b": [[], [], [2]]}, part="validation")
    with pytest.raises(DataError, match=r"a: the slices are .*; expected a list of indices for each axis"):
        hold_out(weight(), "a")
    assert find_slices(hold_out(weight(), "b")[0].numpy() > 0) == [[], [], [2]]
