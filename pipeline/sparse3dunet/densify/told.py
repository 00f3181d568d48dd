"""What a run tells of itself, in the terminal and in the report: what it found, by what it went, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparse3dunet.data.checks import DataReport
from sparse3dunet.densify.options import Options
from sparse3dunet.densify.propagated import Propagation
from sparse3dunet.densify.schedule import AUTO, annotated_text, choices, unlabeled_text
from sparse3dunet.densify.state import State
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.models.description import ModelDescription

Choice = tuple[str, str, str]
"""Its name, its value, and why."""


def text(choice: Choice) -> str:
    """A line of the terminal."""
    name, value, why = choice
    return f"{name}: {value} ({why})"


def at_start(report: DataReport, state: State, options: Options, description: ModelDescription) -> list[Choice]:
    """What was found in the files, and what is chosen by it.

    Args:
        report: of the data set.
        state: of the run.
        options: of the run.
        description: of the model.
    """
    told = [
        ("annotation", annotated_text(report.cases), "as found in the files"),
        ("unlabeled", unlabeled_text(report), "--ignore-index or --annotated-slices say otherwise"),
    ]
    count = len(state.held_out)
    if count:
        reason = "each in turn" if options.folds == AUTO else "as asked for"
        reason = "the first is that which the former run's model has not learned" if state.keeps_fold else reason
        told.append(("estimate of the quality", f"{count} part(s) of the slices, held out", reason))
    if state.goes_on:
        told.append(("begin of the network", "the former run's model", "it has learned from this annotation"))
    return [*told, *choices(report, description, options.device, options.minutes, options.own_spacing)]


def of_methods(propagation: Propagation, cases: Sequence[ImageCase], share: float | None, in_time: bool) -> Choice:
    """By what the results are made.

    Args:
        propagation: of these cases.
        cases: all.
        share: of the network; None: it was not judged.
        in_time: whether there was time for more than previews.
    """
    methods = sorted({propagation.method(case) for case in cases})
    network = f", and the network at {share:g} of its weight" if share else ", without the network"
    if share:
        why = "best on held-out slices"
    elif share is not None:
        why = "the network made nothing better on held-out slices"
    elif in_time:
        why = "the network could not be judged: other voxels, no slices held out, or ended early; it is in model/"
    else:
        why = "there was time for a preview alone; the network is in model/"
    return "methods", "; ".join(methods) + network, why


def of_previews(propagation: Propagation, cases: Sequence[ImageCase]) -> list[str]:
    """That some volumes' results are their previews, for want of time; empty where none is."""
    needed = [s for case in cases if (s := propagation.seconds_for(case)) > propagation.seconds]
    if not needed:
        return []
    return [
        f"{len(needed)} of {len(cases)} volume(s): there is time for a preview alone, which is the result, without an "
        f"estimate. --minutes {math.ceil(max(needed) / 6) / 10:g} suffices for more."
    ]
