"""Patches depend on the seed and the epoch, however many processes load them."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.data.utils import set_rnd
from monai.transforms import (
    Compose,
    OneOf,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandSpatialCropd,
    RandWeightedCropd,
    ScaleIntensityd,
)

from sparse3dunet.data.sampling import SeededDataset, SeededSampler
from sparse3dunet.errors import DataError
from sparse3dunet.transforms import UntilAnnotated

CASES = 3


def make_dataset(cache_rate: float = 1.0) -> SeededDataset:
    """Three cases; random transforms by themselves, nested twice, chosen among, and repeated until one fits."""
    random = np.random.default_rng(0)
    data = [
        {"image": torch.tensor(random.random((1, 12, 12, 12)) + n), "weight": torch.zeros(1, 12, 12, 12)}
        for n in range(CASES)
    ]
    for item in data:
        item["weight"][:, 6] = 1
    keys = ["image", "weight"]
    crop = Compose([Compose([RandSpatialCropd(keys, 4, random_size=False)]), RandFlipd(keys, 0.5)])
    contrast = OneOf([RandScaleIntensityd("image", 0.2, 1.0), RandGaussianNoised("image", 1.0)])
    transform = Compose([ScaleIntensityd("image"), UntilAnnotated(crop), contrast, RandGaussianNoised("image", 0.5)])
    return SeededDataset(CacheDataset(data, transform, cache_rate=cache_rate, progress=False))


def load(num_workers: int, persistent: bool, cache_rate: float = 1.0, epoch: int = 0, epochs: int = 2) -> torch.Tensor:
    """The images of the epochs from `epoch` on: (epochs, patches, 1, 4, 4, 4)."""
    torch.manual_seed(num_workers)  # MONAI's and torch's own seeds, which must not matter
    sampler = SeededSampler([1.0, 2.0, 1.0], 10, seed=5)
    sampler.set_epoch(epoch)
    loader = DataLoader(
        make_dataset(cache_rate), sampler=sampler, batch_size=4, num_workers=num_workers, persistent_workers=persistent
    )
    assert len(loader) == 3
    return torch.stack([torch.cat([batch["image"].as_tensor() for batch in loader]) for _ in range(epochs)])


def test_batches_do_not_depend_on_workers():
    """Nor on what is cached; a run that goes on at a later epoch sees that epoch's patches."""
    expected = load(0, False)
    assert expected.shape == (2, 10, 1, 4, 4, 4)
    for options in [(2, False), (2, True), (1, True, 0.4), (0, False, 0.0)]:
        assert torch.equal(load(*options), expected), options
    for workers in (0, 2):
        assert torch.equal(load(workers, False, epoch=1, epochs=1), expected[1:])
    patches = expected.flatten(0, 1)
    for one, other in itertools.combinations(patches, 2):  # 20 of three cases, in two epochs
        assert not torch.equal(one, other)


def test_an_item_depends_on_its_pair_alone():
    dataset = make_dataset()
    assert len(dataset) == CASES
    first = [dataset[pair]["image"] for pair in ((0, 7), (1, 7), (0, 8))]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(first, 2))
    for disturb in (lambda: set_rnd(dataset, 3), lambda: np.random.seed(3), lambda: torch.manual_seed(3)):
        disturb()
        assert all(
            torch.equal(dataset[pair]["image"], x) for pair, x in zip(((0, 7), (1, 7), (0, 8)), first, strict=True)
        )
    assert torch.equal(dataset[0, 8]["image"], first[2])
    dataset[0, 2**32 - 1]


def test_every_transform_is_seeded():
    """Each by itself as the only one of a dataset, wrapped or not."""
    keys = ["image", "weight"]
    data = [{"image": torch.rand(1, 12, 12, 12), "weight": torch.ones(1, 12, 12, 12)}]
    crop = RandWeightedCropd(keys, "weight", (3, 3, 3))  # as the bundle's: a list of patches
    for transform in (
        RandGaussianNoised("image", 1.0),
        crop,
        Compose([Compose([crop])]),
        UntilAnnotated(crop),
        UntilAnnotated(Compose([crop])),
        Compose([UntilAnnotated(Compose([Compose([crop])]))]),
    ):
        dataset = SeededDataset(Dataset(data, transform))
        values = []
        for seed in (1, 2, 1):
            item = dataset[0, seed]
            values.append((item[0] if isinstance(item, list) else item)["image"].clone())
        assert torch.equal(values[0], values[2])
        assert not torch.equal(values[0], values[1])


