"""Suggested slices lie where they help, and templates keep the annotation."""

import json
from itertools import permutations

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.conventions import infer
from sparse3dunet.data.slices import nonempty_slices, slices_mask
from sparse3dunet.densify.suggest import (
    IN_DOUBT,
    Suggestion,
    as_rows,
    show,
    suggest_slices,
    template,
    with_mark,
    write_json,
)
from sparse3dunet.errors import DataError

SHAPE = (48, 40, 44)
AFFINE = np.array([[1.0, 0, 0, -20], [0, 1.5, 0, -10], [0, 0, 2.0, 5], [0, 0, 0, 1]])


def ball(centre, radius, shape=SHAPE):
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return sum((axis - place) ** 2 for axis, place in zip(grid, centre)) < radius**2


def scene(doubts=(), foreground=None, shape=SHAPE):
    """Confident all over but in the balls (centre, radius); foreground, and no annotation."""
    confidence = np.full(shape, 254, np.uint8)
    for centre, radius in doubts:
        confidence[ball(centre, radius, shape)] = 130
    inside = np.zeros(shape, np.int16)
    inside[tuple(slice(n // 8, n - n // 8) for n in shape)] = 1
    return confidence, inside if foreground is None else foreground, np.zeros(shape, bool)


def indices(suggestions, axis):
    return sorted(s.index for s in suggestions if s.axis == axis)


def test_planted_doubt_is_found():
    centre = (16, 25, 31)
    found = suggest_slices(*scene([(centre, 4)]), AFFINE, count=1)
    assert {s.plane for s in found} == {"sagittal", "coronal", "axial"}
    for s in found:
        assert abs(s.index - centre[s.axis]) <= 3
        assert s.position == pytest.approx(AFFINE[s.axis, s.axis] * s.index + AFFINE[s.axis, 3])
        assert s.distance is None
    assert found[0].benefit == 1
    assert [s.benefit for s in found] == sorted((s.benefit for s in found), reverse=True)
    assert all(0 < s.benefit <= 1 for s in found)


def test_doubt_is_the_mean_over_foreground_and_what_is_in_doubt():
    confidence = np.full((20, 20, 20), 255, np.uint8)
    segmentation = np.zeros(confidence.shape, np.uint8)
    segmentation[5:15, 5:15, 5:15] = 1
    confidence[10, 5:10, 5:15] = 155
    confidence[10, 15, 5:15] = 255 - IN_DOUBT
    (found,) = [s for s in suggest_slices(confidence, segmentation, segmentation > 1, np.eye(4), 1) if s.axis == 0]
    assert found.index == 10
    assert found.doubt == pytest.approx((50 * 100 + 10 * IN_DOUBT) / 110 / 255)


def test_an_annotated_slice_is_never_suggested():
    confidence, segmentation, _ = scene([((16, 25, 31), 4)])
    known = [[16, 17], [], [31]]
    annotated = slices_mask(SHAPE, known)
    found = suggest_slices(confidence, segmentation, annotated, AFFINE, count=50)
    for axis in range(3):
        assert indices(found, axis)
        assert not {*indices(found, axis)} & {*known[axis]}
        assert len(indices(found, axis)) == len({*indices(found, axis)})
    assert all(s.distance == min(abs(s.index - i) for i in known[0]) for s in found if s.axis == 0)
    assert all(s.distance is None for s in found if s.axis == 1)
    assert all(s.distance == 2 * abs(s.index - 31) for s in found if s.axis == 2)


def test_a_slice_annotated_but_for_its_border_is_annotated():
    confidence, segmentation, annotated = scene([((16, 25, 31), 4)])
    annotated[3:-3, 3:-3, 31] = True
    found = suggest_slices(confidence, segmentation, annotated, AFFINE, count=50)
    assert indices(found, 2)
    assert 31 not in indices(found, 2)
    assert all(s.distance == 2 * abs(s.index - 31) for s in found if s.axis == 2)


def test_nothing_where_all_is_annotated():
    confidence, segmentation, annotated = scene()
    assert suggest_slices(confidence, segmentation, ~annotated, AFFINE) == []
    assert suggest_slices(confidence, segmentation, annotated, AFFINE, count=0) == []


@pytest.mark.parametrize("axis", range(3))
def test_of_thick_slices_only_these_are_suggested(axis):
    spacing = [7.5 if a == axis else 0.5 for a in range(3)]
    confidence, segmentation = np.full((12, 12, 12), 128, np.uint8), np.zeros((12, 12, 12), np.uint8)
    segmentation[3:9, 3:9, 3:9] = 1
    found = suggest_slices(confidence, segmentation, np.zeros((12, 12, 12), bool), np.diag([*spacing, 1]), 3)
    assert found
    assert {suggestion.axis for suggestion in found} == {axis}


def test_two_places_of_doubt_both_get_one():
    places = ((10, 9, 10), (36, 30, 33))
    found = suggest_slices(*scene([(place, 4) for place in places]), AFFINE, count=2)
    for axis in range(3):
        for index, place in zip(indices(found, axis), places, strict=True):
            assert abs(index - place[axis]) <= 4


def test_one_place_of_doubt_does_not_get_all():
    found = suggest_slices(*scene([((24, 20, 22), 6)]), AFFINE, count=3)
    for axis in range(3):
        assert np.diff(indices(found, axis)).min() >= 3


@pytest.mark.parametrize("value", [0, 128, 255])
def test_even_doubt_spreads_evenly(value):
    """Over the extent of the foreground."""
    segmentation = np.zeros((64, 64, 64), np.uint8)
    segmentation[8:56, 8:56, 8:56] = 1
    confidence, annotated = np.full(segmentation.shape, value, np.uint8), np.zeros(segmentation.shape, bool)
    for count in (1, 2, 3, 4):
        found = suggest_slices(confidence, segmentation, annotated, np.eye(4), count)
        for axis in range(3):
            even = 7.5 + 48 * (np.arange(count) + 0.5) / count
            assert np.abs(indices(found, axis) - even).max() <= 4


def test_annotated_slices_keep_suggestions_off():
    segmentation = np.zeros((64, 64, 64), np.uint8)
    segmentation[8:56, 8:56, 8:56] = 1
    annotated = slices_mask(segmentation.shape, [[20], [20], [20]])
    found = suggest_slices(np.full(segmentation.shape, 128, np.uint8), segmentation, annotated, np.eye(4), 1)
    assert len(found) == 3
    assert all(36 <= s.index <= 48 for s in found)


def test_doubt_far_from_the_foreground_does_not_win():
    """An undertrained network doubts all empty space; a little doubt at the foreground is worth more."""
    shape = (80, 60, 60)
    foreground = ball((20, 30, 30), 10, shape).astype(np.uint8)
    confidence = np.full(shape, 250, np.uint8)
    confidence[45:] = 90
    confidence[ball((20, 30, 30), 11, shape)] = 225
    found = suggest_slices(confidence, foreground, np.zeros(shape, bool), np.eye(4), 3)
    assert len(indices(found, 0)) == 3
    assert max(indices(found, 0)) < 40
    # The same doubt does count where nothing is known of a foreground.
    found = suggest_slices(confidence, np.zeros(shape, np.uint8), np.zeros(shape, bool), np.eye(4), 1)
    assert len(indices(found, 0)) == 1
    assert indices(found, 0)[0] > 45


def physical(suggestions):
    return [(s.plane, round(s.position, 6), s.benefit, s.doubt, s.distance) for s in suggestions]


@pytest.mark.parametrize("value", [None, 100])
def test_axes_in_another_order_or_direction_change_nothing(value):
    """Nor in ties, of which even doubt in a symmetric foreground has many."""
    random = np.random.default_rng(0)
    confidence, segmentation, annotated = scene()
    confidence = random.integers(0, 256, SHAPE, np.uint8) if value is None else np.full_like(confidence, value)
    annotated = slices_mask(SHAPE, [[11], [], [20, 30]]) if value is None else annotated
    expected = physical(suggest_slices(confidence, segmentation, annotated, AFFINE, 3))
    assert len(expected) == 9
    for axes in permutations(range(3)):
        for flips in ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, 1, -1)):
            ornt = np.array(list(zip(axes, flips)))
            arrays = [nib.apply_orientation(a, ornt) for a in (confidence, segmentation, annotated)]
            affine = AFFINE @ nib.orientations.inv_ornt_aff(ornt, SHAPE)
            found = suggest_slices(*arrays, affine, 3)
            assert physical(found) == expected
            for s in found:
                point = np.array([(n - 1) / 2 for n in arrays[0].shape])
                point[s.axis] = s.index
                world = ("sagittal", "coronal", "axial").index(s.plane)
                assert (affine @ [*point, 1])[world] == pytest.approx(s.position)


def test_mirrored_content_gives_mirrored_suggestions():
    confidence, segmentation, annotated = scene([((10, 25, 31), 4), ((30, 11, 12), 5)])
    annotated[15] = True
    found = suggest_slices(confidence, segmentation, annotated, AFFINE, 2)
    mirrored = suggest_slices(confidence[::-1], segmentation[::-1], annotated[::-1], AFFINE, 2)
    for axis in range(3):
        there = [SHAPE[0] - 1 - i for i in indices(mirrored, 0)][::-1] if axis == 0 else indices(mirrored, axis)
        assert np.abs(np.subtract(there, indices(found, axis))).max() <= 1  # the middle of a tie may be either of two


def test_oblique_affine():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    found = suggest_slices(*scene([((16, 25, 31), 4)]), turn @ AFFINE, 1)
    assert {s.plane: s.axis for s in found} == {"sagittal": 0, "coronal": 1, "axial": 2}


def test_scribbles():
    """No slice is annotated, but what is scribbled on is in doubt no longer."""
    confidence, segmentation, annotated = scene([((10, 20, 22), 5), ((36, 20, 22), 5)])
    annotated[ball((36, 20, 22), 6)] = True
    found = suggest_slices(confidence, segmentation, annotated, AFFINE, 1)
    assert all(s.distance is None for s in found)
    assert abs(indices(found, 0)[0] - 10) <= 4


@pytest.mark.parametrize("shape", [(40, 40, 1), (1, 40, 40), (40, 40, 2), (5, 4, 3), (1, 1, 40), (1, 1, 1)])
def test_thin_volumes(shape):
    """Where a plane's slices are lines, there is nothing to annotate on them."""
    confidence, annotated = np.full(shape, 99, np.uint8), np.zeros(shape, bool)
    for segmentation in (np.zeros(shape, np.uint8), np.ones(shape, np.uint8)):
        found = suggest_slices(confidence, segmentation, annotated, np.diag([1.0, 1, 2, 1]), 3)
        for axis in range(3):
            lines = min(n for other, n in enumerate(shape) if other != axis) == 1
            assert len(indices(found, axis)) == (0 if lines else min(3, shape[axis]))


def test_large_volumes_on_a_coarse_grid(monkeypatch):
    """Blocks of voxels change little."""
    case = scene([((16, 25, 31), 4)])
    fine = suggest_slices(*case, AFFINE, 1)
    monkeypatch.setattr("sparse3dunet.densify.suggest.MOST_VOXELS", 3000)
    coarse = suggest_slices(*case, AFFINE, 1)
    assert len(fine) == 3
    assert [s.plane for s in coarse] == [s.plane for s in fine]
    assert all(abs(a.index - b.index) <= 2 for a, b in zip(coarse, fine, strict=True))


def suggestion(axis, index):
    return Suggestion(("sagittal", "coronal", "axial")[axis], axis, index, 1.5, 0.51234, 0.25, None)


def test_template_keeps_the_annotation_and_fills_the_slices():
    random = np.random.default_rng(0)
    label = np.full((8, 9, 10), 255, np.uint8)
    annotated = slices_mask(label.shape, [[2], [], [5]])
    label[annotated] = random.integers(0, 3, annotated.sum())
    segmentation = random.integers(0, 3, label.shape).astype(np.int16)
    before = label.copy()
    result = template(label, segmentation, [suggestion(0, 6), suggestion(2, 1)], annotated)
    filled = slices_mask(label.shape, [[6], [], [1]]) & ~annotated
    assert result.dtype == np.uint8
    assert np.array_equal(result[annotated], label[annotated])
    assert np.array_equal(result[filled], segmentation[filled])
    assert (result[~filled & ~annotated] == 255).all()
    assert np.array_equal(label, before)
    assert np.array_equal(template(label, segmentation, [], annotated), label)


@pytest.mark.parametrize(
    ("stored", "unlabeled", "value", "expected"),
    [
        (np.uint8, 255, 700, np.uint16),
        (np.uint8, 255, -1, np.int16),
        (np.int16, -1, 700, np.int16),
        (np.float32, 255, 700, np.uint16),
        (np.float64, -1, 3, np.int8),
        (bool, 0, 2, np.uint8),
        (np.int64, 2**40, 2, np.int64),
    ],
)
def test_template_holds_the_values_of_both(stored, unlabeled, value, expected):
    label = np.full((3, 3, 3), unlabeled, stored)
    result = template(label, np.full((3, 3, 3), value, np.int16), [suggestion(0, 1)], np.zeros((3, 3, 3), bool))
    assert result.dtype == expected
    assert (result[1] == value).all()
    assert (result[0] == unlabeled).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [2, 3, 4, 7])
