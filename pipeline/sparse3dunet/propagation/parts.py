"""Parts of the annotation that are held out to evaluate the methods and to learn from their predictions.

Held-out slices lie twice as far from the others as unlabeled voxels do. So there are two kinds of parts: whole slices,
and blocks of slices, sized so that their centres are as far from the remaining annotation as unlabeled voxels are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparse3dunet.data.slices import Slices, find_slices, runs, slices_mask
from sparse3dunet.propagation.scan import Scan
from sparse3dunet.propagation.shape import distance_from

LEFT_OF_SLICES, LEFT_OF_BLOCKS = 0.1, 0.2
"""Share of each class's annotated voxels that must be left when slices, or blocks, are held out."""
FEW = 10
"""Number of annotated voxels up to which a class need not be divided: it would make the blocks of all others small."""
WIDTH = 3.0
"""Width of the first board's blocks, relative to the 90th percentile of unlabeled voxels' distance from annotation."""
FINER = 0.65
"""Width of each further board's blocks, relative to the previous one."""


@dataclass(frozen=True)
class Part:
    """Annotated voxels that are held out, and those that are left.

    Attributes:
        kind: "slices" or "blocks".
        held: (X, Y, Z) bool, held-out voxels.
        left: (X, Y, Z) bool, remaining annotated voxels.
        fold: number among the given slices to hold out; -1: none of these.
    """

    kind: str
    held: torch.Tensor
    left: torch.Tensor
    fold: int = -1


def deal(scan: Scan, slices: Iterable[Slices] | None = None, boards: int = 1) -> list[Part]:
    """Return the parts of a scan's annotation; none if nothing can be held out without losing a class.

    Args:
        scan: the annotated scan.
        slices: slices to hold out by part and axis; None: chosen here.
        boards: number of chessboards, of two parts of blocks each.
    """
    found: list[Part] = []
    for number, chosen in enumerate(deal_slices(scan) if slices is None else slices):
        held = torch.from_numpy(slices_mask(scan.shape, chosen)) & scan.known
        if bool(held.any()) and _keeps_classes(scan, scan.known & ~held):
            fold = -1 if slices is None else number
            found.append(Part("slices", held, scan.known & ~held, fold))
    return found + _blocks(scan, boards)


def deal_slices(scan: Scan) -> list[Slices]:
    """Distribute annotated slices to three parts, or two if few are annotated; adjacent slices go together."""
    found = None if bool(scan.known.all()) else find_slices(scan.known.numpy())
    units = [[] if found is None else runs(found[axis]) for axis in range(3)]
    count = sum(map(len, units))
    if count < 2:
        return []
    number = 3 if count >= 6 or all(units) else 2
    parts: list[Slices] = [[[], [], []] for _ in range(number)]
    for axis, of_axis in enumerate(units):
        for turn, unit in enumerate(of_axis, axis):
            parts[turn % number][axis] += unit
    return parts


def _blocks(scan: Scan, boards: int) -> list[Part]:
    """Return parts of blocks in chessboard patterns: black, white; each further board is finer and shifted.

    A board is made finer until it divides each class. Of those that it does not divide, nothing is held out: these are
    classes of few voxels, and, on the finest one, any.
    """
    unknown = ~scan.known
    if not bool(unknown.any()):
        return []
    width = WIDTH * float(np.percentile(distance_from(scan.known, scan.spacing)[unknown.numpy()], 90))
    least = 2 * float(scan.spacing.min())
    found: list[Part] = []
    for number in range(boards):
        size = width * FINER**number
        while True:
            board = torch.from_numpy(_chessboard(scan.shape, scan.spacing, size, number * size / 3))
            divided, is_all = _divided(scan, board)
            if is_all or (size <= least and int(divided.sum()) > 1):
                held = [scan.known & color & divided[scan.label.long()] for color in (board, ~board)]
                found += [Part("blocks", part, scan.known & ~part) for part in held]
                break
            if size <= least:
                break
            size *= 0.8
    return found


def _divided(scan: Scan, board: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return which classes (K,) have enough voxels on both colours, and whether these are all but those of few."""
    colors = (scan.label[scan.known & color] for color in (board, ~board))
    black, white = (torch.bincount(labels, minlength=scan.num_classes).double() for labels in colors)
    total = black + white
    divided = (total > 0) & (torch.minimum(black, white) >= LEFT_OF_BLOCKS * total)
    present = int((total > 0).sum())
    return divided, bool((divided | (total <= FEW)).all()) and int(divided.sum()) >= min(present, 2)


def _chessboard(shape: Sequence[int], spacing: np.ndarray, width: float, shift: float) -> np.ndarray:
    indices = [((np.arange(n) * s + shift) // width).astype(np.int32) for n, s in zip(shape, spacing)]
    total = indices[0][:, None, None] + indices[1][None, :, None] + indices[2][None, None, :]
    return np.asarray(total % 2 == 0)


def _keeps_classes(scan: Scan, left: torch.Tensor) -> bool:
    """Return whether enough of each class is left; otherwise trees would learn that unseen classes are likely."""
    before, after = (torch.bincount(scan.label[mask], minlength=scan.num_classes) for mask in (scan.known, left))
    return bool((after >= LEFT_OF_SLICES * before).all() and ((after > 0) | (before == 0)).all())
