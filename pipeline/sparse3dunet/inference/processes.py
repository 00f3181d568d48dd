"""Sharing of work among the processes that torchrun starts, on one machine or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=30)
"""Longest wait for the other processes, which may have much more to do."""


def rank_and_count() -> tuple[int, int]:
    """Return this process's number among those that torchrun started, and their count.

    RANK without WORLD_SIZE, as job schedulers set it, makes no group.
    """
    count = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    return (int(os.environ["RANK"]), count) if count > 1 else (0, 1)


def default_device() -> torch.device:
    """Return the GPU of this process, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


class Processes:
    """This process among those that torchrun started; the only one without torchrun.

    Ignite's ``initialize`` is not used: it binds each process to the GPU of its own number, and under Slurm needs
    variables that torchrun does not need.
    """

    def __init__(self) -> None:
        self.rank, self.count = rank_and_count()
        self.started = self.count > 1 and not dist.is_initialized()
        if self.started:
            dist.init_process_group("gloo", timeout=LONGEST_WAIT)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agree(self, value: T) -> T:
        """Return the first process's value in each: other processes may see other files."""
        return self.gather(value)[0]

    def share(self, items: Sequence[T]) -> list[T]:
        """Return every n-th of the items for this process, n being the number of processes."""
        return list(items[self.rank :: self.count])

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, once all have called this."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave the group, if it was started here."""
        if self.started:
            dist.destroy_process_group()
