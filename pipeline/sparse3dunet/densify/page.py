"""The report of a densification: one HTML page that needs no network and no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.densify.estimate import EXPLANATION, Estimate, interval_text
from sparse3dunet.densify.suggest import Suggestion
from sparse3dunet.models.checkpoints import replace_file
from sparse3dunet.report.figures import CaseView, confidence_bar, course, doubt_panels, surface
from sparse3dunet.report.jinja import render
from sparse3dunet.report.pictures import UNLABELED
from sparse3dunet.training.engines import score_text

SURFACES = 12
"""Classes of a case whose surfaces are shown: the largest ones."""


@dataclass(frozen=True)
class CaseSection:
    """What the report tells of a case.

    Attributes:
        name: of the case.
        ml: volume by class name, without background.
        mean_confidence: 0 to 1; None where unknown.
        suggestions: slices to annotate next, the best first.
        files: relative paths by what they are: segmentation, confidence, template.
        view: for pictures; None for none.
    """

    name: str
    ml: Mapping[str, float]
    mean_confidence: float | None
    suggestions: Sequence[Suggestion]
    files: Mapping[str, str]
    view: CaseView | None


@dataclass(frozen=True)
class Report:
    """What the page tells.

    Attributes:
        title: of what was densified.
        class_names: by class number, background first.
        cases: in the order of the page.
        quality: by held-out slices.
        curves: by part of the training, as for :func:`~sparse3dunet.report.figures.course`.
        choices: what was chosen, its value, and why.
        command: that was typed.
        settings: YAML.
        versions: of what the results depend on.
        notes: what else a reader must know, as that the run was stopped early.
    """

    title: str
    class_names: Sequence[str]
    cases: Sequence[CaseSection]
    quality: Estimate
    curves: Mapping[str, Sequence[Mapping[str, float | None]]] = field(default_factory=dict)
    choices: Sequence[tuple[str, str, str]] = ()
    command: str = ""
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: str | Path, report: Report) -> None:
    """Write the page, whole or not at all; its folder must exist."""
    text = page(report)
    replace_file(Path(path), lambda draft: draft.write_text(text, encoding="utf-8", errors="replace"))


def page(report: Report) -> str:
    """The page as HTML."""
    return render(
        "densify.html.j2",
        report=report,
        quality=report.quality,
        names=report.class_names,
        cases=[(case, None if case.view is None else _pictures(case.view)) for case in report.cases],
        course=course(report.curves) if any(report.curves.values()) else None,
        confidence_bar=confidence_bar(),
        unlabeled_color=UNLABELED,
        explanation=EXPLANATION,
        score=score_text,
        interval=interval_text,
        ml=_ml_text,
    )


def _ml_text(ml: float | None) -> str:
    if ml is None:
        return "-"
    return f"{ml:.0f}" if ml >= 1000 else f"{ml:.4g}"


def _pictures(view: CaseView) -> dict[str, Any]:
    """What is shown of a case: planes through the place of highest doubt, and surfaces of the largest classes."""
    point, planes = doubt_panels(view)
    counts = {number: np.count_nonzero(view.segmentation == number) for number in range(1, len(view.class_names))}
    present = [number for number in counts if counts[number]]
    shown = sorted(sorted(present, key=lambda number: -counts[number])[:SURFACES])
    surfaces = [(number, surface(view, number)) for number in shown]
    return {
        "planes": planes,
        "all_annotated": view.annotated[point],
        "surfaces": [(number, png) for number, png in surfaces if png is not None],
        "absent": [view.class_names[number] for number in counts if not counts[number]],
        "shown": len(shown),
        "present": len(present),
    }
