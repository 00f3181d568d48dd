"""Names of cases: those of their files, and of folders where several files have the same name."""

import json

import numpy as np
import pytest

from sparse3dunet.data.checks import inspect_case
from sparse3dunet.data.cutting import cut_large
from sparse3dunet.data.datalist import declared_data_set, read_data_set, with_cases
from sparse3dunet.data.names import case_name, distinct_names, image_name, named, volume_name
from sparse3dunet.data.splits import cases_to_score, split_cases
from sparse3dunet.densify.results import Results
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import find_images
from sparse3dunet.io.defaults import VOLUME_MEMORY
from tests.conftest import UNLABELED, make_volume, write_nifti
from tests.io.microscopy import voxels, write

SAME = [
    (["P001/CT", "P002/CT"], ["P001_CT", "P002_CT"]),
    (["P001/CT", "P002/CT", "MR"], ["P001_CT", "P002_CT", "MR"]),
    (["P001/scan/CT", "P002/scan/CT"], ["P001_CT", "P002_CT"]),
    (["P001/2020/CT", "P002/2021/CT"], ["P001_CT", "P002_CT"]),
    (["P001/scan/CT", "P002/CT"], ["P001_CT", "P002_CT"]),
    (["s1/P1/CT", "s1/P2/CT", "P1_CT.nii.gz"], ["s1_P1_CT", "s1_P2_CT", "P1_CT"]),
    (["P1_CT.nii.gz", "P1/a/CT", "P1/b/CT", "P2/c/CT"], ["P1_CT", "a_CT", "b_CT", "c_CT"]),
    (["P1_CT.nii.gz", "P1/a/CT", "P2/b/CT"], ["P1_CT", "P1_a_CT", "P2_b_CT"]),
    (["s/a/x.nii", "s/b/x.nii", "s/a/y.nii", "s/c/y.nii", "a_x.nii"], ["s_a_x", "s_b_x", "a_y", "c_y", "a_x"]),
    (["P/a/scan/t1.nii.gz", "P/b/scan/t1.nii.gz"], ["a_t1", "b_t1"]),
    (["P001/a/CT", "P001/b/CT", "P002/a/CT"], ["P001_a_CT", "P001_b_CT", "P002_a_CT"]),
    (["CT", "P002/CT"], ["CT", "P002_CT"]),
    (["P001/../P001/CT", "P002/CT"], ["P001_CT", "P002_CT"]),
    (["a/s_0000.nii.gz", "b/s_0000.nii.gz"], ["a_s", "b_s"]),
]
ALIKE = [
    ["a/x.nii", "a/x.nrrd"],
    ["a/b/x.nii", "a_b/x.nii", "a/x.nii", "a/c/x.nii"],
    ["a/x.nii", "b/x.nii", "a/x.nii"],
]


@pytest.mark.parametrize(("paths", "names"), SAME)
def test_folders_tell_images_of_one_name_apart(tmp_path, paths, names):
    assert distinct_names([str(tmp_path / path) for path in paths], "here") == names


@pytest.mark.parametrize("paths", ALIKE)
def test_what_folders_do_not_tell_apart_is_refused(tmp_path, paths):
    paths = [str(tmp_path / path) for path in paths]
    with pytest.raises(DataError, match=r"^here: several cases have the same name, \w+: .* and ") as error:
        distinct_names(paths, "here")
    assert "\n" not in str(error.value)


def test_folders_above_tell_images_apart_as_well(tmp_path):
    paths = [str(tmp_path / path) for path in ("a/x.nii", "b/x.nii", "a_x.nii")]
    assert distinct_names(paths, "here") == [f"{tmp_path.name}_a_x", f"{tmp_path.name}_b_x", "a_x"]


def test_a_folder_with_a_channel_number(tmp_path):
    """As before in data sets: split files and models list such a case without it."""
    (tmp_path / "CT_0000").mkdir()
    assert image_name(tmp_path / "CT_0000") == case_name({"image": str(tmp_path / "CT_0000")}) == "CT"


def listed(*paths):
    return named([{"image": f"/data/{path}.nii.gz"} for path in paths], "here")


