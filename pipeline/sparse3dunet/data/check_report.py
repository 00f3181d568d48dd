"""Output of a data set's check, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparse3dunet.console import Console, Table, box, escape
from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.partial_labels import describe as describe_partial_labels
from sparse3dunet.data.regions import describe as describe_regions
from sparse3dunet.data.reports import CaseReport, DataReport
from sparse3dunet.io.volumes import value_text
from sparse3dunet.keys import ANNOTATED_SLICES, WEIGHT

SHOWN_CASES = 20


def as_json(report: DataReport) -> str:
    """Return the report as JSON: ``ok``, ``errors``, ``warnings``, ``classes``, ``regions``, ``cases`` and others."""
    names, values = report.data_set.class_names, report.data_set.class_values
    classes = [
        {"name": name, "value": value, "voxels": count}
        for name, value, count in zip(names, values, report.class_counts)
    ]
    content = {
        "ok": not report.all_errors,
        "errors": report.all_errors,
        "warnings": report.warning_lines(),
        "classes": classes,
        "regions": {name: list(classes) for name, classes in report.data_set.regions.items()},
        "ignore_index": list(report.data_set.ignore_index),
        "num_channels": report.data_set.num_channels,
        "memory_bytes": report.memory,
        "cases": [_case(case) for case in report.cases],
    }
    return json.dumps(content, indent=1)


def _case(case: CaseReport) -> dict[str, Any]:
    content = dataclasses.asdict(dataclasses.replace(case, measurements=None))
    del content["measurements"]
    return {**content, "values": {value_text(value): count for value, count in case.values.items()}}


def show(
    report: DataReport, cases: bool = True, all_cases: bool = False, class_weights: Sequence[float] | None = None
) -> None:
    """Print the report: the cases, the classes, the warnings and the errors.

    Args:
        report: from :func:`~sparse3dunet.data.checks.inspect`.
        cases: whether to list cases.
        all_cases: whether to list all cases and errors, not only the first ones and the bad ones.
        class_weights: weight of a voxel of each class, shown with the classes.
    """
    console = Console()
    if cases:
        console.print(_case_table(report, all_cases))
    console.print(_class_table(report, class_weights))
    annotated, voxels = (sum(getattr(case, key) for case in report.cases) for key in ("annotated", "voxels"))
    share = annotated / voxels if voxels else 0
    console.print(
        f"{len(report.cases)} case(s), {share:.1%} of the voxels annotated, {report.data_set.num_channels} channel(s); "
        f"unlabeled: {_unlabeled_text(report.data_set)}; "
        f"about {report.memory / 1e9:.2g} GB for all volumes in memory.",
        highlight=False,
    )
    for case in [case for case in report.cases if case.convention][:SHOWN_CASES]:
        console.print(f"{escape(case.name)}: {escape(case.convention)}.", highlight=False, soft_wrap=True)
    regions = describe_regions(report.data_set.regions, report.data_set.class_names)
    for text in [*regions, *describe_partial_labels([case.looked_for for case in report.cases])]:
        console.print(f"{escape(text)}.", highlight=False, soft_wrap=True)
    for text in report.warning_lines():
        console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
    errors = report.all_errors
    for text in errors if all_cases else errors[:SHOWN_CASES]:
        console.print(f"[red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    if len(errors) > SHOWN_CASES and not all_cases:
        console.print(f"... and {len(errors) - SHOWN_CASES} more errors: --all", highlight=False)


def _unlabeled_text(data_set: DataSet) -> str:
    """Return what marks unlabeled voxels: values, slices, weights."""
    ways = {
        ", ".join(map(str, data_set.ignore_index)): True,
        "outside of the annotated slices": any(ANNOTATED_SLICES in case for case in data_set.cases),
        "where the weight is 0": any(WEIGHT in case for case in data_set.cases),
    }
    return " and ".join(text for text, is_so in ways.items() if text and is_so) or "no value"


def _case_table(report: DataReport, all_cases: bool) -> Table:
    first = report.cases if all_cases else report.cases[:SHOWN_CASES]
    shown = [*first, *(case for case in report.cases[len(first) :] if case.errors)]
    table = Table(title="Cases (by axis: left-right x posterior-anterior x inferior-superior)", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("case", overflow="fold", min_width=15)
    table.add_column("values", overflow="fold", min_width=7)
    for heading in ("type", "size", "mm", "intensity", "labeled", "slices"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case in shown:
        style = "red" if case.errors else "yellow" if case.warnings else ""
        table.add_row(*_row(case), style=style)
    more = len(report.cases) - len(shown)
    table.caption = "slices: sagittal/coronal/axial; none: annotated, but not in slices" + (
        f". {more} more cases, without errors: --all" if more else ""
    )
    return table


def _row(case: CaseReport) -> Sequence[str]:
    values = [f"{value:.5g}" for value in case.values]
    return (
        escape(case.name),
        ",".join(values[:8]) + (",..." if len(values) > 8 else ""),
        "/".join(np.dtype(name).str[1:] for name in case.dtypes),
        "x".join(map(str, case.shape)),
        "x".join(f"{s:.3g}" for s in case.spacing),
        f"to {case.intensity[1]:.3g}" if case.intensity else "",
        f"{case.annotated / case.voxels:.1%}" if case.annotated else "",
        _slices_text(case),
    )


def _slices_text(case: CaseReport) -> str:
    """Return the numbers of annotated sagittal, coronal and axial slices."""
    if not case.annotated:
        return ""
    if case.is_dense:
        return "dense"
    if case.slices is None:
        return "none"
    return "/".join(str(len(case.slices[plane])) for plane in ("sagittal", "coronal", "axial"))


def _class_table(report: DataReport, weights: Sequence[float] | None) -> Table:
    counts = report.class_counts
    table = Table(title="Classes", box=box.SIMPLE_HEAD)
    partial = any(case.looked_for for case in report.cases)
    more = [*(["looked for in"] if partial else []), *(["weight"] if weights else [])]
    for heading in ("class", "value", "annotated voxels", "share", "cases", *more):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for number, (name, value) in enumerate(zip(report.data_set.class_names, report.data_set.class_values)):
        cases = sum(1 for case in report.cases if case.class_counts and case.class_counts[number])
        share = f"{100 * counts[number] / sum(counts):.3g}%" if sum(counts) else ""
        sought = sum(1 for case in report.cases if number == 0 or name in (case.looked_for or [name]))
        cells = [*([str(sought)] if partial else []), *([f"{weights[number]:.3g}"] if weights else [])]
        table.add_row(escape(name), str(value), f"{counts[number]:,}", share, str(cases), *cells)
    return table
