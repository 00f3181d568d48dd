"""What a densification plans: voxel sizes, minutes, which slices are held out; and what it makes of the scores."""

import json
import os

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.calibration import TEMPERATURES
from sparse3dunet.checks import CaseReport, DataReport
from sparse3dunet.datalist import DataSet
from sparse3dunet.densify.schedule import (
    Schedule,
    choose_spacing,
    deal_slices,
    hold_out,
    number_of_folds,
    slices_showing,
    unlabeled_text,
)
from sparse3dunet.densify.state import differences
from sparse3dunet.densify.state import read_description as description_of
from sparse3dunet.errors import DataError
from sparse3dunet.densify.estimate import Estimate, FinalCounts, FoldCounts, estimate, temperature
from sparse3dunet.slices import find_slices, slices_mask


def report_of(shapes, spacings):
    cases = [
        CaseReport(f"c{i}", shape=s, spacing=m, voxels=int(np.prod(s)))
        for i, (s, m) in enumerate(zip(shapes, spacings))
    ]
    return DataReport(DataSet([], [], [], (), 1), cases)


def test_large_volumes_are_looked_at_in_coarser_voxels_the_finest_axes_first():
    assert choose_spacing(report_of([(100, 100, 100)], [(1, 1, 1)]), "auto", 5, "cpu") is None
    found = choose_spacing(report_of([(512, 512, 100)], [(0.5, 0.5, 5)]), "auto", 5, "cpu")
    assert found[2] == 5
    assert found[0] == found[1] > 0.5
    voxels = 256 / found[0] * 256 / found[1] * 100
    assert 9e6 < voxels <= 10.1e6
    assert choose_spacing(report_of([(512, 512, 100)], [(0.5, 0.5, 5)]), "auto", 60, "cpu") is None
    assert choose_spacing(report_of([(512, 512, 100)], [(0.5, 0.5, 5)]), None, 1, "cpu") is None
    assert choose_spacing(report_of([(9, 9, 9), (9, 9, 9)], [(1, 1, 1), (1, 1, 3)]), "auto", 5, "cpu") == [1, 1, 2]


@pytest.mark.parametrize(("folds", "keeps_fold"), [(0, False), (1, False), (1, True), (3, False), (5, False)])
@pytest.mark.parametrize("minutes", [0.2, 5, 60])
def test_the_minutes_are_enough_for_all_parts(folds, keeps_fold, minutes):
    schedule = Schedule(60 * minutes, folds, keeps_fold)
    assert not keeps_fold or schedule.fold < Schedule(60 * minutes, folds).fold
    spent = folds * schedule.fold
    final = schedule.final(spent)
    assert final >= 0.2 * schedule.seconds
    assert spent + final + min(schedule.reserve, 0.05 * schedule.seconds) <= 1.001 * schedule.seconds
    assert schedule.final(10 * schedule.seconds) == pytest.approx(0.2 * schedule.seconds)


def test_number_of_folds():
    assert [number_of_folds("auto", minutes) for minutes in (0.5, 5, 10, 60)] == [1, 1, 3, 3]
    assert number_of_folds(0, 5) == 0
    for folds in (-1, 1.5, True, "many"):
        with pytest.raises(DataError, match="folds must be"):
            number_of_folds(folds, 5)


def item(slices, shape=(20, 18, 16)):
    weight = torch.from_numpy(slices_mask(shape, slices).astype(np.float32))[None]
    label = torch.zeros((1, *shape), dtype=torch.int16)
    label[:, 5:15, 5:15, 5:15] = 1
    image = MetaTensor(torch.zeros((1, *shape)), meta={"filename_or_obj": "/x/a.nii.gz"})
    return {"image": image, "label": label, "weight": weight}


def test_slices_are_dealt_out_whole_and_once():
    slices = [[4, 10], [5, 9], [3, 8]]
    dealt, reason = deal_slices({"a": item(slices)}, 3, 0)
    assert reason == ""
    chosen = [(axis, i) for fold in dealt for axis in range(3) for i in fold["a"][axis]]
    assert len(chosen) == len(set(chosen)) == 6
    assert set(chosen) == {(axis, i) for axis in range(3) for i in slices[axis]}


def test_adjacent_slices_are_held_out_together():
    dealt, _ = deal_slices({"a": item([[4, 5, 6, 12], [], []])}, 1, 0)
    assert dealt[0]["a"][0] in ([4, 5, 6], [12])


@pytest.mark.parametrize("kind", ["one slice", "scribbles", "dense", "asked"])
def test_where_nothing_can_be_held_out(kind):
    case = item([[4], [], []])
    if kind == "scribbles":
        case["weight"] = (torch.rand(case["weight"].shape) > 0.9).float()
    elif kind == "dense":
        case["weight"] = torch.ones_like(case["weight"])
    dealt, reason = deal_slices({"a": case}, 0 if kind == "asked" else 1, 0)
    assert dealt == []
    assert reason


