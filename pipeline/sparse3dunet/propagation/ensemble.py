"""The methods together: cross-fitted on parts of the annotation, learned from, combined, and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparse3dunet.data.slices import Slices
from sparse3dunet.propagation.calibration import dice, importance
from sparse3dunet.propagation.field import Field
from sparse3dunet.propagation.forest import POSITIONS, AutoContext, Drawn, Forest, context, look, mean_prob
from sparse3dunet.propagation.parts import Part, deal
from sparse3dunet.propagation.random_walker import RandomWalker
from sparse3dunet.propagation.scan import Propagator, Scan, log_prob, softmax
from sparse3dunet.propagation.shape import ShapeInterpolation, distance_from

WORK = 5.5e6
"""Voxels times (classes + 1) of the grid that is worked on: about a minute and a half on two cores."""
PREVIEW_WORK = 1e6
"""Up to which the preview learns from parts as well, and a scan is refined however short the time."""
BOARDS = 2
"""Of held-out blocks: few slices are learned from more reliably."""
WALKERS = (2000.0, 200.0)
FOREST, APPEARANCE, SHAPE = range(len(WALKERS), len(WALKERS) + 3)
"""Of the members; the walkers come first. The second forest does not know where voxels lie: what is scattered, as
nuclei, is found by appearance alone."""
MEMBERS = range(SHAPE + 1)
JUDGING_TREES = 24
"""Of what is judged on held-out parts: few, as each part needs a forest of its own."""
RATIOS, SHARES = (0.9, 1.1, 1.5), (0.3, 1.2, 4.0)
"""Of the auto-context's error on held-out voxels to its companion's, and the share in the result of the companion.

