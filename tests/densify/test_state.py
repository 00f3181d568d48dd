"""What a model learned of the annotation, and whether that changed since."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify.former_models import differences
from sparse3dunet.densify.state import Learned, State, StateFile, digest
from sparse3dunet.models.description import ModelDescription
from tests.conftest import make_dataset

NUMBERS = np.arange(24).reshape(2, 3, 4) % 3
ANNOTATED = np.arange(24).reshape(2, 3, 4) < 12


def learn(folder, name="sub/a"):
    learned = Learned(folder)
    learned.start(goes_on=True)
    learned.add(name, NUMBERS, ANNOTATED)
    return learned


def test_more_annotation_is_no_change_but_another_or_none_is(tmp_path):
    learned = learn(tmp_path)
    learned.finish()
    assert learned.changed("sub/a", NUMBERS, ANNOTATED) == 0
    assert learned.changed("sub/a", NUMBERS, np.ones_like(ANNOTATED)) == 0
    assert learned.changed("sub/a", (NUMBERS + 1) % 3, ANNOTATED) == 12
    assert learned.changed("sub/a", NUMBERS, ANNOTATED & (np.arange(4) > 0)) == 3
    assert learned.changed("sub/b", NUMBERS + 1, ANNOTATED) == 0
    assert learned.changed("sub/a", NUMBERS[:1], ANNOTATED[:1]) == 12  # another scan


def test_what_no_model_has_learned_yet_does_not_count(tmp_path):
    learned = learn(tmp_path)
    assert learned.changed("sub/a", NUMBERS + 1, ANNOTATED) == 0
    learned.finish()
    learned.start(goes_on=True)
    learned.add("sub/a", NUMBERS + 1, ANNOTATED)
    assert learned.changed("sub/a", NUMBERS + 1, ANNOTATED) == 12  # the run may be ended before it has a model
    learned.start(goes_on=False)
    assert learned.changed("sub/a", NUMBERS + 1, ANNOTATED) == 0
    learned.finish()  # nothing was added
    assert not learned.folder.exists()


@pytest.mark.parametrize("keep", [0, 20, 120])
def test_damaged_files_tell_nothing(tmp_path, keep):
    learned = learn(tmp_path)
    learned.finish()
    (file,) = learned.folder.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert learned.changed("sub/a", NUMBERS + 1, ANNOTATED) == 0
    file.unlink()
    os.mkfifo(file)  # reading it would never end
    assert learned.changed("sub/a", NUMBERS + 1, ANNOTATED) == 0


def test_networks_that_cannot_be_told_apart_are_not_learned_further():
    unet = ModelDescription(
        class_names=("a", "b"), class_values=(0, 1), patch_size=(8, 8, 8), network={"channels": [4, 8]}, in_channels=1
    )
    other = replace(unet, network=None)
    assert differences(unet, unet) == []
    assert differences(other, unet) == differences(unet, other) == differences(other, other) == ["another network"]
    assert differences(other, replace(other, spacing=(1, 1, 1))) == ["another network", "another voxel size"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 99999, "nested too deeply"),
        ("[]", "the field all"),
        ('{"spent": 1.0}', "digest"),
        ('{"digest": "a", "spent": "long"}', "the field spent"),
        ('{"digest": "a", "previews": {"a": 1}}', "the field previews"),
        ('{"digest": "a", "version": 99}', "version"),
        ('{"digest": "a", "held_out": [{"x": [[4]]}]}', "the field held_out"),
        ('{"digest": "a", "held_out": [{"x": [[-5], [], []]}]}', "the field held_out"),
        ('{"digest": "a", "held_out": [{"x": [[1' + 30 * "0" + "], [], []]}]}", "the field held_out"),
        ('{"digest": "a", "seconds": {"x/../..": 3.0}}', "the field seconds"),
        ('{"digest": "a", "seconds": {"fold_0": -5.0}}', "the field seconds"),
        ('{"digest": "a", "share": 17.0}', "the field share"),
        ('{"digest": "a", "share": NaN}', "the field share"),
        ('{"digest": "a", "spent": 1e999}', "the field spent"),
        ('{"digest": "a", "learned": -1}', "the field learned"),
    ],
)
def test_a_damaged_state_is_told(tmp_path, text, words):
    """It says that a run was here, unlike a missing one; and nothing of it is used."""
    file = StateFile(tmp_path)
    assert file.read() is None
    file.write(State("a", spent=1.5, held_out=[{"x": [[1], [], []]}], previews={"a.nii": "b"}))
    assert file.read() == State("a", spent=1.5, held_out=[{"x": [[1], [], []]}], previews={"a.nii": "b"})
    assert file.fault == ""
    file.path.write_text(text)
    assert file.read() == State("")
    assert str(file.path) in file.fault
    assert words in file.fault


def test_a_run_depends_on_what_a_list_declares(tmp_path):
    """Corrected slices mean another annotation of the same voxels."""
    file = make_dataset(tmp_path, 2) / "dataset.json"
    content = json.loads(file.read_text())

    def found(slices=None, **declared):
        entries = [{**entry, **({} if slices is None else slices)} for entry in content["training"]]
        file.write_text(json.dumps({**content, **declared, "training": entries}))
        return digest(read_data_set(tmp_path), {})

    changes = [
        {},
        {"slices": {"annotated_slices": {"axial": [4, 8]}}},
        {"slices": {"annotated_slices": {"axial": [4, 6, 8]}}},
        {"annotated_slices": "axial"},
        {"annotated_slices": "all"},
        {"modality": {"0": "CT"}},
        {"regions": {"whole": [1, 2], "core": [2]}},
    ]
    assert len({found(**change) for change in changes}) == len(changes)
    assert found() == found()
