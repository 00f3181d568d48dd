"""Annotation that cannot be brought to an image's grid: an error that says why, rather than labels at a wrong place."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta

from sparse3dunet.errors import DataError
from sparse3dunet.transforms import AnnotationToMatchd, ClassWeightd, ExtentSpacingd, ImageGridd, RandomWalkerLabeld
from sparse3dunet.transforms.spatial.resample import ResampleAnnotation

SHAPE = (10, 12, 8)
THICK = np.diag([1.0, 1, 3, 1])
KEYS = ("image", "label", "weight")


def item(image=THICK, label=THICK, weight=THICK):
    """A case with one annotated slice; without an affine, a volume is a plain tensor."""
    case = {"image": torch.rand(1, *SHAPE), "label": torch.zeros(1, *SHAPE, dtype=torch.int16)}
    case["weight"] = torch.zeros(1, *SHAPE)
    case["weight"][..., 4] = 1
    affines = dict(zip(KEYS, (image, label, weight)))
    return {k: v if affines[k] is None else MetaTensor(v, affine=torch.as_tensor(affines[k])) for k, v in case.items()}


def matched(case):
    return AnnotationToMatchd()(ExtentSpacingd(pixdim=1.5)(case))


def moved(affine, by):
    return affine + np.array([[0, 0, 0, by]] * 3 + [[0] * 4])


def test_annotation_without_the_images_affine():
    with pytest.raises(DataError, match="both need an affine; the label has none"):
        matched(item(label=None, weight=None))
    with pytest.raises(DataError, match="both need an affine; the image has none"):
        AnnotationToMatchd()(item(image=None))
    plain = item(None, None, None)
    assert AnnotationToMatchd()(plain)["label"] is plain["label"], "nothing to do"
    with pytest.raises(DataError, match="neither has an affine, and their shapes differ"):
        AnnotationToMatchd()({**plain, "image": plain["image"][..., :4]})
    assert matched(item(weight=None))["weight"].any(), "the weight is where its label is"


def test_without_metadata_the_label_would_only_be_cropped():
    set_track_meta(False)
    try:
        with pytest.raises(DataError, match="set_track_meta"):
            matched(item(None, None, None))
        found = AnnotationToMatchd()({**item(), "image": MetaTensor(torch.rand(1, 5, 6, 12), affine=THICK / 2 + 0)})
    finally:
        set_track_meta(True)
    assert found["weight"].any()


def test_grids_that_do_not_meet():
    with pytest.raises(DataError, match="lies outside of the image"):
        matched(item(label=moved(THICK, 200), weight=moved(THICK, 200)))
    with pytest.raises(DataError, match="its weight has another affine"):
        matched(item(weight=moved(THICK, 2)))


def test_label_and_weight_that_are_not_one_annotation():
    case = item()
    for label, weight in (
        (torch.cat([case["label"]] * 2), case["weight"]),
        (case["label"], case["weight"][..., :5]),
        (case["label"][0], case["weight"][0]),
    ):
        with pytest.raises(DataError, match=r"same shape \(1, X, Y, Z\)"):
            matched({**case, "label": label, "weight": weight})
    with pytest.raises(DataError, match="the label is no array of numbers"):
        matched({**case, "label": "scan.nii.gz"})
    arrays = {key: volume.numpy() for key, volume in item(None, None, None).items()}
    assert AnnotationToMatchd()(arrays)["label"] is arrays["label"]
    with pytest.raises(DataError, match="the label has none"):
        AnnotationToMatchd()({**arrays, "image": case["image"]})


@pytest.mark.parametrize("affine", [np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)])
def test_affines_that_place_nothing(affine):
    case = item()
    with pytest.raises(DataError, match="places no voxels in space"):
        ResampleAnnotation()(case["label"], case["weight"], affine, SHAPE)
    if affine.shape == (4, 4):
        with pytest.raises(DataError, match="places no voxels in space"):
            matched(item(image=affine))


@pytest.mark.parametrize("pixdim", [np.nan, np.inf, [1, 2], "a", None])
def test_spacings_that_are_none(pixdim):
    with pytest.raises(DataError, match="pixdim must be one or three sizes in mm"):
        ExtentSpacingd(pixdim=pixdim)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "transform", [AnnotationToMatchd(), RandomWalkerLabeld(num_classes=2), ClassWeightd(weights=[1, 1]), ImageGridd()]
)
def test_missing_keys_are_named_with_their_transform(key, transform):
    case = {k: v for k, v in item().items() if k != key}
    if key == "image" and isinstance(transform, ClassWeightd):
        return
    with pytest.raises(KeyError, match=f"{key}.*{type(transform).__name__}"):
        transform(case)
