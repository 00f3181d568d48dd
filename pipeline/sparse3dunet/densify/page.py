"""Report of a densification: one HTML page that needs no internet connection and no scripts."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet import __version__
from sparse3dunet.densify.densifier import Annotation
from sparse3dunet.densify.estimate import EXPLANATION, Estimate, interval_text
from sparse3dunet.densify.reference import ReferenceScores
from sparse3dunet.densify.suggest import Suggestion
from sparse3dunet.io.volumes import Volume
from sparse3dunet.io.writing import write_text
from sparse3dunet.report.figures import CaseView, confidence_bar, course, doubt_panels, surface
from sparse3dunet.report.jinja import render
from sparse3dunet.report.pictures import UNLABELED
from sparse3dunet.report.scores import printed
from sparse3dunet.training.engines import score_text

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scikit-learn")
"""Packages whose versions are shown."""
SURFACES = 12
"""Maximum number of classes of a case whose surfaces are shown; the largest are chosen."""


@dataclass(frozen=True)
class CaseSection:
    """Section of the report on one case.

    Attributes:
        name: name of the case.
        ml: volume in ml by class name, without background.
        mean_confidence: 0 to 1; None if unknown.
        suggestions: slices to annotate next, the best first.
        files: relative paths by kind: segmentation, confidence, template.
        view: data for the pictures; None: no pictures.
    """

    name: str
    ml: Mapping[str, float]
    mean_confidence: float | None
    suggestions: Sequence[Suggestion]
    files: Mapping[str, str]
    view: CaseView | None


@dataclass(frozen=True)
class Report:
    """Content of the page.

    Attributes:
        title: name of what was densified.
        class_names: class names by class number, background first.
        cases: sections in the order of the page.
        quality: estimate from held-out voxels.
        curves: by part of the training, as for :func:`~sparse3dunet.report.figures.course`.
        plan: (name, value, reason) of each setting that was determined from the data.
        command: command line of the run.
        settings: config as YAML.
        versions: versions by name of package.
        notes: other facts that a reader must know, for example that the run was stopped early.
        scores: scores by dense labels; None, or empty, if there are no such labels.
        next_step: what to do next, in a line; empty for nothing.
    """

    title: str
    class_names: Sequence[str]
    cases: Sequence[CaseSection]
    quality: Estimate
    curves: Mapping[str, Sequence[Mapping[str, float | None]]] = field(default_factory=dict)
    plan: Sequence[tuple[str, str, str]] = ()
    command: str = ""
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    scores: ReferenceScores | None = None
    next_step: str = ""


def write_report(path: str | Path, report: Report) -> None:
    """Write the page atomically."""
    write_text(path, page(report), errors="replace")


def page(report: Report) -> str:
    """Return the page as HTML."""
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
        printed=printed,
        interval=interval_text,
        ml=_ml_text,
    )


def view_of(
    name: str,
    image: Volume,
    annotation: Annotation,
    numbers: np.ndarray,
    confidence: np.ndarray,
    class_names: Sequence[str],
) -> CaseView:
    """Return the data of a case for pictures, in RAS order."""
    orientation = nib.io_orientation(image.affine)
    first = image.data if image.data.ndim == 3 else image.data[..., 0]
    arrays = (first, annotation.numbers, annotation.annotated, numbers, confidence)
    scan, label, annotated, found, sure = (nib.apply_orientation(np.asarray(array), orientation) for array in arrays)
    directions = dict(orientation.astype(int))
    x, y, z = (bool(directions[axis] < 0) for axis in range(3))
    spacing = image.in_ras_order(image.spacing)
    return CaseView(name, scan, label, annotated, found, sure, spacing, class_names, (x, y, z), image.is_placed)


def versions() -> dict[str, str]:
    """Return the versions of the packages that the results depend on, and the machine."""
    packages = {name: version(name) for name in PACKAGES}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return {"sparse3dunet": __version__, "Python": platform.python_version(), **packages, "machine": machine}


def _ml_text(ml: float | None) -> str:
    if ml is None:
        return "-"
    return f"{ml:.0f}" if ml >= 1000 else f"{ml:.4g}"


def _pictures(view: CaseView) -> dict[str, Any]:
    """Return the pictures of a case: planes through the point of lowest confidence, surfaces of the largest classes."""
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
