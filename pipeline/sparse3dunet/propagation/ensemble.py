"""Ensemble of the methods: cross-fitted on parts of the annotation, stacked, combined and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from sparse3dunet.data.slices import Slices, checked_slices, slices_mask
from sparse3dunet.propagation.calibration import dice, importance
from sparse3dunet.propagation.field import Field
from sparse3dunet.propagation.forest import POSITIONS, AutoContext, Drawn, Forest, context, features, mean_prob
from sparse3dunet.propagation.parts import Part, deal
from sparse3dunet.propagation.random_walker import RandomWalker
from sparse3dunet.propagation.scan import Propagator, Scan, half, single
from sparse3dunet.propagation.shape import ShapeInterpolation, distance_from
from sparse3dunet.propagation.views import Companion, Found, View, product

WORK = 5.5e6
"""Voxels times (classes + 1) of the working grid: about a minute on two cores."""
PREVIEW_WORK = 1e6
"""Work up to which the preview learns from held-out blocks too, and a scan is refined however short the time."""
BOARDS = 2
"""Number of chessboards of held-out blocks: two make learning from few slices more reliable."""
WALKERS = (2000.0, 200.0)
FOREST, APPEARANCE, SHAPE = range(len(WALKERS), len(WALKERS) + 3)
"""Numbers of the members after the walkers. The second forest does not see positions: scattered structures such as
nuclei are found by appearance alone."""
MEMBERS = range(SHAPE + 1)
JUDGING_TREES = 24
"""Trees of a forest evaluated on held-out parts: few, as each part needs its own forest."""
RATIOS, SHARES = (0.9, 1.1, 1.5), (0.3, 1.2, 4.0)
"""Ratio of the auto-context's error to its companion's on held-out voxels, and the companion's share in the result.

