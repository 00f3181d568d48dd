"""How often patches are drawn around each class, so that rare ones are seen every few iterations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse3dunet.data.reports import DataReport

EVERY = 5
"""Number of iterations in which each class is drawn at least once on average."""


def draw_shares(counts: Sequence[Sequence[int]], case_weights: Sequence[float], class_balance: float) -> np.ndarray:
    """Return the probability that a case is drawn, (cases,).

    Args:
        counts: annotated voxels by case and class.
        case_weights: relative probability of each case at class balance 0.
        class_balance: b, 0 ... 1; with probability b a class is drawn first, each equally often, and then a case that
            shows it.
    """
    shown = np.asarray(counts) > 0
    plain = np.asarray(case_weights, dtype=float) / np.sum(case_weights)
    by_class = shown[:, shown.any(axis=0)]
    return (1 - class_balance) * plain + class_balance * (by_class / by_class.sum(axis=0)).mean(axis=1)


def class_shares(counts: Sequence[Sequence[int]], case_weights: Sequence[float], class_balance: float) -> np.ndarray:
    """Return the probability that a patch is drawn around each class, (K,); see :func:`draw_shares`."""
    numbers = np.asarray(counts, dtype=float)
    shown = numbers > 0
    within = (1 - class_balance) * numbers / numbers.sum(axis=1, keepdims=True)
    within += class_balance * shown / shown.sum(axis=1, keepdims=True)
    return draw_shares(counts, case_weights, class_balance) @ within


def class_balance(report: DataReport, batch_size: int) -> float:
    """Return the least class balance, in steps of 0.05, with which each class is drawn every few iterations."""
    counts = [case.class_counts for case in report.cases if sum(case.class_counts)]
    shown = np.asarray(counts).sum(axis=0) > 0
    target = min(1 / (EVERY * batch_size), 0.5 / shown.sum())
    balances = np.arange(0, 1.01, 0.05)
    least = [class_shares(counts, [1.0] * len(counts), balance)[shown].min() for balance in balances]
    enough = [round(float(b), 2) for b, share in zip(balances, least) if share >= target]
    return enough[0] if enough else round(float(balances[int(np.argmax(least))]), 2)