@pytest.mark.parametrize(
    ("paths", "training", "validation", "note"),
    [
        (["A/t1", "B/t2", "C/t1"], ["t1"], ["t3"], "cannot tell"),
        (["A/t1", "B/t2", "C/t1"], ["t1"], ["t2"], "was not trained"),
        (["A/t1", "B/t2"], ["t1"], ["t3"], "was trained"),
        (["t1"], ["A_t1"], ["t3"], "cannot tell"),
        (["A/t1"], ["A_t1", "B_t1"], ["t3"], "cannot tell"),
        (["P1/a/CT", "P1/b/CT", "P2/a/CT"], ["P1_CT"], ["P3_CT"], "cannot tell"),
        (["P3/CT", "P4/CT"], ["P1_CT"], ["P2_CT"], "was not trained"),
        (["P1/CT", "P2/CT"], ["P1_CT"], ["P2_CT"], "was not trained"),
        (["CT", "P1/CT"], ["P1_CT"], ["CT"], "was not trained"),
        (["A/t1"], [], [], "cannot tell"),
    ],
)
def test_what_is_said_of_cases_named_otherwise_in_another_list(capsys, paths, training, validation, note):
    cases_to_score(listed(*paths), training, validation)
    said = capsys.readouterr().out
    assert next(words for words in ("was not trained", "cannot tell", "was trained") if words in said) == note


@pytest.fixture
def hospital(tmp_path):
    """A datalist of three patients' folders, in which all files have the same names."""
    for number, patient in enumerate(("P001", "P002", "P003")):
        image, _, label = make_volume(number)
        for name, data in (("image", image), ("label", label)):
            write_nifti(tmp_path / patient / "scan" / f"{name}.nii.gz", data)
    listed = [{key: f"P00{n}/scan/{key}.nii.gz" for key in ("image", "label")} for n in (1, 2, 3)]
    path = tmp_path / "list.json"
    labels = {"0": "background", "1": "shell", "2": "core"}
    content = {"training": listed[:2], "validation": listed[2:], "labels": labels, "ignore_index": UNLABELED}
    path.write_text(json.dumps(content))
    return path


def test_a_data_set_of_one_name_in_several_folders(hospital, tmp_path):
    data_set = read_data_set(hospital)
    names = ["P001_image", "P002_image", "P003_image"]
    assert [case_name(case) for case in data_set.cases] == names
    assert data_set.validation == ("P003_image",)
    assert inspect_case(data_set.cases[1], data_set).name == "P002_image"
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:1], "val": names[1:2]}))
    assert split_cases(data_set.cases, split_file=tmp_path / "split.json")[1] == data_set.cases[1:2]
    found = find_images([tmp_path / "P*/scan/image.nii.gz"])
    assert [case.name for case in found] == names, "predicted under the names that they were trained on"


def test_results_of_densify_have_these_names(hospital, tmp_path):
    results = Results(tmp_path / "out", read_data_set(hospital), None, keep_annotation=True)
    assert [results.files(case)["segmentation"].name for case in results.cases] == [
        "P001_image_seg.nii.gz",
        "P002_image_seg.nii.gz",
        "P003_image_seg.nii.gz",
    ]
    assert results.name_of(results.cases[1].files[0]) == "P002_image"


def test_parts_of_large_volumes_of_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv(VOLUME_MEMORY, "0")
    label = np.full((40, 30, 20), 9, np.uint8)
    label[3:5, 4:20, 7] = np.arange(16) % 2
    entries = []
    for patient in ("P1", "P2"):
        (tmp_path / patient).mkdir()
        write(tmp_path / patient / "image_ilastik.h5", voxels(label.shape, high=200))
        write(tmp_path / patient / "label_ilastik.h5", label)
        entries += [{"image": f"{patient}/image_ilastik.h5:/exported_data", "label": f"{patient}/label_ilastik.h5"}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries, "ignore_index": 9}))
    parts = cut_large(read_data_set(path)).cases
    assert [volume_name(part) for part in parts] == ["P1_image_ilastik", "P2_image_ilastik"]
    assert [case_name(part)[:22] for part in parts] == ["P1_image_ilastik_part_", "P2_image_ilastik_part_"]


def test_listed_cases_of_one_name(tmp_path):
    """As MONAI Label and configs list them, by hand."""
    classes = {"class_names": ["a", "b"], "class_values": [0, 1]}
    declared = declared_data_set({**classes, "ignore_index": [2], "num_channels": 1})
    listed = [{"image": str(tmp_path / path), "label": "x"} for path in ("1/t.nii.gz", "2/t.nii.gz", "2/t.nii")]
    assert [case_name(case) for case in with_cases(declared, listed[:2]).cases] == ["1_t", "2_t"]
    with pytest.raises(DataError, match="cases to train on: several cases have the same name, 2_t: "):
        with_cases(declared, listed)
