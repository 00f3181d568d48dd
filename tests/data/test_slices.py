"""Annotated slices are found where they can be, and nowhere else."""

import itertools

import numpy as np
import pytest

from sparse3dunet.data import slices
from sparse3dunet.data.slices import find_slices, listed_slices, nonempty_slices, plane_names, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.transforms import KeepScribbles

RAS = np.eye(4)


def ball(shape=(40, 44, 36), radius=0.8):
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    return (grid**2).sum(0) < radius**2


@pytest.mark.parametrize("seed", range(30))
def test_random_slices_are_found(seed):
    """Of any number, in any directions, adjacent ones among them: from the whole slices and from their foreground."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(30, 50, 3))
    slices = [
        sorted(random.choice(np.arange(n // 4, 3 * n // 4), random.integers(0, 4), False).tolist()) for n in shape
    ]
    if not any(slices):
        slices[0] = [shape[0] // 2, shape[0] // 2 + 1]
    mask = slices_mask(shape, slices)
    assert find_slices(mask) == slices
    assert nonempty_slices("all", mask & ball(shape), RAS, "a.nii") == slices


def test_adjacent_slices_are_not_taken_for_others():
    slices = [[], [], [15, 16, 17, 18, 19]]
    assert find_slices(slices_mask((40, 44, 36), slices) & ball()) == slices


@pytest.mark.parametrize(
    "mask",
    [ball(), ball(radius=0.2), np.arange(40 * 44 * 36).reshape(40, 44, 36) % 7 == 0],
    ids=["a ball", "a small ball", "a pattern"],
)
def test_what_is_no_slices_is_told_nothing(mask):
    assert find_slices(mask) is None
    with pytest.raises(DataError, match=r"a\.nii: cannot determine which slices are annotated.*List them"):
        nonempty_slices("all", mask, RAS, "a.nii")


def test_a_section_of_one_voxel_is_not_guessed_at():
    mask = slices_mask((40, 44, 36), [[20], [], []]) & ball()
    mask[5, 20, 20] = True
    assert find_slices(mask) is None


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_scribbles_are_refused(width):
    """In orthogonal directions, with any brush: no silent wrong answer in 20 draws."""
    label = (ball((60, 60, 60)) * 1 + ball((60, 60, 60), 0.4)).astype(np.int16)
    scribble = KeepScribbles(14, 40, width)
    for seed in range(20):
        scribble.set_random_state(seed)
        foreground = (scribble(label[None])[0].numpy() > 0) & (label > 0)
        with pytest.raises(DataError, match="scribbles"):
            nonempty_slices("all", foreground, RAS, "a.nii")


def test_one_direction_named_where_there_are_others():
    mask = slices_mask((40, 44, 36), [[20], [], [10, 20]]) & ball()
    with pytest.raises(DataError, match=r"in other directions too: sagittal \[20\].*\"all\""):
        nonempty_slices("axial", mask, RAS, "a.nii")


def test_slices_that_cross_adjacent_ones_are_not_taken_for_a_named_plane():
    """What shows bands of two voxels is not axial annotation; with a stray voxel nothing can be told."""
    mask = slices_mask((60, 60, 60), [[], [30, 31], [20, 30, 40]]) & ball((60, 60, 60))
    mask[30, 3, 30] = mask[2, 30, 12] = True
    with pytest.raises(DataError, match="axial"):
        nonempty_slices("axial", mask, RAS, "a.nii")


def test_small_structures_are_taken_at_the_users_word():
    mask = np.zeros((20, 20, 20), bool)
    mask[3:17, 10, [4, 9, 14]] = True
    with pytest.raises(DataError, match=r"cannot determine whether.*whole slices.*\"axial\": \"nonempty\""):
        nonempty_slices("axial", mask, RAS, "a.nii")
    assert nonempty_slices({"axial": "nonempty"}, mask, RAS, "a.nii") == [[], [], [4, 9, 14]]


def test_planes_by_the_affine():
    for order in itertools.permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([-1.0, 2.0, -0.5])[:, order]
        names = plane_names(affine)
        assert names == [("sagittal", "coronal", "axial")[i] for i in order]
        listed = listed_slices({"Axial": [3, 1, 3]}, (5, 5, 5), affine, "a.nii")
        assert listed[names.index("axial")] == [1, 3]
        assert sum(map(len, listed)) == 2


@pytest.mark.parametrize(
    ("specification", "words"),
    [
        ({"axial": [7]}, ["lists 7 under 'axial'", "0 ... 4", "ITK-SNAP"]),
        ({"axial": [-1]}, ["lists -1"]),
        ({"axial": [1.0]}, ["lists 1.0"]),
        ({"axial": ["3"]}, ["lists '3'"]),
        ({"axial": [True]}, ["lists True"]),
        ({"frontal": [1]}, ["'frontal'", "neither a plane nor an axis"]),
        ({"3": [1]}, ["'3'", "neither a plane"]),
        ("frontal", ["'frontal'"]),
        ({"axial": [1], "coronal": "nonempty"}, ["lists 'nonempty' under 'coronal'"]),
        ({}, ["lists no slice"]),
        ([[], [], []], ["lists no slice"]),
        ([1, 2], ["annotated_slices is [1, 2]"]),
        (3.5, ["annotated_slices is 3.5"]),
    ],
)
def test_wrong_specifications(specification, words):
    with pytest.raises(DataError) as error:
        listed_slices(specification, (5, 5, 5), RAS, "a.nii")
    assert all(word in str(error.value) for word in ["a.nii", *words]), error.value


def slowly(mask):
    """The least width of squares of which fewer adjacent slices show one, tried one by one."""
    width = 2
    while True:
        shown = [np.flatnonzero(slices._has_square(mask, axis, width)) for axis in range(3)]
        if max(map(slices._longest_run, shown)) < width:
            return width
        width += 1


def test_a_dense_map_is_looked_at_a_few_times_however_large(monkeypatch):
    random = np.random.default_rng(0)
    for _ in range(200):
        shape = random.integers(1, 14, 3)
        mask = random.random(shape) < random.random()
        mask |= slices_mask(shape, [np.flatnonzero(random.random(n) < 0.3).tolist() for n in shape])
        assert slices._least_width(mask) == slowly(mask)
    looks, has_square = [], slices._has_square
    monkeypatch.setattr(slices, "_has_square", lambda *given: looks.append(1) or has_square(*given))
    ball = np.square(np.indices((99, 99, 99)) - 49).sum(0) < 40**2
    assert find_slices(ball) is None
    assert len(looks) < 40
