"""Regions: overlapping targets made of classes, as "whole tumor" of edema, core and enhancing core.

A network for regions has a sigmoid output for each. Their order is that in which they are written into a segmentation,
later ones over earlier ones, as in nnU-Net's region-based training. A region writes the one class that is in it and in
no later one; so there are as many regions as classes besides the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Regions = Mapping[str, Sequence[int]]
"""Class numbers by the name of the region, in the order in which regions are written."""


def written_classes(regions: Regions) -> list[int]:
    """Return the class number that each region writes.

    Raises:
        ValueError: when not exactly one class of a region is in no later one; the message names the region.
    """
    later: set[int] = set()
    written: list[int] = []
    for name, classes in reversed(list(regions.items())):
        own = set(classes) - later
        if len(own) != 1:
            raise ValueError(f"{name}: {len(own)} of its classes are in no later region")
        written += own
        later |= own
    return written[::-1]


def membership(regions: Regions) -> torch.Tensor:
    """Return whether each class is in each region, (R, K) bool, with K = R + 1 classes.

    Raises:
        ValueError: as :func:`written_classes`, or when the classes are not 1 ... R.
    """
    written = written_classes(regions)
    if sorted(written) != list(range(1, len(written) + 1)):
        raise ValueError(f"{len(written)} regions must be made of the classes 1 ... {len(written)}, found {written}")
    mask = torch.zeros(len(written), len(written) + 1, dtype=torch.bool)
    for number, classes in enumerate(regions.values()):
        mask[number, list(classes)] = True
    return mask


def class_logits(logits: torch.Tensor, regions: Regions) -> torch.Tensor:
    """Turn logits of regions (R, ...) into logits of classes (K, ...), for argmax and softmax.

    The logit of a class is half the smallest margin of the decisions that lead to it: its region is present, and each
    later one is not. So the largest is that of the last region whose probability is above 0.5, otherwise that of the
    background, and for one region the softmax is its sigmoid.
    """
    result: list[torch.Tensor] = [logits[0]] * (len(regions) + 1)
    absent = torch.full_like(logits[0], torch.inf)
    for logit, number in reversed(list(zip(logits, written_classes(regions)))):
        result[number] = torch.minimum(logit, absent)
        absent = torch.minimum(-logit, absent)
    result[0] = absent
    return torch.stack(result) / 2
