"""Values of label maps that programs have changed a little, and names of files in any case, through the commands."""

import nibabel as nib
import numpy as np
import pytest
import torch

from sparse3dunet.data.label_and_weight import SparseLabel
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, read_label
from sparse3dunet.io.formats import count_channels
from tests.conftest import make_dataset, make_volume, run_sparse3dunet, write_nifti


@pytest.mark.parametrize("noise", [1e-7, -4e-4, 9e-4])
def test_noise_of_rounding_is_no_other_class(tmp_path, noise):
    _, _, sparse = make_volume(0)
    noisy = sparse.astype(np.float64)
    noisy[sparse == 1] += noise
    label, weight = SparseLabel(3, 3)(torch.from_numpy(noisy)[None])
    np.testing.assert_array_equal(weight[0], sparse != 3)
    np.testing.assert_array_equal(label[0], np.where(sparse == 3, 0, sparse))
    noisy[0, 0, 0] = np.nan
    path = write_nifti(tmp_path / "label.nii.gz", noisy)
    found = read_label(path).data
    assert np.isnan(found[0, 0, 0])
    np.testing.assert_array_equal(found.ravel()[1:], sparse.ravel()[1:])
    np.testing.assert_array_equal(read_image(path).data, noisy)  # an image is as it is


def test_nan_is_named_where_it_would_count():
    """In a search for the annotated slices, and on these; elsewhere it is as good as any value."""
    values = torch.from_numpy(make_volume(0)[1])[None].float()
    values[0, :5] = torch.nan
    for slices in ("all", "axial", {"axial": "nonempty"}, {"sagittal": [4]}, None):
        with pytest.raises(DataError, match=r"voxel\(s\) are NaN.*value that is no class, such as 255"):
            SparseLabel(3, annotated_slices=slices)(values)
    assert SparseLabel(3, annotated_slices={"sagittal": [5]})(values)[1].sum() == values[0, 5].numel()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64])
def test_weight_images_of_any_type(dtype):
    """Whole numbers are weights as they are, whatever type they are stored in."""
    values = torch.from_numpy(make_volume(0)[1])[None].to(torch.int64)
    given = values if dtype != torch.bool else values > 0
    label, weight = SparseLabel(3)(values, given.to(dtype))
    assert (label.dtype, weight.dtype) == (torch.int16, torch.float32)
    assert torch.equal(weight, given.to(torch.float32))
    assert torch.equal(label, values.to(torch.int16))  # the background is 0 anyway


def test_noisy_labels_are_checked_and_simulated(tmp_path):
    folder = make_dataset(tmp_path / "data")
    for file in (folder / "labelsTr").iterdir():
        write_nifti(file, np.asarray(nib.load(file).dataobj) * 1.0000001)
    done = run_sparse3dunet("check", folder)
    assert done.returncode == 0, done.stdout
    for file in (folder / "labelsDense").iterdir():
        write_nifti(file, np.asarray(nib.load(file).dataobj) * 1.0000001)
    done = run_sparse3dunet("simulate", folder / "labelsDense", "-o", tmp_path / "sparse", "--slices", 2)
    assert done.returncode == 0, done.stderr
    assert set(np.unique(nib.load(tmp_path / "sparse/case_0.nii.gz").dataobj)) == {0, 1, 2, 3}


def test_a_fraction_is_shown(dataset):
    file = dataset / "labelsTr/case_1.nii.gz"
    label = np.asarray(nib.load(file).dataobj).astype(np.float32)
    write_nifti(file, np.where(label == 1, np.float32(1.0025), label))
    done = run_sparse3dunet("check", dataset)
    assert done.returncode == 1
    words = " ".join(done.stdout.split())
    assert "case_1.nii.gz" in words
    assert "1.0025" in words


@pytest.mark.parametrize("suffix", [".Nii", ".NII", ".Nii.Gz", ".NII.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_suffixes_in_any_case(tmp_path, suffix, kind):
    array = make_volume(0)[0]
    small = tmp_path / f"a{suffix.lower()}"
    nib.save(kind(array, np.diag([1.0, 2, 3, 1])), small)
    path = small.rename(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(read_image(path).data, array)
    assert read_image(path).spacing == (1, 2, 3)
    assert count_channels(path) == 1
    assert not small.exists()


def test_names_of_classes_by_the_option_as_typed(dataset, error_of, tmp_path):
    files = (dataset / "imagesTr/case_0.nii.gz", dataset / "labelsTr/case_0.nii.gz")
    error = error_of("densify", *files, "-o", tmp_path / "out", "--class-names", "background,one")
    assert "--class-names gives 2 name(s) (background, one) for 3 classes" in error


@pytest.mark.parametrize("given", [np.ndarray.tolist, torch.tensor, lambda array: array.astype(">i4")])
def test_labels_in_lists_tensors_and_any_byte_order(given):
    label, weight = SparseLabel(3, ignore_index=255)(given(np.array([[[[0, 1], [2, 255]]]])))
    assert label.tolist() == [[[[0, 1], [2, 0]]]]
    assert weight.tolist() == [[[[1, 1], [1, 0]]]]


@pytest.mark.parametrize("given", [[[[[0, 1], [2]]]], "case_1.nii.gz", None, np.array([[[["1"]]]])])
def test_no_numbers(given):
    with pytest.raises(DataError, match=r"the label map is no array of numbers \(.*\); expected shape \(1, X, Y, Z\)"):
        SparseLabel(3)(given)
    if given is not None:
        with pytest.raises(DataError, match="the weight image is no array of numbers"):
            SparseLabel(3)(np.zeros((1, 1, 2, 2), int), given)
