"""Work shared out over the processes that torchrun starts, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch.distributed as dist

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""For the other processes, which may have much more to do."""


class Processes:
    """This process among those that torchrun started; the only one where it did not."""

    def __init__(self) -> None:
        # A RANK alone, as job schedulers set it, makes no group
        grouped = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
        self.started = grouped and not dist.is_initialized()
        if self.started:
            idist.initialize("gloo", timeout=LONGEST_WAIT)
        self.rank, self.count = idist.get_rank(), idist.get_world_size()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, value: T) -> T:
        """What the first process has, in each: others may see files come and go."""
        return self.gather(value)[0]

    def share(self, items: Sequence[T]) -> list[T]:
        """Those of the items that are this process's: every so many."""
        return list(items[self.rank :: self.count])

    def gather(self, value: T) -> list[T]:
        """What each process has, once all are there."""
        if self.count == 1:
            return [value]
        found: Any = idist.all_gather((value,))  # in a tuple, so that it is taken as an object, whatever it is
        return [of_one for (of_one,) in found]

    def close(self) -> None:
        """Leave the group, if it was made here."""
        if self.started:
            idist.finalize()