It has seen all members, so that little is left for one beside it; but where few slices are annotated, trees that learn
from the even fewer held-out ones may know less than one that learned from none.
"""
WALK_SHARE, WALK_POWER = 0.5, 3
"""Of the walk beside the forest in the preview, where both are as often wrong; and how fast it falls with the error."""
LEAST_ERROR = 0.01


@dataclass(frozen=True)
class Held:
    """What is said of held-out voxels by methods that did not know them.

    Attributes:
        prob: (K, N).
        label: (N,) their classes.
        distance: (N,) from the annotation that the methods knew, in mm.
        weight: (N,) by which their distances are distributed as those of unlabeled voxels.
        place: (N, 3) in the scan.
        part: (N,) number of the part.
        slices: numbers of the parts that are whole slices.
        judged: number of the part that holds out the first of the slices given; -1: there is none.
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
        box: where it lies, by axis.
        held: on held-out voxels; None where none could be held out.
        method: by what it was made, in words.
    """

    prob: np.ndarray
    box: tuple[slice, slice, slice]
    held: Held | None
    method: str

    def whole(self, shape: Sequence[int]) -> np.ndarray:
        """(K, X, Y, Z): of the whole scan."""
        result = np.zeros((len(self.prob), *shape), np.float32)
        result[0] = 1
        result[(slice(None), *self.box)] = self.prob
        return result


class Ensemble(Propagator):
    """Random walkers, forests and shape interpolation, and trees that learn from what these say of held-out parts.

    Args:
        num_classes: K; None: as many as are annotated.
        seed: of what is random.
        work: voxels times (classes + 1), of the grid that is worked on; larger scans are worked on coarsely.
        slices: to hold out, by part and axis, of the scan; None: dealt out by itself.

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
        """Let all members see all of the annotation."""
        self._whole, self._field = scan, Field.of(scan, self.work)
        self._scan = self._field.coarse(scan)
        self._looks = look(self._scan)
        self._said: dict[int, np.ndarray] = {}
        self._refined: Propagated | None = None
        return self

    def predict_proba(self) -> np.ndarray:
        return self.refine().whole(self._whole.shape)

    def preview(self) -> Propagated:
        """What can be told at once; of small scans, by learning from held-out blocks as well."""
        if self.work_to_do <= PREVIEW_WORK:
            views = [self._look_at(part) for part in deal(self._scan, [], BOARDS)]
            if views:
                companion = self._companion(views, self._judge(views))
                return self._result(self._learned(views, companion), None, "auto-context of blocks")
        forest, walk = self._know([FOREST, 0])
        prob = product(forest, walk, self._walk_share())
        return self._result(prob, None, "forest and random walk")

    def refine(self, on_part: Callable[[float], None] = lambda share: None) -> Propagated:
        """All that can be told without a network.

        Args:
            on_part: is told the share of the work that is done.
        """
        if self._refined is not None:
            return self._refined
        parts = deal(self._scan, self._own_slices(), BOARDS)
        if len(parts) < 2:
            self._refined = self.preview()
            return self._refined
        views = []
        for number, part in enumerate(parts, 1):
            views.append(self._look_at(part))
            on_part(number / (len(parts) + 2))
        judged = self._judge(views)
        companion = self._companion(views, judged)
        held = self._held(views, [companion.beside(prob, view.members) for prob, view in zip(judged, views)])
        on_part((len(parts) + 1) / (len(parts) + 2))
        self._refined = self._result(self._learned(views, companion), held, "auto-context")
        on_part(1.0)
        return self._refined

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the whole scan."""
        return self._whole.shape

    @property
    def work_to_do(self) -> float:
        """Voxels times (classes + 1) of the grid that is worked on."""
        return float(np.prod(self._scan.shape)) * (self._scan.num_classes + 1)

    def _own_slices(self) -> list[Slices] | None:
        """Those to hold out, on the grid that is worked on."""
        if self.slices is None:
            return None
        field, shape = self._field, self._scan.shape
        return [
            [
                sorted({(i - b.start) // s for i in found if b.start <= i < min(b.stop, b.start + n * s)})
                for found, b, s, n in zip(chosen, field.box, field.step, shape)
            ]
            for chosen in self.slices
        ]

    def _know(self, numbers: Sequence[int]) -> np.ndarray:
        """(M, K, X, Y, Z) float16: what some members say who know all of the annotation; each is asked once."""
        for number in numbers:
            if number not in self._said:
                self._said[number] = self._member(number, self._scan)
        return np.stack([self._said[number] for number in numbers])

    def _member(self, number: int, scan: Scan) -> np.ndarray:
        """(K, X, Y, Z) float16: what one of them says, by what is annotated in `scan`."""
        member: Propagator
        if number < FOREST:
            member = RandomWalker(WALKERS[number]).fit_scan(scan)
        elif number == FOREST:
            member = Forest(seed=self.seed).fit_scan(scan, self._looks)
        elif number == APPEARANCE:
            member = Forest(seed=self.seed + 1, position=False).fit_scan(scan, self._looks[:, :-POSITIONS])
        else:
            member = ShapeInterpolation().fit_scan(scan)
        return member.predict_proba().astype(np.float16)

    def _look_at(self, part: Part) -> _View:
        """What the members say of a part that they do not know."""
        scan = self._scan.only(part.left)
        members = np.stack([self._member(number, scan) for number in MEMBERS])
        inside = np.flatnonzero(part.held.numpy())
        columns = context(scan, members, mean_prob(members))[inside]
        drawn = AutoContext(seed=self.seed).draw(self._scan, part.held)
        return _View(
            part.kind, part.fold, inside, columns, members.reshape(*members.shape[:2], -1)[:, :, inside], drawn
        )

    def _rows(self, view: _View) -> np.ndarray:
        places = np.searchsorted(view.index, view.drawn.index)
        return np.concatenate([view.columns[places], self._looks[view.drawn.index]], 1)

    def _learned(self, views: Sequence[_View], companion: _Companion) -> np.ndarray:
        """(K, X, Y, Z): of trees that learned from some parts, and what is best beside them."""
        scan, members = self._scan, self._know(MEMBERS)
        trees = AutoContext(seed=self.seed).fit([self._rows(view) for view in views], [view.drawn for view in views])
        columns = [context(scan, members, mean_prob(members)), self._looks]
        found = trees.predict(columns, scan.num_classes).reshape(scan.num_classes, *scan.shape)
        return companion.beside(found, members)

    def _judge(self, views: Sequence[_View]) -> list[np.ndarray]:
        """(K, N) of each part, by trees that learned from the others.

        Parts overlap: what trees learned of these very voxels in another part would tell them the answer.
        """
        label = self._scan.label.numpy().ravel()
        rows, drawn = [self._rows(view) for view in views], [view.drawn for view in views]
        result = []
        for view in views:
            apart = [~np.isin(of.index, view.index, assume_unique=True) for of in drawn]
            learned = [of.only(chosen) for of, chosen in zip(drawn, apart)]
            if not np.isin(label[view.index], np.concatenate([of.label for of in learned])).all():
                result.append(mean_prob(view.members[:SHAPE]))  # the trees would not know a class that all others know
                continue
            trees = AutoContext(JUDGING_TREES, self.seed).fit([r[chosen] for r, chosen in zip(rows, apart)], learned)
            result.append(trees.predict([view.columns, self._looks[view.index]], self._scan.num_classes))
        return result

    def _companion(self, views: Sequence[_View], judged: Sequence[np.ndarray]) -> _Companion:
        """The walks or the forest, by which of them is right more often where it knows nothing.

        Blocks decide where there are any, as their voxels lie as far from the annotation as those that matter.
        """
        kind = "blocks" if any(view.kind == "blocks" for view in views) else "slices"
        chosen = [number for number, view in enumerate(views) if view.kind == kind]
        label = np.concatenate([self._scan.label.numpy().ravel()[views[number].index] for number in chosen])
        weight = self._weight(np.concatenate([views[number].distance for number in chosen]))

        def error(said: Sequence[np.ndarray]) -> float:
            return _error(np.concatenate([said[number] for number in chosen], 1), label, weight)

        errors = {first: error([view.members[first] for view in views]) for first in (0, FOREST)}
        best = min(errors, key=errors.__getitem__)
        share = float(np.interp(error(judged) / errors[best], RATIOS, SHARES))
        return _Companion(tuple(range(len(WALKERS))) if best == 0 else (FOREST,), share)

    def _held(self, views: Sequence[_View], prob: Sequence[np.ndarray]) -> Held:
        """What is said of all parts."""
        index, distance = (np.concatenate([getattr(view, name) for view in views]) for name in ("index", "distance"))
        part = np.repeat(range(len(views)), [len(view.index) for view in views])
        slices = tuple(number for number, view in enumerate(views) if view.kind == "slices")
        judged = next((number for number, view in enumerate(views) if view.fold == 0), -1)
        label, places = self._scan.label.numpy().ravel()[index], self._field.places(index, self._scan.shape)
        weight = self._weight(distance)
        return Held(np.concatenate(prob, 1), label, distance, weight, places, part, slices, judged)

    def _weight(self, distance: np.ndarray) -> np.ndarray:
        """(N,) of held-out voxels, by their distance from annotation."""
        known = self._scan.known
        return importance(distance, distance_from(known, self._scan.spacing)[~known.numpy()])

    def _walk_share(self) -> float:
        """Of the walk in the preview, by what it and a smaller forest say of blocks that they do not know."""
        part = next(iter(deal(self._scan, [], 1)), None)
        if part is None:
            return WALK_SHARE
        scan = self._scan.only(part.left)
        inside = np.flatnonzero(part.held.numpy())
        label, weight = self._scan.label.numpy().ravel()[inside], np.ones(len(inside))
        forest = Forest(JUDGING_TREES, seed=self.seed).fit_scan(scan, self._looks).predict_at(inside)
        walk = RandomWalker(WALKERS[0]).fit_scan(scan).predict_proba().reshape(len(forest), -1)[:, inside]
        share = WALK_SHARE * (_error(forest, label, weight) / _error(walk, label, weight)) ** WALK_POWER
        return min(share, SHARES[-1])

    def _result(self, prob: np.ndarray, held: Held | None, method: str) -> Propagated:
        return Propagated(self._field.fine(prob, self._whole), self._field.box, held, method)


@dataclass(frozen=True)
class _View:
    """A part, and what members say that do not know it: of each of its voxels, by their index."""

    kind: str
    fold: int
    index: np.ndarray
    columns: np.ndarray
    members: np.ndarray
    drawn: Drawn

    @property
    def distance(self) -> np.ndarray:
        """(N,) from the annotation that the members know."""
        return self.columns[:, -1]  # see context


@dataclass(frozen=True)
class _Companion:
    """Members whose mean is multiplied with what the auto-context says, and their share in it."""

    members: tuple[int, ...]
    share: float

    def beside(self, found: np.ndarray, members: np.ndarray) -> np.ndarray:
        """(K, ...) of the auto-context's (K, ...) and all members' (M, K, ...) probabilities."""
        return product(found, mean_prob(members[list(self.members)]), self.share)


def product(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """(K, ...) of two methods' probabilities, the second to the power of its share.

    Where that is above 1, the first is weighed down instead: both together must not be surer for it.
    """
    return softmax((log_prob(first) + share * log_prob(second)) / max(share, 1.0))


def _error(prob: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """1 - the mean Dice of the foreground; 1 where nothing of it is there."""
    scores = dice(prob.argmax(0), label, weight, len(prob))[1:]
    return max(1 - float(np.nanmean(scores)), LEAST_ERROR) if np.isfinite(scores).any() else 1.0
