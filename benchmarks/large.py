"""Measure memory and speed for volumes larger than memory: check, training and prediction, by the size of the volume.

    python benchmarks/large.py [--sizes 256 512 1024 2048x2048x512 2048] [--work-dir FOLDER] [--minutes 1]

For each size, a synthetic OME-Zarr of uint8 is written chunk by chunk: a noisy cylinder along z with bright balls, and
nothing around it, in chunks that are not stored. Balls are annotated on three axial slices of 512 x 512 voxels at most.
Then `sparse3dunet check`, `run training` (for --minutes) and `predict` run as commands of their own with
`--volume-memory 0`, so that all sizes go the same way. Of volumes of more than --whole voxels one slab is predicted:
the command is stopped by SIGTERM as soon as it has written one.

Prints a line for each command, and keeps the figures in --out: the largest resident set (getrusage's ru_maxrss),
seconds, and voxels/s: for check of the volume, for predict of the voxels that were written. Most of a window's time is
the network's, which empty windows pass once. Needs up to 2.5 bytes of disk per voxel that is stored, given back after
each size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from augmentation import machine
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

SIZES = ("256", "512", "1024", "2048x2048x512", "2048")
WHOLE = 2048 * 2048 * 512
"""Voxels up to which a volume is predicted whole."""
CHUNK, ANNOTATED = 128, 512
"""Length of a chunk, and largest side of an annotated slice."""
PERIOD, RADIUS, CYLINDER = 40, 12, 0.35
"""Distance and radius of the balls in voxels, and radius of the cylinder as a share of the volume's width."""
HEADINGS = ("voxels", "command", "peak GiB", "seconds", "voxels/s")
SETTINGS = ["--network_def#channels", "[8,16,32]", "--num_workers", "0", "--overlay", "cpu"]


@dataclass
class Measured:
    """What a command took."""

    gib: float
    seconds: float
    voxels: float | None = None


def main() -> None:
    """Measure the sizes one after another, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="N for N x N x N voxels, or XxYxZ")
    parser.add_argument("--minutes", type=float, default=1.0, help="duration of a training")
    parser.add_argument("--whole", type=int, default=WHOLE, help="voxels up to which a volume is predicted whole")
    parser.add_argument("--overlap", type=float, default=0.25, help="overlap of windows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.json", help="results")
    parser.add_argument("--work-dir", type=Path, default=None, help="folder for the volumes")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {"sizes": {}}
    for text in arguments.sizes:
        shape = tuple(map(int, text.split("x"))) * (3 if "x" not in text else 1)
        size = " x ".join(map(str, shape))
        with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="large-") as folder:
            for name, found in measure(shape, Path(folder), arguments):
                results["sizes"].setdefault(size, {})[name] = [found.gib, found.seconds, found.voxels]
                print(*_cells(size, name, results["sizes"][size][name]), sep="; ", flush=True)
                results["machine"] = machine()
                arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = Table(*HEADINGS, box=SIMPLE)
    for row in rows(results):
        table.add_row(*row)
    Console().print(table)
    print(results["machine"])


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a line for each command, by the content of --out."""
    return [_cells(size, name, found) for size, group in results["sizes"].items() for name, found in group.items()]


def _cells(size: str, name: str, found: Sequence[float | None]) -> tuple[str, ...]:
    gib, seconds, voxels = found
    assert gib is not None
    assert seconds is not None
    return size, name, f"{gib:.2f}", f"{seconds:.0f}", "" if voxels is None else f"{voxels / seconds:,.0f}"


