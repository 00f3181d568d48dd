"""Bad options of check, and bad inputs of simulate: each ends in one message, which tells the cure."""

import re

import nibabel as nib
import numpy as np
import pytest
import tifffile

from sparse3dunet.transforms import KeepScribbles
from tests.conftest import make_dataset, make_volume, run_sparse3dunet, write_nifti
from tests.data.test_datalist import change_json

NUMBERS = ("must be one or several whole numbers", "Write it as 255 or 4,255")
SPECIFICATION = ('annotated slices are written {"axial": [3, 20]', "Correct it")

CHECK = {  # options, and words for the file or option, what was found and expected, and the cure
    "no such folder": (
        ("--label-dir", "labelsX"),
        *("data/labelsX", "no such folder", "expected one of: ", "imagesTr, labelsDense", "Pass one"),
    ),
    "unlabeled is no number": (("--ignore-index", "abc"), "--ignore-index", "found 'abc'", *NUMBERS),
    "unlabeled is a fraction": (("--ignore-index", "3,2.5"), "--ignore-index", "found '3,2.5'", *NUMBERS),
    "unlabeled is empty": (("--ignore-index", ""), "--ignore-index", "found ''", *NUMBERS),
    "unlabeled is a class": (
        ("--ignore-index", "9,1"),
        *("data/dataset.json", "ignore_index 1 is also a class, shell", "other than 0, 1, 2", "Choose another"),
    ),
    "slices are no JSON": (
        ("--annotated-slices", '{"axial": [3'),
        *("--annotated-slices", "is not valid JSON", "expected axial", "Write it as"),
    ),
    "unknown plane": (
        ("--annotated-slices", "axail"),
        *("data/dataset.json (set by an option)", "contains 'axail', which is neither a plane", *SPECIFICATION),
    ),
    "no slices": (
        ("--annotated-slices", "{}"),
        *("data/dataset.json (set by an option)", "lists no slice", *SPECIFICATION),
    ),
    "slice out of range": (
        ("--annotated-slices", '{"sagittal": 24}'),
        *("labelsTr/case_0.nii.gz", "lists 24 under 'sagittal'", "the slices 0 ... 23", "count from 0", "correct it"),
    ),
    "all, of scribbles": (
        ("--annotated-slices", "all", "--label-dir", "scribbles"),
        *("scribbles/case_0.nii.gz", "cannot determine", "not slices (but scribbles", "pass a weight image"),
    ),
    "axial, of scribbles": (
        ("--annotated-slices", "axial", "--label-dir", "scribbles"),
        *(
            "scribbles/case_0.nii.gz",
            "show only lines or a few voxels",
            "List them in the datalist",
            'use "annotated_slices"',
        ),
    ),
    "axial, of orthogonal slices": (
        ("--annotated-slices", "axial", "--label-dir", "empty"),
        *("empty/case_0.nii.gz", "shows annotated slices in other", "coronal [10]", 'use "all" instead'),
    ),
    "nothing in the slices": (
        ("--annotated-slices", '{"axial": [0]}', "--label-dir", "unlabeled_rim"),
        *("unlabeled_rim/case_0.nii.gz", "no voxel is annotated", "outside of the annotated slices", "Annotate at"),
    ),
}


@pytest.fixture
def data(tmp_path):
    """One case, and its annotation in other conventions."""
    root = make_dataset(tmp_path / "data", 1)
    change_json(root, training=[{"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz"}])
    _, dense, sparse = make_volume(0)
    keep = KeepScribbles(9, 20)
    keep.set_random_state(0)
    write_nifti(root / "scribbles/case_0.nii.gz", dense * (keep(dense[None].astype(np.int16))[0].numpy() > 0))
    write_nifti(root / "empty/case_0.nii.gz", np.where(sparse == 3, 0, sparse).astype(np.uint8))
    rim = dense.copy()
    rim[:, :, 0] = 3
    write_nifti(root / "unlabeled_rim/case_0.nii.gz", rim)
    return root