@pytest.mark.parametrize("crossing", [0, 1, 3])
def test_the_slices_of_a_template_are_found_again(axis, step, crossing):
    """Where 0 is background and unlabeled: many annotated slices, and suggested ones that cross them."""
    shape = (40, 36, 32)
    dense = ball((20, 18, 16), 12, shape).astype(np.uint8) + ball((20, 18, 16), 5, shape)
    stack = [i for i in range(1, shape[axis], step) if dense.take(i, axis).any()]
    annotated = slices_mask(shape, [stack if a == axis else [] for a in range(3)])
    others = [suggestion(a, 12 + 4 * n) for a in range(3) if a != axis for n in range(crossing)]
    suggested = [*others, suggestion(axis, next(i for i in (15, 16, 17) if i not in stack))]
    values = template(np.where(annotated, dense, 0).astype(np.uint8), dense, suggested, annotated)
    marked = with_mark(values, suggested, annotated, "all", np.eye(4), 255)
    counted = annotated | slices_mask(shape, [[s.index for s in suggested if s.axis == a] for a in range(3)])
    convention = infer(marked, "a.nii.gz")
    if marked is values:
        assert convention.annotated_slices == "all"
        assert np.array_equal(slices_mask(shape, nonempty_slices("all", values != 0, np.eye(4), "")), counted)
    else:
        assert (convention.ignore_index, convention.annotated_slices) == ((255,), None)
        assert np.array_equal(marked != 255, counted)
        assert np.array_equal(marked[counted], dense[counted])
    if not crossing and step > 2:
        assert marked is values


