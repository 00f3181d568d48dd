"""Scores of a densification by dense labels, from which nothing was learned: beside the estimate, to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3dunet.console import Console
from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics.masked import mean_score
from sparse3dunet.metrics.measures import SCORES, Measures, measure, summarize
from sparse3dunet.metrics.tolerance import describe
from sparse3dunet.report.scores import FILE, SUMMARY_FILE, by_class, scores_table, write_scores

FOLDER = "reference"
"""Folder of the tables in an output folder."""
UNLABELED, ALL = "unlabeled", "all"
IN_SUMMARY = {
    "dice": "Dice",
    "nsd": "NSD",
    "hd95_mm": "HD95 mm",
    "assd_mm": "ASSD mm",
    "volume_difference_percent": "volume difference %",
}
"""Scores on unlabeled voxels in ``summary.csv``."""


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of the cases that have a dense label, on unlabeled voxels and on all.

    Attributes:
        class_names: class names by class number, background first.
        tolerances: tolerance of the surface Dice in mm by class number.
        scores: by region ("unlabeled", "all") and name of the case, the scores of each class.
    """

    class_names: Sequence[str]
    tolerances: Sequence[float]
    scores: dict[str, dict[str, list[Measures]]] = field(default_factory=lambda: {UNLABELED: {}, ALL: {}})

    def __bool__(self) -> bool:
        return bool(self.scores[ALL])

    def add(
        self, name: str, numbers: np.ndarray, annotated: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
    ) -> None:
        """Score a case.

        Args:
            name: name of the case.
            numbers: (X, Y, Z) class numbers of the segmentation.
            annotated: (X, Y, Z) boolean, whether a voxel is annotated.
            reference: (X, Y, Z) class numbers of the dense label.
            spacing: voxel size in mm by axis.
        """
        pred, dense = (torch.from_numpy(np.ascontiguousarray(array, np.int16))[None] for array in (numbers, reference))
        weight = torch.from_numpy(~np.ascontiguousarray(annotated, bool))[None]
        targets = {UNLABELED: pack_target(dense[None], weight[None])[0], ALL: dense}
        for region, target in targets.items():
            self.scores[region][name] = measure(
                pred, target, len(self.class_names), spacing, tolerances=self.tolerances, reference=dense
            )

    def means(self, region: str) -> dict[str, float | None]:
        """Return the mean of each score over the classes without background, in the case of IoU over all classes."""
        columns = {score: [summarize(one, score) for one in by_class(self.scores[region])] for score in SCORES}
        return {score: mean_score(column[score != "iou" :]) for score, column in columns.items()}

    def classes(self, region: str) -> list[dict[str, Any]]:
        """Return for each class its name, the number n of cases that show it, and the mean of each score over these."""
        return [
            {
                "name": name,
                "n": sum(one.voxels > 0 for one in of_class),
                **{score: summarize(of_class, score).mean for score in SCORES},
            }
            for name, of_class in zip(self.class_names, by_class(self.scores[region]))
        ]

    def as_json(self) -> dict[str, Any]:
        """Return plain values: the means, and all scores by region, case and class."""
        named = {
            region: {case: dict(zip(self.class_names, map(asdict, found))) for case, found in cases.items()}
            for region, cases in self.scores.items()
        }
        means = {region: self.means(region) for region in self.scores}
        found = {
            region: {"mean_dice": of_region["dice"], "means": of_region, "classes": self.classes(region)}
            for region, of_region in means.items()
        }
        return {**found, "cases": named}

    def columns(self) -> dict[str, dict[str, float | None]]:
        """Return by heading and case what ``summary.csv`` shows of the scores on unlabeled voxels."""
        table: dict[str, dict[str, float | None]] = {}
        for case, found in self.scores[UNLABELED].items():
            for name, one in list(zip(self.class_names, found))[1:]:
                for score, heading in IN_SUMMARY.items():
                    table.setdefault(f"{name} {heading} (unlabeled)", {})[case] = getattr(one, score)
        return table

    @property
    def tolerance_text(self) -> str:
        """The tolerances in words."""
        return describe(self.tolerances[1:], self.class_names[1:])

    def write(self, output_dir: Path) -> None:
        """Write ``reference/scores.csv`` and ``reference/scores_summary.csv``; remove those of a former run."""
        folder = output_dir / FOLDER
        if self:
            write_scores(folder, self.scores, self.class_names)
            return
        for name in (FILE, SUMMARY_FILE):
            (folder / name).unlink(missing_ok=True)

    def show(self) -> None:
        """Print a table of the means, if there are any."""
        if self:
            title = f"Scores by the dense labels of {len(self.scores[ALL])} volume(s)"
            Console().print(scores_table(title, self.scores, self.class_names))
