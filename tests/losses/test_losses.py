"""The losses: unlabeled voxels have no say, and with all voxels annotated they are the libraries' own."""

import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from sparse3dunet.losses import MaskedCrossEntropyLoss, MaskedDiceCELoss
from sparse3dunet.losses.target import pack_target, unpack_target
from tests.conftest import ROOT

LOSSES = [
    MaskedCrossEntropyLoss(),
    MaskedCrossEntropyLoss(class_weight=[0.2, 1.0, 3.0]),
    MaskedDiceCELoss(),
    MaskedDiceCELoss(batch=True, include_background=False, class_weight=[0.2, 1.0, 3.0]),
    MaskedDiceCELoss(batch=True, ce_class_weight=[1.0, 1.0, 30.0]),
]
SHAPE = (5, 4, 6)


def example(seed=0, batch=2, classes=3):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *SHAPE, generator=random) * 3
    label = torch.randint(0, classes, (batch, 1, *SHAPE), generator=random)
    weight = torch.rand(batch, 1, *SHAPE, generator=random) * (torch.rand(batch, 1, *SHAPE, generator=random) < 0.3)
    return logits, label, weight


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("junk", [100.0, -1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("junk_label", [255.0, -1.0, float("nan")])
def test_unlabeled_voxels_have_no_say(loss, junk, junk_label):
    logits, label, weight = example()
    value, gradient = value_and_gradient(loss, logits, pack_target(label, weight))
    unlabeled = weight == 0
    other = torch.where(unlabeled, torch.randn_like(logits) * junk, logits)
    other_label = torch.where(unlabeled, torch.tensor(junk_label), label.float())
    other_value, other_gradient = value_and_gradient(loss, other, pack_target(other_label, weight))
    assert torch.equal(value, other_value)
    assert torch.equal(gradient, other_gradient)
    assert torch.equal(gradient[unlabeled.expand_as(gradient)], torch.zeros(int(unlabeled.sum()) * 3))
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_does_not_depend_on_sparsity(loss):
    """More unlabeled voxels around the same annotation change nothing."""
    logits, label, weight = example()
    value = loss(logits, pack_target(label, weight))
    pad = (3, 3, 3, 3, 3, 3)
    padded = [torch.nn.functional.pad(x.float(), pad, value=v) for x, v in ((logits, 1.0), (label, 2.0), (weight, 0.0))]
    torch.testing.assert_close(loss(padded[0], pack_target(padded[1], padded[2])), value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("factor", [0.01, 50.0])
def test_does_not_depend_on_the_weights_scale(loss, factor):
    logits, label, weight = example()
    a, b = (loss(logits, pack_target(label, w)) for w in (weight, weight * factor))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_annotation_a_differentiable_zero(loss):
    logits, label, weight = example()
    value, gradient = value_and_gradient(loss, logits, pack_target(label, torch.zeros_like(weight)))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_a_volume_without_annotation_does_not_dilute_the_others():
    logits, label, weight = example()
    weight[1] = 0
    loss = MaskedDiceCELoss()
    alone = loss(logits[:1], pack_target(label[:1], weight[:1]))
    torch.testing.assert_close(loss(logits, pack_target(label, weight)), alone)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("class_weight", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("packed", [True, False])
def test_dense_equals_monai(include_background, batch, class_weight, packed):
    logits, label, _ = example()
    weight = None if class_weight is None else torch.tensor(class_weight)
    monai = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=include_background, batch=batch, weight=weight,
        lambda_dice=0.7, lambda_ce=1.3,
    )  # fmt: skip
    ours = MaskedDiceCELoss(include_background, batch, class_weight=class_weight, lambda_dice=0.7, lambda_ce=1.3)
    target = pack_target(label, torch.ones_like(label)) if packed else label
    torch.testing.assert_close(
        value_and_gradient(ours, logits, target), value_and_gradient(monai, logits, label), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("bundle", [True, False])
def test_defaults_are_monais(bundle):
    """Both terms count once. The bundle's loss says itself that Dice is over the whole batch."""
    logits, label, _ = example()
    label[0, :, :3] = 0  # else the batch's Dice would be nearly the mean of the volumes'
    ours = MaskedDiceCELoss()
    if bundle:
        parser = ConfigParser()
        parser.read_config(ROOT / "bundle/configs/train.yaml")
        parser["loss"] = {**parser["loss"], "regions": None, "ce_class_weight": None}
        ours = parser.get_parsed_content("loss")
    found = ours(logits, label)
    for batch in (True, False):
        monai = DiceCELoss(to_onehot_y=True, softmax=True, batch=batch)(logits, label)
        assert (abs(float(found - monai)) < 1e-5) == (batch == bundle)


@pytest.mark.parametrize("class_weight", [None, [0.2, 1.0, 3.0]])
def test_dense_equals_torch_cross_entropy(class_weight):
    logits, label, _ = example()
    reference = torch.nn.CrossEntropyLoss(None if class_weight is None else torch.tensor(class_weight))
    ours = MaskedCrossEntropyLoss(class_weight)(logits, label)
    torch.testing.assert_close(ours, reference(logits, label[:, 0]))


def test_weights_of_the_cross_entropy_alone():
    """Dice, which has a term for each class, stays as it is."""
    logits, label, weight = example()
    target = pack_target(label, weight)
    factors = [1.0, 2.0, 30.0]
    dice = MaskedDiceCELoss(batch=True, lambda_ce=0.0)(logits, target)
    entropy = MaskedCrossEntropyLoss(factors)(logits, target)
    ours = MaskedDiceCELoss(batch=True, lambda_dice=0.7, lambda_ce=1.3, ce_class_weight=factors)
    torch.testing.assert_close(ours(logits, target), 0.7 * dice + 1.3 * entropy)
    dense = MaskedDiceCELoss(lambda_dice=0.0, ce_class_weight=factors)(logits, label)
    torch.testing.assert_close(dense, torch.nn.CrossEntropyLoss(torch.tensor(factors))(logits, label[:, 0]))


def test_equals_torch_ignore_index():
    logits, label, weight = example()
    ignored = torch.where(weight > 0, label, -100)[:, 0]
    ours = MaskedCrossEntropyLoss()(logits, pack_target(label, weight > 0))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, ignored))


@pytest.mark.parametrize("loss", LOSSES)
def test_valid_convolutions_use_the_targets_centre(loss):
    logits, label, weight = example()
    around = [torch.nn.functional.pad(x.float(), (2,) * 6, value=1) for x in (label, weight)]
    torch.testing.assert_close(loss(logits, pack_target(*around)), loss(logits, pack_target(label, weight)))


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_logits(loss):
    logits, label, weight = example()
    value = loss(logits.bfloat16(), pack_target(label, weight))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits, pack_target(label, weight)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [0.9, 1.9, -0.5, float("nan"), float("inf")])
def test_labels_are_whole_numbers_where_voxels_count(loss, value):
    """Those of a label map after linear interpolation are not the classes below them."""
    logits, label, weight = example()
    odd, weight[0, 0, 1, 2, 3] = label.float(), 0.0
    odd[0, 0, 1, 2, 3] = value
    assert torch.equal(loss(logits, pack_target(odd, weight)), loss(logits, pack_target(label, weight)))
    weight[0, 0, 1, 2, 3] = 1
    for target in (pack_target(odd, weight), odd):
        with pytest.raises(ValueError, match=f"annotated voxel has label {value}"):
            loss(logits, target)


def test_readable_errors():
    logits, label, weight = example()
    with pytest.raises(ValueError, match=r"label 7.*3 classes"):
        MaskedDiceCELoss()(logits, torch.full_like(label, 7))
    for loss in LOSSES:
        negative = label.clone()
        negative[0, 0, 1, 2, 3] = -1
        with pytest.raises(ValueError, match=r"annotated voxel has label -1, .*3 classes \(0 \.\.\. 2\)"):
            loss(logits, pack_target(negative, torch.ones_like(weight)))
        weight[0, 0, 1, 2, 3] = 0
        assert torch.isfinite(loss(logits, pack_target(negative, weight)))
    with pytest.raises(ValueError, match="do not fit"):
        MaskedDiceCELoss()(logits, label[..., :3])
    with pytest.raises(ValueError, match=r"\(2, 1, 5, 4\) do not fit: expected a target \(2, channels, 5, 4, 6\)"):
        MaskedDiceCELoss()(logits, label[..., 0])
    with pytest.raises(ValueError, match=r"target \(2, 5, 4, 6\) do not fit: its channel is missing"):
        MaskedDiceCELoss()(logits, label[:, 0])
    with pytest.raises(ValueError, match="2 entries for 3 classes"):
        MaskedCrossEntropyLoss([1, 2])(logits, label)
    with pytest.raises(ValueError, match="class_weight"):
        MaskedCrossEntropyLoss([1, float("nan")])
    with pytest.raises(ValueError, match="ce_class_weight has 4 entries for 3 classes"):
        MaskedDiceCELoss(ce_class_weight=[1, 2, 3, 4])(logits, label)
    with pytest.raises(ValueError, match="ce_class_weight must be"):
        MaskedDiceCELoss(ce_class_weight=[1, -1, 1])
    with pytest.raises(ValueError, match="one shape"):
        pack_target(label, weight[..., :3])
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight that is negative"):
            MaskedDiceCELoss()(logits, pack_target(label, torch.where(weight > 0.5, bad, weight)))
    with pytest.raises(ValueError, match="channel"):
        MaskedDiceCELoss()(logits, logits)
    with pytest.raises(ValueError, match="channel"):
        unpack_target(logits[:, :0])
