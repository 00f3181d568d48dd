"""Partial labels: where a class was not looked for, background may be that class, in losses and scores."""

import pytest
import torch
from monai.data import decollate_batch

from sparse3dunet.keys import ANNOTATED_CLASSES, IMAGE, LABEL, WEIGHT
from sparse3dunet.losses import MaskedCrossEntropyLoss, MaskedDiceCELoss
from sparse3dunet.losses.target import annotated_classes, pack_target
from sparse3dunet.metrics import OverlapMetric, overlap_counts
from sparse3dunet.training.engines import PrepareSparseBatch
from tests.losses.test_losses import LOSSES, SHAPE, value_and_gradient

CLASSES = 4
LOOKED_FOR = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]]).bool()
FACTORS = [0.5, 1.0, 2.0, 3.0]


def example(seed=0, looked_for=LOOKED_FOR):
    """Logits, labels that show only what was looked for, and weights of which most are 0."""
    random = torch.Generator().manual_seed(seed)
    count, classes = looked_for.shape
    logits = torch.randn(count, classes, *SHAPE, generator=random) * 3
    label = torch.randint(0, classes, (count, 1, *SHAPE), generator=random)
    shown = torch.stack([mask[part] for mask, part in zip(looked_for, label)])
    weight = torch.rand(label.shape, generator=random) * (torch.rand(label.shape, generator=random) < 0.3)
    return logits, torch.where(shown, label, 0), weight


def slow_terms(logits, label, weight, looked_for, factors):
    """Cross-entropy, and by volume and class the sums of Dice, voxel by voxel with float64 probabilities."""
    entropy, weights = 0.0, 0.0
    sums = [[[0.0, 0.0] for _ in mask] for mask in looked_for]
    for volume, mask in enumerate(looked_for):
        for place in torch.nonzero(weight[volume, 0] > 0).tolist():
            here = (volume, slice(None), *place)
            probs = list(logits[here].double().softmax(0))
            merged = probs[0] + sum(p for p, found in zip(probs, mask) if not found)
            truth, w = int(label[here][0]), float(weight[here][0])
            probs[0] = merged
            entropy = entropy - w * factors[truth] * torch.log(probs[truth])
            weights += w * factors[truth]
            for number, found in enumerate(mask):
                if found:
                    sums[volume][number][0] += w * probs[number] * (number == truth)
                    sums[volume][number][1] += w * (probs[number] + (number == truth))
    return entropy / weights, sums