@pytest.mark.parametrize("fault", CHECK)
def test_bad_option_of_check(data, error_of, fault):
    options, *words = CHECK[fault]
    message = error_of("check", data, *options)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["nowhere", "a" * 300, "labelsTr/case_0.nii.gz"])
def test_what_is_no_data_set(data, error_of, name):
    message = error_of("check", data / name)
    assert all(word in message for word in (str(data / name), "Pass ", "a JSON datalist")), message


SLICES = ("--slices", "2")
SIMULATE = {  # labels, options, and words
    "an image": (
        "imagesTr",
        SLICES,
        "imagesTr/case_0.nii.gz",
        "of float32",
        "expected a three-dimensional label map",
        "Pass the folder of",
    ),
    "infinity": (
        "infinite",
        SLICES,
        "infinite/a.nii.gz",
        "of float32",
        "expected a three-dimensional label map",
        "Pass the folder of",
    ),
    "an empty folder": ("nothing", SLICES, "data/nothing", "nor a folder of label maps", "Pass a dense label map"),
    "no such folder": ("nowhere", SLICES, "data/nowhere", "nor a folder of label maps", "Pass a dense label map"),
    "a file of another kind": ("dataset.json", SLICES, "data/dataset.json", "expected .nii.gz, .nii", "Pass a dense"),
    "an empty file": (
        "broken",
        SLICES,
        "broken/a.nii.gz",
        "cannot be read",
        "expected a whole NIfTI file",
        "export it",
    ),
    "nothing in it": ("blank", SLICES, "blank/a.nii.gz", "no voxel is foreground", "label > 0", "remove the case"),
    "output is input": (
        "labelsDense",
        (*SLICES, "-o", "labelsDense"),
        "data/labelsDense",
        "contains the dense",
        "another folder",
    ),
    "output is a file": (
        "labelsDense",
        (*SLICES, "-o", "dataset.json"),
        *("data/dataset.json, the folder for the label maps", "is a file", "Pass another folder"),
    ),
    "output within a file": (
        "labelsDense",
        (*SLICES, "-o", "dataset.json/out"),
        *("data/dataset.json/out, the folder for the label maps", "cannot be created", "Pass another folder"),
    ),
    "too many slices": (
        "labelsDense",
        ("--slices", "0,0,50"),
        *("labelsDense/case_0.nii.gz: axis 2", "slices strictly within", "50 were requested", "request fewer"),
    ),
    "no slices": ("labelsDense", ("--slices", "0"), "slices must be", "above 0", "got 0"),
    "slices are no number": ("labelsDense", ("--slices", "a"), "--slices", "found 'a'", *NUMBERS),
    "two ways at once": (
        "labelsDense",
        (*SLICES, "--fraction", "0.1"),
        *("found --slices and --fraction", "expected exactly one of --slices, --fraction, --scribbles", "Pass one"),
    ),
    "no way": ("labelsDense", (), "found no option", "expected exactly one of", "Pass one"),
    "fraction above 1": ("labelsDense", ("--fraction", "2"), "fraction must be above 0 and at most 1", "got 2.0"),
    "too few scribbles": (
        "labelsDense",
        ("--scribbles", "2"),
        *("labelsDense/case_0.nii.gz: 2 scribbles", "too few for the 3 classes", "set count to 3"),
    ),
    "unknown placement": ("labelsDense", (*SLICES, "--placement", "best"), "must be one of equidistant", "got 'best'"),
    "unlabeled is a class": (
        "labelsDense",
        (*SLICES, "--ignore-index", "2"),
        *(
            "data/labelsDense",
            "ignore_index 2 is a value of the label maps",
            "expected one that is none of [0, 1, 2]",
            "Choose another",
        ),
    ),
    "unlabeled is too large": (
        "labelsDense",
        (*SLICES, "--ignore-index", str(2**40)),
        *("the value 1099511627776, of unlabeled voxels (ignore_index)", "expected -16777216 ... ", "Choose another"),
    ),
}


