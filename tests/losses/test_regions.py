"""Regions: overlapping targets made of classes, in losses, segmentations and scores."""

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.metrics import DiceMetric, MeanIoU

from sparse3dunet.losses import MaskedCrossEntropyLoss, MaskedDiceCELoss
from sparse3dunet.losses.regions import class_logits, membership, written_classes
from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics import OverlapMetric
from sparse3dunet.transforms import RegionsToClassesd
from tests.losses.test_losses import SHAPE, value_and_gradient

NESTED = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
OTHERS = [
    NESTED,
    {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)},
    {"left": (2,), "right": (1,)},
    {"a": (1, 3), "b": (2, 3), "both": (3,)},
    {"only": (1,)},
]
LOSSES = [
    MaskedDiceCELoss(regions=NESTED),
    MaskedDiceCELoss(batch=True, regions=NESTED, include_background=False),
    MaskedCrossEntropyLoss(regions=NESTED),
]


def example(seed=0, regions=NESTED, batch=2):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, len(regions), *SHAPE, generator=random) * 3
    label = torch.randint(0, len(regions) + 1, (batch, 1, *SHAPE), generator=random)
    weight = torch.rand(label.shape, generator=random) * (torch.rand(label.shape, generator=random) < 0.3)
    return logits, label, weight


def as_regions(label, regions=NESTED):
    """(B, 1, ...) class numbers as (B, R, ...) float, by comparing with each class."""
    return torch.cat([sum((label == number).float() for number in classes) for classes in regions.values()], 1)


@pytest.mark.parametrize("regions", OTHERS)
@pytest.mark.parametrize("batch", [True, False])
def test_dense_equals_monai(regions, batch):
    logits, label, _ = example(regions=regions)
    truth = as_regions(label, regions)
    dice, bce = DiceLoss(sigmoid=True, batch=batch), torch.nn.BCEWithLogitsLoss()
    expected = value_and_gradient(lambda x, y: 0.7 * dice(x, y) + 1.3 * bce(x, y), logits, truth)
    ours = MaskedDiceCELoss(batch=batch, lambda_dice=0.7, lambda_ce=1.3, regions=regions)
    torch.testing.assert_close(value_and_gradient(ours, logits, label), expected, rtol=1e-5, atol=1e-6)
    ours = MaskedCrossEntropyLoss(regions=regions)
    torch.testing.assert_close(value_and_gradient(ours, logits, label), value_and_gradient(bce, logits, truth))


def test_weighted_cross_entropy_is_the_mean_over_the_weights():
    logits, label, weight = example()
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, as_regions(label), reduction="none")
    expected = (each * weight).sum() / (3 * weight.sum())
    torch.testing.assert_close(MaskedCrossEntropyLoss(regions=NESTED)(logits, pack_target(label, weight)), expected)
    factors = torch.tensor([1.0, 2.0, 1.0, 30.0])  # by the voxel's class
    ours = MaskedDiceCELoss(lambda_dice=0.0, regions=NESTED, ce_class_weight=factors)
    by_hand = MaskedCrossEntropyLoss(regions=NESTED)(logits, pack_target(label, weight * factors[label]))
    torch.testing.assert_close(ours(logits, pack_target(label, weight)), by_hand)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("junk", [100.0, float("inf"), float("nan")])
def test_unlabeled_voxels_have_no_say(loss, junk):
    logits, label, weight = example()
    value, gradient = value_and_gradient(loss, logits, pack_target(label, weight))
    other = torch.where(weight == 0, torch.randn_like(logits) * junk, logits)
    other_label = torch.where(weight == 0, torch.tensor(junk), label.float())
    found = value_and_gradient(loss, other, pack_target(other_label, weight))
    assert torch.equal(found[0], value)
    assert torch.equal(found[1], gradient)
    assert not gradient[(weight == 0).expand_as(gradient)].any()
    nothing = value_and_gradient(loss, logits, pack_target(label, weight * 0))
    assert nothing[0] == 0
    assert torch.equal(nothing[1], torch.zeros_like(logits))


@pytest.mark.parametrize("regions", OTHERS)
def test_the_segmentation_is_that_of_writing_region_over_region(regions):
    logits, _, _ = example(regions=regions)
    expected = torch.zeros(2, 1, *SHAPE)
    for number, classes in enumerate(regions.values()):
        later = {c for others in list(regions.values())[number + 1 :] for c in others}
        (written,) = set(classes) - later
        expected[:, 0][logits[:, number].sigmoid() > 0.5] = written
    for item, truth in zip(logits, expected, strict=True):
        found = class_logits(item, regions)
        assert torch.equal(found.argmax(0).float(), truth[0])
        image = MetaTensor(item, affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
        turned = RegionsToClassesd("pred", regions=regions)({"pred": image})["pred"]
        assert torch.equal(turned.as_tensor(), found)
        assert torch.equal(turned.affine, image.affine)


def test_of_one_region_the_probability_is_kept():
    logits = torch.randn(1, *SHAPE)
    torch.testing.assert_close(class_logits(logits, {"only": (1,)}).softmax(0)[1], logits[0].sigmoid())


@pytest.mark.parametrize("regions", OTHERS)
@pytest.mark.parametrize(("kind", "monai_metric"), [("dice", DiceMetric), ("iou", MeanIoU)])
def test_scores_by_region_equal_monai(regions, kind, monai_metric):
    _, label, weight = example(1, regions)
    pred = torch.where(torch.rand(label.shape) < 0.6, label, torch.randint_like(label, len(regions) + 1))
    ours = OverlapMetric(len(regions) + 1, kind, regions=regions)
    theirs = monai_metric(reduction="mean_batch")
    counted = (weight > 0).float()
    for item in range(2):
        part = slice(item, item + 1)
        ours(pred[part], pack_target(label, weight)[part])
        theirs(*(as_regions(x, {"background": (0,), **regions})[part] * counted[part] for x in (pred, label)))
    expected = theirs.aggregate().tolist()
    assert [score.mean for score in ours.by_class()] == pytest.approx(expected, abs=1e-6)


def test_readable_errors():
    assert written_classes(NESTED) == [1, 2, 3]
    for wrong, words in (
        ({"whole": (1, 2)}, "whole: 2 of its classes are in no later region"),
        ({"whole": (1, 2), "core": (2,), "more": (2,)}, "core: 0 of its classes"),
        ({"a": (2,)}, r"made of the classes 1 \.\.\. 1"),
        ({"a": (0,)}, r"made of the classes 1 \.\.\. 1"),
    ):
        with pytest.raises(ValueError, match=words):
            membership(wrong)
    logits, label, weight = example()
    with pytest.raises(ValueError, match="2 outputs, but there are 3 regions"):
        MaskedDiceCELoss(regions=NESTED)(logits[:, :2], label)
    with pytest.raises(ValueError, match="label 4"):
        MaskedDiceCELoss(regions=NESTED)(logits, label * 0 + 4)
    with pytest.raises(ValueError, match="cannot be combined"):
        MaskedDiceCELoss(class_weight=[1, 1, 1, 1], regions=NESTED)
    looked_for = torch.tensor([[1, 1, 1, 0]] * 2).bool()
    with pytest.raises(ValueError, match="cannot be combined"):
        MaskedDiceCELoss(regions=NESTED)(logits, pack_target(label * 0, weight, looked_for))
    with pytest.raises(ValueError, match="logits of 3 regions"):
        RegionsToClassesd("pred", regions=NESTED)({"pred": logits[0, :2]})
