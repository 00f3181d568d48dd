"""Compare densify with freely available methods on scans of several kinds, in one run, from the same annotation.

    python benchmarks/densify.py                                        # all: hours
    python benchmarks/densify.py --tasks tube ct3mm-axial5 --minutes 2 --seeds 0
    python benchmarks/densify.py --table                                # print the measurements: runs nothing
    python benchmarks/densify.py --write-demo FOLDER                    # the built-in scan, three slices per axis
    python benchmarks/densify.py --demo FOLDER/out                      # score densify's result of it, and peers

Ours is the command `sparse3dunet densify scan annotation -o OUT --minutes M --seed S --ignore-index 255`. Scores are
mean Dice of the foreground classes on unlabeled voxels, by the dense label. The error ratio is (1 - Dice) over
(1 - Dice of the best peer): below 1 is better. Seconds are wall-clock time; a peer's exclude its imports, ours include
them. Each result is written to --out at once, and not measured again by the next run. Memory is that of the command,
read while it runs (Linux). Let nothing else run on the machine, which would slow down either side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from augmentation import machine
from densify_tables import FEWEST, error_ratio, estimate_text, interval_holds, markdown, memory_text, summary
from peers import PEERS
from scans import ANNOTATION, KINDS, SCAN, UNLABELED, Scan, demo, load_all
from trainings import show, table

from sparse3dunet.datasets.mni152 import CLASS_NAMES
from sparse3dunet.io.writing import write_text

PREVIEW, RESULT = "scan_preview.nii.gz", "scan_seg.nii.gz"
EVERY = 0.1
"""Seconds between two checks of the command."""
Entry = dict[str, Any]


class Store:
    """Results file: measurements by scan and seed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.entries: list[Entry] = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []

    def write(self) -> None:
        """Replace the file atomically, so that a kill leaves the former or the new one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps({"runs": self.entries}, indent=1) + "\n")

    def entry(self, scan: Scan, seed: int, again: bool) -> Entry:
        """Return the entry of a scan and a seed; an empty one if there is none, or it shall be measured again."""
        for found in self.entries:
            if (found["task"], found["seed"]) == (scan.name, seed):
                if not again:
                    return found
                self.entries.remove(found)
                break
        made = {"task": scan.name, "seed": seed, "machine": machine(), "annotated": float(scan.annotated.mean())}
        self.entries.append(made | {"peers": {}, "ours": {}})
        return self.entries[-1]


def read(file: Path) -> np.ndarray:
    """A segmentation."""
    return np.asarray(nib.load(file).dataobj)


def peak_of(process: subprocess.Popen) -> int:
    """Return the peak memory in bytes of a running process; 0 if unknown.

    Its own resource usage would not do: that begins with the memory of the process that starts it, which is this one.
    """
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def watch(command: list[str], preview: Path, log: Path) -> tuple[float, float | None, int]:
    """Run a command; return its seconds, those until the preview was written, and its peak memory."""
    seen, peak, started = None, 0, time.perf_counter()
    with log.open("w", encoding="utf-8") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            while process.poll() is None:
                peak = max(peak, peak_of(process))
                if seen is None and preview.is_file():
                    seen = time.perf_counter() - started
                time.sleep(EVERY)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{log.read_text(encoding='utf-8')}")
    seconds = time.perf_counter() - started
    return seconds, seconds if seen is None and preview.is_file() else seen, peak


def densify(scan: Scan, minutes: float, seed: int, folder: Path) -> Entry:
    """Run the command in an empty folder, and score its preview and its result."""
    out = folder / "out"
    command = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", "densify", *scan.write(folder), "-o", out]
    command += ["--minutes", f"{minutes:g}", "--seed", seed, "--ignore-index", UNLABELED]
    seconds, seen, peak = watch(list(map(str, command)), out / PREVIEW, folder / "log.txt")
    quality = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    low, high = quality["mean_dice_interval"]
    return {
        "preview_dice": scan.mean_dice(read(out / PREVIEW)) if seen is not None else None,
        "preview_seconds": seen,
        "dice": scan.mean_dice(read(out / RESULT)),
        "seconds": seconds,
        "estimate": quality["mean_dice"],
        "low": low,
        "high": high,
        "bytes": peak,
    }


def say(name: str, dice: float | None, seconds: float | None, *others: str) -> None:
    """Print a line of a scan's results."""
    scores = "none" if dice is None or seconds is None else f"{dice:.4f}  {seconds:7.1f} s"
    print(f"  {name:<24}{scores}", *others, sep="  ", flush=True)


def measure_peers(scan: Scan, entry: Entry, store: Store) -> None:
    """Measure the peers that the entry lacks; those that are not installed are skipped."""
    for name, peer in PEERS.items():
        if name not in entry["peers"]:
            try:
                segmentation, seconds = peer(scan, entry["seed"])
            except ImportError as error:
                print(f"  {name} is skipped: {error}", flush=True)
                continue
            entry["peers"][name] = {"dice": scan.mean_dice(segmentation), "seconds": seconds}
            store.write()
        say(name, **entry["peers"][name])


