"""What the network learns where nothing is annotated."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from sparse3dunet.densify.pseudo_labels import MOST_WEIGHT, PseudoLabeld, PseudoLabels
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT

SHAPE = (8, 6, 5)
FOUND = np.random.default_rng(0).integers(-1, 3, SHAPE).astype(np.int16)


def item(affine, annotated=(0,)):
    """An item whose annotation, 2 where given and 0 elsewhere, is on the file's grid."""
    weight = np.zeros(SHAPE, np.float32)
    for index in annotated:
        weight[:, :, index] = 1
    maps = {IMAGE: np.zeros(SHAPE, np.float32), LABEL: 2 * weight, WEIGHT: weight}
    meta = {"filename_or_obj": "scan.nii.gz"}
    return {key: MetaTensor(torch.from_numpy(value)[None], affine=affine, meta=meta) for key, value in maps.items()} | {
        "case_name": "scan"
    }


def labeled(given, found, **named):
    return PseudoLabeld("label", found={"scan": found}.get, **named)(given)


def test_only_unannotated_voxels_that_are_certain_change():
    affine = torch.eye(4, dtype=torch.float64)
    given = item(affine, [2])
    result = labeled(given, MetaTensor(torch.from_numpy(FOUND)[None], affine=affine), total=0.5)
    label, weight = (np.asarray(result[key])[0] for key in (LABEL, WEIGHT))
    annotated = np.asarray(given[WEIGHT])[0] > 0
    np.testing.assert_array_equal(label[annotated], 2)
    np.testing.assert_array_equal(weight[annotated], 1)
    certain = ~annotated & (FOUND >= 0)
    np.testing.assert_array_equal(label[certain], FOUND[certain])
    np.testing.assert_allclose(weight[certain], 0.5 * annotated.sum() / certain.sum(), rtol=1e-6)
    np.testing.assert_array_equal(label[~annotated & ~certain], 0)
    np.testing.assert_array_equal(weight[~annotated & ~certain], 0)
    assert certain.sum() > 50
    assert set(np.unique(np.asarray(given[WEIGHT]))) == {0, 1}  # what was given is untouched
    assert result[LABEL].dtype == given[LABEL].dtype


@pytest.mark.parametrize("codes", ["LPS", "ASR", "IRP"])
def test_they_follow_the_scan_into_another_orientation(codes):
    """Labels on the file's grid lie where the transforms before put the file's voxels."""
    affine = torch.from_numpy(nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), SHAPE)).double()
    affine[:3] *= torch.tensor([[0.8], [1.1], [2.5]], dtype=torch.float64)
    found = MetaTensor(torch.from_numpy(FOUND)[None], affine=affine)
    whole = MetaTensor(torch.from_numpy(FOUND.astype(np.float32))[None], affine=affine)
    found[:, :, :, 0] = whole[:, :, :, 0] = 2  # as is annotated
    turned = Orientationd([IMAGE, LABEL, WEIGHT, "whole"], axcodes="RAS", labels=None)(item(affine) | {"whole": whole})
    result = labeled(turned, found)
    expected = np.asarray(turned["whole"])
    np.testing.assert_array_equal(np.where(np.asarray(result[WEIGHT]) > 0, np.asarray(result[LABEL]), -1), expected)


def test_where_much_is_annotated_a_voxel_weighs_less_than_an_annotated_one():
    affine = torch.eye(4, dtype=torch.float64)
    result = labeled(item(affine, [0, 1, 3, 4]), MetaTensor(torch.from_numpy(FOUND)[None], affine=affine))
    assert set(np.unique(np.asarray(result[WEIGHT]))) == {0, np.float32(MOST_WEIGHT), 1}


def test_they_follow_the_scan_onto_a_coarser_grid():
    affine = torch.eye(4, dtype=torch.float64)
    given = item(affine, [4])
    blocks = np.repeat(np.repeat(np.arange(4) % 3, 2)[:, None, None], 6, 1).repeat(5, 2).astype(np.int16)
    keys = [IMAGE, LABEL, WEIGHT]
    coarse = Compose([Spacingd(keys, pixdim=(2, 1, 1), mode="nearest", align_corners=False)])(given)
    result = labeled(coarse, MetaTensor(torch.from_numpy(blocks)[None], affine=affine))
    assert result[LABEL].shape == coarse[LABEL].shape
    np.testing.assert_array_equal(np.asarray(result[LABEL])[0, :4, 0, 0], [0, 1, 2, 0])


def test_a_case_without_any_is_left_as_it_is():
    given = item(torch.eye(4, dtype=torch.float64), [2])
    result = PseudoLabeld("label", found=lambda name: None)(given)
    for key in (LABEL, WEIGHT):
        assert torch.equal(result[key], given[key])


class Spy:
    """Propagation that keeps what it was asked for."""

    def __init__(self):
        self.asked = []

    def certain_classes(self, case, unseen):
        self.asked.append((case.name, unseen))
        return MetaTensor(torch.zeros(1, 2, 2, 2))


def test_what_a_network_is_judged_on_is_not_seen():
    """Cases of which nothing is held out use the result that is there already, however short the time."""
    cases, slices = [ImageCase("a", ("a.nii",)), ImageCase("b", ("b.nii",))], [[3], [], []]
    spy = Spy()
    judged, final = PseudoLabels(spy, cases, {"a": slices}, 60.0), PseudoLabels(spy, cases, {}, 0.0)
    assert all(labels(name) is not None for labels in (judged, final) for name in "ab")
    assert spy.asked == [("a", slices), ("b", None), ("a", None), ("b", None)]
    late = PseudoLabels(spy, cases, {"a": slices}, 0.0)
    assert late("a") is None
    assert late("b") is not None
