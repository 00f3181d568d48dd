"""How good a result is likely to be, by what was held out."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sparse3dunet.densify.estimate import ClassEstimate, Estimate, Expected, corrected, estimate, interval_text, show

NAMES = ["background", "shell", "core"]
COUNTS = np.array([900, 80, 20])


def expected(dice, held_out=None, promised=None, counts=COUNTS):
    held_out = dice if held_out is None else held_out
    return Expected(*(np.array(v, float) for v in (dice, held_out, held_out if promised is None else promised)), counts)


def estimated(*found, slices=(5, 5, 3), total=5):
    counts = np.sum([e.counts for e in found], axis=0)
    return estimate({f"case_{i}": e for i, e in enumerate(found)}, counts, slices, total, 3, NAMES)


def assert_sound(found):
    pairs = [(found.mean_dice, found.low, found.high), *((c.dice, c.low, c.high) for c in found.classes)]
    for value, low, high in pairs:
        if value is None:
            assert low is None
            assert high is None
        else:
            assert 0 <= low <= value <= high <= 1
            assert low < high


@pytest.mark.parametrize(
    ("slices", "sign"),
    [([[], [], [3, 8]], -1), ([[2], [], [3]], 1), ([[2], [4], [3]], 1), (None, 0), ([[], [], []], 0)],
)
def test_stacks_promise_too_much_and_crossing_slices_too_little(slices, sign):
    dice = np.array([0.99, 0.9, 0.1, 1.0, np.nan])
    found = corrected(dice, slices)
    assert (np.sign(np.round(found - dice, 9))[:3] == sign).all()
    assert found[3] == 1
    assert np.isnan(found[4])
    assert (found[:4] >= 0).all()


def test_the_more_slices_cross_a_stack_the_more_is_to_be_expected():
    found = [corrected(np.array([0.9]), [list(range(n)), [], list(range(20))])[0] for n in (0, 1, 5, 20)]
    assert found == sorted(found)
    assert found[1] < found[0] + 0.01
    assert found[0] < 0.9 < found[3]


def test_means_over_classes_and_volumes():
    found = estimated(expected([0.99, 0.9, 0.7]), expected([0.97, 0.8, 0.6]))
    assert [c.name for c in found.classes] == NAMES
    assert [c.slices for c in found.classes] == [5, 5, 3]
    assert [c.dice for c in found.classes] == pytest.approx([0.98, 0.85, 0.65])
    assert found.mean_dice == pytest.approx(0.75)
    assert [c.iou for c in found.classes] == pytest.approx([d / (2 - d) for d in (0.98, 0.85, 0.65)])
    assert found.mean_iou == pytest.approx(np.mean([c.iou for c in found.classes]))
    assert found.mean_held_out_dice == pytest.approx(0.75)
    assert (found.slices, found.volumes, found.folds) == (5, 2, 3)
    assert found.usable
    assert_sound(found)


@pytest.mark.parametrize("seed", range(5))
def test_intervals_hold_their_mean_and_lie_within_0_and_1(seed):
    random = np.random.default_rng(seed)
    found = [expected(*random.random((3, 3)) ** random.choice([0.1, 1, 10])) for _ in range(3)]
    assert_sound(estimated(*found))
    assert_sound(estimated(expected([1, 1, 1])))
    assert_sound(estimated(expected([0, 0, 0])))


def test_intervals_grow_with_what_is_missing_and_with_broken_promises():
    def width(*given):
        found = estimated(expected(*given))
        return found.high - found.low

    good, bad = [0.99, 0.8, 0.8], [0.99, 0.5, 0.5]
    assert width(bad) > width(good)
    assert width(good, [0.9, 0.5, 0.5], good) > width(good, good, good)
    # Differences in both directions cancel in the mean, whose interval they leave as it is, but not by class.
    cancelling = ([0.99, 0.9, 0.7], [0.99, 0.8, 0.8])
    assert width(good, *cancelling) == pytest.approx(width(good, good, good))
    both = [estimated(expected(good, *given)).classes[1] for given in (cancelling, (good, good))]
    assert both[0].high - both[0].low > both[1].high - both[1].low + 0.01
    single = estimated(expected(good)).classes[1]
    assert single.high - single.low > width(good)


def test_a_class_that_held_out_voxels_do_not_show_is_not_evaluable():
    """In one volume, it is told by the others; in all, not at all."""
    nan = np.nan
    hidden = expected([0.99, 0.8, 0.1], [0.99, 0.8, nan], [0.99, 0.8, 0.2])
    found = estimated(hidden, expected([0.99, 0.8, 0.6]))
    assert found.classes[2].dice == pytest.approx(0.6)
    found = estimated(hidden)
    assert found.classes[2] == ClassEstimate("core", None, None, None, None, 3, None)
    assert found.mean_dice == pytest.approx(0.8)
    assert_sound(found)
    found = estimated(expected([0.99, 0.8, 0.1], [nan] * 3))
    assert found.mean_dice is None
    assert (found.low, found.high) == (None, None)
    assert_sound(found)


def test_a_volume_where_a_class_is_not_expected():
    nan = np.nan
    found = estimated(expected([0.99, 0.8, nan], [0.99, 0.8, 0.7]), expected([0.99, 0.7, 0.6]))
    assert found.classes[2].dice == pytest.approx(0.6)
    assert_sound(found)


def test_json_makes_the_estimate_again(capsys):
    found = estimated(expected([0.99, 0.3, np.nan], [0.99, 0.3, np.nan], counts=np.array([5, 5, 0])))
    assert len(found.warnings) == 2
    text = json.dumps(found.as_json(), allow_nan=False)
    assert Estimate.from_json(json.loads(text)) == found
    content = json.loads(text)
    assert content["usable"] is False
    assert content["mean_dice"] == pytest.approx(0.3)
    assert content["mean_dice_interval"] == [found.low, found.high]
    empty = Estimate(reason="one slice is annotated")
    assert Estimate.from_json(json.loads(json.dumps(empty.as_json()))) == empty
    assert empty.as_json()["usable"] is None  # nothing tells
    assert Estimate(reason="", warnings=["the scan has one value"]).as_json()["usable"] is False


def test_warnings():
    assert estimated(expected([0.99, 0.6, 0.6])).warnings == []
    assert estimated(expected([0.99, 0.5, 0.5])).warnings == []  # the least that is not
    (low,) = estimated(expected([0.99, 0.4, 0.4])).warnings
    assert "0.40" in low
    (lost,) = estimated(expected([0.99, 0.8, 0.6], counts=np.array([990, 10, 0]))).warnings
    assert "core" in lost
    assert "shell" not in lost
    nowhere = expected([0.99, 0.8, 0.6], counts=np.array([990, 10, 0]))
    assert estimated(nowhere, slices=(5, 5, 0)).warnings == []  # not annotated either
    assert estimated(nowhere, expected([0.99, 0.8, 0.6])).warnings == []  # found in another volume


def test_of_classes_that_are_found_nowhere_the_annotated_one_is_told():
    """In slices or scribbles; the other one is annotated nowhere, and is rightly found nowhere."""
    found = expected([0.99, 0.8, np.nan], [0.99, 0.8, np.nan], counts=np.array([1000, 0, 0]))
    for given in ({"slices": (5, 5, 0)}, {"slices": (0, 0, 0), "total": 0}):
        (lost,) = estimated(found, **given).warnings
        assert "found nowhere else: shell." in lost
    assert estimated(expected([0.99, 0.8, 0.7]), slices=(0, 0, 0), total=0).warnings == []


def rows_of(text):
    """The cells of each row of a table, by the first."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_the_table_has_a_row_for_each_class_and_the_mean(capsys, monkeypatch):
    """Each number in its own column; "not evaluable" where there is none; without slices, no number of them."""
    monkeypatch.setenv("COLUMNS", "140")
    given = [expected([0.99, 0.8, np.nan], [0.97, 0.7, np.nan], [0.97, 0.7, np.nan]), expected([0.97, 0.6, np.nan])]
    for slices, total in (((5, 4, 0), 5), ((0, 0, 0), 0)):
        found = estimated(*given, slices=slices, total=total)
        show(found)
        told = capsys.readouterr().out
        rows = rows_of(told)
        assert rows["class"] == ["n", "Dice", "90 % interval", "IoU", "held-out Dice"]
        assert ("5 annotated slice(s)" in told) == bool(total)
        for number, (name, dice, held_out) in enumerate((("background", 0.98, 0.97), ("shell", 0.7, 0.65))):
            entry = found.classes[number]
            counts = [str(slices[number])] if total else []
            scores = [f"{entry.iou:.3f}", f"{held_out:.3f}"]
            assert rows[name] == [*counts, f"{dice:.3f}", interval_text(entry.low, entry.high), *scores]
        assert rows["core"] == [*(["0"] if total else []), *["not evaluable"] * 3]
        assert rows["mean"] == [
            *("0.700", interval_text(found.low, found.high), f"{found.mean_iou:.3f}"),
            f"{found.mean_held_out_dice:.3f}",
        ]


def test_what_people_read(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    found = estimated(expected([0.99, 0.4, 0.4], counts=np.array([990, 10, 0])))
    show(found)
    told = capsys.readouterr().out
    assert told.count("likely to be useless") == 2
    assert "annotated slice(s), held out in turn" in told
    show(replace(found, folds=0))
    assert "annotated slice(s), held out in blocks" in capsys.readouterr().out
    for word in (*NAMES, "mean", interval_text(found.low, found.high)):
        assert word in told
    show(Estimate(reason="one slice [is] annotated"))
    assert "not evaluable (n = 0): one slice [is] annotated" in capsys.readouterr().out
    assert interval_text(None, None) == ""
    assert interval_text(0.874, 0.929) == "0.87 to 0.93"