def test_a_case_of_which_nothing_can_be_held_out_is_learned_from_as_it_is():
    items = {"a": item([[4, 10], [5], [3]]), "b": item([[4], [], []])}
    dealt, _ = deal_slices(items, 1, 0)
    assert set(dealt[0]) == {"a"}
    for part in ("training", "validation"):
        (transform,) = hold_out(dealt[0], part)
        other = {**items["b"], "image": MetaTensor(items["b"]["image"], meta={"filename_or_obj": "/x/b.nii.gz"})}
        assert bool((transform(other)["weight"] > 0).any()) == (part == "training")


def test_what_was_held_out_before_is_again_as_far_as_it_is_annotated():
    dealt, _ = deal_slices({"a": item([[4, 10, 14], [5], []])}, 3, 0, former={"a": [[10], [5], [8]]})
    assert dealt == [{"a": [[10], [5], []]}]
    dealt, _ = deal_slices({"a": item([[4, 9, 10, 14], [5], []])}, 3, 0, former={"a": [[10], [5], [8]]})
    assert dealt == [{"a": [[9, 10], [5], []]}]  # what is annotated beside them by now would tell of them
    dealt, reason = deal_slices({"a": item([[4], [5], []])}, 3, 0, former={"a": [[10], [], [8]]})
    assert dealt == []
    assert "annotated any more" in reason


def test_volumes_that_the_former_model_never_saw_are_dealt_out_anew():
    items = {name: item([[4, 10], [5], [3]]) for name in "abc"}
    dealt, _ = deal_slices(items, 1, 0, former={"a": [[10], [], []]}, learned=["a", "b"])
    assert dealt[0]["a"] == [[10], [], []]
    assert "b" not in dealt[0]  # it learned all slices
    assert any(dealt[0]["c"])


def test_no_voxel_is_learned_from_and_scored():
    held_out = {"a": [[10], [5], []]}
    case = item([[4, 10], [5], [3, 8]])
    (training,), (validation,) = (hold_out(held_out, part) for part in ("training", "validation"))
    learned, scored = (transform(case)["weight"] for transform in (training, validation))
    assert not ((learned > 0) & (scored > 0)).any()
    assert torch.equal(learned + scored, case["weight"])
    assert find_slices((scored[0] > 0).numpy()) == [[10], [5], []]
    assert slices_showing({"a": {**case, "weight": scored}}, held_out, 3) == [2, 2, 0]


def counts(**by_name):
    return {name: torch.tensor(rows) for name, rows in by_name.items()}


def promised(**cases):
    """By case, the same promise at each temperature."""
    return {name: torch.tensor([rows] * len(TEMPERATURES), dtype=torch.float64) for name, rows in cases.items()}


EVEN = [1.0] * len(TEMPERATURES)


def test_held_out_scores_are_over_all_voxels_of_a_volume_and_mean_over_volumes():
    """Where the final model is the fold's own, what is expected is what was held out."""
    folds = [
        FoldCounts(held_out, {}, {}, EVEN, showing)
        for held_out, showing in (
            (counts(a=[[8, 1, 1], [4, 2, 0]]), [2, 1]),
            (counts(a=[[2, 0, 0], [0, 0, 2]], b=[[5, 0, 0], [0, 0, 0]]), [1, 1]),
        )
    ]
    found = estimate(folds, None, 3, ["background", "x"])
    assert found.classes[1].held_out_dice == pytest.approx(2 * 4 / (2 * 4 + 2 + 2))
    assert found.classes[1].held_out_iou == pytest.approx(4 / 8)
    assert found.classes[0].held_out_dice == pytest.approx((20 / 22 + 1) / 2)
    assert found.mean_held_out_dice == found.classes[1].held_out_dice
    for entry in found.classes:
        assert (entry.dice, entry.iou) == pytest.approx((entry.held_out_dice, entry.held_out_iou))
    assert [entry.slices for entry in found.classes] == [3, 2]
    assert (found.slices, found.volumes, found.folds) == (3, 2, 2)
    assert Estimate.from_json(json.loads(json.dumps(found.as_json()))) == found
    assert Estimate(reason="x").mean_dice is None


def test_what_is_expected_is_the_final_models_promise_corrected():
    """By the mean of the foreground classes' differences, from the background's apart."""
    rows = [[80, 20, 20], [8, 2, 2], [6, 4, 4]]
    sure = [[90, 10, 10], [8, 2, 2], [7, 3, 3]]
    fold = FoldCounts(counts(a=rows), counts(a=[[95, 5, 5], [7, 3, 3], [7, 3, 3]]), promised(a=sure), EVEN, [1, 1, 1])
    final = FinalCounts(counts(a=[[99, 1, 1]] * 3), {"a": torch.tensor([[95.0, 5, 5], [70.0, 30, 30], [80.0, 20, 20]])})
    found = estimate([fold], final, 1, ["background", "x", "y"]).classes
    # Not less than 0.632 of the fold's optimism, 0.15, allows
    assert found[0].dice == pytest.approx(0.99 - 0.632 * 0.15)
    assert found[1].dice == pytest.approx(0.8)  # own slices' gain counts as 0.1 at most
    assert found[2].dice == pytest.approx(0.8 - (0.0 + 0.1) / 2)
    assert [entry.held_out_dice for entry in found] == pytest.approx([0.8, 0.8, 0.6])


