"""Files are looked at before a run, and each fault is told with its file and cure."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from sparse3dunet.data import checks
from sparse3dunet.data.checks import check_data
from sparse3dunet.data.datalist import DataSet, read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output_dir
from sparse3dunet.networks import UNet3D
from sparse3dunet.training.settings import (
    case_weights,
    check_patch_size,
    target_spacing,
)
from tests.conftest import ROOT, write_nifti


def change(path, function):
    image = nib.load(path)
    write_nifti(path, function(np.asarray(image.dataobj).copy()), image.affine)


def put(value):
    def function(array):
        array[2, 3, 4] = value
        return array

    return function


def zero_spacing(path):
    image = nib.load(path)
    array, header = np.asarray(image.dataobj), image.header
    header.set_sform(np.diag([0.0, 2, 2, 1]), code=1)
    nib.save(nib.Nifti1Image(array, None, header), path)


def shift(path, voxels):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += voxels * 2
    write_nifti(path, np.asarray(image.dataobj), affine)


def test_good_data_passes(dataset):
    report = check_data(read_data_set(dataset))
    assert [case.shape for case in report.cases] == [(24, 20, 18)] * 3
    assert report.warning_lines() == []
    shift(dataset / "labelsTr/case_1.nii.gz", 0.05)
    check_data(read_data_set(dataset))


@pytest.mark.parametrize(
    ("file", "spoil", "words"),
    [
        ("imagesTr", lambda p: p.write_bytes(p.read_bytes()[:500]), ["cannot be read", "truncated"]),
        ("imagesTr", lambda p: p.write_bytes(b""), ["cannot be read", "copy or export it again"]),
        ("imagesTr", lambda p: p.write_bytes(gzip.compress(b"not a volume" * 99)), ["not NIfTI", "export it again"]),
        ("imagesTr", lambda p: change(p, put(np.nan)), ["1 of 8640 voxels are NaN or infinite"]),
        ("imagesTr", lambda p: change(p, put(np.inf)), ["NaN or infinite"]),
        ("imagesTr", lambda p: change(p, lambda a: np.stack([a, a], -1)), ["expected a 3D image with 1 channel"]),
        ("imagesTr", lambda p: change(p, lambda a: a[0]), ["expected a three-dimensional volume"]),
        ("imagesTr", zero_spacing, ["affine is degenerate"]),
        ("labelsTr", lambda p: p.write_bytes(p.read_bytes()[:200]), ["cannot be read", "truncated"]),
        ("labelsTr", lambda p: change(p, lambda a: a[1:]), ["(23, 20, 18)", "(24, 20, 18)", "the same grid"]),
        ("labelsTr", lambda p: shift(p, 1), ["position in space", "1.0 voxels"]),
        ("labelsTr", lambda p: change(p, put(7)), ["label value 7", "ignore_index"]),
        ("labelsTr", lambda p: change(p, lambda a: a * 0 + 3), ["no voxel is annotated"]),
        ("labelsTr", lambda p: change(p, lambda a: a * 0.9), ["label value 0.9", "whole numbers"]),
        (
            "labelsTr",
            lambda p: change(p, lambda a: np.where(a == 3, np.nan, a)),
            ["voxel(s) are NaN", "--ignore-index"],
        ),
        ("labelsTr", lambda p: change(p, lambda a: np.zeros(a.shape, [(c, "u1") for c in "RGB"])), ["found colours"]),
        ("labelsDense", lambda p: change(p, put(3)), ["label value 3"]),
    ],
)
def test_faults_are_named(dataset, file, spoil, words):
    path = dataset / file / "case_1.nii.gz"
    spoil(path)
    with pytest.raises(DataError) as error:
        check_data(read_data_set(dataset))
    message = str(error.value)
    assert all(word in message for word in [str(path), *words]), message
    assert "\n" not in message


def test_all_faults_at_once(dataset):
    for number in (0, 2):
        change(dataset / f"imagesTr/case_{number}.nii.gz", put(np.nan))
    data_set = read_data_set(dataset)
    with pytest.raises(DataError, match=r"2 problems in 3 cases(.|\n)*case_0(.|\n)*case_2"):
        check_data(data_set)


def a_case(**files):
    return DataSet([{key: str(path) for key, path in files.items()}], ["background", "a", "b"], [0, 1, 2], (3,), 1)


def test_shapes_and_spacings_are_in_ras_order(tmp_path):
    """A sagittal stack: the first axis on disk runs from front to back, the last from left to right."""
    affine = np.array([[0, 0, 3.0, 0], [1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1.0]])
    image = write_nifti(tmp_path / "a.nii.gz", np.ones((12, 10, 4), np.float32), affine)
    annotation = np.full((12, 10, 4), 3, np.uint8)
    annotation[:, :, 1] = 0
    annotation[5] = 1
    label = write_nifti(tmp_path / "b.nii.gz", annotation, affine)
    report = check_data(a_case(image=image, label=label))
    (case,) = report.cases
    assert case.shape == (4, 12, 10)
    assert case.spacing == (3, 1, 2)
    assert case.slices == {"sagittal": [1], "coronal": [5], "axial": []}
    assert case.class_counts == [110, 40, 0]


def test_axes_that_round_to_different_directions(tmp_path):
    """Two affines that nearly agree, half-way between two orientations."""
    paths = {}
    for key, degrees in (("image", 44.999), ("label", 45.001)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        paths[key] = write_nifti(tmp_path / f"{key}.nii.gz", np.ones((8, 8, 8), np.uint8), affine)
    with pytest.raises(DataError, match="round to different directions"):
        check_data(a_case(**paths))


def test_spacing_setting(dataset):
    report = check_data(read_data_set(dataset))
    assert target_spacing(report, None) is None
    assert target_spacing(report, [1, 2, 2.5]) == [1, 2, 2.5]
    assert target_spacing(report, "median") == [2, 2, 2]
    for wrong in ("mean", [1, 1], [1, 1, 0], 2):
        with pytest.raises(DataError, match="spacing must be three sizes in mm"):
            target_spacing(report, wrong)
    with pytest.raises(DataError, match=r"--spacing 50,50,50: case_0 would have 1 x 1 x 1 voxels; its own are 2 x 2 x"):
        target_spacing(report, [50, 50, 50])
    with pytest.raises(DataError, match=r"--spacing 1e-09,.*: case_0 would have \S+ voxels, and take \S+ GiB of the"):
        target_spacing(report, [1e-9, 1, 1])


def test_case_balance(dataset):
    """Twice the annotation, twice the patches, or as many: as the user sets it."""
    path = dataset / "labelsTr/case_0.nii.gz"
    change(path, lambda a: np.where(np.arange(24)[:, None, None] < 12, 0, a).astype(np.uint8))
    data_set = read_data_set(dataset)
    report = check_data(data_set)
    more, *others = (case.annotated for case in report.cases)
    assert more > 2 * max(others)
    assert case_weights(report, data_set.cases, 0.0) == [1, 1, 1]
    assert case_weights(report, data_set.cases[1:], 1.0) == others
    assert case_weights(report, data_set.cases[:1], 0.5) == [pytest.approx(more**0.5)]
    with pytest.raises(DataError, match="case_balance"):
        case_weights(report, data_set.cases, 2)


@pytest.mark.parametrize(
    ("network", "patch_size", "words"),
    [
        (UNet3D(1, 2, (4, 8, 8, 8, 8), padding="same"), (24, 32, 32), "16 and 32"),
        (UNet3D(1, 2, (4, 8)), (23, 24, 24), "22 and 24"),
        (UNet3D(1, 2, (4, 8), norm="instance", padding="same"), (2, 2, 2), "at least one axis longer"),
    ],
)
def test_patch_size_that_the_network_cannot_take(network, patch_size, words):
    with pytest.raises(DataError, match=words):
        check_patch_size(network, patch_size)


def test_where_results_go(tmp_path):
    check_output_dir(tmp_path / "new", tmp_path)
    check_output_dir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        check_output_dir(tmp_path / "file")
    with pytest.raises(DataError, match="also the folder of the images"):
        check_output_dir(tmp_path, str(tmp_path) + "/")


def test_memory_is_what_the_cache_takes(dataset):
    """The estimate against the bytes that the training's dataset keeps."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle/configs/train.yaml"))
    parser.update({"dataset_dir": str(dataset), "val_fraction": 0})
    kept = parser.get_parsed_content("train#dataset")._cache
    tensors = [v for item in kept for value in item.values() for v in (value if isinstance(value, list) else [value])]
    size = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
    assert parser.get_parsed_content("report").memory == pytest.approx(size, rel=0.05)