def test_json(tmp_path):
    found = suggest_slices(*scene([((16, 25, 31), 4)]), AFFINE)
    path = tmp_path / "suggestions.json"
    write_json(path, {"é [b]": found, "none": []})
    read = json.loads(path.read_text(encoding="utf-8"))
    assert found
    assert read == {"é [b]": as_rows(found), "none": []}
    assert list(tmp_path.iterdir()) == [path]
    for row, s in zip(read["é [b]"], found, strict=True):
        assert list(row) == ["plane", "axis", "index", "position_mm", "benefit", "doubt", "distance_mm"]
        assert (row["plane"], row["axis"], row["index"], row["distance_mm"]) == (s.plane, s.axis, s.index, None)
        assert row["position_mm"] == pytest.approx(s.position, abs=1e-3)
        assert row["benefit"] == pytest.approx(s.benefit, abs=1e-4)


def test_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    show({})
    show({"a": []})
    assert capsys.readouterr().out == ""
    show({"a": [suggestion(0, 6)]})
    out = capsys.readouterr().out
    assert "sagittal" in out
    assert "none" in out
    assert "case" not in out
    show({f"case_[{number}]": [suggestion(2, number)] for number in range(12)})
    out = capsys.readouterr().out
    assert "case_[9]" in out
    assert "case_[10]" not in out
    assert "2 more case(s)" in out


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("mark", [-1, 255, 256, 257, 300, 70000])
def test_the_mark_of_a_template_is_no_other_value(dtype, mark):
    """NumPy takes a whole number modulo the range of 8 bits: 257 was 1, so unlabeled voxels were of class 1."""
    values = np.zeros((6, 5, 4), dtype)
    values[:, :, 1] = 2
    annotated = slices_mask(values.shape, [[2], [3], [1]])
    marked = with_mark(values, [], annotated, "all", np.eye(4), mark)
    assert (marked[~annotated] == mark).all()
    np.testing.assert_array_equal(marked[annotated], values[annotated])


def test_confidence_that_is_no_uint8():
    confidence, segmentation, annotated = scene([((24, 20, 22), 6)])
    for wrong in (confidence / 255, confidence.astype(np.int64), confidence.tolist()):
        with pytest.raises(DataError, match="confidence must be uint8, 255 for a probability of 1"):
            suggest_slices(wrong, segmentation, annotated, AFFINE)
    for shapes in ((confidence[:-1], segmentation, annotated), (confidence, segmentation, annotated[None])):
        with pytest.raises(DataError, match="must have one shape"):
            suggest_slices(*shapes, AFFINE)
