"""Data sets in each layout that people have them in are the same cases."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse3dunet.data.checks import complete, inspect
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.names import case_name, image_name
from sparse3dunet.data.splits import split_cases
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import list_images
from tests.conftest import make_dataset, make_volume, write_nifti
from tests.data.test_datalist import change_json


def names(data_set):
    return [case_name(case) for case in data_set.cases]


def make_nnunet(root: Path, channels: int = 2, ending: str = ".nii.gz") -> Path:
    for number in range(2):
        image, _, sparse = make_volume(number)
        for channel in range(channels):
            write_nifti(root / f"imagesTr/kidney_{number}_{channel:04d}{ending}", image)
        write_nifti(root / f"labelsTr/kidney_{number}{ending}", sparse)
    description = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"background": 0, "shell": 1, "core": 2, "ignore": 3},
        "numTraining": 2,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_nnunet(tmp_path, channels, ending):
    found = read_data_set(make_nnunet(tmp_path, channels, ending))
    assert names(found) == ["kidney_0", "kidney_1"]
    assert (found.num_channels, found.ignore_index, found.class_values) == (channels, (3,), [0, 1, 2])
    assert np.shape(found.cases[0]["image"]) == ((channels,) if channels > 1 else ())
    assert inspect(found).all_errors == []


def test_nnunet_with_files_listed(tmp_path):
    """Its "dataset" entry names images and labels that lie elsewhere in the folder."""
    root = make_nnunet(tmp_path)
    (root / "imagesTr").rename(root / "scans")
    description = json.loads((root / "dataset.json").read_text())
    listed = {
        "images": ["scans/kidney_1_0000.nii.gz", "scans/kidney_1_0001.nii.gz"],
        "label": "labelsTr/kidney_1.nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps({**description, "dataset": {"one": listed}}))
    assert names(read_data_set(root)) == ["kidney_1"]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/{}.nii.gz", "labels/{}.nii.gz"),
        ("imagesTr/{}.nii", "labelsTr/{}.nii"),
        ("images/{}.nii.gz", "labels/{}_seg.nii.gz"),
        ("{}.nii.gz", "{}_seg.nii.gz"),
        ("{}.nii.gz", "{}-label.nii.gz"),
        ("{}_0000.nii.gz", "{}_mask.nii.gz"),
    ],
)
def test_pairs(tmp_path, image, label):
    for number in range(3):
        scan, _, sparse = make_volume(number)
        write_nifti(tmp_path / image.format(f"scan_{number}"), scan)
        write_nifti(tmp_path / label.format(f"scan_{number}"), sparse)
    found = complete(read_data_set(tmp_path, ignore_index=3))
    assert names(found) == ["scan_0", "scan_1", "scan_2"]
    assert all(image_name(case["label"]).startswith(case_name(case)) for case in found.cases)
    assert (found.class_values, found.num_channels) == ([0, 1, 2], 1)
    assert inspect(found).all_errors == []


def test_pairs_numbered_in_sequence(tmp_path):
    """Scans that are numbered as nnU-Net numbers channels, each with a label of its own, are scans."""
    for number in range(3):
        scan, _, sparse = make_volume(number)
        write_nifti(tmp_path / f"images/img_{number:04d}.nii.gz", scan)
        write_nifti(tmp_path / f"labels/img_{number:04d}.nii.gz", sparse)
    found = complete(read_data_set(tmp_path, ignore_index=3))
    assert [Path(c["image"]).name for c in found.cases] == [f"img_{i:04d}.nii.gz" for i in range(3)]
    assert found.num_channels == 1


def test_pairs_with_two_labels_or_negative_values(tmp_path):
    scan, _, sparse = make_volume(0)
    write_nifti(tmp_path / "a.nii.gz", scan)
    write_nifti(tmp_path / "a_seg.nii.gz", np.where(sparse == 3, -1, sparse.astype(np.int16)))
    with pytest.raises(DataError, match=r"value -1.*ignore_index -1"):
        complete(read_data_set(tmp_path))
    assert complete(read_data_set(tmp_path, ignore_index=-1)).class_values == [0, 1, 2]
    write_nifti(tmp_path / "a_mask.nii.gz", sparse)
    with pytest.raises(DataError, match="a second label of a, besides a_mask"):
        read_data_set(tmp_path)


def test_pairs_with_channels(tmp_path):
    """In files of their own, or in one."""
    for number in range(2):
        scan, _, sparse = make_volume(number)
        write_nifti(tmp_path / f"a/images/s{number}_0000.nii.gz", scan)
        write_nifti(tmp_path / f"a/images/s{number}_0001.nii.gz", scan)
        write_nifti(tmp_path / f"b/images/s{number}.nii.gz", np.stack([scan, scan], -1))
        for folder in "ab":
            write_nifti(tmp_path / f"{folder}/labels/s{number}.nii.gz", sparse)
    for folder in "ab":
        found = complete(read_data_set(tmp_path / folder))
        assert (names(found), found.num_channels) == (["s0", "s1"], 2)
        assert inspect(found).all_errors == []


def test_undeclared_values_are_classes_and_a_likely_mistake_is_warned_of(tmp_path):
    scan, _, sparse = make_volume(0)
    write_nifti(tmp_path / "a.nii.gz", scan)
    write_nifti(tmp_path / "a_seg.nii.gz", sparse)
    found = complete(read_data_set(tmp_path))
    assert found.class_values == [0, 1, 2, 3]
    (warning,) = inspect(found).warning_lines()
    assert "If the value 3 means unlabeled, set ignore_index 3" in warning


def test_datalist_anywhere_with_absolute_paths(tmp_path):
    """MONAI's form in a file of any name: channels as a list, validation cases of its own, paths from anywhere."""
    root = make_dataset(tmp_path / "data", 3)
    entries = json.loads((root / "dataset.json").read_text())["training"]
    absolute = [{key: str(root / path) for key, path in entry.items()} for entry in entries]
    absolute[0]["image"] = [absolute[0]["image"]] * 1
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists/mine.json"
    labels = {"0": "background", "1": "shell", "2": "core"}
    file.write_text(json.dumps({"labels": labels, "training": absolute[:2], "validation": absolute[2:]}))
    found = read_data_set(file)
    assert names(found) == ["case_0", "case_1", "case_2"]
    assert found.validation == ("case_2",)
    train, val = split_cases(found.cases, validation=found.validation)
    assert [[case_name(c) for c in part] for part in (train, val)] == [["case_0", "case_1"], ["case_2"]]
    assert split_cases(found.cases, 0, validation=found.validation) == (found.cases, found.cases)
    file.write_text(json.dumps(absolute))
    assert len(read_data_set(file).cases) == 3, "a bare list"
    description = {"labels": labels, "training": [{**entries[0], "label": str(file)}]}
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="lies outside of the data set's folder"):
        read_data_set(root)