def test_doubts_about_valid_volumes(tmp_path):
    """A sheared grid, and a slice on which painting seems to have stopped half-way."""
    folder = tmp_path / "pairs"
    image, label = np.random.default_rng(0).normal(size=(20, 24, 9)), np.zeros((20, 24, 9), np.uint8)
    label[4:16, 4:20, ::2] = 1
    label[4:16, 8:20, 4] = 0
    affine = np.eye(4)
    affine[0, 1] = 0.3
    for name, array in (("images", image.astype(np.float32)), ("labels", label)):
        (folder / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, affine), folder / name / "a.nii.gz")
    data_set = checks.complete(read_data_set(folder, annotated_slices="axial"))
    text = " ".join(checks.inspect(data_set).warning_lines())
    assert "axes of its affine are not orthogonal" in text
    assert "axial [4]" not in text
    assert "axial 4 show(s) far less foreground" in text


@pytest.mark.parametrize("listed", [True, False])
def test_values_outside_of_the_listed_slices_are_no_classes(tmp_path, listed):
    image, label = np.random.default_rng(0).normal(size=(20, 24, 9)), np.full((20, 24, 9), 255, np.uint8)
    label[..., 2:5:2] = 0
    label[4:16, 4:20, 2:5:2] = 1
    label[8:12, 8:12, 2:5:2] = 2
    (tmp_path / "pairs").mkdir()
    for name, array in (("images", image.astype(np.float32)), ("labels", label)):
        (tmp_path / "pairs" / name).mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "pairs" / name / "a.nii.gz")
    slices = {"axial": [2, 4]} if listed else {"axial": [2, 4, 5]}
    data_set = checks.complete(read_data_set(tmp_path / "pairs", annotated_slices=slices))
    assert data_set.class_values == ([0, 1, 2] if listed else [0, 1, 2, 255])
    report = check_data(data_set)
    assert report.class_counts[1] == 2 * (12 * 16 - 16)
    assert sum(report.class_counts) == 20 * 24 * (2 if listed else 3)
