"""How well densify estimates its own quality, on many scans and annotations, in runs of a minute or less.

    python benchmarks/estimates.py                  # 51 runs: an hour
    python benchmarks/estimates.py --only hippocampus_014 tube
    python benchmarks/estimates.py --table          # print the measurements: runs nothing

Other slices of the scans of benchmarks/densify.py, and hippocampi that it does not use. In so short runs the network
hardly counts, so this is about the estimate of propagation. The true Dice is that of unlabeled voxels, by the dense
label. Each result is written to --out at once, and not measured again by the next run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from augmentation import machine
from scans import KINDS, UNLABELED, AbsentError, Loaded, Scan, read_pair, stack
from trainings import call, show, table

from sparse3dunet.io.writing import write_text
from sparse3dunet.transforms.simulate import choose_slices

OF_KIND = {
    "mni152": ("coronal8", "axial16", "3ax2", "sagittal12"),
    "ct3mm": ("coronal8", "sagittal8", "axial8", "3ax3", "3ax1"),
    "nuclei": ("coronal5", "axial10", "3ax4", "sagittal8"),
    "tube": ("coronal10", "axial6", "3ax4"),
    "thick": ("axial2", "axial4"),
    "wide": ("axial3", "axial6"),
}
OF_HIPPOCAMPI = ["coronal4", "3ax1", "axial5", "3ax2", "sagittal4", "coronal7", "3ax1", "axial4", "3ax3", "coronal3"]
"""Two of each hippocampus, in turn."""
MINUTES = {"hippocampus": 0.25, "wide": 1.5}
AXES = "3ax"


def annotated(name: str, loaded: Loaded, way: str) -> Scan:
    """Return a scan annotated every so many slices of a plane, or on so many slices of each axis."""
    dense, affine = loaded[1:]
    if way.startswith(AXES):
        return Scan(f"{name}-{way}", *loaded, choose_slices(dense > 0, int(way[len(AXES) :]), "equidistant"))
    plane = way.rstrip("0123456789")
    return Scan(f"{name}-{way}", *loaded, stack(dense, affine, plane, int(way[len(plane) :])))


def planned(shared: Path) -> Iterator[tuple[str, Callable[[], Loaded], str]]:
    """Yield name, what loads it, and the way of annotation, of each run; kinds that are not there are told."""
    files = sorted((shared / "hippocampus/labelsTr").glob("*.nii.gz"))
    others = [file for file in files[7::12] if file not in files[:151:30]]
    for number, file in enumerate(file for file in others for _ in range(2)):
        image = shared / "hippocampus/imagesTr" / file.name
        way = OF_HIPPOCAMPI[number % len(OF_HIPPOCAMPI)]
        yield file.name.removesuffix(".nii.gz"), lambda image=image, file=file: read_pair(image, file), way
    for kind, ways in OF_KIND.items():
        try:
            load = KINDS[kind].cases(shared)[kind]
        except AbsentError as error:
            print(f"{kind} is skipped: {error}", flush=True)
            continue
        yield from ((kind, load, way) for way in ways)


def measure(scan: Scan) -> dict[str, Any]:
    """Run densify, and return what it estimated and what is true."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        minutes = MINUTES.get(scan.name.split("_")[0].split("-")[0], 1.0)
        length = ["--minutes", minutes, "--ignore-index", UNLABELED]
        call(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "sparse3dunet",
                "densify",
                *scan.write(out.parent),
                "-o",
                out,
                *length,
            ]
        )
        found = json.loads((out / "quality.json").read_text(encoding="utf-8"))
        dice = scan.mean_dice(np.asarray(nib.load(out / "scan_seg.nii.gz").dataobj))
    slices = [len(of_axis) for of_axis in scan.slices]
    return {"dice": dice, **{name: found[name] for name in ("mean_dice", "low", "high")}, "slices": slices}


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print the runs that were evaluable, and how often estimates and intervals were right."""
    made = table("Dice of unlabeled voxels", "scan", "true", "estimated", "interval", "difference")
    results = {name: run for name, run in sorted(results.items()) if run["mean_dice"] is not None}
    for name, run in results.items():
        interval = f"{run['low']:.3f} to {run['high']:.3f}"
        difference = run["dice"] - run["mean_dice"]
        made.add_row(name, f"{run['dice']:.3f}", f"{run['mean_dice']:.3f}", interval, f"{difference:+.3f}")
    show(made)
    groups: dict[str, Callable[[str], bool]] = {
        "stacks": lambda name: AXES not in name,
        "slices on three axes": lambda name: AXES in name,
        "all": lambda name: True,
    }
    for title, belongs in groups.items():
        runs = [run for name, run in results.items() if belongs(name)]
        if runs:
            print(f"{title}: {_summary(runs)}")


def _summary(runs: Sequence[dict[str, Any]]) -> str:
    if any(run["mean_dice"] is None for run in runs):
        return "not evaluable in so short a time"
    off = np.array([run["dice"] - run["mean_dice"] for run in runs])
    holds = np.array([run["low"] <= run["dice"] <= run["high"] for run in runs])
    width = np.median([run["high"] - run["low"] for run in runs])
    return (
        f"{len(runs)} run(s), true less estimated Dice {off.mean():+.3f}, within 0.03 in "
        f"{(abs(off) <= 0.03).mean():.0%}; interval holds in {holds.mean():.0%}, median width {width:.3f}"
    )


def main() -> None:
    """Measure what --out does not have yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of scans' names; all by default")
    parser.add_argument("--shared", type=Path, default=root.parent / "shared", help="folder of the data")
    parser.add_argument("--out", type=Path, default=root / "benchmarks/results/estimates.json", help="results file")
    parser.add_argument("--table", action="store_true", help="print the measurements that are there")
    options = parser.parse_args()
    stored = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"runs": {}}
    if not options.table:
        print(machine(), flush=True)
        for name, load, way in planned(options.shared):
            title = f"{name}-{way}"
            if title in stored["runs"] or not title.startswith(tuple(options.only) or ("",)):
                continue
            stored["runs"][title] = measure(annotated(name, load(), way)) | {"machine": machine()}
            write_text(options.out, json.dumps(stored, indent=1) + "\n")
            print(f"{title}: {_summary([stored['runs'][title]])}", flush=True)
    report(stored["runs"])


if __name__ == "__main__":
    main()