@pytest.mark.parametrize("fault", SIMULATE)
def test_bad_input_of_simulate(data, error_of, monkeypatch, fault):
    (data / "nothing").mkdir()
    (data / "broken").mkdir()
    (data / "broken/a.nii.gz").write_bytes(b"")
    write_nifti(data / "infinite/a.nii.gz", np.full((8, 8, 8), np.inf, np.float32))
    write_nifti(data / "blank/a.nii.gz", np.zeros((8, 8, 8), np.uint8))
    labels, options, *words = SIMULATE[fault]
    monkeypatch.chdir(data)
    message = error_of("simulate", data / labels, "-o", "out", *options)
    assert all(word in message for word in words), message
    assert not list(data.glob("out/*")), "nothing was written"


def test_simulate_replaces_only_its_own_copies(data, error_of):
    """Also not those that were changed since; --overwrite replaces anything."""
    simulate = ("simulate", data / "labelsDense", "--slices", 1, "-o")
    for folder in ("imagesTr", "labelsTr"):
        files = {file: file.read_bytes() for file in (data / folder).iterdir()}
        message = error_of(*simulate, data / folder)
        assert f"{folder}/case_0.nii.gz exists and is not what this command wrote" in message
        assert {file: file.read_bytes() for file in (data / folder).iterdir()} == files
    for seed in (0, 1):
        assert run_sparse3dunet(*simulate, data / "new", "--placement", "random", "--seed", seed).returncode == 0
    copy = data / "new/case_0.nii.gz"
    copy.write_bytes(b"changed")
    assert "new/case_0.nii.gz exists and is not what this command wrote" in error_of(*simulate, data / "new")
    assert run_sparse3dunet(*simulate, data / "new", "--overwrite").returncode == 0
    assert copy.read_bytes() != b"changed"


def test_simulate_refuses_two_originals_of_one_copy(tmp_path, error_of):
    dense = make_volume(0)[1]
    (tmp_path / "dense").mkdir()
    for name in ("a.tif", "a.tiff"):
        tifffile.imwrite(tmp_path / "dense" / name, dense.T.astype(np.uint8), imagej=True)
    message = error_of("simulate", tmp_path / "dense", "-o", tmp_path / "out", "--slices", 1)
    assert "a.tiff and a.tif: the sparse copies of both would be a.tif" in message


def test_simulate_writes_values_that_only_64_bits_would_hold_unsigned(tmp_path):
    dense = make_volume(0)[1].astype(np.int32)
    write_nifti(tmp_path / "a.nii.gz", np.choose(dense, [-1, 0, 100000]).astype(np.int32))
    options = ("--fraction", 0.5, "--ignore-index", 200000)
    result = run_sparse3dunet("simulate", tmp_path / "a.nii.gz", "-o", tmp_path / "out", *options)
    assert result.returncode == 0, result.stderr
    assert set(np.unique(nib.load(tmp_path / "out/a.nii.gz").dataobj)) == {-1, 0, 100000, 200000}


@pytest.mark.parametrize("value", [-1, 256, 257, 300, 70000])
@pytest.mark.parametrize("option", [("--slices", 1), ("--fraction", 0.1)])
def test_simulate_writes_the_value_that_it_says(tmp_path, value, option):
    """Of 8-bit labels, 257 became 1: all unlabeled voxels were of class 1."""
    dense = write_nifti(tmp_path / "dense.nii.gz", make_volume(0)[1].astype(np.uint8))
    done = run_sparse3dunet("simulate", dense, "-o", tmp_path / "out", *option, "--ignore-index", value)
    assert done.returncode == 0, done.stderr
    assert f"the others are {value} (unlabeled)" in done.stdout
    label = np.asarray(nib.load(dense).dataobj)
    sparse = np.asarray(nib.load(tmp_path / "out/dense.nii.gz").dataobj)
    share = float(re.search(r"([\d.]+)% of the voxels kept", done.stdout)[1])
    assert (sparse != value).mean() == pytest.approx(share / 100, abs=1e-4)
    np.testing.assert_array_equal(sparse[sparse != value], label[sparse != value])
