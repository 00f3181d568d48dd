"""Scores: equal to MONAI's on the voxels that count, and silent on the others."""

import math

import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU
from monai.networks import one_hot

from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics.masked import OverlapMetric, overlap_counts, overlap_scores

CLASSES = 4


def example(seed, batch=3):
    random = torch.Generator().manual_seed(seed)
    pred = torch.randint(0, CLASSES, (batch, 1, 6, 5, 7), generator=random)
    label = torch.where(torch.rand(pred.shape, generator=random) < 0.7, pred, 0)
    weight = (torch.rand(pred.shape, generator=random) < 0.4).float()
    if seed % 2:
        weight[label == 2] = 0  # a class that the annotation does not show
    return pred, label, weight


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize(("kind", "monai_metric"), [("dice", DiceMetric), ("iou", MeanIoU)])
def test_equals_monai(seed, include_background, kind, monai_metric):
    pred, label, weight = example(seed)
    ours = OverlapMetric(CLASSES, kind, include_background)
    # MONAI's own way to leave voxels out: all their channels are 0, in prediction and label.
    theirs = monai_metric(include_background=include_background, reduction="mean_batch")
    for item in range(len(pred)):
        part = slice(item, item + 1)
        ours(pred[part], pack_target(label, weight)[part])
        counted = weight[part].bool()
        theirs(one_hot(pred[part], CLASSES) * counted, one_hot(label[part], CLASSES) * counted)
    expected = theirs.aggregate()
    means = [s.mean for s in ours.by_class()[0 if include_background else 1 :]]
    for value, other in zip(means, expected.tolist(), strict=True):
        # MONAI reports 0 for a class without any value
        assert value == pytest.approx(other, abs=1e-5) if value is not None else other == 0
    valid = [m for m in means if m is not None]
    assert float(ours.aggregate()) == pytest.approx(sum(valid) / len(valid), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_unlabeled_voxels_have_no_say(seed):
    pred, label, weight = example(seed)
    before = overlap_counts(pred, pack_target(label, weight), CLASSES)
    pred[weight == 0] = 3
    label[weight == 0] = 255
    assert torch.equal(before, overlap_counts(pred, pack_target(label, weight), CLASSES))


def test_counts_by_hand():
    pred = torch.tensor([0, 1, 1, 1, 0]).view(1, 1, 5, 1, 1)
    label = torch.tensor([0, 1, 0, 1, 1]).view(1, 1, 5, 1, 1)
    weight = torch.tensor([1, 1, 1, 0.5, 0]).view(1, 1, 5, 1, 1)
    counts = overlap_counts(pred, pack_target(label, weight), 2)
    assert counts.tolist() == [[[1, 0, 1], [2, 1, 0]]]
    assert overlap_scores(counts, "dice").tolist() == [[pytest.approx(2 / 3), pytest.approx(0.8)]]
    assert overlap_scores(counts, "iou").tolist() == [[pytest.approx(0.5), pytest.approx(2 / 3)]]


def test_logits_are_argmaxed():
    logits = torch.randn(2, CLASSES, 4, 4, 4)
    label = torch.randint(0, CLASSES, (2, 1, 4, 4, 4))
    assert torch.equal(
        overlap_counts(logits, label, CLASSES), overlap_counts(logits.argmax(1, keepdim=True), label, CLASSES)
    )


def test_class_that_nothing_shows_is_not_evaluable():
    pred, label, weight = example(1)
    metric = OverlapMetric(CLASSES)
    metric(pred, pack_target(label, weight))
    score = metric.by_class()[2]
    assert (score.mean, score.n) == (None, 0)
    assert not math.isnan(metric.aggregate())
    metric.reset()
    metric(pred, pack_target(label, torch.zeros_like(weight)))
    assert math.isnan(metric.aggregate())


def test_readable_errors():
    pred, label, weight = example(0)
    with pytest.raises(ValueError, match="do not fit"):
        overlap_counts(pred, label[:2], CLASSES)
    with pytest.raises(ValueError, match="the batch has no volume"):
        OverlapMetric(CLASSES)(pred[:0], label[:0])
    with pytest.raises(ValueError, match=r"annotated voxel has label 0\.9"):
        overlap_counts(pred, torch.full(label.shape, 0.9), CLASSES)
    for wrong_pred, wrong_label in ((pred, label + 4), (pred + 2, label), (pred - 1, label), (pred, label - 1)):
        with pytest.raises(ValueError, match="outside of 0"):
            overlap_counts(wrong_pred, wrong_label, CLASSES)
    with pytest.raises(ValueError, match="no volume was scored yet"):
        OverlapMetric(CLASSES).aggregate()
    with pytest.raises(ValueError, match="kind"):
        OverlapMetric(CLASSES, "jaccard")


@pytest.mark.parametrize(
    ("wrong", "text"), [(0.9, r"value 0\.9; expected classes"), (math.nan, "contain NaN"), (math.inf, "outside of")]
)
def test_only_classes_are_a_segmentation(wrong, text):
    """Where voxels count."""
    pred, label, weight = example(0)
    odd, weight = pred.float(), weight.clone()
    odd[0, 0, 0, 0, 0], weight[0, 0, 0, 0, 0] = wrong, 0
    target = pack_target(label, weight)
    assert torch.equal(overlap_counts(odd, target, CLASSES), overlap_counts(pred, target, CLASSES))
    with pytest.raises(ValueError, match=text):
        overlap_counts(odd, label, CLASSES)


def test_logits_are_numbers():
    pred, label, _ = example(0)
    logits = torch.rand(len(pred), CLASSES, *pred.shape[2:])
    logits[0, 1, 2, 3, 4] = math.nan
    with pytest.raises(ValueError, match="contain NaN"):
        overlap_counts(logits, label, CLASSES)
