"""Models that a former run left: which are trained further, and by which slices they are judged."""

import json
import os

import pytest
import torch

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.densify.former_models import (
    FormerModels,
    former_names,
    held_out_before,
    keep_aside,
    read_model,
)
from sparse3dunet.densify.state import State
from sparse3dunet.errors import DataError
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import describe_model
from sparse3dunet.networks import UNet3D

DATA_SET = DataSet([], ["background", "a"], [0, 1], (255,), 1)


def save(file):
    network = UNet3D(1, 2, channels=(2, 4), padding="same")
    description = describe_model(network, DATA_SET, (8, 8, 8))
    save_file(file, network.state_dict(), description)
    return description


def change(file, edit):
    state = torch.load(file, weights_only=True)
    edit(state, next(iter(state)))
    torch.save(state, file)


DAMAGE = {
    "not a model file": lambda file: file.write_bytes(b"garbage" * 100),
    "do not fit": lambda file: change(file, lambda state, name: state.update({name: torch.zeros(3, 3)})),
    "not all finite": lambda file: change(file, lambda state, name: state[name].fill_(torch.nan)),
    "found list": lambda file: torch.save([1, 2], file),
    "is missing next to it": lambda file: file.with_suffix(".json").unlink(),
    "not valid JSON": lambda file: file.with_suffix(".json").write_text("{"),
    "can't decode": lambda file: file.with_suffix(".json").write_bytes(b"\xff{}"),
    "no regular file": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_model_is_told_and_kept(tmp_path, words):
    """Before any minute is spent on it; with what is left of its description."""
    file = tmp_path / "model.pt"
    description = save(file)
    assert read_model(file) == (description, "")
    DAMAGE[words](file)
    found, fault = read_model(file)
    assert found is None
    assert words in fault
    before = sorted(os.listdir(tmp_path))
    kept = keep_aside(file)
    assert kept == tmp_path / "model_before.pt"
    assert sorted(os.listdir(tmp_path)) == [name.replace("model", "model_before") for name in before]
    assert read_model(file) == (None, "")


def test_a_run_goes_on_only_with_the_models_that_it_needs(tmp_path):
    final, fold = tmp_path / "model/model.pt", tmp_path / "work/fold_0/model.pt"
    assert FormerModels(final, fold).missing_for(State("a")) == ""
    assert "model.pt is missing" in FormerModels(final, fold).missing_for(State("a", trained=True))
    description = save(final)
    save(fold)
    for is_used in (True, False):
        assert FormerModels(final, fold, is_used).missing_for(State("a", trained=True)) == ""
    assert FormerModels(final, fold).fold_fits(description)
    DAMAGE["not all finite"](fold)
    assert "not all finite" in FormerModels(final, fold).missing_for(State("a"))
    assert not FormerModels(final, fold).fold_fits(description)
    DAMAGE["do not fit"](final)
    assert "do not fit" in FormerModels(final, fold, is_used=False).missing_for(State("a", trained=True))
    content = {"schema_version": 1000, "sparse3dunet_version": "9.0.0"}
    fold.with_suffix(".json").write_text(json.dumps(content))
    assert "sparse3dunet 9" in FormerModels(final, fold).fold_fault
    final.with_suffix(".json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="written by sparse3dunet 9"):
        FormerModels(final, fold)


def held(tmp_path, images, before, learned):
    """The slices held out by the names of now; files are there as far as they are listed now."""
    for file in images.values():
        (tmp_path / file).touch()
    now, then = ({name: str(tmp_path / file) for name, file in names.items()} for names in (images, before))
    state = State("", held_out=[{name: [[], [], [number]] for number, name in enumerate(learned)}], images=then)
    return held_out_before(state, former_names(then, now), learned)


def test_slices_are_those_of_the_file_whatever_its_case_is_named(tmp_path):
    one, two = "1_CT.nii", "2_CT.nii"
    first = [[], [], [0]]
    assert held(tmp_path, {"CT": one}, {"CT": one}, ["CT"]) == ({"CT": first}, ["CT"])
    assert held(tmp_path, {"P1_CT": one, "P2_CT": two}, {"CT": one}, ["CT"]) == ({"P1_CT": first}, ["P1_CT"])
    assert held(tmp_path, {"CT": one}, {"P1_CT": one, "P2_CT": two}, ["P1_CT", "P2_CT"]) == ({"CT": first}, ["CT"])
    moved = "elsewhere.nii"
    assert held(tmp_path, {"CT": moved}, {"CT": "gone.nii"}, ["CT"]) == ({"CT": first}, ["CT"]), "a folder was moved"


def test_without_a_file_to_tell_it_nothing_is_judged_that_may_have_been_learned(tmp_path):
    """The state is of an earlier version, or the file has another name now."""
    assert held(tmp_path, {"P1_CT": "1", "P2_CT": "2"}, {}, ["CT"]) == (None, [])
    assert held(tmp_path, {"a": "a"}, {"b": "gone"}, ["b"]) == (None, [])
    assert held(tmp_path, {"a": "a", "b": "b"}, {}, ["a"]) == ({"a": [[], [], [0]]}, ["a"])
