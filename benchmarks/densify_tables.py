"""Tables and summaries of the measurements of benchmarks/densify.py, from the entries of its results file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scans import kind_of

Entry = Mapping[str, Any]
FEWEST = 1e-9
"""Added to the best peer's error, to avoid a division by zero."""
TOLERANCE = 0.03
"""Tolerance of the Dice estimate."""


def best_peer(entry: Entry) -> float:
    """Dice of the best peer on the same scan."""
    return max(peer["dice"] for peer in entry["peers"].values())


def error_ratio(entry: Entry, dice: float | None) -> float | None:
    """Return our error over that of the best peer on the same scan; None if we have no score."""
    return None if dice is None else (1 - dice) / (1 - best_peer(entry) + FEWEST)


def estimate_error(run: Entry) -> float | None:
    """Return estimated minus true Dice; None if there is no estimate."""
    return None if run["estimate"] is None else run["estimate"] - run["dice"]


def interval_holds(run: Entry) -> bool | None:
    """Return whether the true Dice is in the interval; None if there is none."""
    return None if run["low"] is None else bool(run["low"] <= run["dice"] <= run["high"])


def estimate_text(run: Entry) -> str:
    """The estimate, its interval, and its error."""
    if run["estimate"] is None:
        return "no estimate"
    between = "" if run["low"] is None else f" ({run['low']:.3f} to {run['high']:.3f})"
    return f"estimate {run['estimate']:.3f}{between}, off by {estimate_error(run):+.3f}"


def memory_text(run: Entry) -> str:
    """Peak memory."""
    return f"{run['bytes'] / 1e9:.1f} GB" if run["bytes"] else "memory unknown"


def runs_of(entries: Iterable[Entry], minutes: str) -> list[tuple[Entry, Entry]]:
    """Return the entries with a run of this many minutes, each with the run."""
    return [(entry, entry["ours"][minutes]) for entry in entries if minutes in entry["ours"]]


def all_minutes(entries: Iterable[Entry]) -> list[str]:
    """Return the minutes of all runs in ascending order."""
    return sorted({minutes for entry in entries for minutes in entry["ours"]}, key=float)


def previews(entries: Iterable[Entry]) -> list[tuple[Entry, Entry]]:
    """Return the entries whose shortest run has a preview, each with that run."""
    pairs = [(entry, entry["ours"][min(entry["ours"], key=float)]) for entry in entries if entry["ours"]]
    return [(entry, run) for entry, run in pairs if run["preview_dice"] is not None]


def ratios_text(pairs: Sequence[tuple[Entry, Entry]], kind: str) -> str:
    """Mean and worst error ratio."""
    if not pairs:
        return "none"
    ratios = {entry["task"]: error_ratio(entry, run[kind]) for entry, run in pairs}
    found = [error_ratio(entry, run[kind]) for entry, run in pairs]
    worst, entry = max(zip(found, (entry for entry, _ in pairs)), key=lambda pair: pair[0])
    of = f"{len(pairs)} runs on {len(ratios)} scans"
    return f"mean {np.mean(found):.2f}, worst {worst:.2f} ({entry['task']}, seed {entry['seed']}), of {of}"


def estimates_text(runs: Sequence[Entry]) -> str:
    """Return how often intervals contain the truth, how wide they are, and how often estimates are close."""
    held = [holds for run in runs if (holds := interval_holds(run)) is not None]
    widths = [run["high"] - run["low"] for run in runs if run["low"] is not None]
    errors = [error for run in runs if (error := estimate_error(run)) is not None]
    near = sum(abs(error) <= TOLERANCE for error in errors)
    texts = []
    if held:
        texts += [
            f"interval contains the truth in {share(sum(held), len(held))}",
            f"median width {np.median(widths):.3f}",
        ]
    if errors:
        texts += [f"estimate within {TOLERANCE} in {share(near, len(errors))}"]
    if missing := len(runs) - len(errors):
        texts += [f"no estimate in {missing} of {len(runs)}"]
    return ", ".join(texts)


def share(count: int, of: int) -> str:
    """Return a share as numbers and as a percentage."""
    return f"{count} of {of} ({count / of:.0%})"


def largest_loss(entries: Iterable[Entry], minutes: Sequence[str]) -> str:
    """Return the largest loss of Dice with more minutes; empty if no entry has runs of different minutes."""
    losses = [
        (entry["ours"][few]["dice"] - entry["ours"][more]["dice"], few, more, entry)
        for entry in entries
        for i, few in enumerate(minutes)
        for more in minutes[i + 1 :]
        if few in entry["ours"] and more in entry["ours"]
    ]
    if not losses:
        return ""
    loss, few, more, entry = max(losses, key=lambda found: found[0])
    what = "largest loss of Dice" if loss > 0 else "no loss of Dice; least gain"
    return (
        f"From fewer to more minutes: {what} {abs(loss):.4f} ({few} to {more}, {entry['task']}, seed {entry['seed']})"
    )


def summary(entries: Sequence[Entry], minutes: Sequence[str]) -> str:
    """Return a summary of the scores, in lines.

    Args:
        entries: entries of the results file.
        minutes: minutes of the runs to include, ascending.
    """
    entries = [e for e in entries if e["peers"]]
    chosen = [{**e, "ours": {m: e["ours"][m] for m in minutes if m in e["ours"]}} for e in entries]
    lines = [f"Error ratio at the preview: {ratios_text(previews(chosen), 'preview_dice')}"]
    for number in minutes:
        lines += [f"Error ratio after {number} min: {ratios_text(runs_of(chosen, number), 'dice')}"]
    for number in minutes:
        runs = [run for _, run in runs_of(chosen, number)]
        lines += [f"Estimates after {number} min: {estimates_text(runs)}"] if runs else []
    return "\n".join([*lines, *filter(None, [largest_loss(chosen, minutes)])])


