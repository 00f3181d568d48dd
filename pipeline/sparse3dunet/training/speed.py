"""Speed of a training on this machine, measured in a few iterations before it begins."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sparse3dunet.progress import minutes_text
from sparse3dunet.training.engines import PrepareSparseBatch

MEASURED = 4
"""Number of iterations that are measured, after one that is not."""
FEW = 200
"""Number of iterations below which a model has hardly learned; see docs/recipe.md."""


def seconds_per_iteration(
    network: nn.Module, loss: Callable[..., torch.Tensor], loader: Iterable[Any], inferer: Callable[..., torch.Tensor]
) -> float:
    """Return the median time of an iteration, with its patches, without the optimizer's step; weights do not change.

    Args:
        network: the network, on its device.
        loss: loss of prediction and target.
        loader: loader of batches.
        inferer: inferer that runs the network.
    """
    device = next(network.parameters()).device
    prepare = PrepareSparseBatch()
    network.train()
    seconds = []
    batches = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), MEASURED + 1)
    started = time.perf_counter()
    for batch in batches:
        image, target = prepare(batch, device)[:2]
        loss(inferer(image, network), target).backward()
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return statistics.median(seconds[1:])


def show(
    network: nn.Module,
    loss: Callable[..., torch.Tensor],
    loader: Iterable[Any],
    inferer: Callable[..., torch.Tensor],
    minutes: float | None,
    iterations: int,
) -> None:
    """Print how many iterations a training makes in its minutes, or how long it takes, and what to do if these are few.

    Args:
        network: see :func:`seconds_per_iteration`, as for the following three.
        loss: loss of prediction and target.
        loader: loader of batches.
        inferer: inferer that runs the network.
        minutes: duration of the training; None if it is not set.
        iterations: number of iterations if it is not set.
    """
    seconds = seconds_per_iteration(network, loss, loader, inferer)
    if minutes is None:
        text = f"{iterations} iterations take about {iterations * seconds / 60:.1f} minutes"
    else:
        iterations = round(60 * minutes / seconds)
        text = f"about {iterations} iterations in {minutes_text(minutes)}"
    print(f"schedule: {text} ({seconds:.2f} s an iteration, as measured on this machine)", flush=True)
    if few := warning(iterations, seconds, in_minutes=minutes is not None):
        print(few, flush=True)


def warning(iterations: int, seconds: float, *, in_minutes: bool) -> str | None:
    """Return a warning if a training is too short to teach a network anything; None otherwise.

    Args:
        iterations: number of its iterations.
        seconds: duration of one.
        in_minutes: whether its length is set in minutes, instead of epochs.
    """
    if iterations >= FEW:
        return None
    longer = f"--minutes {max(math.ceil(FEW * seconds / 60), 1)}" if in_minutes else "more --max_epochs"
    return (
        f"warning: {iterations} iterations hardly train a network, for which {FEW} are the least: allow "
        f"{longer}, or smaller patches (--patch_voxels)."
    )
