"""Data sets read from folders, splits, and images to predict."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sparse3dunet.data.checks import check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.names import case_name, image_name
from sparse3dunet.data.splits import cases_to_score, split_cases
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import find_images, list_images
from sparse3dunet.io.volumes import read_volume
from tests.conftest import ROOT, make_volume, write_nifti

HIPPOCAMPUS = ROOT.parent / "shared" / "hippocampus"


def change_json(folder: Path, **changes) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_paths_classes_and_channels(dataset):
    found = read_data_set(dataset)
    assert found.class_names == ["background", "shell", "core"]
    assert found.num_channels == 1
    assert [case_name(case) for case in found.cases] == ["case_0", "case_1", "case_2"]
    assert all(Path(path).is_file() for case in found.cases for path in case.values())
    assert set(found.cases[0]) == {"image", "label", "reference"}


def test_other_folders(dataset):
    cases = read_data_set(dataset, label_dir="labelsDense", reference_dir="labelsTr").cases
    assert Path(cases[0]["label"]).parent.name == "labelsDense"
    assert Path(cases[0]["reference"]).parent.name == "labelsTr"


@pytest.mark.parametrize(
    ("key", "meant"),
    [("weigth", "weight"), ("Weight", "weight"), ("annotated_slice", "annotated_slices"), ("fold", None)],
)
def test_a_mistyped_key_of_a_case_is_told(dataset, key, meant):
    """Its annotation was read as if nothing was declared."""
    training = json.loads((dataset / "dataset.json").read_text())["training"]
    change_json(dataset, training=[training[0], {**training[1], key: "masks/b.nii.gz"}, training[2]])
    told = [text for _, text in read_data_set(dataset).warnings]
    assert len(told) == (meant is not None)
    expected = f"training case 1: the key '{key}' is not known, and ignored; did you mean '{meant}'?"
    assert all(expected in text for text in told)


def test_mistyped_keys_of_a_list_are_told(dataset):
    usual = {"name": "a", "description": "", "reference": "", "licence": "", "numTraining": 3, "tensorImageSize": "3D"}
    change_json(dataset, **usual, ignoreIndex=3, annotated_slice="axial")
    told = " ".join(text for _, text in check_data(read_data_set(dataset)).warnings)
    assert told.count("did you mean") == 2
    assert "'ignoreIndex' is not known, and ignored; did you mean 'ignore_index'?" in told


def test_keys_of_other_programs_are_no_mistyped_ones(dataset):
    training = json.loads((dataset / "dataset.json").read_text())["training"]
    others = {"height": 512, "width": 512, "weighting": 0.5, "reference_id": "P17", "preference": "", "label_name": "a"}
    lists = {"channels": 1, "numValidation": 3, "validation_split": 0.2, "labelsTr": "./labelsTr", "region": "Europe"}
    change_json(dataset, training=[{**entry, **others} for entry in training], annotated_slice_count=4, **lists)
    assert read_data_set(dataset).warnings == ()


def test_a_byte_order_mark_is_no_fault(dataset):
    """Programs on Windows write one."""
    path = dataset / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_data_set(dataset).cases) == 3


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="../shared/hippocampus is not on this machine")
def test_reads_the_decathlons_own_folder():
    found = read_data_set(HIPPOCAMPUS, label_dir="labelsTr_sparse", reference_dir="labelsTr")
    assert found.class_names == ["background", "Anterior", "Posterior"]
    train, val = split_cases(found.cases, split_file=HIPPOCAMPUS / "split.json")
    assert (len(train), len(val)) == (160, 40)
    assert Path(train[0]["label"]).parent.name == "labelsTr_sparse"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda d: [(d / "dataset.json").unlink(), (d / "labelsTr").rename(d / "x")],
            ["not a data set", "data/README.md"],
        ),
        (lambda d: (d / "dataset.json").write_text("{"), ["dataset.json", "not readable as JSON"]),
        (lambda d: (d / "dataset.json").write_text("[]"), ["expected a JSON object"]),
        (lambda d: change_json(d, training=[]), ["lists no cases"]),
        (lambda d: change_json(d, training=["a.nii"]), ["training case 0", "a.nii"]),
        (lambda d: change_json(d, labels={"1": "a"}), ["labels", "at least two classes"]),
        (lambda d: change_json(d, labels=["a"]), ["labels", "at least two classes"]),
        (lambda d: change_json(d, labels={"background": 0, "whole": [1, 2]}), ["regions of several values"]),
        (lambda d: change_json(d, ignore_index="3"), ["ignore_index must be a whole number", "'3'"]),
        (lambda d: (d / "labelsTr/case_1.nii.gz").unlink(), ["case_1.nii.gz", "label of training case 1"]),
        (
            lambda d: change_json(d, training=json.loads((d / "dataset.json").read_text())["training"] * 2),
            ["several cases have the same name", "case_0"],
        ),
    ],
)
def test_faults_are_named(dataset, spoil, words):
    spoil(dataset)
    with pytest.raises(DataError) as error:
        read_data_set(dataset)
    assert all(word in str(error.value) for word in words), error.value


def test_links_keep_their_names(tmp_path, dataset):
    """Stores of large files keep them under names of their own, without an ending, and link to them."""
    for path in [*dataset.glob("imagesTr/*"), *dataset.glob("labelsTr/*")]:
        path.rename(tmp_path / f"{path.parent.name}-{path.name[5]}")
        path.symlink_to(tmp_path / f"{path.parent.name}-{path.name[5]}")
    found = read_data_set(dataset).cases
    assert [case_name(case) for case in found] == ["case_0", "case_1", "case_2"]
    assert [case_name(case) for case in list_images(dataset / "imagesTr")] == ["case_0", "case_1", "case_2"]


def test_missing_folders(tmp_path, dataset):
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_data_set(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"labelsX: no such folder.*imagesTr, labelsDense, labelsTr"):
        read_data_set(dataset, label_dir="labelsX")


def cases(count):
    return [{"image": f"/data/{i}.nii.gz", "label": f"/labels/{i}.nii.gz"} for i in range(count)]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(10, 0.2, 2), (2, 0.2, 1), (3, 0.9, 2), (200, 0.2, 40)])
def test_split(count, fraction, expected):
    train, val = split_cases(cases(count), fraction, seed=1)
    assert len(val) == expected
    assert sorted(c["image"] for c in train + val) == sorted(c["image"] for c in cases(count))
    assert (train, val) == split_cases(cases(count), fraction, seed=1)


def test_split_to_densify():
    assert split_cases(cases(1)) == (cases(1), cases(1))
    assert split_cases(cases(4), 0) == (cases(4), cases(4))


def test_split_file(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["2", "0"], "val": ["1"]}))
    train, val = split_cases(cases(3), split_file=path)
    assert [case_name(c) for c in train] == ["2", "0"]
    assert [case_name(c) for c in val] == ["1"]
    for content, words in [
        ({"train": ["7"], "val": ["1"]}, "not in the data set: 7"),
        ({"train": ["1"]}, '"val"'),
        ({"train": [], "val": ["1"]}, '"train"'),
        ({"train": [["1"]], "val": ["1"]}, "are not in the data set"),
        ({"train": ["0", "1"], "val": ["1"]}, "in both parts: 1"),
        ({"train": ["0", "0"], "val": ["1"]}, '0 is listed twice under "train"'),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=words):
            split_cases(cases(3), split_file=path)
    for fraction in (1.0, None, True, "x", float("nan")):
        with pytest.raises(DataError, match="val_fraction must be a number"):
            split_cases(cases(3), fraction)


@pytest.mark.parametrize(
    ("path", "name"), [("/a/b.nii.gz", "b"), ("b.nii", "b"), ("x.y.nii.gz", "x.y"), ("b.mha", "b")]
)
def test_image_name(path, name):
    assert image_name(path) == name


def test_cases_to_score(capsys):
    some = cases(4)
    assert cases_to_score(some, ["1", "3"], ["2", "0"]) == [some[0], some[2]]
    assert "Scoring 2 volume(s), which the model was not trained on: 0, 2" in capsys.readouterr().out
    assert cases_to_score(some, ["0"], ["x", "2"]) == some, "another data set that happens to share names"
    assert cases_to_score(some, [], []) == some
    capsys.readouterr()
    cases_to_score(some, ["0", "1", "2", "3"], ["0", "1", "2", "3"])
    assert "all or some of which the model was trained on" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".NII.GZ", ".NII", ".nii.GZ"])
def test_suffixes_in_letters_of_any_case(tmp_path, suffix):
    """As some scanners' software writes them."""
    image, label, _ = make_volume(0)
    for folder, array in (("images", image), ("labels", label)):
        written = write_nifti(tmp_path / folder / f"a{suffix.lower()}", array)
        written.rename(tmp_path / folder / f"a{suffix}")
    (case,) = read_data_set(tmp_path, ignore_index=2).cases
    assert case_name(case) == "a"
    np.testing.assert_array_equal(read_volume(case["label"]).data, label)
    (found,) = find_images([tmp_path / "images"], 1)
    assert found.name == "a"
    broken = tmp_path / "labels" / f"a{suffix}"
    if suffix.lower().endswith(".gz"):
        content = bytearray(broken.read_bytes())
        content[-8] ^= 1  # of the checksum
        broken.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(f"a{suffix}")):
            read_volume(broken)
