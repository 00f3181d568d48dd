"""Dice of densify's preview and of freely available methods against the number of annotated slices, in one run.

    python benchmarks/learning_curves.py                             # all: about 20 minutes on two cores
    python benchmarks/learning_curves.py --kinds nuclei --slices 1 2
    python benchmarks/learning_curves.py --table                     # print the measurements: runs nothing

The scans of benchmarks/scans.py are annotated on so many equally spaced slices per axis. Scores are mean Dice of the
foreground classes on unlabeled voxels, by the dense label. With `--rounds`, the slices that densify suggests after one
slice per axis are annotated as well, and the preview is made again; beside it, as many slices at equal distances. Each
result is written to --out at once, and not measured again by the next run. docs/make_gallery.py draws the curves.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from augmentation import machine
from densify_tables import rows_in_markdown
from peers import PEERS
from scans import KINDS, UNLABELED, AbsentError, Loaded, Scan

from sparse3dunet import Densifier
from sparse3dunet.data.slices import Slices
from sparse3dunet.densify.suggest import Suggestion, suggest_slices
from sparse3dunet.transforms.simulate import choose_slices

SHOWN = ("mni152", "ct3mm", "hippocampus", "nuclei")
COUNTS = (1, 2, 3, 5)
OURS = "densify, preview"
HERE = Path(__file__).resolve().parent
Results = dict[str, Any]


def cases(shared: Path, kinds: Sequence[str]) -> Iterator[tuple[str, str, Loaded]]:
    """Return kind, case, and voxels of each scan that is there; print which kinds are missing."""
    for kind in kinds:
        try:
            found = KINDS[kind].cases(shared)
        except AbsentError as error:
            print(f"{kind} is skipped: {error}", flush=True)
            continue
        for case, load in found.items():
            yield kind, case, load()


def annotate(case: str, loaded: Loaded, count: int) -> Scan:
    """Annotate a scan on this many equally spaced slices per axis."""
    return Scan(f"{case}-3ax{count}", *loaded, choose_slices(loaded[1] > 0, count, "equidistant"))


def preview(scan: Scan, seed: int) -> Densifier:
    """Fit the preview of densify to the annotated slices of a scan."""
    return Densifier(minutes=0, ignore_index=UNLABELED, seed=seed).fit(scan.image, scan.annotation, affine=scan.affine)


def suggestions(scan: Scan, fitted: Densifier) -> list[Suggestion]:
    """Return the slice in each plane that densify suggests first."""
    confidence = np.rint(255 * fitted.predict_proba().max(0)).astype(np.uint8)
    confidence[scan.annotated] = 255
    return suggest_slices(confidence, fitted.segmentation(), scan.annotated, scan.affine, count=1)


def with_suggestions(scan: Scan, suggested: Sequence[Suggestion]) -> Scan:
    """Annotate the suggested slices as well."""
    slices: Slices = [
        sorted({*scan.slices[axis], *(s.index for s in suggested if s.axis == axis)}) for axis in range(3)
    ]
    return Scan(f"{scan.name}-suggested", scan.image, scan.dense, scan.affine, slices)


def score(name: str, scan: Scan, seed: int) -> dict[str, float]:
    """Return the Dice of a method, ours by :data:`OURS`; ImportError if it is not installed."""
    found = preview(scan, seed).segmentation() if name == OURS else PEERS[name](scan, seed)[0]
    return {"dice": scan.mean_dice(found)}


def measure_round(case: str, loaded: Loaded, seed: int) -> dict[str, Any]:
    """Return Dice before and after the first round of suggestions, and of two equally spaced slices per axis.

    All three are scored on the same voxels: those that none of them has annotated.
    """
    before = annotate(case, loaded, 1)
    fitted = preview(before, seed)
    suggested = suggestions(before, fitted)
    after, spaced = with_suggestions(before, suggested), annotate(case, loaded, 2)
    slices: Slices = [sorted({*a, *b}) for a, b in zip(after.slices, spaced.slices)]
    scored = Scan(f"{case}-scored", *loaded, slices)
    return {
        "suggested": {s.plane: s.index for s in suggested},
        "annotated": [float(scan.annotated.mean()) for scan in (before, after)],
        "before": scored.mean_dice(fitted.segmentation()),
        "after": scored.mean_dice(preview(after, seed).segmentation()),
        "equally spaced": scored.mean_dice(preview(spaced, seed).segmentation()),
    }


def write(file: Path, results: Results) -> None:
    """Replace the results file."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, file)