def test_epochs():
    """The same of one seed, others of another; set_epoch goes to one; (seed, epoch) is not their sum."""
    sampler = SeededSampler([1.0] * 50, 20, seed=1)
    epochs = [list(sampler) for _ in range(4)]
    assert len(sampler) == len(epochs[0]) == 20
    assert len({pair for epoch in epochs for pair in epoch}) == 80
    assert len({seed for epoch in epochs for _, seed in epoch}) == 80
    again = SeededSampler(torch.ones(50), 20, seed=1 + 2**32)
    assert [list(again) for _ in range(4)] == epochs
    again.set_epoch(2)
    assert list(again) == epochs[2]
    assert again.epoch == 3
    assert list(again) == epochs[3]
    assert list(SeededSampler([1.0] * 50, 20, seed=2)) not in epochs
    assert all(type(number) is int for pair in epochs[0] for number in pair), "that need no numpy in the loader"


def test_an_epoch_begins_with_its_first_pair():
    """An iterator that nobody takes from, as torch's loader makes one with workers, costs no epoch."""
    sampler = SeededSampler([1.0], 3)
    iter(sampler)
    taken = next(iter(sampler))
    assert sampler.epoch == 1
    sampler.set_epoch(0)
    assert next(iter(sampler)) == taken


def test_cases_are_drawn_by_their_weight():
    pairs = np.array(list(SeededSampler([1e-3, 0.0, 3e-3], 20_000)))
    assert np.bincount(pairs[:, 0], minlength=3) / 20_000 == pytest.approx([0.25, 0, 0.75], abs=0.02)
    assert pairs[:, 1].min() >= 0
    assert 0.99 * 2**32 < pairs[:, 1].max() < 2**32


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [[1.0]], 1.0])
def test_weights_that_cannot_be_drawn_by(weights):
    with pytest.raises(ValueError, match="weights must be finite numbers"):
        SeededSampler(weights, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "at least 1, got 0: see --epoch_length"),
        ({"num_samples": 2.5}, "at least 1, got 2.5"),
        ({"num_samples": 1, "seed": None}, "seed must be a whole number, got None"),
        ({"num_samples": 1, "seed": "1"}, "got '1'"),
    ],
)
def test_settings_that_cannot_work(options, words):
    with pytest.raises(DataError, match=words):
        SeededSampler([1.0], **options)


def test_programming_errors():
    with pytest.raises(ValueError, match="epoch and first_batch must be at least 0"):
        SeededSampler([1.0], 1).set_epoch(-1)
    for item in (0, [0, 1], (0, 1, 2), slice(2)):
        with pytest.raises(ValueError, match="takes pairs"):
            make_dataset()[item]
    with pytest.raises(ValueError, match="5 samples are not whole batches of 2 in 2 processes"):
        SeededSampler([1.0], 5, batch_size=2, ranks=2)
    assert len(list(SeededSampler([1.0], 5, batch_size=2))) == 5  # one process may have a batch that is not whole
    with pytest.raises(ValueError, match="list has no transform"):
        SeededDataset([1, 2])
    with pytest.raises(ValueError, match="use a SeededSampler"):
        next(iter(DataLoader(make_dataset(), shuffle=True)))


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}])
def test_an_epoch_goes_on_after_whole_batches(options):
    """By default a batch is one patch; the next epoch is whole again."""
    sampler = SeededSampler([1.0, 2.0, 1.0], 12, seed=5, **options)
    whole = [list(sampler), list(sampler)]
    sampler.set_epoch(0, first_batch=2)
    assert [list(sampler), list(sampler)] == [whole[0][2 * options.get("batch_size", 1) :], whole[1]]
