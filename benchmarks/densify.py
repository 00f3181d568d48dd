"""Densify the built-in volume: the random walker beside it, how true estimates are, going on, what to annotate next.

    python benchmarks/densify.py                                      # the table: five minutes each
    python benchmarks/densify.py --parts estimate --minutes 2 --seeds 0 1 2
    python benchmarks/densify.py --parts warm
    python benchmarks/densify.py --parts suggestions --minutes 1 --seeds 0 1 2 3 4 --jobs 2   # two at a time
    python benchmarks/densify.py --parts others --minutes 2           # volumes that nothing was tuned on

Each run is the command `sparse3dunet densify scan annotation -o OUT --minutes M`. Slices are equally spaced within the
extent of the brain. Scores are by the dense label, on the voxels that were not annotated: the mean IoU of the three
classes, and the mean Dice of the two tissues. scikit-image's random walker (beta 2000) gets the same annotation in the
same run. Prints tables, ratios and the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from augmentation import machine
from mni152 import walk
from trainings import add_data, add_jobs, call, show, side_by_side, table

from sparse3dunet import tubules
from sparse3dunet.metrics import overlap_counts, overlap_scores
from sparse3dunet.mni152 import CLASS_NAMES, UNLABELED, load_template
from sparse3dunet.slices import Slices, slices_mask
from sparse3dunet.target import pack_target
from sparse3dunet.transforms.simulate import choose_slices

GOALS = {1: 0.78, 3: 0.90, 5: 0.92}
"""Mean IoU after five minutes, by annotated slices an axis."""
TOLERANCE = 0.03
"""Of the estimate of Dice."""


@dataclass(frozen=True)
class Scores:
    """By the dense label, on unannotated voxels; the Dice that the run expected, and how long it took."""

    iou: float
    dice: float
    expected: float | None
    seconds: float

    @property
    def is_true(self) -> bool:
        """Whether the estimate is within the tolerance."""
        return self.expected is not None and abs(self.expected - self.dice) <= TOLERANCE


class Scan:
    """The built-in volume, annotated on chosen slices."""

    def __init__(self, folder: Path) -> None:
        self.image, self.dense = load_template()
        self.file = folder / "scan.nii.gz"
        nib.save(nib.Nifti1Image(self.image.get_fdata().astype(np.float32), self.image.affine), self.file)

    def equally_spaced(self, count: int | Sequence[int]) -> Slices:
        return choose_slices(self.dense > 0, count, "equidistant")

    def sparse(self, slices: Slices) -> np.ndarray:
        return np.where(slices_mask(self.dense.shape, slices), self.dense, UNLABELED).astype(np.uint8)

    def annotate(self, slices: Slices, file: Path) -> Path:
        nib.save(nib.Nifti1Image(self.sparse(slices), self.image.affine), file)
        return file

    def score(self, segmentation: np.ndarray, slices: Slices, kind: str) -> list[float]:
        """By class, on the voxels that are not on the slices."""
        elsewhere = ~slices_mask(self.dense.shape, slices)
        volumes = [
            torch.from_numpy(array.astype(np.int64))[None, None] for array in (segmentation, self.dense, elsewhere)
        ]
        counts = overlap_counts(volumes[0], pack_target(volumes[1], volumes[2]), len(CLASS_NAMES))
        return overlap_scores(counts, kind)[0].tolist()

    def densify(
        self, slices: Slices, out: Path, minutes: float, seed: int, *options: object, leave_out: Slices | None = None
    ) -> Scores:
        """Run the command, and score it; on voxels that are not on the slices, or on those to leave out."""
        out.mkdir(parents=True, exist_ok=True)
        annotation = self.annotate(slices, out / "annotation.nii.gz")
        options = ("--ignore-index", UNLABELED, *options)
        seconds = run([self.file, annotation], out / "results", minutes, seed, *options)
        segmentation = np.asarray(nib.load(out / "results/scan_seg.nii.gz").dataobj)
        iou, dice = (self.score(segmentation, leave_out or slices, kind) for kind in ("iou", "dice"))
        return Scores(float(np.mean(iou)), float(np.mean(dice[1:])), expected_dice(out / "results"), seconds)


def run(sources: Sequence[Path], out: Path, minutes: float, seed: int, *options: object) -> float:
    """Run the command `sparse3dunet densify`; returns its seconds."""
    command = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", "densify", *sources, "-o", out]
    command += ["--minutes", minutes, "--seed", seed, *options]
    started = time.perf_counter()
    call(command)
    return time.perf_counter() - started


def expected_dice(out: Path) -> float | None:
    """What a run expects of itself."""
    return json.loads((out / "quality.json").read_text(encoding="utf-8"))["mean_dice"]


def compare(scan: Scan, folder: Path, minutes: float, counts: Sequence[int], seeds: Sequence[int]) -> list[Scores]:
    """The table: the random walker and ours for each number of slices."""
    made = table(
        f"Mean IoU on unannotated voxels, {minutes:g} minutes",
        *("slices an axis", "annotated", "random walker", "sparse3dunet", "ratio", "goal", "seconds"),
    )
    found = []
    for count in counts:
        slices = scan.equally_spaced(count)
        share = slices_mask(scan.dense.shape, slices).mean()
        walked = np.mean(scan.score(walk(scan.image.get_fdata(), scan.sparse(slices)), slices, "iou"))
        runs = [scan.densify(slices, folder / f"table_{count}_{seed}", minutes, seed) for seed in seeds]
        found += runs
        iou = np.mean([run.iou for run in runs])
        goal = f"{GOALS[count]:.2f} {'met' if iou >= GOALS[count] else 'missed'}" if count in GOALS else ""
        seconds = f"{np.mean([run.seconds for run in runs]):.0f}"
        row = (str(count), f"{share:.1%}", f"{walked:.3f}", f"{iou:.3f}", f"{iou / walked:.2f}", goal, seconds)
        made.add_row(*row)
        print(*row, *runs, sep="  ", flush=True)
    show(made)
    return found


def show_estimates(found: Mapping[str, Scores]) -> None:
    """How far the estimates are from the truth."""
    made = table("Mean Dice", "run", "estimated", "true", "difference", f"within {TOLERANCE}")
    for name, run in found.items():
        expected = "none" if run.expected is None else f"{run.expected:.3f}"
        difference = "" if run.expected is None else f"{run.expected - run.dice:+.3f}"
        made.add_row(name, expected, f"{run.dice:.3f}", difference, "yes" if run.is_true else "no")
    show(made)
    print(f"{sum(run.is_true for run in found.values())} of {len(found)} estimates within {TOLERANCE}")


def estimates(scan: Scan, folder: Path, minutes: float, counts: Sequence[int], seeds: Sequence[int]) -> None:
    """Estimated and true Dice, over seeds and slice counts."""
    found = {}
    for seed in seeds:
        for count in counts:
            run = scan.densify(scan.equally_spaced(count), folder / f"estimate_{count}_{seed}", minutes, seed)
            found[f"{count} slices an axis, seed {seed}"] = run
            print(count, seed, run, flush=True)
    show_estimates(found)


def warm(scan: Scan, folder: Path, minutes: float, count: int, seed: int) -> None:
    """Two slices more: going on for two fifths of the minutes against beginning anew for all of them."""
    slices = scan.equally_spaced(count)
    before = scan.densify(slices, folder / "warm", minutes, seed)
    best = sorted(suggestions(folder / "warm/results"), key=lambda s: -s["benefit"])[:2]
    more = [sorted({*indices, *(s["index"] for s in best if s["axis"] == axis)}) for axis, indices in enumerate(slices)]
    after = scan.densify(more, folder / "warm", 0.4 * minutes, seed, leave_out=more)
    cold = scan.densify(more, folder / "cold", minutes, seed)
    made = table("Two slices more", "run", "minutes", "mean IoU", "mean Dice", "seconds")
    made.add_row("before", f"{minutes:g}", f"{before.iou:.3f}", f"{before.dice:.3f}", f"{before.seconds:.0f}")
    made.add_row("going on", f"{0.4 * minutes:g}", f"{after.iou:.3f}", f"{after.dice:.3f}", f"{after.seconds:.0f}")
    made.add_row("anew", f"{minutes:g}", f"{cold.iou:.3f}", f"{cold.dice:.3f}", f"{cold.seconds:.0f}")
    show(made)
    print(f"going on / anew: {after.iou / cold.iou:.4f}, {'met' if after.iou >= cold.iou else 'missed'}")


def suggestions(out: Path) -> list[dict]:
    """What a run suggests of its one volume."""
    (found,) = json.loads((out / "suggestions.json").read_text(encoding="utf-8")).values()
    return found


def rounds(scan: Scan, folder: Path, minutes: float, seed: int, count: int = 3) -> dict[str, list[float]]:
    """From one slice an axis on, one more an axis each round, suggested or equally spaced: the mean IoU after each.

    Both on voxels that neither annotates, and each trained anew, so that the slices alone differ.
    """
    options = ("--folds", 0, "--suggestions", 1, "--anew")
    places = {"suggested": folder / f"rounds_{seed}", "equally spaced": folder / f"even_{seed}"}
    start = scan.equally_spaced(1)
    first = scan.densify(start, places["suggested"], minutes, seed, *options)
    curves = {name: [first.iou] for name in places}
    chosen = start
    for number in range(1, count + 1):
        found = suggestions(places["suggested"] / "results")
        chosen = [
            sorted({*indices, *(s["index"] for s in found if s["axis"] == axis)}) for axis, indices in enumerate(chosen)
        ]
        even = scan.equally_spaced(1 + number)
        both = [sorted({*a, *b}) for a, b in zip(chosen, even)]
        for name, slices in (("suggested", chosen), ("equally spaced", even)):
            run = scan.densify(slices, places[name], minutes, seed, *options, leave_out=both)
            curves[name].append(run.iou)
            print(f"seed {seed}, round {number}, {name}: {slices} {run}", flush=True)
    return curves


def compare_suggestions(scan: Scan, folder: Path, minutes: float, seeds: Sequence[int], jobs: int) -> None:
    """The curves of :func:`rounds`, over seeds, of which `jobs` are computed at once."""
    found = list(side_by_side(lambda seed: rounds(scan, folder, minutes, seed), seeds, jobs))
    numbers = range(1, len(found[0]["suggested"]) + 1)
    made = table(
        f"Mean IoU on voxels that neither annotates, {minutes:g} minutes each ({jobs} at once), {len(seeds)} seeds",
        *("slices an axis", *map(str, numbers)),
    )
    curves = {name: np.array([curve[name] for curve in found]) for name in found[0]}
    for name, values in curves.items():
        made.add_row(name, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0))))
    show(made)
    differences = curves["suggested"] - curves["equally spaced"]
    won = (differences[:, 1:] > 0).sum(0).tolist()
    means = np.round(differences.mean(0), 3).tolist()
    print(f"suggested - equally spaced: {means}; better in {won} of {len(seeds)} runs")


def score_cases(data: Path, names: Sequence[str], labels: str, out: Path, classes: int) -> tuple[float, float]:
    """Mean IoU of all classes and mean Dice of the foreground, on unannotated voxels, over the cases of a data set.

    Args:
        data: in the Decathlon's layout; unlabeled is one past the last class.
        names: of the cases' files.
        labels: folder of the sparse labels; the dense ones are in labelsTr, or labelsTr_dense.
        out: of the run.
        classes: K.
    """
    dense_dir = "labelsTr_dense" if (data / "labelsTr_dense").is_dir() else "labelsTr"
    scores: dict[str, list[np.ndarray]] = {"iou": [], "dice": []}
    for name in names:
        files = (out / name.replace(".nii.gz", "_seg.nii.gz"), data / dense_dir / name, data / labels / name)
        found, dense, sparse = (torch.from_numpy(np.asarray(nib.load(f).dataobj).astype(np.int64)) for f in files)
        target = pack_target(dense[None, None], (sparse == classes)[None, None])
        counts = overlap_counts(found[None, None], target, classes)
        for kind, values in scores.items():
            values.append(overlap_scores(counts, kind)[0].numpy())
    return float(np.nanmean(scores["iou"])), float(np.nanmean(np.array(scores["dice"])[:, 1:]))


def others(scan: Scan, folder: Path, minutes: float, seed: int, hippocampus: Path) -> None:
    """Volumes of other kinds: hippocampi one at a time and ten together, tubules, and the brain in a CT's values."""
    made = table(f"Other data, {minutes:g} minutes", "data", "mean IoU", "mean Dice", "expected Dice", "seconds")

    def report(name: str, scores: tuple[float, float], out: Path, seconds: float) -> None:
        expected = expected_dice(out)
        row = (*(f"{s:.3f}" for s in scores), "none" if expected is None else f"{expected:.3f}", f"{seconds:.0f}")
        made.add_row(name, *row)
        print(name, *row, flush=True)

    if (hippocampus / "labelsTr_sparse").is_dir():
        names = sorted(path.name for path in (hippocampus / "labelsTr_sparse").glob("*.nii.gz"))[:10]
        for name in names[:3]:
            out, files = folder / name, [hippocampus / f"{sub}/{name}" for sub in ("imagesTr", "labelsTr_sparse")]
            seconds = run(files, out, minutes, seed)
            report(f"hippocampus, {name}", score_cases(hippocampus, [name], "labelsTr_sparse", out, 3), out, seconds)
        entries = [
            {"image": str(hippocampus / "imagesTr" / n), "label": str(hippocampus / "labelsTr_sparse" / n)}
            for n in names
        ]
        content = {"labels": {"0": "background", "1": "anterior", "2": "posterior"}, "training": entries}
        (folder / "ten.json").write_text(json.dumps(content), encoding="utf-8")
        seconds = run([folder / "ten.json"], folder / "ten", 2 * minutes, seed)
        scores = score_cases(hippocampus, names, "labelsTr_sparse", folder / "ten", 3)
        report(f"hippocampus, ten together, {2 * minutes:g} minutes", scores, folder / "ten", seconds)
    data = tubules.prepare(folder / "tubules", seed=seed)
    (name,) = (path.name for path in (data / "imagesTr").iterdir())
    seconds = run([data / "imagesTr" / name, data / "labelsTr" / name], folder / "tubules_out", minutes, seed)
    report("tubules", score_cases(data, [name], "labelsTr", folder / "tubules_out", 3), folder / "tubules_out", seconds)
    values = np.round(scan.image.get_fdata() * 2500 - 1024).astype(np.int16)
    nib.save(nib.Nifti1Image(values, scan.image.affine), folder / "ct.nii.gz")
    slices = scan.equally_spaced(3)
    annotation = scan.annotate(slices, folder / "ct_annotation.nii.gz")
    seconds = run([folder / "ct.nii.gz", annotation], folder / "ct_out", minutes, seed)
    segmentation = np.asarray(nib.load(folder / "ct_out/ct_seg.nii.gz").dataobj)
    iou, dice = (scan.score(segmentation, slices, kind) for kind in ("iou", "dice"))
    report("brain in -1024 ... 1476", (float(np.mean(iou)), float(np.mean(dice[1:]))), folder / "ct_out", seconds)
    show(made)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["table", "estimate", "warm", "suggestions", "others"], default=["table"]
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of each run")
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 3, 5], help="annotated, an axis")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder for what the runs leave; by default it is removed")
    add_data(parser)
    add_jobs(parser, "suggestions: seeds")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        scan = Scan(folder)
        if "table" in arguments.parts:
            found = compare(scan, folder, arguments.minutes, arguments.slices, arguments.seeds)
            names = [f"{count} slices an axis, seed {seed}" for count in arguments.slices for seed in arguments.seeds]
            show_estimates(dict(zip(names, found)))
        if "estimate" in arguments.parts:
            estimates(scan, folder, arguments.minutes, arguments.slices, arguments.seeds)
        if "warm" in arguments.parts:
            warm(
                scan, folder, arguments.minutes, arguments.slices[min(1, len(arguments.slices) - 1)], arguments.seeds[0]
            )
        if "others" in arguments.parts:
            others(scan, folder, arguments.minutes, arguments.seeds[0], arguments.data.resolve())
        if "suggestions" in arguments.parts:
            compare_suggestions(scan, folder, arguments.minutes, arguments.seeds, arguments.jobs)


if __name__ == "__main__":
    main()
