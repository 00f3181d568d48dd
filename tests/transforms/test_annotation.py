"""From label maps with unlabeled voxels to label and weight."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import SparseLabel, SparseLabeld


def as_map(values, dtype=np.uint8):
    return np.array(values, dtype=dtype).reshape(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("values", "ignore_index", "label", "weight"),
    [
        ([0, 1, 2, 3], 3, [0, 1, 2, 0], [1, 1, 1, 0]),
        ([0, 1, 2, 255], 255, [0, 1, 2, 0], [1, 1, 1, 0]),
        ([0, 4, 2, 255], [4, 255], [0, 0, 2, 0], [1, 0, 1, 0]),
        ([2, 1, 0], None, [2, 1, 0], [1, 1, 1]),
        ([2, 1, 0], 3, [2, 1, 0], [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_values(values, ignore_index, label, weight, dtype):
    got_label, got_weight = SparseLabel(3, ignore_index)(as_map(values, dtype))
    assert got_label.flatten().tolist() == label
    assert got_weight.flatten().tolist() == weight
    assert (got_label.dtype, got_weight.dtype) == (torch.int16, torch.float32)


def test_negative_unlabeled_value():
    label, weight = SparseLabel(2, -1)(as_map([-1, 0, 1], np.int16))
    assert label.flatten().tolist() == [0, 0, 1]
    assert weight.flatten().tolist() == [0, 1, 1]


def test_dictionary_twin_keeps_metadata_and_other_keys():
    annotation = MetaTensor(as_map([0, 3, 2]), affine=np.diag([1.0, 2.0, 3.0, 1.0]), meta={"filename_or_obj": "a.nii"})
    data = SparseLabeld("label", classes=3, ignore_index=3)({"label": annotation, "image": "untouched"})
    assert data["image"] == "untouched"
    for key in ("label", "weight"):
        assert torch.equal(data[key].affine, annotation.affine)
        assert data[key].meta["filename_or_obj"] == "a.nii"
    assert SparseLabeld("label", classes=3, allow_missing_keys=True)({"image": 1}) == {"image": 1}
    assert annotation.flatten().tolist() == [0, 3, 2]


@pytest.mark.parametrize(
    ("values", "dtype", "ignore_index", "words"),
    [
        ([0, 1, 7], np.uint8, 3, ["a.nii", "label value 7", "0 ... 2", "ignore_index: 3", "dataset.json"]),
        ([0, 1, 255], np.uint8, [4, 5], ["label value 255", "4, 5"]),
        ([-1, 0, 1], np.int16, 3, ["label value -1"]),
        ([0.5, 1, 2], np.float32, 3, ["label value 0.5"]),
        ([np.nan, 1, 2], np.float32, 3, ["a.nii", "voxel(s) are NaN", "--ignore-index"]),
        ([3, 3, 3], np.uint8, 3, ["a.nii", "no voxel is annotated", "ignore_index: 3"]),
    ],
)
def test_bad_values_are_named(values, dtype, ignore_index, words):
    annotation = MetaTensor(as_map(values, dtype), meta={"filename_or_obj": "a.nii"})
    with pytest.raises(DataError) as error:
        SparseLabel(3, ignore_index)(annotation)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("dtype", "values", "ignore_index"),
    [
        (torch.uint8, [0, 1, 255], 256),
        (torch.uint8, [0, 1, 255], -1),
        (torch.int8, [0, 1, -1], 255),
        (torch.int16, [0, 1, -1], 2**16 - 1),
        (torch.int64, [0, 1, 2], 2**64),
        (torch.bool, [0, 1, 1], 2),
    ],
)
def test_values_that_a_type_cannot_hold_match_nothing(dtype, values, ignore_index):
    annotation = torch.tensor(values).to(dtype).view(1, 1, 1, -1)
    classes = sorted(set(values))
    label, weight = SparseLabel(classes, ignore_index)(annotation)
    assert label.flatten().tolist() == [classes.index(value) for value in values]
    assert weight.all()
    with pytest.raises(DataError, match="label value 1 is neither a class"):
        SparseLabel(sorted({0, values[2], 1 + 2**16, 1 + 2**64} - {1}), ignore_index)(annotation)


def test_unlabeled_value_that_is_a_class():
    with pytest.raises(DataError, match="ignore_index 2 is also a class"):
        SparseLabel(3, 2)


def test_numbers_of_numpy_are_whole_numbers():
    assert SparseLabel(torch.tensor(3)).classes == (0, 1, 2)  # a number, no list of one
    split = SparseLabel(np.int64(3), np.array([3, 255]))
    assert (split.classes, split.ignore_index) == ((0, 1, 2), (3, 255))
    assert SparseLabel(np.array([0.0, 4.0]), 5.0).classes == (0, 4)


@pytest.mark.parametrize(
    ("classes", "ignore_index", "text"),
    [
        ([0, 1.7], None, r"classes must be .* found \[0, 1\.7\]"),
        ([0, 1], 254.6, r"ignore_index must be .* found 254\.6"),
        ([0, 1], [4, np.nan], "ignore_index must be"),
        ([0, 1, 1], None, "the value 1 twice"),
        (True, None, "classes must be .* found True"),
        (3, False, "ignore_index must be .* found False"),
        (0, None, "classes is 0; expected from one"),
        (-1, None, "classes is -1; expected from one"),
        ([], None, r"classes is \[\]; expected from one"),
        (40000, None, "classes is 40000; expected from one to 32768"),
    ],
)
def test_classes_and_unlabeled_values_are_whole_numbers(classes, ignore_index, text):
    with pytest.raises(DataError, match=text):
        SparseLabel(classes, ignore_index)


@pytest.mark.parametrize("indices", [np.array([1, 3]), torch.tensor([1, 3]), (np.int64(1), 3), range(1, 4, 2)])
def test_annotated_slices_in_arrays(indices):
    label = np.ones((1, 2, 2, 5), int)
    expected = SparseLabel(2, annotated_slices={"axial": [1, 3]})(label)[1]
    assert torch.equal(SparseLabel(2, annotated_slices={"axial": indices})(label)[1], expected)
    assert torch.equal(SparseLabel(2, annotated_slices=[[], [], indices])(label)[1], expected)
    assert expected[0, 0, 0].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_class_that_floats_cannot_tell_from_the_next_number(dtype):
    classes = [0, 312782546, 312782550]
    label = torch.tensor(classes).view(1, 1, 1, 3)
    assert SparseLabel(classes)(label)[0].flatten().tolist() == [0, 1, 2]
    if dtype == torch.float64:
        assert SparseLabel(classes)(label.to(dtype))[0].flatten().tolist() == [0, 1, 2]
    else:
        with pytest.raises(DataError, match=r"class value 312782546 is too large .*torch\.float"):
            SparseLabel(classes)(label.to(dtype))
    unlabeled = torch.tensor([0, 1, 2**32]).view(1, 1, 1, 3).to(dtype)
    assert SparseLabel(2, 2**32)(unlabeled)[1].flatten().tolist() == [1, 1, 0]


def test_several_channels():
    with pytest.raises(DataError, match=r"one channel and three dimensions, found shape \(2, 3"):
        SparseLabel(3)(np.zeros((2, 3, 3, 3)))


def test_a_weight_image_of_two_channels():
    with pytest.raises(DataError, match="the weight image has 2 channels; expected one"):
        SparseLabel(3)(torch.zeros(1, 4, 5, 6), torch.ones(2, 4, 5, 6))
