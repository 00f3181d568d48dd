"""Scores of volumes by class: as CSV with a row for each, as CSV of means and medians, and as a table to print."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse3dunet.console import Table, escape
from sparse3dunet.io.writing import write_csv
from sparse3dunet.metrics.masked import mean_score
from sparse3dunet.metrics.measures import COLUMNS, SCORES, Measures, summarize
from sparse3dunet.metrics.tolerance import describe

UNITS = "ASSD, HD95 in mm; volume: mean difference in %."
"""Units in tables, whose headings have no room for them."""
PRINTED = {"nsd": "NSD", "assd_mm": "ASSD", "hd95_mm": "HD95", "volume_difference_percent": "volume"}
"""Headings of the scores in tables, besides Dice and IoU."""
FILE, SUMMARY_FILE = "scores.csv", "scores_summary.csv"

Scores = Mapping[str, Mapping[str, Sequence[Measures]]]
"""By region (which voxels are scored) and name of the volume, the scores of each class."""


def write_scores(folder: str | Path, scores: Scores, class_names: Sequence[str]) -> None:
    """Write ``scores.csv``, a row for each volume, region and class, and ``scores_summary.csv``.

    Units are in the headings; a score that is not defined is an empty cell, and the column ``note`` says why. The
    summary has, for each region, class and score: ``cases`` whose reference shows the class, of these ``missed``, in
    which it is not predicted; ``spurious`` ones, in which it is predicted alone; ``n`` cases in which the score is
    defined, and its ``mean`` and ``median`` over these.
    """
    rows = [
        [case, region, name, *(_cell(getattr(one, column)) for column in COLUMNS)]
        for region, cases in scores.items()
        for case, measures in cases.items()
        for name, one in zip(class_names, measures)
    ]
    write_csv(Path(folder) / FILE, [["case", "region", "class", *COLUMNS], *rows])
    write_summary(Path(folder) / SUMMARY_FILE, scores, class_names)


def write_summary(path: str | Path, scores: Scores, class_names: Sequence[str], group: str = "region") -> None:
    """Write means and medians over volumes as CSV, see :func:`write_scores`.

    Args:
        path: the file.
        scores: scores by region, or by another `group` of volumes.
        class_names: names by class number.
        group: heading of the first column.
    """
    heading = [group, "class", "score", "cases", "missed", "spurious", "n", "mean", "median"]
    summary = [
        [region, name, score, *_detections(of_class), found.n, _cell(found.mean), _cell(found.median)]
        for region, cases in scores.items()
        for name, of_class in zip(class_names, by_class(cases))
        for score in SCORES
        for found in [summarize(of_class, score)]
    ]
    write_csv(Path(path), [heading, *summary])


def read_scores(folder: str | Path) -> dict[str, dict[str, list[Measures]]]:
    """Read the scores that :func:`write_scores` wrote into a folder."""
    scores: dict[str, dict[str, list[Measures]]] = {}
    with (Path(folder) / FILE).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cells = {column: _value(column, row[column]) for column in COLUMNS}
            scores.setdefault(row["region"], {}).setdefault(row["case"], []).append(Measures(**cells))
    return scores


def _value(column: str, cell: str) -> Any:
    if column in ("surfaces", "note"):
        return cell
    if column == "voxels":
        return int(cell)
    return float(cell) if cell else None


def by_class(cases: Mapping[str, Sequence[Measures]]) -> list[list[Measures]]:
    """Return the scores of all volumes for each class."""
    return [list(of_class) for of_class in zip(*cases.values())]


def scores_table(title: str, scores: Scores, class_names: Sequence[str]) -> Table:
    """Return a table of the means over volumes, with the distances of surfaces if any were measured."""
    measured = any(one.surfaces for cases in scores.values() for of_case in cases.values() for one in of_case)
    chosen = ["dice", "iou", *(PRINTED if measured else [])]
    table = Table(title=title)
    for heading in ("voxels", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("n", "Dice", "IoU", *(PRINTED.values() if measured else [])):
        table.add_column(heading, justify="right")
    for region, cases in scores.items():
        columns = [[summarize(of_class, score) for of_class in by_class(cases)] for score in chosen]
        for number, name in enumerate(class_names if cases else []):
            cells = [printed(score, column[number].mean) for score, column in zip(chosen, columns)]
            table.add_row("" if number else region, escape(name), str(columns[0][number].n), *cells)
        if cases:
            over = {score: column[score != "iou" :] for score, column in zip(chosen, columns)}
            means = [printed(score, mean_score(column)) for score, column in over.items()]
            table.add_row("", "mean", "", *means, end_section=True)
    table.caption = "n: volumes that show the class; a dash: not evaluable. Means: no background; of IoU: all classes."
    if measured:
        tolerance = escape(_tolerance(scores, class_names))
        table.caption += f"\nNSD: within {tolerance}. {UNITS} {_doubts(scores)}".rstrip()
    return table


def _tolerance(scores: Scores, class_names: Sequence[str]) -> str:
    """Return the tolerance of the surface Dice in words."""
    found: dict[str, float] = {}
    for cases in scores.values():
        for name, of_class in zip(class_names, by_class(cases)):
            used = [one.nsd_tolerance_mm for one in of_class if one.nsd_tolerance_mm is not None]
            found |= {name: used[0]} if used else {}
    return describe(list(found.values()), list(found))


def _doubts(scores: Scores) -> str:
    """Return in words in how many volumes a class is not predicted, or has no distances."""
    classes = [of_class for cases in scores.values() for of_class in by_class(cases)[1:]]
    _, missed, spurious = (sum(counts) for counts in zip((0, 0, 0), *map(_detections, classes)))
    all_scores = [one for of_class in classes for one in of_class]
    without = sum(one.voxels > 0 and one.hd95_mm is None for one in all_scores)
    flat = sum(one.surfaces == "2D" for one in all_scores)
    told = {
        "shown, but not predicted": missed,
        "predicted, but not shown": spurious,
        "without HD95": without,
        "with distances within slices": flat,
    }
    words = ", ".join(f"{count} {text}" for text, count in told.items() if count)
    return f"Classes of volumes: {words}." if words else ""


def _detections(of_class: Sequence[Measures]) -> tuple[int, int, int]:
    """Return the number of volumes that show a class, of these that miss it, and of others that have it."""
    shown = [one for one in of_class if one.voxels]
    missed = sum(one.predicted_ml == 0 for one in shown)
    return len(shown), missed, sum(bool(one.predicted_ml) for one in of_class if not one.voxels)


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def printed(score: str, value: float | None) -> str:
    """Return a score as text, to at most three digits; a dash if it is not defined."""
    if value is None:
        return "-"
    if score.endswith("_percent"):
        return f"{value:+.1f}"
    if score in ("dice", "iou", "nsd"):
        return f"{value:.3f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"