The auto-context sees all members, so a companion adds little; but with few annotated slices, trees trained on the even
fewer held-out ones may be worse than a single member.
"""
WALK_SHARE, WALK_POWER = 0.5, 3
"""Share of the walk in the preview where both err equally often, and the power by which it falls with its error."""
LEAST_ERROR = 0.01
WALKED = 12
"""Maximum voxels times classes of held-out parts at full resolution, relative to the work: about ten seconds of 60."""
MOST_HELD = 200_000
"""Maximum number of voxels of a held-out part that are kept at full resolution."""


@dataclass(frozen=True)
class Held:
    """Predictions for held-out voxels by methods that did not see them.

    Attributes:
        prob: (K, N) probabilities.
        label: (N,) true classes.
        distance: (N,) distance from the annotation that the methods saw, in mm.
        weight: (N,) weights that give the distances the distribution of those of unlabeled voxels.
        place: (N, 3) indices in the scan.
        part: (N,) number of the part.
        slices: numbers of the parts that are whole slices.
        judged: number of the part that holds out the first of the given slices; -1: none.
    """

    prob: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    weight: np.ndarray
    place: np.ndarray
    part: np.ndarray
    slices: tuple[int, ...]
    judged: int = -1


@dataclass(frozen=True)
class Propagated:
    """Class probabilities within a box of a scan; outside of it is background.

    Attributes:
        prob: (K, X', Y', Z') float32.
        box: slice of the box along each axis.
        held: predictions for held-out voxels; None if none could be held out.
        method: description of the methods used.
    """

    prob: np.ndarray
    box: tuple[slice, slice, slice]
    held: Held | None
    method: str

    def whole(self, shape: Sequence[int]) -> np.ndarray:
        """Return the probabilities (K, X, Y, Z) of the whole scan."""
        result = np.zeros((len(self.prob), *shape), np.float32)
        result[0] = 1
        result[(slice(None), *self.box)] = self.prob
        return result


class Ensemble(Propagator):
    """Random walkers, forests and shape interpolation, with trees trained on their predictions for held-out parts.

    Args:
        num_classes: K; None: as many as are annotated.
        seed: random seed.
        work: maximum voxels times (classes + 1) of the working grid; larger scans are processed on a coarser grid.
        slices: slices of the scan to hold out, by part and axis; None: chosen automatically.

    Example:
        >>> prob = Ensemble().fit(image, label, weight, spacing=(1, 1, 3)).predict_proba()  # doctest: +SKIP
    """

    def __init__(
        self,
        num_classes: int | None = None,
        seed: int = 0,
        work: float = WORK,
        slices: Sequence[Slices] | None = None,
    ) -> None:
        self.num_classes, self.seed, self.work, self.slices = num_classes, seed, work, slices

    def fit_scan(self, scan: Scan) -> Ensemble:
        """Fit to a checked scan."""
        self._slices: list[Slices] | None = None
        if self.slices is not None:
            self._slices = [
                checked_slices(part, scan.shape, f"part {number} to hold out")
                for number, part in enumerate(self.slices)
            ]
        self._whole, self._field = scan, Field.of(scan, self.work)
        self._scan = self._field.coarse(scan)
        self._features = features(self._scan)
        self._predictions: dict[int, np.ndarray] = {}
        self._refined: Propagated | None = None
        return self

    def predict_proba(self) -> np.ndarray:
        return self.refine().whole(self._whole.shape)

    def preview(self) -> Propagated:
        """Return a fast result; for small scans, one that learns from held-out blocks as well."""
        self._check_fitted()
        if self.work_to_do <= PREVIEW_WORK:
            views = [self._view(part) for part in deal(self._scan, [], BOARDS)]
            if views:
                companion = self._companion(views, self._judge(views))
                return self._result(self._learned(views, companion), None, "auto-context of blocks")
        forest, walk = self._predict([FOREST, 0])
        prob = product(forest, walk, self._walk_share())
        return self._result(prob, None, "forest and random walk")

    def refine(self, on_part: Callable[[float], None] = lambda share: None) -> Propagated:
        """Return the best result without a network.

        Args:
            on_part: called with the share of the work that is done.
        """
        self._check_fitted()
        if self._refined is not None:
            return self._refined
        parts = deal(self._scan, self._own_slices(), BOARDS)
        if len(parts) < 2:
            self._refined = self.preview()
            return self._refined
        views, chosen = [], self._affordable(parts)
        for number, part in enumerate(parts):
            views.append(self._view(part, is_brought=self._field.is_coarse and number in chosen))
            on_part((number + 1) / (len(parts) + 2))
        judged = self._judge(views)
        companion = self._companion(views, judged)
        learned = self._learned(views, companion)
        on_part((len(parts) + 1) / (len(parts) + 2))
        prob = [companion.combine(of_part, view.members) for of_part, view in zip(judged, views)]
        held = self._held([views[number] for number in chosen], [prob[number] for number in chosen])
        self._refined = self._result(learned, held, "auto-context")
        on_part(1.0)
        return self._refined

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the whole scan."""
        return self._whole.shape

    @property
    def work_to_do(self) -> float:
        """Voxels times (classes + 1) of the working grid."""
        return float(np.prod(self._scan.shape)) * (self._scan.num_classes + 1)

    def _own_slices(self) -> list[Slices] | None:
        """Return the slices to hold out, on the working grid."""
        if self._slices is None:
            return None
        field, shape = self._field, self._scan.shape
        return [
            [
                sorted({(i - b.start) // s for i in found if b.start <= i < min(b.stop, b.start + n * s)})
                for found, b, s, n in zip(chosen, field.box, field.step, shape)
            ]
            for chosen in self._slices
        ]

    def _predict(self, numbers: Sequence[int]) -> np.ndarray:
        """Return (cached) probabilities (M, K, X, Y, Z), float16, of some members that see all of the annotation."""
        for number in numbers:
            if number not in self._predictions:
                self._predictions[number] = self._member(number, self._scan)
        return np.stack([self._predictions[number] for number in numbers])

    def _member(self, number: int, scan: Scan) -> np.ndarray:
        """Return the probabilities (K, X, Y, Z), float16, of a member fitted to the annotation in `scan`."""
        member: Propagator
        if number < FOREST:
            member = RandomWalker(WALKERS[number]).fit_scan(scan)
        elif number == FOREST:
            member = Forest(seed=self.seed).fit_scan(scan, self._features)
        elif number == APPEARANCE:
            member = Forest(seed=self.seed + 1, position=False).fit_scan(scan, self._features[:, :-POSITIONS])
        else:
            member = ShapeInterpolation().fit_scan(scan)
        return half(member.predict_proba())

    def _view(self, part: Part, is_brought: bool = False) -> View:
        """Return the predictions of the members for a part that they do not see.

        Args:
            part: the part.
            is_brought: whether these are brought to full resolution, which depends on their neighbours as well.
        """
        scan = self._scan.only(part.left)
        members = np.stack([self._member(number, scan) for number in MEMBERS])
        inside = np.flatnonzero(part.held.numpy())
        mean = mean_prob(members)
        places = np.concatenate([inside, self._beside(part.held)]) if is_brought else inside
        columns = context(scan, members, mean)[places]
        drawn = AutoContext(seed=self.seed).draw(self._scan, part.held)
        of_part = members.reshape(*members.shape[:2], -1)[:, :, places]
        everywhere = half(mean) if is_brought else None
        return View(part.kind, part.fold, places, len(inside), columns, of_part, drawn, everywhere)

    def _beside(self, held: torch.Tensor) -> np.ndarray:
        """Return flat indices of unlabeled neighbours of a part."""
        return np.flatnonzero(binary_dilation(held.numpy()) & ~self._scan.known.numpy())

    def _rows(self, view: View) -> np.ndarray:
        places = np.searchsorted(view.index, view.drawn.index)
        return np.concatenate([view.columns[places], self._features[view.drawn.index]], 1)

    def _learned(self, views: Sequence[View], companion: Companion) -> np.ndarray:
        """Return the probabilities (K, X, Y, Z) of trees trained on some parts, combined with their companion."""
        scan, members = self._scan, self._predict(MEMBERS)
        trees = AutoContext(seed=self.seed).fit([self._rows(view) for view in views], [view.drawn for view in views])
        mean = mean_prob(members)
        columns = [context(scan, members, mean), self._features]
        prob = trees.predict(columns, scan.num_classes).reshape(scan.num_classes, *scan.shape)
        return companion.combine(self._with_unseen(prob, mean, [view.drawn for view in views]), members)

    def _with_unseen(self, prob: np.ndarray, mean: np.ndarray, drawn: Sequence[Drawn]) -> np.ndarray:
        """Return the trees' probabilities (K, ...), with those of other methods for classes that no drawn voxel has.

        Nothing of such a class was held out, so trees would say that it is nowhere.
        """
        unseen = np.setdiff1d(self._scan.classes(), np.concatenate([of.label for of in drawn]))
        if not len(unseen):
            return prob
        result = prob * (1 - mean[unseen].sum(0))
        result[unseen] = mean[unseen]
        return result

    def _judge(self, views: Sequence[View]) -> list[np.ndarray]:
        """Return the probabilities (K, N) at each part's places by trees trained on the other parts.

        Parts overlap, so the part's own voxels are left out of the others.
        """
        label = self._scan.label.numpy().ravel()
        rows, drawn = [self._rows(view) for view in views], [view.drawn for view in views]
        result = []
        for view in views:
            apart = [~np.isin(of.index, view.index, assume_unique=True) for of in drawn]
            learned = [of.only(chosen) for of, chosen in zip(drawn, apart)]
            if not np.isin(label[view.index], np.concatenate([of.label for of in learned])).all():
                result.append(mean_prob(view.members[:SHAPE]))  # the trees would not know one of the part's classes
                continue
            trees = AutoContext(JUDGING_TREES, self.seed).fit([r[chosen] for r, chosen in zip(rows, apart)], learned)
            prob = trees.predict([view.columns, self._features[view.places]], self._scan.num_classes)
            result.append(self._with_unseen(prob, mean_prob(view.members), learned))
        return result

    def _companion(self, views: Sequence[View], judged: Sequence[np.ndarray]) -> Companion:
        """Choose the walks or the forest, whichever has the lower error on held-out parts.

        Blocks decide if there are any, as their voxels lie as far from the annotation as unlabeled ones.
        """
        kind = "blocks" if any(view.kind == "blocks" for view in views) else "slices"
        chosen = [number for number, view in enumerate(views) if view.kind == kind]
        label = np.concatenate([self._scan.label.numpy().ravel()[views[number].index] for number in chosen])
        weight = _weight(self._scan, np.concatenate([views[number].distance for number in chosen]))

        def error(prob: Sequence[np.ndarray]) -> float:
            return _error(np.concatenate([prob[i][:, : views[i].count] for i in chosen], 1), label, weight)

        errors = {first: error([view.members[first] for view in views]) for first in (0, FOREST)}
        best = min(errors, key=errors.__getitem__)
        share = float(np.interp(error(judged) / errors[best], RATIOS, SHARES))
        return Companion(tuple(range(len(WALKERS))) if best == 0 else (FOREST,), share)

    def _held(self, views: Sequence[View], prob: Sequence[np.ndarray]) -> Held:
        """Return the predictions for the parts, at full resolution."""
        if self._field.is_coarse:
            found = [self._at_full_resolution(view, of_part) for view, of_part in zip(views, prob)]
        else:
            label = self._scan.label.numpy().ravel()
            places = [self._field.places(view.index, self._scan.shape) for view in views]
            found = [Found(p, label[v.index], v.distance, place) for v, p, place in zip(views, prob, places)]
        distance = np.concatenate([of_part.distance for of_part in found])
        return Held(
            np.concatenate([of_part.prob for of_part in found], 1),
            np.concatenate([of_part.label for of_part in found]),
            distance,
            _weight(self._field.cut(self._whole), distance),
            np.concatenate([of_part.place for of_part in found]),
            np.repeat(range(len(found)), [len(of_part.label) for of_part in found]),
            tuple(number for number, view in enumerate(views) if view.kind == "slices"),
            next((number for number, view in enumerate(views) if view.fold == 0), -1),
        )

    def _affordable(self, parts: Sequence[Part]) -> list[int]:
        """Return the numbers of the parts that there is time to bring to full resolution: of blocks, slices, in turn.

        All, if the grid is not coarse. At least one of each, and the slices that were given first, as the network is
        judged by these.
        """
        if not self._field.is_coarse:
            return list(range(len(parts)))
        size = np.prod([b.stop - b.start for b in self._field.box]) * self._scan.num_classes
        numbers = sorted(range(len(parts)), key=lambda number: parts[number].fold != 0)
        kinds = [[number for number in numbers if parts[number].kind == kind] for kind in ("blocks", "slices")]
        in_turn = [number for pair in zip_longest(*kinds) for number in pair if number is not None]
        return sorted(in_turn[: max(2, int(WALKED * self.work // size))])

    def _at_full_resolution(self, view: View, prob: np.ndarray) -> Found:
        """Return a part's predictions after the walk that moves coarse borders to edges, which does not see it either.

        What is known of coarse voxels says little about those at full resolution, of which borders are finer.
        """
        field, scan = self._field, self._whole
        assert view.mean is not None  # see refine
        prior = single(view.mean)
        prior.reshape(len(prior), -1)[:, view.places] = prob
        held = np.zeros(self._scan.shape, bool)
        held.ravel()[view.index] = True
        left = scan.known.clone()
        left[field.box] &= ~torch.from_numpy(field.spread(held))
        seen = scan.known & ~left
        if view.fold >= 0 and self.slices is not None:  # by which the network is judged, which learned all others
            seen &= torch.from_numpy(slices_mask(scan.shape, self.slices[view.fold]))
        inside = np.flatnonzero(seen[field.box].numpy())
        chosen = np.sort(np.random.default_rng(self.seed).permutation(inside)[:MOST_HELD])
        fine = field.fine(prior, scan.only(left))
        place = np.stack(np.unravel_index(chosen, fine.shape[1:]), 1)
        distance = distance_from(left[field.box], scan.spacing).ravel()[chosen]
        label = scan.label[field.box].numpy().ravel()[chosen]
        return Found(fine.reshape(len(fine), -1)[:, chosen], label, distance, place + [b.start for b in field.box])

    def _walk_share(self) -> float:
        """Return the share of the walk in the preview, by its error and a smaller forest's on held-out blocks."""
        part = next(iter(deal(self._scan, [], 1)), None)
        if part is None:
            return WALK_SHARE
        scan = self._scan.only(part.left)
        inside = np.flatnonzero(part.held.numpy())
        label, weight = self._scan.label.numpy().ravel()[inside], np.ones(len(inside))
        forest = Forest(JUDGING_TREES, seed=self.seed).fit_scan(scan, self._features).predict_at(inside)
        walk = RandomWalker(WALKERS[0]).fit_scan(scan).predict_proba().reshape(len(forest), -1)[:, inside]
        share = WALK_SHARE * (_error(forest, label, weight) / _error(walk, label, weight)) ** WALK_POWER
        return min(share, SHARES[-1])

    def _result(self, prob: np.ndarray, held: Held | None, method: str) -> Propagated:
        return Propagated(self._field.fine(prob, self._whole), self._field.box, held, method)


def _weight(scan: Scan, distance: np.ndarray) -> np.ndarray:
    """Return weights (N,) of held-out voxels by their distance from annotation."""
    return importance(distance, distance_from(scan.known, scan.spacing)[~scan.known.numpy()])


def _error(prob: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Return 1 - mean foreground Dice; 1 if there is no foreground."""
    scores = dice(prob.argmax(0), label, weight, len(prob))[1:]
    return max(1 - float(np.nanmean(scores)), LEAST_ERROR) if np.isfinite(scores).any() else 1.0
