"""How sure a network is against how often it is right: temperature scaling, and the overlap that it promises.

Temperature scaling divides logits by the one number that makes known labels most likely (Guo et al., On Calibration of
Modern Neural Networks, ICML 2017). From probabilities follow the true and false positives and the false negatives to be
expected, and so Dice and IoU, where no label is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

TEMPERATURES = tuple(float(t) for t in np.geomspace(0.2, 5.0, 41))
"""That are tried: networks that learned for minutes are often less sure than they could be, so also below 1."""


PIECE = 2**20
"""Voxels at once, for memory."""


def likelihoods(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Of known labels, by each of TEMPERATURES: the sum of the negative logarithms of their probabilities.

    Args:
        logits: (K, N).
        labels: (N,) class numbers.
    """
    return [
        float(torch.nn.functional.cross_entropy((logits / t).T, labels.long(), reduction="sum")) for t in TEMPERATURES
    ]


def best_temperature(sums: Sequence[Sequence[float]]) -> int:
    """The index of the temperature by which known labels are most likely.

    Args:
        sums: :func:`likelihoods` of each part of them, at least one.
    """
    return int(np.argmin(np.sum(np.asarray(sums, float), axis=0)))


def expected_counts(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """What a network's segmentation promises of itself, should its probabilities at this temperature be true.

    Args:
        logits: (K, N).
        temperature: that they are divided by.

    Returns:
        (K, 3) float64: for each class the expected true positives, false positives and false negatives.
    """
    counts = torch.zeros(len(logits), 3, dtype=torch.float64)
    for piece in logits.split(PIECE, dim=1):
        prob = torch.softmax(piece.float() / temperature, dim=0).double()
        chosen = torch.nn.functional.one_hot(piece.argmax(0), len(logits)).T.to(prob.dtype)
        true_positive = (prob * chosen).sum(1)
        counts += torch.stack([true_positive, chosen.sum(1) - true_positive, prob.sum(1) - true_positive], dim=-1)
    return counts