def measure(scan: Scan, minutes: list[float], seed: int, store: Store, again: bool) -> None:
    """Measure peers and ours on a scan; stored results are only printed."""
    entry = store.entry(scan, seed, again)
    print(f"{scan.describe()}, seed {seed}", flush=True)
    measure_peers(scan, entry, store)
    for number in sorted(minutes):
        key = f"{number:g}"
        if key not in entry["ours"]:
            with tempfile.TemporaryDirectory() as folder:
                entry["ours"][key] = densify(scan, number, seed, Path(folder))
            store.write()
        run = entry["ours"][key]
        ratios = [error_ratio(entry, run[kind]) for kind in ("preview_dice", "dice")]
        texts = ["" if ratio is None else f"error ratio {ratio:.2f}" for ratio in ratios]
        say(f"preview of {key} min", run["preview_dice"], run["preview_seconds"], texts[0])
        holds = {None: "no interval", True: "interval holds", False: "interval does not hold"}[interval_holds(run)]
        say(f"{key} min", run["dice"], run["seconds"], texts[1], estimate_text(run), holds, memory_text(run))


def write_demo(folder: Path) -> None:
    """Write the built-in scan, and its annotation on three slices per axis."""
    scan = demo()
    scan.write(folder)
    print(f"{folder / SCAN}, {folder / ANNOTATION}: {scan.annotated.mean():.1%} of the voxels are annotated")


def show_demo(out: Path) -> None:
    """Print a table of the scores of densify's result for the built-in scan, and of two peers."""
    scan = demo()
    peers = [(name, PEERS[name](scan, 0)[0]) for name in ("random walker (2000)", "forest")]
    ours = [(name, out / file) for name, file in (("densify, preview", PREVIEW), ("densify, result", RESULT))]
    ours = [(name, read(file)) for name, file in ours if file.is_file()]
    least = FEWEST + min(1 - scan.mean_dice(segmentation) for _, segmentation in peers)
    title = f"Dice on the {(~scan.annotated).mean():.1%} of voxels that are not annotated"
    made = table(title, "method", *(CLASS_NAMES[c] for c in (1, 2)), "mean", "error / best of the others")
    for name, segmentation in (*peers, *ours):
        dice = scan.dice(segmentation)
        mean = float(np.mean(list(dice.values())))
        made.add_row(name, *(f"{dice[c]:.3f}" for c in (1, 2)), f"{mean:.3f}", f"{(1 - mean) / least:.2f}")
    show(made)
    if not ours:
        print(f"{out} has no {PREVIEW} and no {RESULT}: create them with `sparse3dunet densify`.")


def parse() -> argparse.Namespace:
    """Parse the command's arguments."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=here.parents[1] / "shared", help="folder of the other data")
    told = f"beginnings of the scans' names, of {', '.join(KINDS)}: as ct3mm-axial5 or hippocampus_001 (default: all)"
    parser.add_argument("--tasks", nargs="+", default=[], metavar="NAME", help=told)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5], help="duration of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=here / "results/densify.json", help="file of the results")
    parser.add_argument("--again", action="store_true", help="ignore the results of these scans and seeds in --out")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--table", action="store_true", help="print --out as Markdown; run nothing")
    only.add_argument("--write-demo", type=Path, metavar="FOLDER", help="write the built-in scan, run nothing")
    only.add_argument("--demo", type=Path, metavar="OUT", help="score densify's result for the built-in scan")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        if not name.startswith(tuple(KINDS)):
            parser.error(f"--tasks: {name} is none of {', '.join(KINDS)}, and begins with none")
    return arguments


def compare(arguments: argparse.Namespace, store: Store) -> None:
    """Measure all requested results that are not stored, and print a summary."""
    print(machine(), flush=True)
    measured = set()
    for scan in load_all(arguments.shared.resolve(), arguments.tasks):
        for seed in arguments.seeds:
            measure(scan, arguments.minutes, seed, store, arguments.again)
            measured.add((scan.name, seed))
    entries = [entry for entry in store.entries if (entry["task"], entry["seed"]) in measured]
    print("\n" + summary(entries, [f"{number:g}" for number in sorted(arguments.minutes)]))


def main() -> None:
    """Run the benchmark as set by the arguments."""
    arguments = parse()
    if arguments.write_demo:
        write_demo(arguments.write_demo)
    elif arguments.demo:
        show_demo(arguments.demo)
    elif arguments.table:
        print(markdown(Store(arguments.out).entries))
    else:
        compare(arguments, Store(arguments.out))


if __name__ == "__main__":
    main()
