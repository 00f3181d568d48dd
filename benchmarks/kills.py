"""Kill a batch of predictions at random, again and again: is anything lost, half-written, or done twice?

    python benchmarks/kills.py MODEL [--kills 20] [--cases 30] [--seed 0]

Writes small random volumes, predicts them with MODEL (a trained one with one channel), kills the command (SIGKILL) at a
random moment and runs it again, until it was killed so often; then lets it end, and compares every file with those of
an undisturbed run. Prints what it found; exit status 1 where a file differs, is missing, or was made again after it was
finished.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np


def make_volumes(folder: Path, count: int) -> None:
    """Write volumes of noise around a blob, each of a different shape."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        data = rng.normal(100, 20, rng.integers(40, 64, 3))
        data[10:25, 10:30, 10:28] += 80
        nib.save(nib.Nifti1Image(data.astype(np.int16), np.diag([2.0, 2, 2, 1])), folder / f"case_{number:02d}.nii.gz")


def command(model: Path, images: Path, out: Path) -> list[str]:
    """The command that is killed."""
    options = ("-o", out, "--confidence", "--device", "cpu")
    return [*map(str, (sys.executable, "-m", "sparse3dunet", "predict", model, images, *options))]


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of each result of finished cases."""
    found = {}
    for record in (out / "records").glob("*.json"):
        content = json.loads(record.read_text())
        files = [out / name for name in content["results"]]
        made = [[f.stat().st_size, f.stat().st_mtime_ns] if f.is_file() else None for f in files]
        if content["status"] == "done" and made == list(content["results"].values()):
            found |= {str(f.relative_to(out)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}
    return found


def run_killed(arguments: list[str], out: Path, delay: float) -> bool:
    """Run the command, kill it `delay` seconds after the first case; return whether it was running."""
    before = len(list((out / "records").glob("*.json"))), time.time()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        records = list((out / "records").glob("*.json"))
        if len(records) > before[0] or any(record.stat().st_mtime > before[1] for record in records):
            break
        time.sleep(0.002)
    time.sleep(delay)
    killed = process.poll() is None
    process.kill()
    process.wait()
    return killed


def main() -> None:
    """Kill, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--longest", type=float, default=1.8, help="maximum seconds until a kill")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_volumes(root / "images", arguments.cases)
        subprocess.run(command(arguments.model, root / "images", root / "whole"), check=True, stdout=subprocess.DEVNULL)
        out, seen, again, kills = root / "killed", {}, set(), 0
        while kills < arguments.kills:
            if not run_killed(command(arguments.model, root / "images", out), out, rng.uniform(0, arguments.longest)):
                break
            kills += 1
            now = finished(out)
            again |= {name for name, made in seen.items() if now.get(name) != made}
            seen = now
            print(f"kill {kills}: {len({name for name in seen if '_seg' in name})} cases done", flush=True)
        end = subprocess.run(command(arguments.model, root / "images", out), capture_output=True, encoding="utf-8")
        now = finished(out)
        again |= {name for name, made in seen.items() if now.get(name) != made}
        problems = compare(root / "whole", out)
    print(end.stdout.strip().splitlines()[-1])
    print(f"{kills} kills; files made again after they were finished: {len(again)}; other differences: {len(problems)}")
    for problem in problems:
        print(problem)
    sys.exit(1 if problems or again or end.returncode or kills < arguments.kills else 0)


def compare(expected: Path, found: Path) -> list[str]:
    """Return how the files of two folders differ, except records and summary, which contain run times."""
    names = [{str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (expected, found)]
    problems = [f"only in one run: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        told = name.startswith(("records", "summary"))
        if not told and (expected / name).read_bytes() != (found / name).read_bytes():
            problems.append(f"different: {name}")
    return problems


if __name__ == "__main__":
    main()