def measure(given: argparse.Namespace, results: Results) -> None:
    """Measure what is not in the results yet."""
    curves, rounds = results.setdefault("curves", {}), results.setdefault("rounds", {})
    results.setdefault("machine", machine())
    for kind, case, loaded in cases(given.shared, given.kinds):
        if case not in rounds:
            rounds[case] = {"kind": kind} | measure_round(case, loaded, given.seed)
            print(f"{case}, a round: {rounds[case]['before']:.3f} -> {rounds[case]['after']:.3f}", flush=True)
            write(given.out, results)
        for count in given.slices:
            scan = annotate(case, loaded, count)
            entry = curves.setdefault(scan.name, {"kind": kind, "slices": count, "scores": {}})
            entry["annotated"] = float(scan.annotated.mean())
            for name in (OURS, *PEERS):
                if name not in entry["scores"]:
                    try:
                        entry["scores"][name] = score(name, scan, given.seed)
                    except ImportError as error:
                        print(f"  {name} is skipped: {error}", flush=True)
                        continue
                    print(f"{scan.name}, {name}: {entry['scores'][name]['dice']:.3f}", flush=True)
                    write(given.out, results)


def means(results: Results) -> dict[str, dict[int, dict[str, float]]]:
    """Return the mean Dice by kind, number of slices per axis, and method; also the annotated share and the scans."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for kind in dict.fromkeys(entry["kind"] for entry in results["curves"].values()):
        for count in sorted({e["slices"] for e in results["curves"].values() if e["kind"] == kind}):
            group = [e for e in results["curves"].values() if (e["kind"], e["slices"]) == (kind, count)]
            names = dict.fromkeys(name for entry in group for name in entry["scores"])
            row = {name: float(np.mean([e["scores"][name]["dice"] for e in group])) for name in names}
            found.setdefault(kind, {})[count] = {
                "annotated": float(np.mean([e["annotated"] for e in group])),
                "scans": len(group),
                **row,
            }
    return found


def curves_table(results: Results) -> str:
    """Return the curves as a table in Markdown."""
    by_kind = means(results)
    names = [OURS, *(name for name in PEERS if any(name in row for rows in by_kind.values() for row in rows.values()))]
    rows = [
        [
            kind,
            str(row["scans"]),
            str(count),
            f"{row['annotated']:.1%}",
            *(f"{row[n]:.3f}" if n in row else "" for n in names),
        ]
        for kind, counts in by_kind.items()
        for count, row in counts.items()
    ]
    return rows_in_markdown(["data", "scans", "slices per axis", "annotated", *names], rows)


def rounds_table(results: Results) -> str:
    """Return the rounds as a table in Markdown, means over the scans of a kind."""
    rows = []
    for kind in dict.fromkeys(entry["kind"] for entry in results["rounds"].values()):
        group = [entry for entry in results["rounds"].values() if entry["kind"] == kind]
        shares = [f"{np.mean([entry['annotated'][i] for entry in group]):.1%}" for i in (0, 1)]
        dice = [f"{np.mean([entry[key] for entry in group]):.3f}" for key in ("before", "after", "equally spaced")]
        rows.append([kind, str(len(group)), " → ".join(shares), *dice])
    return rows_in_markdown(["data", "scans", "annotated", "before", "after", "two per axis, equally spaced"], rows)


def main() -> None:
    """Measure, or print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="folder of the other data")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(SHOWN), help="kinds of scans")
    parser.add_argument("--slices", type=int, nargs="+", default=list(COUNTS), help="slices per axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results/learning_curves.json", help="file of the results")
    parser.add_argument("--table", action="store_true", help="print --out as Markdown; run nothing")
    given = parser.parse_args()
    results = json.loads(given.out.read_text(encoding="utf-8")) if given.out.is_file() else {}
    if not given.table:
        measure(given, results)
    if results:
        print("\n\n".join([curves_table(results), rounds_table(results), results["machine"]]))


if __name__ == "__main__":
    main()