def by_kind(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Group the entries by kind of scan and annotation, in the order of measurement."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(kind_of(entry["task"]), []).append(entry)
    return groups


def mean_text(values: Iterable[float | None], form: str) -> str:
    """Return the mean of the available values as text."""
    found = [value for value in values if value is not None]
    return format(np.mean(found), form) if found else ""


def rows_in_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dice_row(group: Sequence[Entry], peers: Sequence[str], minutes: Sequence[str]) -> list[str]:
    """Return mean Dice of each peer and of ours, the latter with error ratios, and the error of the last estimates."""

    def cell(pairs: Sequence[tuple[Entry, Entry]], kind: str) -> str:
        ratio = mean_text((error_ratio(entry, run[kind]) for entry, run in pairs), ".2f")
        return f"{mean_text((run[kind] for _, run in pairs), '.3f')} ({ratio})" if ratio else ""

    runs = [run for _, run in runs_of(group, minutes[-1])] if minutes else []
    held = [holds for run in runs if (holds := interval_holds(run)) is not None]
    off = [abs(error) for run in runs if (error := estimate_error(run)) is not None]
    return [
        *(mean_text((e["peers"].get(name, {}).get("dice") for e in group), ".3f") for name in peers),
        cell(previews(group), "preview_dice"),
        *(cell(runs_of(group, number), "dice") for number in minutes),
        mean_text(off, ".3f"),
        f"{sum(held)} of {len(held)}" if held else "",
    ]


TITLES = {
    "mni152": "MNI152",
    "ct3mm": "abdominal CT",
    "thick": "brain in thick slices",
    "wide": "abdominal CT, 512 x 512 x 20 of 4.5 mm",
    "slab": "abdominal CT, 512 x 512 x 20 of 2 mm",
    "tube": "oblique tube",
    "axial10": "every tenth axial",
    "axial12": "every twelfth axial",
    "axial3": "every third axial",
    "axial4": "every fourth axial",
    "axial5": "every fifth axial",
    "coronal5": "every fifth coronal",
    "3ax1": "one per axis",
    "3ax2": "two per axis",
}
"""Names of scans and annotations as the documentation writes them."""


def dice_in_markdown(entries: Sequence[Entry]) -> str:
    """Return the documentation's table: a row for each kind of scan and annotation, without intervals."""
    minutes = all_minutes(entries)
    peers = list(dict.fromkeys(name for entry in entries for name in entry["peers"]))
    headings = ["data, slices", "annotated", *peers, "preview", *(f"{number} min" for number in minutes)]
    rows = []
    for name, group in by_kind(entries).items():
        title = ", ".join(TITLES.get(part, part) for part in name.split(", "))
        title += f" ({len(group)})" if len(group) > 1 else ""
        annotated = f"{np.mean([entry['annotated'] for entry in group]):.1%}"
        rows.append([title, annotated, *dice_row(group, peers, minutes)[:-1]])
    return rows_in_markdown([*headings, "estimate off by"], rows)


def summary_in_markdown(entries: Sequence[Entry]) -> str:
    """Return the summary of all entries as a list."""
    return "\n".join(f"- {line}" for line in summary(entries, all_minutes(entries)).splitlines())


def cost_row(group: Sequence[Entry], peers: Sequence[str], minutes: Sequence[str]) -> list[str]:
    """Mean seconds of each peer, the preview and the runs, and the most memory of any run."""
    peaks = [run["bytes"] for entry in group for run in entry["ours"].values()]
    return [
        *(mean_text((e["peers"].get(name, {}).get("seconds") for e in group), ".1f") for name in peers),
        mean_text((run["preview_seconds"] for _, run in previews(group)), ".1f"),
        *(mean_text((run["seconds"] for _, run in runs_of(group, number)), ".0f") for number in minutes),
        f"{max(peaks) / 1e9:.1f}" if peaks and max(peaks) else "",
    ]


def markdown(entries: Sequence[Entry]) -> str:
    """All of a results file: a table of Dice, a table of seconds and memory, the summary, and the machines."""
    entries = [entry for entry in entries if entry["peers"]]
    if not entries:
        return "Nothing was measured."
    minutes, groups = all_minutes(entries), by_kind(entries)
    peers = list(dict.fromkeys(name for entry in entries for name in entry["peers"]))
    ours = ["preview", *(f"{number} min" for number in minutes)]

    def rows(row: Callable[..., list[str]]) -> list[list[str]]:
        return [
            [name, f"{np.mean([e['annotated'] for e in group]):.1%}", str(len(group)), *row(group, peers, minutes)]
            for name, group in groups.items()
        ]

    first = ["data, slices", "annotated", "runs", *peers]
    return "\n\n".join(
        [
            "Mean foreground Dice on unannotated voxels; of ours, in brackets, the error over that of the best peer:",
            rows_in_markdown([*first, *ours, "estimate off by (mean, last)", "interval holds (last)"], rows(dice_row)),
            "Seconds, and memory of our command:",
            rows_in_markdown([*first, *ours, "peak GB"], rows(cost_row)),
            "\n".join(f"- {line}" for line in summary(entries, minutes).splitlines()),
            "\n".join(dict.fromkeys(entry["machine"] for entry in entries)),
        ]
    )
