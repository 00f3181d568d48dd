"""Class weights: balanced, capped, of mean 1, and never on what is unlabeled."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.errors import DataError
from sparse3dunet.transforms.weighting import ClassWeight, ClassWeightd, class_weights, rare_class_weights

COUNTS = [[900, 90, 10], [5, 5], [1], [10**9, 3, 0, 70], [0, 0, 4], np.array([1, 2, 3]), [0.5, 2.5]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("scheme", ["inverse", "inverse_sqrt", "none", None])
@pytest.mark.parametrize("cap", [1, 3, 10.0, math.inf])
def test_mean_is_one_and_no_class_outweighs_the_cap(counts, scheme, cap):
    weights = class_weights(counts, scheme, cap)
    present = [(w, n) for w, n in zip(weights, counts) if n]
    assert len(weights) == len(counts)
    assert all(type(w) is float and math.isfinite(w) and w > 0 for w in weights)
    assert sum(w * n for w, n in present) / sum(counts) == pytest.approx(1)
    assert max(weights) <= min(weights) * cap * (1 + 1e-12)
    assert all(w == 1 for w, n in zip(weights, counts) if not n)
    by_count = [w for _, w in sorted((n, w) for w, n in present)]
    assert all(rare >= frequent for rare, frequent in pairwise(by_count))


def test_inverse():
    weights = class_weights([900, 90, 10], "inverse", math.inf)
    assert weights == pytest.approx([1000 / (3 * n) for n in (900, 90, 10)])


def test_inverse_sqrt():
    weights = class_weights([900, 100, 0], "inverse_sqrt", math.inf)
    assert weights[1] / weights[0] == pytest.approx(3)


@pytest.mark.parametrize("scheme", ["none", None])
def test_no_scheme(scheme):
    assert class_weights([900, 90, 0], scheme) == [1, 1, 1]


def test_cap():
    weights = class_weights([10000, 5000, 10, 1], cap=4)
    assert [w / weights[0] for w in weights] == pytest.approx([1, 2, 4, 4])


def test_an_absent_class_changes_no_other():
    assert class_weights([900, 0, 10])[::2] == class_weights([900, 10])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"counts": [1, -1]}, "not negative, got"),
        ({"counts": [1, math.nan]}, "must be finite"),
        ({"counts": [0, 0]}, "no voxel of any class"),
        ({"counts": []}, "no voxel of any class"),
        ({"counts": [1], "cap": 0.9}, "cap must be at least 1, got 0.9"),
        ({"counts": [1], "cap": math.nan}, "cap must be at least 1, got nan"),
        ({"counts": [1], "scheme": "log"}, "inverse, inverse_sqrt, none; got 'log'"),
    ],
)
def test_wrong_settings(arguments, words):
    with pytest.raises(DataError, match=words):
        class_weights(**arguments)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int64, torch.float32])
def test_weights_are_those_of_the_classes(dtype):
    random = np.random.RandomState(0)
    weights = [0.25, 3.0, 1.5]
    label = random.randint(0, 3, (1, 6, 7, 8))
    weight = (random.rand(1, 6, 7, 8) * (random.rand(1, 6, 7, 8) < 0.5)).astype(np.float32)
    label[weight == 0] = random.choice([0, 2, 255, 3], (weight == 0).sum())
    if dtype in (torch.int16, torch.float32):
        label[0, 0, 0, 0], weight[0, 0, 0, 0] = -1, 0
    result = ClassWeight(weights)(torch.from_numpy(weight), torch.from_numpy(label).to(dtype))
    assert result.dtype == torch.float32
    for place in np.ndindex(*weight.shape):
        expected = weight[place] * weights[label[place]] if weight[place] > 0 else 0
        assert result[place].item() == pytest.approx(expected)


def test_mean_weight_over_a_data_set_is_one():
    """The weights come from the whole data set; together its volumes keep their scale."""
    random = np.random.RandomState(0)
    volumes = []
    for share in (0.02, 0.3):
        label = torch.from_numpy((random.rand(1, 20, 20, 20) < share).astype(np.int16))
        volumes.append((label, torch.from_numpy((random.rand(1, 20, 20, 20) < 0.4).astype(np.float32))))
    counts = sum(torch.bincount(label[weight > 0].long(), minlength=2) for label, weight in volumes)
    weigh = ClassWeight(class_weights(counts))
    total = sum(weigh(weight, label).sum(dtype=torch.float64).item() for label, weight in volumes)
    assert total == pytest.approx(counts.sum().item(), rel=1e-6)


def test_all_unlabeled():
    weight = ClassWeight([2.0])(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 255))
    assert not weight.any()


@pytest.mark.parametrize(("value", "found"), [(3, "3"), (-1, "-1"), (0.5, "0.5"), (math.nan, "nan")])
def test_class_without_a_weight(value, found):
    label = MetaTensor(torch.tensor([[[[0.0, 1.0, value]]]]), meta={"filename_or_obj": "a.nii"})
    with pytest.raises(DataError, match=rf"a\.nii: an annotated voxel has class {found}, .* 3 weights .* 0 \.\.\. 2"):
        ClassWeight([1, 1, 1])(torch.ones(1, 1, 1, 3), label)


def test_more_weights_than_the_type_of_the_label_can_hold():
    label = torch.tensor([[[[0, 127, -1]]]], dtype=torch.int8)
    assert ClassWeight([2.0] * 300)(torch.tensor([[[[1.0, 1.0, 0.0]]]]), label).tolist() == [[[[2.0, 2.0, 0.0]]]]
    with pytest.raises(DataError, match="has class -1, which has no weight"):
        ClassWeight([2.0] * 300)(torch.ones(1, 1, 1, 3), label)


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, math.inf], [math.nan]])
def test_wrong_weights(weights):
    with pytest.raises(DataError, match="finite and above 0"):
        ClassWeight(weights)


def test_dictionary_twin_keeps_metadata_and_the_rest():
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    weight = MetaTensor(torch.tensor([[[[1.0, 0.5, 0.0]]]]), affine=affine, meta={"filename_or_obj": "a.nii"})
    label = MetaTensor(torch.tensor([[[[1, 0, 9]]]], dtype=torch.int16))
    data = {"weight": weight, "label": label, "image": "untouched"}
    result = ClassWeightd(weights=[2, 3])(data)
    assert result["weight"].tolist() == [[[[3, 1, 0]]]]
    assert torch.equal(result["weight"].affine, weight.affine)
    assert result["weight"].meta["filename_or_obj"] == "a.nii"
    assert result["label"] is label
    assert result["image"] == "untouched"
    assert weight.tolist() == [[[[1, 0.5, 0]]]]
    assert ClassWeightd(weights=[1], allow_missing_keys=True)({"image": 1}) == {"image": 1}


def test_dictionary_twin_with_other_keys():
    data = {"w": torch.ones(1, 1, 1, 2), "l": torch.tensor([[[[0, 1]]]])}
    assert ClassWeightd("w", "l", weights=[2, 3])(data)["w"].tolist() == [[[[2, 3]]]]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_rare_classes_count_as_if_they_had_a_share(share):
    counts = np.array([900_000, 90_000, 9_000, 900, 90])
    weights = np.array(rare_class_weights(counts.tolist(), share, cap=math.inf))
    rare = counts < share * counts.sum()
    assert rare.any()
    assert (weights[~rare] == 1).all()
    np.testing.assert_allclose(weights[rare] * counts[rare] / counts.sum(), share)


def test_rare_classes_are_bounded_and_absent_ones_left():
    assert rare_class_weights([10**7, 0, 1, 10**6], 0.01) == [1, 1, 100, 1]
    assert rare_class_weights([10**7, 0, 1, 10**6], 0.01, cap=5) == [1, 1, 5, 1]
    assert rare_class_weights([900, 100, 0], 0.01) is None
    assert rare_class_weights([900, 1], 0) is None
    assert rare_class_weights([900, 1], 0.01, "inverse") is None
    assert rare_class_weights([900, 1], 0.01, "none") == rare_class_weights([900, 1], 0.01)
    assert rare_class_weights([], 0.01) is None
    for share in (-0.1, 1.5, math.nan, "much", None, True):
        with pytest.raises(DataError, match=r"rare_share must be from 0"):
            rare_class_weights([900, 1], share)