def measure(shape: Sequence[int], folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    """Yield what each command took."""
    voxels = math.prod(shape)
    image, datalist = write_volume(folder, shape)
    limit = ["--volume-memory", "0"]
    yield "check", run(["check", datalist, *limit], voxels)
    places = ["--dataset_dir", datalist, "--ckpt_dir", folder / "model", "--output_dir", folder / "eval"]
    training = ["run", "training", *places, *SETTINGS, "--minutes", str(arguments.minutes), *limit]
    yield f"training, {arguments.minutes:g} min", run(training)
    command = ["predict", folder / "model", image, "-o", folder / "out", "--overlap", arguments.overlap, *limit]
    if voxels <= arguments.whole:
        yield "predict", run(command, voxels)
        return
    found = run(command, stop=lambda: written(folder / "out", shape) > 0)
    found.voxels = written(folder / "out", shape)
    yield "predict, one slab", found


def written(out: Path, shape: Sequence[int]) -> float:
    """Return the voxels that a prediction has written so far, by its file of progress."""
    for file in (out / ".drafts").glob("*/large.json"):
        content = json.loads(file.read_text())
        return sum(content["voxels"])
    return 0


def run(command: Sequence[object], voxels: float | None = None, stop: Callable[[], bool] | None = None) -> Measured:
    """Run a command of sparse3dunet, and stop it by SIGTERM as soon as `stop` says so."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "sparse3dunet", *map(str, command)], stdout=subprocess.DEVNULL
    )
    stopped = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if stop is not None and not stopped and stop():
            process.terminate()
            stopped = True
        time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not stopped:
        raise SystemExit(f"{' '.join(map(str, command))} ended with exit status {process.returncode}.")
    return Measured(usage.ru_maxrss / 2**20, time.perf_counter() - started, voxels)


def write_volume(folder: Path, shape: Sequence[int]) -> tuple[Path, Path]:
    """Write an image and its annotation, chunk by chunk; return the image and a datalist of both."""
    image, label = (new_array(folder / f"{name}.ome.zarr", shape) for name in ("image", "label"))
    middles = [shape[2] * part // 4 for part in (1, 2, 3)]
    for place in itertools.product(*(range(0, n, CHUNK) for n in shape)):
        box = [slice(start, min(start + CHUNK, n)) for start, n in zip(place, shape)]
        inside, balls = content(box, shape)
        if not inside.any():
            continue
        noise = np.random.default_rng(place).integers(0, 60, inside.shape)
        stored = tuple(reversed(box))
        image[stored] = np.where(inside, 40 + 80 * balls + noise, 0).astype(np.uint8).transpose(2, 1, 0)
        annotated = np.zeros(inside.shape, bool)
        for z in middles:
            if box[2].start <= z < box[2].stop:
                annotated[..., z - box[2].start] = True
        for axis in (0, 1):
            position = np.arange(box[axis].start, box[axis].stop) - shape[axis] // 2
            annotated &= np.expand_dims(np.abs(position) < ANNOTATED // 2, tuple(a for a in range(3) if a != axis))
        if annotated.any():
            label[stored] = np.where(annotated, 1 + balls, 0).astype(np.uint8).transpose(2, 1, 0)
    datalist = folder / "datalist.json"
    entry = {"image": "image.ome.zarr", "label": "label.ome.zarr"}
    labels = {"1": "background", "2": "ball"}
    datalist.write_text(json.dumps({"training": [entry], "labels": labels, "ignore_index": 0}))
    return folder / "image.ome.zarr", datalist


def new_array(path: Path, shape: Sequence[int]) -> zarr.Array:
    """Make an empty image of OME-Zarr 0.4 with one level."""
    shutil.rmtree(path, ignore_errors=True)
    group = zarr.create_group(str(path), zarr_format=2)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    separator = {"name": "v2", "separator": "/"}
    chunks = tuple(min(CHUNK, n) for n in reversed(shape))
    return group.create_array(
        "0", shape=tuple(reversed(shape)), chunks=chunks, dtype="uint8", chunk_key_encoding=separator
    )


def content(box: Sequence[slice], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which voxels of a box are in the cylinder, and which of these in a ball, (X, Y, Z)."""
    x, y, z = np.ogrid[tuple(box)]
    width = CYLINDER * min(shape[:2])
    lengths = [along.stop - along.start for along in box]
    inside = np.broadcast_to((x - shape[0] / 2) ** 2 + (y - shape[1] / 2) ** 2 < width**2, lengths)
    from_middle = [along % PERIOD - PERIOD // 2 for along in (x, y, z)]
    return inside, inside & (sum(along**2 for along in from_middle) < RADIUS**2)


if __name__ == "__main__":
    main()
