"""Regions declared in a data set."""

import json

import pytest

from sparse3dunet.data.checks import check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.regions import describe, output_count, scored_names
from sparse3dunet.errors import DataError
from sparse3dunet.training.data import read
from tests.conftest import run_sparse3dunet
from tests.data.test_datalist import change_json
from tests.data.test_layouts import make_nnunet

REGIONS = {"whole": ["shell", "core"], "inside": [2]}


def test_names_and_values_become_class_numbers_in_their_order(dataset):
    assert read_data_set(dataset).regions == {}
    change_json(dataset, regions=REGIONS)
    found = read_data_set(dataset)
    assert list(found.regions.items()) == [("whole", (1, 2)), ("inside", (2,))]
    assert describe(found.regions, found.class_names) == [
        "region whole: shell, core; written as shell",
        "region inside: core; written as core",
    ]
    assert (output_count(found.regions, 3), output_count(None, 3), output_count({}, 3)) == (2, 3, 3)
    assert scored_names(found.regions, found.class_names) == ["background", "whole", "inside"]
    assert scored_names(None, found.class_names) == found.class_names


def test_in_nnunets_layout(tmp_path):
    folder = make_nnunet(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    names = [name for name in content["labels"] if name not in ("background", "ignore")]
    change_json(folder, regions={"all": names, **{name: [name] for name in names[1:]}})
    assert list(read_data_set(folder).regions) == ["all", *names[1:]]


def test_the_background_cannot_be_a_class_of_a_region(dataset):
    change_json(dataset, regions=REGIONS)
    with pytest.raises(DataError, match=r"dataset\.json: the background is to be 2, .* class of the region whole"):
        read(str(dataset), background=2)
    assert read(str(dataset), background=0).regions
    assert read(str(dataset), background=2, infer_unlabeled=True).class_values[0] == 2, "densify ignores regions"


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (["whole"], ["must be like", "['whole']"]),
        ({}, ["must be like"]),
        ({"whole": ["shel", "core"]}, ["whole contains 'shel'", "shell (1), core (2)"]),
        ({"whole": ["background", "core"]}, ["whole contains 'background'", "other than the background"]),
        ({"whole": [1, True]}, ["whole contains True"]),
        ({"whole": [[1], 2]}, ["whole contains [1]"]),
        ({"whole": ["core"]}, ["shell is in no region"]),
        ({"whole": ["shell", "core"]}, ["whole: 2 of its classes are in no later region"]),
        ({"inside": ["core"], "whole": ["shell", "core"]}, ["whole: 2 of its classes", "change their order"]),
        ({**REGIONS, "again": [2]}, ["inside: 0 of its classes"]),
        ({"background": [1, 2], "core": [2]}, ["a region named 'background'"]),
    ],
)
def test_wrong_declarations_are_refused(dataset, declared, words):
    change_json(dataset, regions=declared)
    with pytest.raises(DataError) as error:
        read_data_set(dataset)
    assert all(word in str(error.value) for word in ["dataset.json", '"regions"', *words]), error.value


def test_what_cannot_be_combined_is_refused(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({"training": content["training"], "regions": REGIONS}))
    with pytest.raises(DataError, match='"regions" needs declared classes'):
        read_data_set(dataset)
    (dataset / "dataset.json").write_text(json.dumps({**content, "regions": REGIONS, "annotated_classes": ["shell"]}))
    with pytest.raises(DataError, match="regions and annotated_classes are both declared"):
        read_data_set(dataset)


def test_check_says_what_a_region_is(dataset):
    change_json(dataset, regions=REGIONS)
    assert check_data(read_data_set(dataset)).warning_lines() == []
    result = run_sparse3dunet("check", dataset)
    assert result.returncode == 0, result.stdout
    assert "region whole: shell, core; written as shell." in result.stdout
    assert json.loads(run_sparse3dunet("check", dataset, "--json").stdout)["regions"] == {
        "whole": [1, 2],
        "inside": [2],
    }


def test_densify_ignores_regions_and_says_so(dataset, capsys):
    change_json(dataset, regions=REGIONS)
    found = read(str(dataset), infer_unlabeled=True)
    assert "the regions are ignored" in capsys.readouterr().out
    assert found.regions == {}
    assert read(str(dataset)).regions
