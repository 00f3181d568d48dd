"""Segmentation from class probabilities by highest expected Dice, and its expected quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse3dunet.data.slices import find_slices
from sparse3dunet.densify.estimate import Expected, corrected
from sparse3dunet.densify.propagated import Outlook, distance_of
from sparse3dunet.inference.predictor import Prediction, Predictor, Scratch
from sparse3dunet.io.volumes import Volume
from sparse3dunet.propagation.calibration import decide
from sparse3dunet.propagation.calibration import dice as dice_of


@dataclass(frozen=True)
class Annotation:
    """Annotation of a case, on the image's grid and in the file's order of axes.

    Attributes:
        raw: (X, Y, Z) values on disk.
        numbers: (X, Y, Z) class numbers, 0 where unlabeled.
        annotated: (X, Y, Z) boolean, whether a voxel is annotated.
    """

    raw: np.ndarray
    numbers: np.ndarray
    annotated: np.ndarray


class Densifier(Predictor):
    """Predictor for annotated images that combines the probabilities of propagation and network.

    Args:
        name_of: returns the name of the case whose (first) image file is given.
        annotation_of: returns the annotation of that case.
        outlook_of: returns the outlook of a case by its name.
        keep_annotation: whether annotated voxels keep their label.
        on_prob: called with a case's name, its probabilities (K, X', Y', Z') within a box, and the box.
        arguments: arguments of :class:`~sparse3dunet.inference.predictor.Predictor`.
    """

    def __init__(
        self,
        name_of: Callable[[str], str],
        annotation_of: Callable[[str], Annotation],
        outlook_of: Callable[[str], Outlook],
        keep_annotation: bool,
        on_prob: Callable[[str, np.ndarray, tuple[slice, ...]], None] | None,
        *arguments: Any,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.name_of, self.annotation_of, self.outlook_of = name_of, annotation_of, outlook_of
        self.keep_annotation, self.on_prob = keep_annotation, on_prob
        self.expected: dict[str, Expected] = {}

    def __call__(self, volumes: Sequence[Volume], scratch: Scratch) -> Prediction:
        path = volumes[0].path
        name = self.name_of(path)
        outlook, annotation = self.outlook_of(name), self.annotation_of(path)
        network = None
        if outlook.share:
            self.probabilities = True  # of the network alone; not part of the result
            try:
                network = np.moveaxis(np.asarray(super().__call__(volumes, scratch).probabilities), -1, 0)
            finally:
                self.probabilities = False
        distance = distance_of(annotation.annotated, volumes[0].spacing)
        prob = outlook.prob(distance, network)
        box = outlook.propagated.box
        if self.on_prob is not None:
            self.on_prob(name, prob, box)
        numbers, dice = decided(prob, box, annotation)
        if network is not None:
            # It learned from the others: that it agrees with them confirms less than it seems to
            dice = (dice + decided(outlook.prob(distance), box, annotation)[1]) / 2
        dice = corrected(dice, find_slices(annotation.annotated))
        unlabeled = numbers[box][~annotation.annotated[box]]
        self.expected[name] = expected(outlook, dice, np.bincount(unlabeled, minlength=len(prob)))
        confidence = np.full(numbers.shape, 255, np.uint8)
        confidence[box] = np.rint(255 * np.take_along_axis(prob, numbers[box][None], 0)[0])
        mean = float(confidence[numbers > 0].mean() / 255) if (numbers > 0).any() else None
        if self.keep_annotation:
            numbers[annotation.annotated] = annotation.numbers[annotation.annotated]
            confidence[annotation.annotated] = 255
        voxels = np.bincount(numbers.ravel(), minlength=len(prob)).tolist()
        return Prediction(self.class_values[numbers], confidence if self.confidence else None, None, voxels, mean)


def decided(prob: np.ndarray, box: tuple[slice, ...], annotation: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Return classes (X, Y, Z) by probabilities (K, X', Y', Z') within a box, and their expected Dice (K,)."""
    classes, dice = decide(prob.reshape(len(prob), -1), ~annotation.annotated[box].ravel())
    numbers = np.zeros(annotation.numbers.shape, classes.dtype)
    numbers[box] = classes.reshape(prob.shape[1:])
    return numbers, dice


def expected(outlook: Outlook, dice: np.ndarray, counts: np.ndarray) -> Expected:
    """Return the expected quality of a volume, and the quality on its held-out voxels."""
    held = outlook.propagated.held
    missing = np.full(len(dice), np.nan)
    if held is None:
        return Expected(dice, missing, missing, counts)
    prob = outlook.calibration(held.prob, held.distance)
    classes, _ = decide(prob, np.ones(len(held.label), bool))
    found = dice_of(classes, held.label, held.weight, len(dice))
    hits, total = np.zeros(len(dice)), np.zeros(len(dice))
    for number in range(len(dice)):
        chosen = classes == number
        hits[number] = (held.weight * prob[number])[chosen].sum()
        total[number] = held.weight[chosen].sum() + (held.weight * prob[number]).sum()
    return Expected(dice, found, 2 * hits / np.maximum(total, 1e-9), counts)
