"""Labels by a random walk: what is annotated stays, what is certain is right, and a network learns from both."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.transforms import RandomWalkerLabel, RandomWalkerLabeld
from tests.conftest import make_volume


def sparse_item(seed=0, shape=(24, 20, 18)):
    image, dense, sparse = make_volume(seed, shape)
    weight = (sparse != 3).astype(np.float32)
    label = np.where(sparse == 3, 0, sparse).astype(np.int16)
    scan = (image - image.mean()) / image.std()
    tensors = [torch.from_numpy(array)[None] for array in (scan, label, weight)]
    return tensors, torch.from_numpy(dense.astype(np.int64))[None]


def test_annotation_stays_and_what_is_certain_is_right():
    (image, label, weight), dense = sparse_item()
    new_label, new_weight = RandomWalkerLabel(3, weight=0.1, beta=20)(image, label, weight)
    annotated = weight > 0
    assert torch.equal(new_label[annotated], label[annotated])
    assert torch.equal(new_weight[annotated], weight[annotated])
    walked = (new_weight > 0) & ~annotated
    assert walked.float().mean() > 0.3
    assert torch.allclose(new_weight[walked], torch.tensor(0.1))
    assert (new_label[walked] == dense[walked]).float().mean() > 0.95
    assert (new_label.dtype, new_weight.dtype) == (label.dtype, weight.dtype)


@pytest.mark.filterwarnings("ignore:The probability range is outside")
def test_it_agrees_with_scikit_images_walker():
    """Solved exactly, that one is sure of a little more."""
    from skimage.segmentation import random_walker

    (image, label, weight), dense = sparse_item(1)
    new_label, new_weight = RandomWalkerLabel(3, certainty=0.8, beta=50)(image, label, weight)
    seeds = np.where(weight[0] > 0, label[0] + 1, 0)
    scan = image[0].numpy().astype(np.float64)
    scan /= scan.std()
    squares = np.concatenate([(np.diff(scan, axis=axis) ** 2).ravel() for axis in range(3)])
    prob = random_walker(
        scan, seeds, beta=50 / np.percentile(squares, 90), mode="cg_j", tol=1e-3, return_full_prob=True
    )
    theirs, ours = (prob.max(0) >= 0.8) & (seeds == 0), (new_weight[0].numpy() > 0) & (seeds == 0)
    assert (theirs & ours).sum() > 0.9 * (theirs | ours).sum()
    assert np.array_equal(new_label[0].numpy()[theirs & ours], prob.argmax(0)[theirs & ours])


def test_values_and_labels_of_unlabeled_voxels_do_not_matter():
    (image, label, weight), _ = sparse_item()
    other = torch.where(weight > 0, label, 2)
    first, second = (RandomWalkerLabel(3, beta=20)(image, given, weight) for given in (label, other))
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0][first[1] > 0], second[0][second[1] > 0])


def test_neither_brightness_nor_contrast_matter():
    (image, label, weight), _ = sparse_item()
    first, second = (RandomWalkerLabel(3)(scan, label, weight) for scan in (image, 1000 * image + 300))
    assert (first[1] == second[1]).float().mean() > 0.999
    assert (first[0] == second[0]).float().mean() > 0.999


def test_no_weight_changes_nothing():
    (image, label, weight), _ = sparse_item()
    found = RandomWalkerLabel(3, weight=0)(image, label, weight)
    assert torch.equal(found[0], label)
    assert torch.equal(found[1], weight)


@pytest.mark.parametrize("case", ["one class", "all annotated", "constant image"])
def test_where_nothing_can_be_walked(case):
    (image, label, weight), _ = sparse_item()
    if case == "one class":
        label = torch.zeros_like(label)
    elif case == "all annotated":
        weight = torch.ones_like(weight)
    else:
        image = torch.zeros_like(image)
    new_label, new_weight = RandomWalkerLabel(3)(image, label, weight)
    assert torch.isfinite(new_weight).all()
    assert torch.equal(new_label[weight > 0], label[weight > 0])
    if case != "constant image":
        assert torch.equal(new_weight, weight)


def test_a_class_that_is_not_annotated_is_given_to_nobody():
    (image, label, weight), _ = sparse_item()
    weight[label == 1] = 0
    new_label, new_weight = RandomWalkerLabel(3, beta=20)(image, label, weight)
    assert set(new_label[new_weight > 0].unique().tolist()) == {0, 2}


def test_large_volumes_are_walked_through_on_a_coarser_grid():
    (image, label, weight), dense = sparse_item(0, (48, 41, 37))
    new_label, new_weight = RandomWalkerLabel(3, beta=20, most_voxels=10_000)(image, label, weight)
    assert new_label.shape == label.shape
    annotated = weight > 0
    assert torch.equal(new_label[annotated], label[annotated])
    walked = (new_weight > 0) & ~annotated
    assert walked.float().mean() > 0.3
    assert (new_label[walked] == dense[walked]).float().mean() > 0.9


def test_the_twin_keeps_metadata_and_other_keys():
    (image, label, weight), _ = sparse_item()
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    item = {
        "image": image,
        "label": MetaTensor(label, affine=affine),
        "weight": MetaTensor(weight, affine=affine),
        "a": 1,
    }
    found = RandomWalkerLabeld("label", num_classes=3, beta=20)(item)
    expected = RandomWalkerLabel(3, beta=20)(image, label, weight)
    assert torch.equal(found["label"].as_tensor(), expected[0])
    assert torch.equal(found["weight"].as_tensor(), expected[1])
    assert torch.equal(found["label"].affine, affine)
    assert found["a"] == 1
    assert torch.equal(item["weight"].as_tensor(), weight)  # nothing is written into


@pytest.mark.parametrize("arguments", [{"certainty": 0.5}, {"certainty": 1.1}, {"weight": -1}, {"beta": 0}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected weight"):
        RandomWalkerLabel(3, **arguments)


def test_a_mostly_constant_image():
    """As around a masked organ: what lies in it is still connected."""
    random = np.random.default_rng(0)
    radius = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(48) - 23.5] * 3, indexing="ij")), axis=0)
    dense = ((radius < 12) + (radius < 6).astype(int)).astype(np.int16)
    scan = np.where(dense > 0, dense * 10 + random.normal(0, 1, dense.shape), 0).astype(np.float32)
    weight = np.zeros(dense.shape, np.float32)
    weight[24], weight[:, 24] = 1, 1
    image, label, weight = (torch.from_numpy(array)[None] for array in (scan, dense, weight))
    new_label, new_weight = RandomWalkerLabel(3)(image, torch.where(weight > 0, label, 0), weight)
    walked = (new_weight > 0) & (weight == 0)
    for number in (1, 2):
        assert (walked & (label == number)).sum() > 0.5 * ((weight == 0) & (label == number)).sum()
    assert (new_label[walked] == label[walked]).float().mean() > 0.99