def slow_dice(sums, looked_for, factors, batch, background):
    first = 0 if background else 1
    groups = [list(range(len(looked_for)))] if batch else [[volume] for volume in range(len(looked_for))]
    values = []
    for group in groups:
        terms = []
        for number in range(first, looked_for.shape[1]):
            members = [volume for volume in group if looked_for[volume, number]]
            if members:
                overlap, total = (sum(sums[volume][number][part] for volume in members) for part in (0, 1))
                terms.append(factors[number] * (1 - (2 * overlap + 1e-5) / (total + 1e-5)))
        values.append(sum(terms) / len(terms))
    return sum(values) / len(values)


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("looked_for", [LOOKED_FOR, LOOKED_FOR[:1], LOOKED_FOR[1:]])
def test_cross_entropy_equals_a_loop_over_voxels(looked_for, factors):
    logits, label, weight = example(looked_for=looked_for)
    slow = logits.clone().requires_grad_()
    expected, _ = slow_terms(slow, label, weight, looked_for, factors or [1.0] * CLASSES)
    expected.backward()
    value, gradient = value_and_gradient(
        MaskedCrossEntropyLoss(factors), logits, pack_target(label, weight, looked_for)
    )
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slow.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("looked_for", [LOOKED_FOR, LOOKED_FOR[:1]])
def test_dice_equals_a_loop_over_voxels(looked_for, batch, background):
    logits, label, weight = example(1, looked_for)
    slow = logits.clone().requires_grad_()
    entropy, sums = slow_terms(slow, label, weight, looked_for, FACTORS)
    expected = slow_dice(sums, looked_for, FACTORS, batch, background) + entropy
    expected.backward()
    loss = MaskedDiceCELoss(background, batch, class_weight=FACTORS)
    value, gradient = value_and_gradient(loss, logits, pack_target(label, weight, looked_for))
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slow.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_classes_looked_for_is_the_same_as_not_saying_so(loss):
    logits, label, weight = example(looked_for=torch.ones(2, 3, dtype=torch.bool))
    target = pack_target(label, weight, torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(target, pack_target(label, weight)), "it costs nothing"
    assert annotated_classes(target, 3) is None
    # In a batch with a partial case, a complete one has the loss that it has alone.
    mixed = pack_target(label, weight, torch.tensor([[1, 1, 1], [1, 1, 0]]).bool())[:1]
    expected = value_and_gradient(loss, logits[:1], pack_target(label, weight)[:1])
    torch.testing.assert_close(value_and_gradient(loss, logits[:1], mixed), expected)


def test_only_the_sum_of_background_and_what_was_not_looked_for_counts():
    """Probability moved among them, at every voxel by another amount, changes neither cross-entropy nor Dice."""
    looked_for = LOOKED_FOR[:1]
    logits, label, weight = example(2, looked_for)
    target = pack_target(label, weight, looked_for)
    prob = logits.softmax(1)
    merged = [0, 2, 3]
    shares = torch.rand_like(prob[:, merged]).softmax(1)
    other = prob.clone()
    other[:, merged] = prob[:, merged].sum(1, keepdim=True) * shares
    for loss in (MaskedCrossEntropyLoss(FACTORS), MaskedDiceCELoss(), MaskedDiceCELoss(False, True)):
        torch.testing.assert_close(loss(other.log(), target), loss(logits, target))
    complete = MaskedCrossEntropyLoss()
    assert not torch.isclose(complete(other.log(), target[:, :2]), complete(logits, target[:, :2]))


def test_unlabeled_voxels_have_no_say():
    logits, label, weight = example()
    loss = MaskedDiceCELoss()
    value, gradient = value_and_gradient(loss, logits, pack_target(label, weight, LOOKED_FOR))
    other = torch.where(weight == 0, torch.tensor(float("inf")), logits)
    other_label = torch.where(weight == 0, 255, label)
    found = value_and_gradient(loss, other, pack_target(other_label, weight, LOOKED_FOR))
    assert torch.equal(found[0], value)
    assert torch.equal(found[1], gradient)
    nothing = value_and_gradient(loss, logits, pack_target(label, weight * 0, LOOKED_FOR))
    assert nothing[0] == 0
    assert torch.equal(nothing[1], torch.zeros_like(logits))


def test_valid_convolutions_use_the_targets_centre():
    logits, label, weight = example()
    around = [torch.nn.functional.pad(x.float(), (2,) * 6, value=1) for x in (label, weight)]
    loss = MaskedDiceCELoss()
    expected = loss(logits, pack_target(label, weight, LOOKED_FOR))
    torch.testing.assert_close(loss(logits, pack_target(*around, LOOKED_FOR)), expected)


@pytest.mark.parametrize("classes", [2, 24, 25, 60])
def test_the_set_of_classes_is_kept_whatever_their_number(classes):
    looked_for = torch.rand(5, classes) < 0.5
    looked_for[:, 0] = True
    looked_for[0] = True
    looked_for[1, 1:] = False
    label = torch.zeros(5, 1, 2, 3, 2)
    target = pack_target(label, label + 1, looked_for)
    assert torch.equal(annotated_classes(target, classes), looked_for)
    assert torch.equal(annotated_classes(target[2:4, :, 1:, 1:2], classes), looked_for[2:4])


def test_a_batch_becomes_a_target_and_cases_again():
    _, label, weight = example()
    batch = {IMAGE: weight, LABEL: label, WEIGHT: weight, ANNOTATED_CLASSES: LOOKED_FOR}
    _, target = PrepareSparseBatch()(batch)
    for part, mask in zip(decollate_batch(target), LOOKED_FOR, strict=True):
        assert torch.equal(annotated_classes(part[None], CLASSES)[0], mask)


def test_scores_leave_out_what_was_not_looked_for():
    truth = torch.tensor([0, 0, 0, 1, 1, 0]).view(1, 1, 6, 1, 1)
    guess = torch.tensor([0, 2, 1, 1, 2, 3]).view(1, 1, 6, 1, 1)
    weight = torch.tensor([1, 1, 1, 1, 1, 0]).view(1, 1, 6, 1, 1)
    target = pack_target(truth, weight, LOOKED_FOR[:1])
    assert overlap_counts(guess, target, CLASSES).tolist() == [[[2, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]]
    metric = OverlapMetric(CLASSES)
    metric(guess, target)
    assert [score.n for score in metric.by_class()] == [1, 1, 0, 0]
    assert float(metric.aggregate()) == pytest.approx(0.5)
    metric(guess, pack_target(truth + 1, weight))
    assert [score.n for score in metric.by_class()] == [1, 2, 1, 0]


def test_readable_errors():
    logits, label, weight = example()
    target = pack_target(label, weight + 1, LOOKED_FOR)
    for wrong in (logits, target[:, [0, 1, 2, 2]], torch.cat([target[:, :2], target[:, 2:] + 1], 1)):
        with pytest.raises(ValueError, match=r"a target (has 1 channel|for partial labels)"):
            MaskedDiceCELoss()(logits, wrong)
    with pytest.raises(ValueError, match="not looked for"):
        MaskedDiceCELoss()(logits, pack_target(label * 0 + 3, weight, LOOKED_FOR))
    for mask in (LOOKED_FOR[:2], ~LOOKED_FOR, LOOKED_FOR[0]):
        with pytest.raises(ValueError, match=r"shape \(B, K\)"):
            pack_target(label, weight, mask)
