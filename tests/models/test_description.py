"""What is told of a model: written and read as JSON, by this version, for others, and from former versions."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

import sparse3dunet
from sparse3dunet.data.datalist import DataSet
from sparse3dunet.errors import DataError
from sparse3dunet.models.description import ModelDescription, check_model_fits, describe_model
from sparse3dunet.models.description_checks import SCHEMA_VERSION
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D

DATA_SET = DataSet([], list("abc"), [0, 5, 300], (4, 255), 2)
OLD = {
    "network": {
        **{"in_channels": 2, "out_channels": 3, "channels": [4, 8], "strides": [[2, 2, 2]], "norm": "instance"},
        **{"act": ["relu", {"inplace": True}], "padding": "same", "dropout": 0.0, "upsampling": "joined"},
    },
    "class_names": ["a", "b", "c"],
    "class_values": [0, 5, 300],
    "patch_size": [16, 16, 8],
    "spacing": [1.0, 1.0, 2.5],
    "unlabeled": [4, 255],
    "ignore_index": [4, 255],
    "annotated_slices": "axial",
    "normalize": [],
    "training": ["x", "y"],
    "validation": ["z"],
}
"""As 0.10.0 wrote it."""


def described(**more):
    network = UNet3D(2, 3, channels=(4, 8), norm="instance", padding="same")
    cases = [[{"image": f"{name}.nii.gz"} for name in names] for names in ("xy", "z")]
    options = {"ignore_index": [4, 255], "annotated_slices": "axial", **more}
    return describe_model(network, DATA_SET, (16, 16, 8), [1.0, 1.0, 2.5], cases, **options)


@pytest.mark.parametrize(
    "more", [{}, {"annotated_slices": {"axial": [3, 20]}}, {"ignore_index": 4, "normalize": ["Scale(a=1)"]}]
)
def test_comes_back_as_it_was(more):
    description = described(**more)
    assert ModelDescription.from_json(description.to_json(), "here") == description


def test_is_plain_json_for_others():
    content = json.loads(described().to_json())
    assert (content["schema_version"], content["sparse3dunet_version"]) == (SCHEMA_VERSION, sparse3dunet.__version__)
    network = content.pop("network")
    assert {**network, "upsampling": "joined"} == OLD["network"]
    assert {name: content[name] for name in OLD if name in content} == {k: v for k, v in OLD.items() if k != "network"}


def test_what_0_10_0_wrote_is_the_same():
    for upsampling in ("joined", "concatenated"):
        old = {**OLD, "network": {**OLD["network"], "upsampling": upsampling}}
        found = ModelDescription.from_json(json.dumps(old), "here")
        assert found == described()
        assert found.sparse3dunet_version is None
        assert ModelDescription.from_json(found.to_json(), "here") == found


def test_what_the_first_versions_wrote_is_completed():
    old = {name: OLD[name] for name in ("network", "class_names", "patch_size")}
    found = ModelDescription.from_json(json.dumps(old), "here")
    assert (found.class_values, found.in_channels, found.spacing, found.unlabeled) == ((0, 1, 2), 2, None, ())
    assert (found.training, found.normalize, found.annotated_slices) == ((), (), None)
    assert ModelDescription.from_json(json.dumps({**old, "ignore_index": 9}), "here").unlabeled == (9,)
    other = ModelDescription.from_json(json.dumps({**old, "network": None}), "here")
    assert other.in_channels == 1


def test_notes_of_others_are_ignored_but_a_newer_schema_is_not():
    content = json.loads(described().to_json())
    assert ModelDescription.from_json(json.dumps({**content, "note": "of the ward"}), "here") == described()
    newer = json.dumps({**content, "schema_version": SCHEMA_VERSION + 1, "sparse3dunet_version": "1.4.0"})
    with pytest.raises(DataError, match=r"here: was written by sparse3dunet 1\.4\.0, .* Update sparse3dunet"):
        ModelDescription.from_json(newer, "here")


@pytest.mark.parametrize(
    "name", ["spacing", "normalize", "in_channels", "class_colors", "schema_version", "voxel_size"]
)
def test_a_damaged_key_is_not_taken_for_a_note(name):
    """Without the field, the model would be used in another way."""
    content = json.loads(described(normalize=["Scale(a=1)"]).to_json())
    damaged = {(name[:-1] + "h" if key == name else key): value for key, value in content.items()}
    with pytest.raises(DataError, match=rf"here: has the key '{name[:-1]}h', .* no '{name}'; .* Copy it again"):
        ModelDescription.from_json(json.dumps(damaged), "here")
    del content[name]
    if name in ("class_colors", "schema_version", "voxel_size"):  # not in all files
        ModelDescription.from_json(json.dumps(content), "here")
    else:
        with pytest.raises(DataError, match=f"here: has no {name}; expected "):
            ModelDescription.from_json(json.dumps(content), "here")


def test_version_1_had_no_regions():
    content = json.loads(described().to_json())
    for before in ({**content, "schema_version": 1}, {**content, "schema_version": 1, "regions": "a note of the ward"}):
        assert ModelDescription.from_json(json.dumps(before), "here") == described()


def test_regions_come_back_in_their_order():
    regions = {"whole": (1, 2), "core": (2,)}
    network = UNet3D(2, 2, channels=(4, 8), norm="instance", padding="same")
    found = ModelDescription.from_json(
        describe_model(network, DATA_SET, (16, 16, 8), regions=regions).to_json(), "here"
    )
    assert {name: tuple(classes) for name, classes in (found.regions or {}).items()} == regions
    assert list(found.regions) == ["whole", "core"]
    with pytest.raises(DataError, match="has 3 class_names for a network of 2 outputs"):
        ModelDescription.from_json(replace(found, regions=None).to_json(), "here")


def test_settings_are_the_same_whichever_version_writes_them():
    settings = described().settings()
    assert settings == replace(described(), sparse3dunet_version="0.0.1").settings() == json.loads(json.dumps(settings))
    assert "sparse3dunet_version" not in settings


def test_predictions_with_a_model_of_0_10_0_count_as_made_with_it(tmp_path):
    """Its digest, which tells them, is what 0.10.0 made of it."""
    network = UNet3D(2, 3, channels=(4, 8), norm="instance", padding="same")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(OLD, indent=1))
    weights = hashlib.sha256((tmp_path / "model.pt").read_bytes()).digest()
    expected = hashlib.sha256(weights + json.dumps(OLD, sort_keys=True).encode()).hexdigest()
    assert load_model(tmp_path).digest == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "class_names",
            [["a"], [], ["a", "a", "b"], ["a", 1, "b"], ["a", "b\nc", "d"], ["a", " ", "b"], "abc", None, {"a": 1}],
        ),
        ("class_values", [[0, 1, 1], [0, 1, 2.5], [0, 1, "2"], [0, 1, True], [0, 1, 1e300], None]),
        ("class_colors", [["red", "", ""], ["#12", "", ""], "abc", [1, 2, 3], None]),
        ("patch_size", [[16, 16], [16, 16, 0], [16, 16, 16, 16], [16, 16, 8.5], 16]),
        ("network", [[], "UNet3D", 3]),
        ("in_channels", [0, -1, 1.5, "1", True, None]),
        ("spacing", [[1, 1], [1, 1, 0], [1, 1, -1], [1, 1, "1"], 1]),
        ("voxel_size", [[1, 1], [1, 1, 0], [1, 1, "1"], 1]),
        ("unlabeled", [255, ["255"], [0.5], None]),
        ("ignore_index", ["255", [0.5], 0.5, True]),
        ("annotated_slices", ["some", {"axial": ["x"]}, 3]),
        ("normalize", ["z-score", [1], None]),
        ("intensity", [3, {"lower": 1}, {"lower": 1, "upper": 1, "mean": 0, "std": 1}]),
        ("regions", [[1], "x", {"all": [1, "x"]}, {"all": 1}, {"all": []}, {"all": [1.5]}, {"all": [-1]}]),
        ("training", ["x", [1], None]),
        ("sparse3dunet_version", [1, ["1.0"]]),
        ("schema_version", [0, -1, 1.0, 1.5, "1", None, True]),
    ],
)
def test_a_field_of_another_kind_is_named(name, values):
    """With its value, and what was expected; the same field as it is written is accepted."""
    content = json.loads(described().to_json())
    for value in values:
        with pytest.raises(DataError) as error:
            ModelDescription.from_json(json.dumps({**content, name: value}), "here")
        assert str(error.value).startswith(f"here: has no valid {name}: {value!r}; expected "), error.value
    with pytest.raises(DataError, match=r"no valid training: 'x{100}.*\.\.\.; expected"):
        ModelDescription.from_json(json.dumps({**content, "training": "x" * 5000}), "here")


def test_notes_that_later_became_fields_are_ignored():
    """A file without a schema version has no regions, whatever somebody wrote there."""
    found = ModelDescription.from_json(json.dumps({**OLD, "regions": "a note of the ward"}), "here")
    assert found == described()


def test_two_classes_with_colours_or_none():
    content = json.loads(described().to_json())
    content["network"]["out_channels"] = 2
    content |= {"class_names": ["a", "b"], "class_values": [0, 5], "class_colors": ["", "#e69f00"]}
    assert ModelDescription.from_json(json.dumps(content), "here").class_colors == ("", "#e69f00")


def test_classes_that_change_places_are_not_scored_as_each_other(capsys):
    """Scores go by value: with b and c the other way round, each would be the other's."""
    description = described()
    check_model_fits(description, DATA_SET)
    assert capsys.readouterr().out == ""
    for names in ("acb", "xab"):
        with pytest.raises(DataError, match=r"a, b, c, .* the data set has .* would be scored as another class"):
            check_model_fits(description, replace(DATA_SET, class_names=list(names)))
    check_model_fits(description, replace(DATA_SET, class_names=["a", "b", "liver"]))
    assert capsys.readouterr().out == "Classes by value, model and data set: c -> liver.\n"