def test_what_is_expected_is_within_bounds():
    honest, sure = counts(a=[[8, 2, 2]]), promised(a=[[9, 1, 1]])
    final = FinalCounts(counts(a=[[24, 1, 1]]), {"a": torch.tensor([[19.0, 1, 1]])})
    # A model that is better than it promised is not better elsewhere than on what it learned from.
    modest = FoldCounts(honest, honest, promised(a=[[5, 5, 5]]), EVEN, [1])
    (entry,) = estimate([modest], final, 1, ["background"]).classes
    assert entry.dice == pytest.approx(0.96)
    assert entry.iou == pytest.approx(24 / 26)
    # What no held-out slice shows is not evaluable, in the volume of which this holds alone.
    learned = counts(a=[[9, 1, 1]], b=[[9, 1, 1]])
    absent = FoldCounts(
        counts(a=[[0, 3, 0]], b=[[8, 2, 2]]), learned, promised(a=[[0, 3, 9]], b=[[9, 1, 1]]), EVEN, [1]
    )
    both = FinalCounts(counts(a=[[24, 1, 1]], b=[[24, 1, 1]]), {"b": torch.tensor([[19.0, 1, 1]])})
    (entry,) = estimate([absent], both, 1, ["background"]).classes
    assert entry.dice == pytest.approx(max(0.95 + 0.8 - 0.9, 0.96 - 0.632 * 0.1))
    nowhere = FoldCounts(counts(a=[[0, 3, 0]]), learned, sure, EVEN, [0])
    (entry,) = estimate([nowhere], final, 1, ["background"]).classes
    assert (entry.dice, entry.held_out_dice, entry.slices) == (None, None, 0)
    fold = FoldCounts(honest, learned, sure, EVEN, [1])
    for kind, found in ((FoldCounts, fold), (FinalCounts, final)):
        again = kind.from_json(json.loads(json.dumps(found.as_json())))
        assert again.as_json() == found.as_json()


def test_a_class_is_promised_by_the_volumes_that_show_it():
    """In another volume it may be absent: the little that is promised of it there, and not found, tells nothing."""
    absent, rows = [[9, 0, 0], [0, 0, 0]], [[8, 2, 2], [8, 2, 2]]
    learned = counts(a=[[9, 1, 1], [9, 1, 1]], b=absent)
    fold = FoldCounts(counts(a=rows, b=absent), learned, promised(a=rows, b=absent), EVEN, [2, 1])
    promise = {"a": torch.tensor([[9.3, 0.7, 0.7]] * 2), "b": torch.tensor([[9.0, 0, 0], [0, 0, 3]])}
    final = FinalCounts(counts(a=[[19, 1, 1]] * 2, b=absent), promise)
    assert estimate([fold], final, 2, ["background", "x"]).classes[1].dice == pytest.approx(0.93)


def test_unlabeled_in_words():
    def told(values, ignore_index=(), **case):
        data_set = DataSet([{"image": "a.nii.gz", "label": "a.nii.gz", **case}], ["b", "x"], [0, 1], ignore_index, 1)
        return unlabeled_text(DataReport(data_set, [CaseReport("a", values=dict.fromkeys(values, 1))]))

    assert told([0, 1, 255], (255,)) == "the value 255"
    assert told([0, 1, 4, 255], (4, 255)) == "the values 4, 255"
    assert told([0, 1], (2,), annotated_slices="all") == "all outside of the annotated slices"
    assert told([0, 1, 2], (2,), weight="w.nii.gz") == "the value 2 and where the weight is 0"


def test_the_temperature_is_that_of_all_folds():
    def fold(best):
        return FoldCounts({}, {}, {}, [abs(number - best) ** 2 for number in range(len(TEMPERATURES))], [])

    assert temperature([fold(10)]) == TEMPERATURES[10]
    assert temperature([fold(10), fold(20)]) == TEMPERATURES[15]


def test_models_that_do_not_fit_are_left_aside(tmp_path):
    model = {"network": {"channels": [4]}, "class_values": [0, 1], "class_names": ["a", "b"], "spacing": None}
    assert differences(model, {**model, "patch_size": [8, 8, 8], "normalize": []}) == []
    assert differences(model, {**model, "spacing": [1, 1, 1]}) == ["another voxel size"]
    assert differences(model, {**model, "class_values": [0, 2]}) == ["other classes"]
    assert description_of(tmp_path / "model.pt") is None
    (tmp_path / "model.pt").write_bytes(b"x")
    (tmp_path / "model.json").write_text("{")
    assert description_of(tmp_path / "model.pt") is None
    assert os.listdir(tmp_path)
