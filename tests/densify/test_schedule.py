"""What a densification plans: voxel sizes, minutes, which slices are held out; and what it makes of the scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from sparse3dunet.bundle.running import config_path
from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.reports import CaseReport, DataReport
from sparse3dunet.data.slices import find_slices, slices_mask
from sparse3dunet.densify.former_models import differences
from sparse3dunet.densify.pseudo_labels import PseudoLabeld
from sparse3dunet.densify.schedule import (
    Schedule,
    are_within,
    batch_size,
    check_pseudo_weight,
    choose_spacing,
    deal_slices,
    hold_out,
    number_of_folds,
    patch_voxels,
    slices_showing,
    unlabeled_text,
)
from sparse3dunet.errors import DataError
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.transforms import HoldOutSlicesd
from tests.conftest import make_dataset


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


@pytest.mark.parametrize(("judged", "keeps_fold"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("minutes", [0.2, 5, 60])
def test_the_minutes_are_enough_for_all_parts(judged, keeps_fold, minutes):
    schedule = Schedule(60 * minutes, judged, keeps_fold)
    before = 0.4 * schedule.seconds  # without a network
    assert not keeps_fold or schedule.fold(before) < Schedule(60 * minutes, True).fold(before)
    spent = before + schedule.fold(before)
    assert (spent > before) == judged
    assert spent + schedule.final(spent) + schedule.reserve <= 1.001 * schedule.seconds
    assert schedule.final(10 * schedule.seconds) == pytest.approx(0.05 * schedule.seconds)


def test_number_of_folds():
    assert number_of_folds("auto") == 3
    assert number_of_folds(0) == 0
    for folds in (-1, 1.5, True, "many"):
        with pytest.raises(DataError, match="folds must be"):
            number_of_folds(folds)


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
    assert dealt == [{"a": [[10], [5], []]}, {"a": [[4], [], []]}, {"a": [[14], [], []]}]
    dealt, _ = deal_slices({"a": item([[4, 9, 10, 14], [5], []])}, 3, 0, former={"a": [[10], [5], [8]]})
    assert dealt[0] == {"a": [[9, 10], [5], []]}  # what is annotated beside them by now would tell of them
    dealt, reason = deal_slices({"a": item([[4], [5], []])}, 3, 0, former={"a": [[10], [], [8]]})
    assert dealt == []
    assert "is still annotated" in reason


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


@pytest.mark.parametrize(
    ("changes", "steps", "validates"),
    [
        ({}, [], False),
        ({"pseudo_labels": dict.get}, [PseudoLabeld], False),
        ({"pseudo_labels": dict.get, "pseudo_weight": 0}, [], False),
        ({"pseudo_labels": dict.get, "held_out": {"case_0": [[12], [], []]}}, [HoldOutSlicesd, PseudoLabeld], True),
    ],
)
def test_what_a_part_learns_from(tmp_path, changes, steps, validates):
    """In the config: the final training is not validated, and what is disabled is left out."""
    parser = ConfigParser()
    parser.read_config([str(config_path(name)) for name in ("train", "densify")])
    parser.update({"dataset_dir": str(make_dataset(tmp_path / "data")), "output_dir": str(tmp_path), **changes})
    assert [type(transform) for transform in parser.get_parsed_content("train#hold_out")] == steps
    transforms = parser.get_parsed_content("train#preprocessing").transforms
    assert [type(transform) for transform in transforms if type(transform) in (HoldOutSlicesd, PseudoLabeld)] == steps
    handlers = [entry.handler for entry in parser.get_parsed_content("train#handlers")]
    disabled = [handler is None for handler in handlers]
    assert disabled == [False, False, True, not validates, False, False, False], "no former model, no validation"
    assert (handlers[4].title, handlers[4].brief) == ("training", True)


@pytest.mark.parametrize("weight", [-1, "much", float("nan"), float("inf"), None, True])
def test_a_weight_that_is_none(weight):
    check_pseudo_weight(0)
    check_pseudo_weight(0.5)
    with pytest.raises(DataError, match=r"pseudo_weight must be a number of at least 0, .*; got "):
        check_pseudo_weight(weight)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_small_batches_on_a_cpu(device):
    assert (batch_size(device), patch_voxels(device)) == (1, 64**3)
    assert batch_size("cuda") > 1


def test_slices_that_show_a_class_are_counted():
    case = item([[4, 10], [5, 17], []])
    annotated = [(case["label"][0].numpy(), case["weight"][0].numpy() > 0)]
    assert slices_showing(annotated, 3) == [4, 2, 0]
    assert slices_showing([*annotated, (np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool))], 3) == [4, 2, 0]


def test_unlabeled_in_words():
    def told(values, ignore_index=(), **case):
        data_set = DataSet([{"image": "a.nii.gz", "label": "a.nii.gz", **case}], ["b", "x"], [0, 1], ignore_index, 1)
        return unlabeled_text(DataReport(data_set, [CaseReport("a", values=dict.fromkeys(values, 1))]))

    assert told([0, 1, 255], (255,)) == "the value 255"
    assert told([0, 1, 4, 255], (4, 255)) == "the values 4, 255"
    assert told([0, 1], (2,), annotated_slices="all") == "all voxels outside of the annotated slices"
    assert told([0, 1, 2], (2,), weight="w.nii.gz") == "the value 2 and where the weight is 0"


def test_models_that_do_not_fit_are_left_aside():
    model = ModelDescription(
        class_names=("a", "b"), class_values=(0, 1), patch_size=(8, 8, 8), network={"channels": [4]}, in_channels=1
    )
    assert differences(model, replace(model, patch_size=(16, 8, 8), training=("case",))) == []
    assert differences(model, replace(model, spacing=(1, 1, 1))) == ["another voxel size"]
    assert differences(model, replace(model, class_values=(0, 2))) == ["other classes"]


@pytest.mark.parametrize("name", ["_target_", "$x", "@x", "%x", "__local_refs", "_disabled_"])
def test_names_of_scans_are_no_config(name):
    """MONAI's parser would call, evaluate or look up what has such a name."""
    slices = [[1], [], [2]]
    parser = ConfigParser(
        {
            "imports": ["$import sparse3dunet.densify.schedule as schedule"],
            "held_out": ((name, slices),),
            "transforms": "$schedule.hold_out(@held_out, 'training')",
            "cases": [],
        }
    )
    (transform,) = parser.get_parsed_content("transforms")
    assert transform.hold_out.listed == {name: slices}


def test_slices_of_other_volumes_are_told():
    items = {"a": item([[4, 10], [5], [3]])}
    assert are_within([{"a": [[19], [17], [15]]}, {}], items)
    for slices in ([[20], [], []], [[], [], [16]]):
        assert not are_within([{"a": slices}], items)
    assert not are_within([{"b": [[1], [], []]}], items)
