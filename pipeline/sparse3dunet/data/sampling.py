"""Training patches that depend on a seed alone, not on how many processes load them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from monai.utils import MAX_SEED
from torch.utils.data import Dataset, Sampler

from sparse3dunet.errors import DataError


class SeededSampler(Sampler[tuple[int, int]]):
    """Draws the cases of an epoch, with replacement, and for each a seed for its patch.

    An epoch depends on `seed` and its number alone: neither on the global random states nor on former epochs. Each
    iteration over the sampler is the next epoch, from 0; :meth:`set_epoch` goes on elsewhere. For a
    :class:`SeededDataset`: any other would take a pair for two indices.

    Several processes (DDP) share each batch of an epoch: `ranks` of them, with `batch_size` each, see together what one
    process with ``ranks * batch_size`` sees.

    Args:
        weights: how likely each case is drawn, up to a common factor.
        num_samples: patches in an epoch, of all processes together.
        seed: any whole number; as in ``monai.utils.set_determinism``, those 2^32 apart are the same.
        batch_size: of the loader.
        rank: of this process.
        ranks: number of processes.

    Yields:
        Pairs of a case's index and the seed of its patch, 0 ... 2^32 - 1.

    Attributes:
        epoch: number of the next iteration's epoch.

    Raises:
        DataError: when `num_samples` or `seed` is no whole number, or `num_samples` is below 1.
        ValueError: when `weights` are not a list of finite numbers, at least 0 and not all 0; or `num_samples` are no
            whole batches for `ranks` above 1.
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
            raise ValueError(f"weights must be finite numbers, at least 0 and not all 0, one a case; got {weights}.")
        if not isinstance(num_samples, (int, np.integer)) or num_samples < 1:
            raise DataError(
                f"an epoch needs a whole number of patches, at least 1, got {num_samples}: see --epoch_length and "
                "--batch_size."
            )
        if not isinstance(seed, (int, np.integer)):
            raise DataError(f"seed must be a whole number, got {seed!r}.")
        if ranks > 1 and num_samples % (batch_size * ranks):
            raise ValueError(f"{num_samples} samples are no whole batches of {batch_size} in {ranks} processes.")
        self.probabilities = values / values.sum()
        self.num_samples = int(num_samples)
        self.seed = int(seed) % MAX_SEED
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.set_epoch(0)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Let the next iteration yield this epoch, from 0: after as many epochs, this is where training goes on.

        With `first_batch`, that iteration leaves out as many batches: those of an epoch that was broken off.
        """
        if epoch < 0 or first_batch < 0:
            raise ValueError(f"epoch and first_batch must be at least 0, got {epoch} and {first_batch}.")
        self.epoch = int(epoch)
        self.first_batch = int(first_batch)

    def __len__(self) -> int:
        return self.num_samples // self.ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A generator, so that an epoch is begun by the first pair that is taken: torch's loader makes an iterator more
        # than it uses where it has workers.
        # RandomState, unlike numpy's newer generators, promises the same numbers in all versions, and mixes the two.
        random = np.random.RandomState([self.seed, self.epoch])
        cases = random.choice(len(self.probabilities), self.num_samples, p=self.probabilities)
        seeds = random.randint(0, MAX_SEED, self.num_samples, dtype="uint32")
        begin = self.first_batch * self.batch_size * self.ranks
        self.epoch, self.first_batch = self.epoch + 1, 0
        for i in range(begin, self.num_samples):
            if i // self.batch_size % self.ranks == self.rank:
                yield int(cases[i]), int(seeds[i])


class SeededDataset(Dataset):
    """A MONAI dataset whose random transforms are seeded for each item: it depends on the pair asked for alone.

    So it is the same in whichever process, after whatever others (but for torch's rounding, which can differ with the
    number of threads in transforms that sum up; a loader's worker has one). Every random transform is seeded that
    MONAI's ``Compose.set_random_state`` reaches: those that are ``Randomizable``, and within them what they pass the
    seed on to. Threads must not share it (``use_thread_workers`` of ``monai.data.ThreadDataLoader``): one would seed
    the other's transforms.

    Args:
        dataset: with a ``transform`` that can be seeded, as ``monai.data.CacheDataset`` has.

    Raises:
        ValueError: when `dataset` has no such transform, or an item is asked for by anything but a pair of its index
            and a seed, 0 ... 2^32 - 1, as :class:`SeededSampler` yields them.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(getattr(dataset, "transform", None), "set_random_state"):
            raise ValueError(f"{type(dataset).__name__} has no transform with set_random_state, as MONAI's have.")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        if not isinstance(item, tuple) or len(item) != 2:
            raise ValueError(
                f"a SeededDataset takes pairs (index, seed), got {item!r}: let a SeededSampler draw them, as the data "
                "loader's sampler."
            )
        index, seed = item
        self.dataset.transform.set_random_state(seed=seed)
        return self.dataset[index]