def test_slices_of_a_case_go_before_those_of_all(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    description["training"][1]["annotated_slices"] = {"axial": [4]}
    (dataset / "dataset.json").write_text(json.dumps({**description, "annotated_slices": "all"}))
    assert [c["annotated_slices"] for c in read_data_set(dataset).cases] == ["all", {"axial": [4]}, "all"]
    found = read_data_set(dataset, annotated_slices="coronal")
    assert [c["annotated_slices"] for c in found.cases] == ["coronal", {"axial": [4]}, "coronal"]


def test_another_label_folder_leaves_declared_slices_and_weights_aside(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    description["training"][1].update(annotated_slices={"axial": [4]}, weight="labelsDense/case_1.nii.gz")
    (dataset / "dataset.json").write_text(json.dumps({**description, "annotated_slices": "all"}))
    for case in read_data_set(dataset, label_dir="labelsDense").cases:
        assert set(case) == {"image", "label", "reference"}


def test_the_label_ignore_is_unlabeled_beside_other_values(tmp_path):
    assert set(read_data_set(make_nnunet(tmp_path), ignore_index=255).ignore_index) == {3, 255}


def test_weight_folder(dataset):
    shutil.copytree(dataset / "labelsDense", dataset / "masks")
    found = read_data_set(dataset, weight_dir="masks")
    assert [Path(c["weight"]).parent.name for c in found.cases] == ["masks"] * 3


def test_a_channel_that_is_missing_is_none_of_the_others(tmp_path):
    for name in ("a_0000", "a_0002", "b_0000", "b_0001"):
        write_nifti(tmp_path / f"images/{name}.nii.gz", make_volume(0)[0])
    for name in "ab":
        write_nifti(tmp_path / f"labels/{name}.nii.gz", make_volume(0)[2])
    for read in (read_data_set, lambda root: list_images(root / "images", 2)):
        with pytest.raises(DataError, match=r"a_0000\.nii\.gz, a_0002\.nii\.gz; expected .*\(a_0001 is missing\)"):
            read(tmp_path)
    (tmp_path / "images/a_0002.nii.gz").rename(tmp_path / "images/a_0001.nii.gz")
    assert read_data_set(tmp_path).num_channels == 2


def test_nnunet_with_more_channels_than_it_declares(tmp_path):
    root = make_nnunet(tmp_path)
    change_json(root, channel_names={"0": "MRI"})
    with pytest.raises(DataError, match=r"kidney_0_0001\.nii\.gz is none of the 1 channel\(s\) that .*dataset\.json"):
        read_data_set(root)
