"""Training patches that depend only on a seed, not on the number of processes that load them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from monai.utils import MAX_SEED
from torch.utils.data import Dataset, Sampler

from sparse3dunet.errors import DataError


class SeededSampler(Sampler[tuple[int, int]]):
    """Sampler that draws the cases of an epoch, with replacement, and for each a seed for its patch.

    An epoch depends only on `seed` and its number, not on the global random states or former epochs. Each iteration
    over the sampler is the next epoch, from 0, unless changed by :meth:`set_epoch`. For use with a
    :class:`SeededDataset`; other data sets would take a pair for two indices.

    Several processes (DDP) share each batch of an epoch: `ranks` processes with `batch_size` each see together what one
    process with ``ranks * batch_size`` sees.

    Args:
        weights: relative probability of each case.
        num_samples: patches in an epoch, of all processes together.
        seed: any whole number; as in ``monai.utils.set_determinism``, those 2^32 apart are the same.
        batch_size: batch size of the loader.
        rank: rank of this process.
        ranks: number of processes.

    Yields:
        Pairs of a case's index and the seed of its patch, 0 ... 2^32 - 1.

    Attributes:
        epoch: number of the next iteration's epoch.

    Raises:
        DataError: when `num_samples` or `seed` is not a whole number, or `num_samples` is below 1.
        ValueError: when `weights` is not a list of finite numbers, at least 0 and not all 0; or `num_samples` is not
            divisible into whole batches for `ranks` above 1.
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        values = np.asarray(weights, dtype=float)
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ValueError(f"weights must be finite numbers, at least 0 and not all 0, one per case; got {weights}.")
        if not isinstance(num_samples, (int, np.integer)) or num_samples < 1:
            raise DataError(
                f"an epoch needs a whole number of patches, at least 1, got {num_samples}: see --epoch_length and "
                "--batch_size."
            )
        if not isinstance(seed, (int, np.integer)):
            raise DataError(f"seed must be a whole number, got {seed!r}.")
        if ranks > 1 and num_samples % (batch_size * ranks):
            raise ValueError(f"{num_samples} samples are not whole batches of {batch_size} in {ranks} processes.")
        self.probabilities = values / values.sum()
        self.num_samples = int(num_samples)
        self.seed = int(seed) % MAX_SEED
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Let the next iteration yield this epoch, counted from 0, for example to resume a training.

        That iteration skips the first `first_batch` batches, those done before an epoch was interrupted.
        """
        if epoch < 0 or first_batch < 0:
            raise ValueError(f"epoch and first_batch must be at least 0, got {epoch} and {first_batch}.")
        self.epoch = int(epoch)
        self.first_batch = int(first_batch)

    def __len__(self) -> int:
        return self.num_samples // self.ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A generator, so that the first pair taken starts the epoch: torch's loader with workers makes an iterator more
        # than it uses.
        # RandomState, unlike numpy's newer generators, gives the same numbers in all versions, and mixes the two seeds.
        random = np.random.RandomState([self.seed, self.epoch])
        cases = random.choice(len(self.probabilities), self.num_samples, p=self.probabilities)
        seeds = random.randint(0, MAX_SEED, self.num_samples, dtype="uint32")
        begin = self.first_batch * self.batch_size * self.ranks
        self.epoch, self.first_batch = self.epoch + 1, 0
        for i in range(begin, self.num_samples):
            if i // self.batch_size % self.ranks == self.rank:
                yield int(cases[i]), int(seeds[i])


class SeededDataset(Dataset):
    """MONAI dataset whose random transforms are seeded for each item, which depends only on its index and seed.

    An item is the same in any process and after any other items (except for torch's rounding, which can depend on the
    number of threads in transforms with sums; a loader's worker has one). All random transforms are seeded that MONAI's
    ``Compose.set_random_state`` reaches: those that are ``Randomizable``, and those to which they pass the seed on.
    Threads must not share the dataset (``use_thread_workers`` of ``monai.data.ThreadDataLoader``): one would seed the
    other's transforms.

    Args:
        dataset: dataset with a ``transform`` that can be seeded, such as ``monai.data.CacheDataset``.

    Raises:
        ValueError: when `dataset` has no such transform, or the key is not a pair of an index and a seed,
            0 ... 2^32 - 1, as yielded by :class:`SeededSampler`.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(getattr(dataset, "transform", None), "set_random_state"):
            raise ValueError(f"{type(dataset).__name__} has no transform with set_random_state, like MONAI's.")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        if not isinstance(item, tuple) or len(item) != 2:
            raise ValueError(
                f"a SeededDataset takes pairs (index, seed), got {item!r}: use a SeededSampler as the data loader's "
                "sampler."
            )
        index, seed = item
        self.dataset.transform.set_random_state(seed=seed)
        return self.dataset[index]
