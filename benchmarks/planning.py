"""Dice after some minutes of training by the plan of the data and by fixed settings, in one run.

    python benchmarks/planning.py --minutes 3 --seeds 2
    python benchmarks/planning.py --only thick wide --nnunet /path/to/environment/bin/python

Each scan of benchmarks/scans.py is trained on alone, from some annotated slices, with `--overlay cpu`: once as planned,
once with benchmarks/fixed.yaml on top. The model then segments the scan; what counts is the mean Dice of its classes on
unannotated voxels. `hippocampus` are 160 volumes with sparse labels instead, scored on the dense labels of 40 others.
For CT, also the share of the voxels of the left kidney that became the right one, or the reverse. With `--nnunet` (a
Python that has nnunetv2), nnU-Net's own plans of the same data are listed beside ours. Results are kept in a JSON file,
and a run goes on from there. Prints a table, and the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from augmentation import machine
from scans import UNLABELED, Scan, load_all
from trainings import add_seeds, call, hippocampus, show, table, train

SCANS = ("mni152-3ax1", "ct3mm-axial5", "nuclei-3ax2", "thick-axial3", "wide-axial4")
ANISOTROPIC = ("thick", "wide")
FIXED = Path(__file__).with_name("fixed.yaml")
WAYS = {"fixed": ["--overlay", "cpu", "--overlay", FIXED], "planned": ["--overlay", "cpu"]}
HIPPOCAMPUS = "hippocampus"
CT = ("ct3mm", "wide")
"""Beginnings of the names of scans that are CT."""
KIDNEYS = (2, 3)
"""Right and left kidney in ct3mm."""
COMMAND = [sys.executable, "-W", "ignore", "-m", "sparse3dunet"]


def train_on_scan(scan: Scan, way: str, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train on a scan's annotated slices, segment it, and return its scores."""
    image, annotation = scan.write(folder)
    content = {"training": [{"image": image.name, "label": annotation.name}], "ignore_index": 255}
    if scan.name.startswith(CT):
        content["modality"] = {"0": "CT"}
    content["labels"] = {"background": 0, **{f"class {c}": int(c) for c in np.unique(scan.dense[scan.dense > 0])}}
    (folder / "data.json").write_text(json.dumps(content))
    places = ["--dataset_dir", folder / "data.json", "--ckpt_dir", folder / "models", "--output_dir", folder / "eval"]
    length = ["--minutes", minutes, "--seed", seed, "--keep", "last", "--val_interval", "None", "--val_fraction", 0]
    call([*COMMAND, "run", "training", *WAYS[way], *places, *length])
    call([*COMMAND, "predict", folder / "models", image, "-o", folder / "out", "--no-pictures"])
    found = np.asarray(nib.load(folder / "out/scan_seg.nii.gz").dataobj)
    scores: dict[str, Any] = {"dice": scan.mean_dice(found)}
    if scan.name.startswith("ct3mm"):
        first, second = ((scan.dense == kidney) & ~scan.annotated for kidney in KIDNEYS)
        swapped = (found[first] == KIDNEYS[1]).sum() + (found[second] == KIDNEYS[0]).sum()
        scores["swapped"] = float(swapped / (first.sum() + second.sum()))
    return scores | {"plan": json.loads((folder / "models/plan.json").read_text())}


