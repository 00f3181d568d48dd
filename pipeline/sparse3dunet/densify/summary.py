"""The plan of a run, for the terminal and the report: what was found, which methods were used, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from sparse3dunet.data.reports import DataReport
from sparse3dunet.densify.options import Options
from sparse3dunet.densify.propagated import Propagation
from sparse3dunet.densify.schedule import AUTO, FINAL, annotated_text, unlabeled_text
from sparse3dunet.densify.state import State
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.planning import Plan
from sparse3dunet.progress import minutes_text
from sparse3dunet.training.log import last_iteration
from sparse3dunet.training.speed import FEW

FEWEST_VOXELS = 10
"""Annotated voxels of all structures below which nothing useful can be learned."""
Entry = tuple[str, str, str]
"""Name, value and reason."""


def text(entry: Entry) -> str:
    """Return the entry as one line for the terminal."""
    name, value, reason = entry
    return f"{name}: {value} ({reason})"


def at_start(report: DataReport, state: State, options: Options, plan: Plan) -> list[Entry]:
    """Return what was found in the files, and the plan made from it.

    Args:
        report: report on the data set.
        state: state of the run.
        options: options of the run.
        plan: the plan.
    """
    entries = [
        ("annotation", annotated_text(report.cases), "as found in the files"),
        ("unlabeled", unlabeled_text(report), "change with --ignore-index or --annotated-slices"),
    ]
    count = len(state.held_out)
    if count:
        reason = "each in turn" if options.folds == AUTO else "as requested"
        reason = "the first is the one that the former run's model was not trained on" if state.keeps_fold else reason
        entries.append(("quality estimate", f"{count} part(s) of the slices held out", reason))
    if state.goes_on:
        entries.append(
            ("initial network", "the former run's model", "trained in this folder; start over with --restart")
        )
    kind = "GPU" if torch.device(options.device).type == "cuda" else "CPU"
    millions = sum(case.voxels for case in report.cases) / 1e6
    size = f"{millions:.1f} million voxels, for {minutes_text(options.minutes)} on this {kind}"
    for name, value, reason in plan.lines():
        entries.append((name, value, size if name == "voxel size" and options.own_spacing else reason))
    return entries


def methods_entry(propagation: Propagation, cases: Sequence[ImageCase], share: float | None, in_time: bool) -> Entry:
    """Return the methods that produced the results.

    Args:
        propagation: propagation of these cases.
        cases: all cases.
        share: share of the network; None: it was not evaluated.
        in_time: whether there was time for more than previews.
    """
    methods = sorted({propagation.method(case) for case in cases})
    network = f", combined with the network (share {share:g})" if share else ", without the network"
    if share:
        reason = "it does no harm on held-out slices"
    elif share is not None:
        reason = "the network did harm on held-out slices, or hardly learned"
    elif in_time:
        reason = "the network was not evaluated: resampled volumes, no held-out slices, or stopped early; see model/"
    else:
        reason = "there was only time for a preview; the network is in model/"
    return "methods", "; ".join(methods) + network, reason


def preview_notes(propagation: Propagation, cases: Sequence[ImageCase]) -> list[str]:
    """Return a note on the volumes whose result is the preview for lack of time; empty if there are none."""
    needed = [s for case in cases if (s := propagation.seconds_for(case)) > propagation.seconds]
    if not needed:
        return []
    return [
        f"{len(needed)} of {len(cases)} volume(s): there is only time for a preview, which is the result, without a "
        f"quality estimate. For more, use --minutes {math.ceil(max(needed) / 6) / 10:g}."
    ]


def learned(output_dir: Path, before: State | None) -> int:
    """Return the iterations of a former run's network; as many as a network needs at least, if they are not known."""
    return FEW if before is None or FINAL not in before.seconds else _iterations(output_dir, before)


def few_iterations(output_dir: Path, state: State, model: Path) -> list[str]:
    """Return a warning that the network has hardly been trained; empty if it has.

    Args:
        output_dir: folder of the run.
        state: its state, after the training.
        model: file of the network.
    """
    count = _iterations(output_dir, state)
    if count >= FEW:
        return []
    part = " and took no part in the result" if not state.share else ""
    return [
        f"warning: the network has had only {count} iterations{part}; {model.parent} is not fit for other scans, for "
        f"which {FEW} are the least: allow more --minutes."
    ]


def _iterations(output_dir: Path, state: State) -> int:
    """Return the iterations of the final network: the first part's network is its start, unless a former run's is."""
    parts = [part for part in state.seconds if part == FINAL or not state.goes_on]
    return state.learned + sum(last_iteration(output_dir / "work" / part / "training.csv") for part in parts)


def hopeless(report: DataReport) -> list[str]:
    """Return why the data themselves make a useful result unlikely, and what to do; empty if nothing does."""
    warnings = []
    texts = [text for case in report.cases for kind, text in case.warnings if kind == "constant"]
    if texts:
        more = f" The same in {len(texts) - 1} more volume(s)." if len(texts) > 1 else ""
        warnings.append(f"{texts[0]} Pass the scan that was annotated, or export it again.{more}")
    foreground = sum(sum(case.class_counts[1:]) for case in report.cases)
    if foreground < FEWEST_VOXELS:
        warnings.append(f"only {foreground} voxel(s) of structures are annotated. Annotate whole slices.")
    return warnings
