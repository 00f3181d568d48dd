"""Write the tables of the documentation from the benchmarks' result files.

    python docs/tables.py            # replace the tables in the pages
    python docs/tables.py --check    # change nothing; exit status 1 if a table differs from its result file

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "pipeline")]

import densify_tables  # noqa: E402
import large  # noqa: E402
from learning_curves import curves_table, rounds_table  # noqa: E402

REGION = re.compile(r"(<!-- table: (?P<name>[\w -]+) -->\n)(?P<content>.*?)(\n<!-- end of table -->)", re.S)


def results(name: str) -> Any:
    """Return the content of a file in benchmarks/results."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def planning() -> str:
    """Return the mean Dice by fixed settings and as planned, for each scan, and swapped kidneys where there are any."""
    rows = []
    for minutes, found in results("planning").items():
        for key in found if minutes.endswith("minutes") else ():
            scan, way, seed = key.split()
            if way == "planned":
                dice = [f"{found[f'{scan} {w} {seed}']['dice']:.3f}" for w in ("fixed", "planned")]
                swapped = found[key].get("swapped")
                rows.append([scan, minutes, seed, *dice, "" if swapped is None else f"{swapped:.1%}"])
    head = ["scan", "time", "seed", "fixed settings", "as planned", "kidneys swapped, as planned"]
    return densify_tables.rows_in_markdown(head, rows)


def plans() -> str:
    """Return our plans for a training on a CPU, and nnU-Net's."""
    found = results("planning")
    rows = []
    for minutes in (key for key in found if key.endswith("minutes")):
        for key, result in found[minutes].items():
            scan, way, seed = key.split()
            theirs = found["nnU-Net"].get(scan)
            if (way, seed) == ("planned", "0") and theirs:
                ours = result["plan"]
                spacing = ours["spacing"] or ours["fingerprint"]["spacing"]
                names = ("patch_size", "batch_size", "strides", "kernel_sizes")
                rows.append([scan, f"sparse3dunet, {minutes}", *_plan_cells(spacing, *(ours[name] for name in names))])
                cells = _plan_cells(*(theirs[name] for name in ("spacing", "patch", "batch", "strides", "kernels")))
                rows.append(["", "nnU-Net", *cells])
    head = ["scan", "by", "voxels, mm", "patch", "batch", "strides", "kernels"]
    return densify_tables.rows_in_markdown(head, rows)


def _plan_cells(spacing: Any, patch: Any, batch: int, *steps: Any) -> list[str]:
    sizes = [" x ".join(f"{value:.3g}" for value in values) for values in (spacing, patch)]
    return [*sizes, str(batch), *(" ".join("".join(map(str, step)) for step in listed) for listed in steps)]


TABLES: dict[str, Callable[[], str]] = {
    "densify": lambda: densify_tables.dice_in_markdown(results("densify")["runs"]),
    "densify summary": lambda: densify_tables.summary_in_markdown(results("densify")["runs"]),
    "planning": planning,
    "plans": plans,
    "large": lambda: densify_tables.rows_in_markdown(large.HEADINGS, large.rows(results("large"))),
    "learning curves": lambda: curves_table(results("learning_curves")),
    "suggestion rounds": lambda: rounds_table(results("learning_curves")),
}


def filled(text: str, where: str) -> str:
    """Return the text of a page with its tables made anew.

    Raises:
        SystemExit: when a table has a name that is not known.
    """

    def table(found: re.Match[str]) -> str:
        if found["name"] not in TABLES:
            sys.exit(f"{where}: there is no table {found['name']!r}; expected one of {', '.join(TABLES)}.")
        return f"{found[1]}\n{TABLES[found['name']]()}\n{found[4]}"

    return REGION.sub(table, text)


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Write or check the tables of all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table differs")
    check = parser.parse_args().check
    differing = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = filled(before, page.name)
        if after != before:
            differing.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(after, encoding="utf-8")
                print(f"{page}: written")
    if check and differing:
        sys.exit(f"tables differ from benchmarks/results in {', '.join(differing)}: run python docs/tables.py")


if __name__ == "__main__":
    main()