def train_on_hippocampus(data: Path, way: str, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train on 160 sparsely labelled volumes, and return the Dice on the dense labels of 40 others."""
    places = hippocampus(data, "labelsTr_sparse", data / "split.json")
    scores = train(places, WAYS[way], minutes, seed, folder)
    return {"dice": scores.dice, "plan": json.loads((folder / "models/plan.json").read_text())}


def nnunet_plan(python: str, modality: str, classes: int, unlabeled: int, files: Sequence[Path]) -> dict[str, Any]:
    """Return nnU-Net's own plan of its 3d_fullres configuration for scans, each followed by its annotation."""
    script = Path(__file__).with_name("nnunet_plan.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, script, folder, modality, classes, unlabeled, *files]
        done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def nnunet_plan_of_scan(python: str, scan: Scan) -> dict[str, Any]:
    """Return nnU-Net's plan for a scan of which some slices are annotated."""
    modality = "CT" if scan.name.startswith(CT) else "MRI"
    with tempfile.TemporaryDirectory() as folder:
        return nnunet_plan(python, modality, int(scan.dense.max()), UNLABELED, scan.write(Path(folder)))


def nnunet_plan_of_hippocampus(python: str, data: Path) -> dict[str, Any]:
    """Return nnU-Net's plan for the 160 sparsely labelled volumes."""
    names = json.loads((data / "split.json").read_text())["train"]
    files = [data / folder / f"{name}.nii.gz" for name in names for folder in ("imagesTr", "labelsTr_sparse")]
    return nnunet_plan(python, "MRI", 2, 3, files)


def show_results(results: dict[str, dict[str, Any]], minutes: float) -> None:
    """Print Dice by scan and way, with the difference."""
    made = table(
        f"Mean Dice after {minutes:g} minutes", "data", "fixed", "planned", "difference", "seeds", "kidneys swapped"
    )
    for name in dict.fromkeys(key.split()[0] for key in results):
        both = {way: [r for key, r in results.items() if key.split()[:2] == [name, way]] for way in WAYS}
        if not all(both.values()):
            continue
        dice = {way: [result["dice"] for result in found] for way, found in both.items()}
        means = {way: float(np.mean(values)) for way, values in dice.items()}
        cells = [f"{means[way]:.3f} ({', '.join(f'{v:.3f}' for v in dice[way])})" for way in WAYS]
        swapped = [f"{np.mean([r['swapped'] for r in both[way]]):.1%}" for way in WAYS if "swapped" in both[way][0]]
        count = str(len(dice["planned"]))
        made.add_row(name, *cells, f"{means['planned'] - means['fixed']:+.3f}", count, " -> ".join(swapped))
    show(made)


def show_plans(results: dict[str, dict[str, Any]], nnunet: dict[str, dict[str, Any]]) -> None:
    """Print our plans, and nnU-Net's beside them where they were made."""
    made = table("Plans", "data", "by", "voxel size, mm", "patch", "batch", "strides", "kernels", words=2)
    for key, result in results.items():
        name, way = key.split()[:2]
        if way == "planned" and key.endswith(" 0"):
            plan = result["plan"]
            spacing = plan["spacing"] or plan["fingerprint"]["spacing"]
            row = (spacing, plan["patch_size"], plan["batch_size"], plan["strides"], plan["kernel_sizes"])
            made.add_row(name, "sparse3dunet", *_cells(*row))
            if name in nnunet:
                theirs = nnunet[name]
                made.add_row(
                    "", "nnU-Net", *_cells(*(theirs[k] for k in ("spacing", "patch", "batch", "strides", "kernels")))
                )
    show(made)


def _cells(spacing: Sequence[float], patch: Sequence[int], batch: int, *lists: Sequence[Sequence[int]]) -> list[str]:
    by_axis = ("x".join(f"{value:.3g}" for value in values) for values in (spacing, patch))
    steps = (" ".join("".join(map(str, values)) for values in listed) for listed in lists)
    first, second = by_axis
    return [first, second, str(batch), *steps]


def main() -> None:
    """Train in both ways on each scan, and print."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    add_seeds(parser)
    parser.add_argument("--shared", type=Path, default=shared, help="folder of data that are no part of the repository")
    parser.add_argument("--only", nargs="+", default=[*SCANS, HIPPOCAMPUS], help="beginnings of names")
    parser.add_argument("--nnunet", help="a Python that has nnunetv2")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "planning.json")
    given = parser.parse_args()
    kept = json.loads(given.results.read_text()) if given.results.exists() else {}
    results = kept.setdefault(f"{given.minutes:g} minutes", {})
    nnunet = kept.setdefault("nnU-Net", {})
    wanted = [name for name in SCANS if name.startswith(tuple(given.only))]
    scans = list(load_all(given.shared, wanted)) if wanted else []
    data = given.shared / HIPPOCAMPUS
    works = [(scan.name, lambda *a, s=scan: train_on_scan(s, *a)) for scan in scans]
    if HIPPOCAMPUS.startswith(tuple(given.only)) and data.is_dir():
        works.append((HIPPOCAMPUS, lambda *a: train_on_hippocampus(data, *a)))
    for seed in range(given.seeds):
        for name, work in works:
            for way in WAYS:
                key = f"{name} {way} {seed}"
                if key not in results:
                    with tempfile.TemporaryDirectory() as folder:
                        results[key] = work(way, given.minutes, seed, Path(folder))
                    print(f"{key}: {results[key]['dice']:.3f}", flush=True)
                    given.results.write_text(json.dumps(kept, indent=1) + "\n")
    plans = {scan.name: lambda python, s=scan: nnunet_plan_of_scan(python, s) for scan in scans}
    if works and works[-1][0] == HIPPOCAMPUS:
        plans[HIPPOCAMPUS] = lambda python: nnunet_plan_of_hippocampus(python, data)
    for name, plan in plans.items() if given.nnunet else ():
        if name not in nnunet:
            nnunet[name] = plan(given.nnunet)
            given.results.write_text(json.dumps(kept, indent=1) + "\n")
    show_results(results, given.minutes)
    show_plans(results, nnunet)
    print(machine())


if __name__ == "__main__":
    main()
