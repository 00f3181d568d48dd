"""What 0 means in label maps of annotation tools, which have one value for background and for what nobody looked at."""

import json

import numpy as np
import pytest
import torch

from sparse3dunet.data.finished import finished_part
from sparse3dunet.transforms import SparseLabel
from tests.conftest import make_volume, run_sparse3dunet, write_nifti

SHAPE = (24, 20, 18)


@pytest.fixture
def dense():
    return make_volume(0, SHAPE)[1]


def drawn(dense, slices):
    """The dense label on some slices, by axis, and 0 elsewhere, as an annotation tool submits it."""
    label = np.zeros_like(dense)
    for axis, indices in enumerate(slices):
        for i in indices:
            plane = (slice(None),) * axis + (i,)
            label[plane] = dense[plane]
    return label


def weight_of(label, **options):
    return np.asarray(SparseLabel(3, 255, "finished", **options)(label[None].astype(np.float32))[1][0])


@pytest.mark.parametrize("slices", [[[], [], [9]], [[], [], [5, 9, 12]], [[8, 12], [10], [9]]])
def test_zero_is_background_on_finished_slices_alone(dense, slices):
    weight = weight_of(drawn(dense, slices))
    expected = np.zeros(SHAPE, bool)
    for axis, indices in enumerate(slices):
        expected[(slice(None),) * axis + (indices,)] = True
    assert np.array_equal(weight > 0, expected)


def test_a_slice_that_was_begun_teaches_no_background(dense):
    """Its painted voxels are annotation; what is left of it is unlabeled."""
    label = drawn(dense, [[], [], [6, 9, 12]])
    label[:, 7:, 9] = 0
    weight = weight_of(label)
    assert (weight[:, 7:, 9] == 0).all()
    assert (weight[..., 9][label[..., 9] > 0] == 1).all()
    assert (weight[..., [6, 12]] == 1).all()
    assert "painted only in part, and so not finished: axial [9]" in finished_part(label > 0, np.eye(4)).reason


def test_scribbles_teach_no_background_and_a_solid_body_all_of_it(dense):
    scribble = np.zeros(SHAPE, np.uint8)
    scribble[5:15, 8, 9] = 1
    scribble[12, 4:15, 9] = 2
    assert np.array_equal(weight_of(scribble) > 0, scribble > 0)
    assert (weight_of(dense) == 1).all()


def test_a_value_for_unlabeled_counts_instead(dense):
    label = drawn(dense, [[], [], [9]])
    label[..., 0] = 255
    assert np.array_equal(weight_of(label) == 0, label == 255)


def test_turned_label_maps_and_tensors(dense):
    label = drawn(dense, [[], [], [5, 12]])
    turned = np.ascontiguousarray(label.transpose(2, 0, 1)[::-1])
    weight = SparseLabel(3, (255,), "finished")(torch.as_tensor(turned[None].astype(np.float32)))[1][0]
    assert np.array_equal(weight.numpy(), weight_of(label).transpose(2, 0, 1)[::-1])


def test_the_check_says_what_zero_means(tmp_path, dense):
    image = make_volume(0, SHAPE)[0]
    write_nifti(tmp_path / "imagesTr/a.nii.gz", image)
    write_nifti(tmp_path / "labelsTr/a.nii.gz", drawn(dense, [[], [], [5, 12]]))
    content = {
        "labels": {"0": "background", "1": "shell", "2": "core"},
        "annotated_slices": "finished",
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    result = run_sparse3dunet("check", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a: 0 is background on the finished slices (axial [5, 12]), and unlabeled elsewhere." in result.stdout
