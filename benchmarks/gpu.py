"""Measure one GPU beside the CPU, and whether both compute the same; run by gpu.sh.

    python benchmarks/gpu.py [--out gpu.json] [--minutes 8] [--steps network,elastic,...] [--dry-run]

Steps: the network forward and backward; an elastic deformation; some training steps from the same weights; a training
by ``sparse3dunet run training``; the prediction of a volume with its model; densify. Each runs on the CPU and on the
GPU ("device"), but for the training. The JSON has seconds and differences, and is written after each step, so that a
run that is stopped leaves what it has. A step that does not fit into what is left of the minutes is skipped, one that
fails is reported. Exit status 1 if a step failed, or if the devices do not agree.

The volumes are made here: noise on nested ellipsoids, of which three slices are annotated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from sparse3dunet import __version__
from sparse3dunet.losses import MaskedDiceCELoss
from sparse3dunet.losses.target import pack_target
from sparse3dunet.networks import UNet3D
from sparse3dunet.transforms import RandBSplineElasticd

TOLERANCE = {"network": 1e-3, "elastic": 1e-3, "steps": 1e-2, "predict": 1e-3}
"""Largest difference of logits (float32), intensities, losses (relative), and share of voxels of another class."""
UNLABELED = 3


@dataclass
class Run:
    """Sizes and time of a run, and its results so far."""

    device: torch.device
    dry: bool
    out: Path
    folder: Path
    ends: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    @property
    def devices(self) -> dict[str, torch.device]:
        return {"cpu": torch.device("cpu"), "device": self.device}

    def size(self, real: int, tiny: int) -> int:
        return tiny if self.dry else real

    def save(self) -> None:
        draft = self.out.with_name(self.out.name + ".draft")
        draft.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(draft, self.out)


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the versions."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), model)
    found = {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
    }
    found |= {"torch": torch.__version__, "sparse3dunet": __version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_GiB": round(properties.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def seconds_of(call: Callable[[], Any], device: torch.device, most: float = 5.0, repeats: int = 20) -> float:
    """Return the median time of a call, after one that does not count; within about `most` seconds."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed()
    times = [timed()]
    while len(times) < repeats and sum(times) + times[-1] < most:
        times.append(timed())
    return float(np.median(times))


def volume(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, dense label and label with three annotated slices."""
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32)] * 3, indexing="ij")
    radius = np.sqrt(sum((axis - shift) ** 2 for axis, shift in zip(axes, random.uniform(-0.1, 0.1, 3))))
    dense = (radius < 0.8).astype(np.uint8) + (radius < 0.45)
    image = (dense * 100 + random.normal(0, 40, dense.shape)).astype(np.float32)
    sparse = np.full_like(dense, UNLABELED)
    for axis in range(3):
        plane = (slice(None),) * axis + (n // 2,)
        sparse[plane] = dense[plane]
    return image, dense, sparse


def make_network() -> UNet3D:
    """Return a network with the same weights each time."""
    torch.manual_seed(0)
    return UNet3D(in_channels=1, out_channels=3, channels=(16, 32, 64, 128), norm="instance", padding="same")


def batch(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two patches and their targets, on the CPU."""
    n = run.size(96, 16)
    volumes = [volume(n, seed) for seed in (0, 1)]
    image = torch.from_numpy(np.stack([(v[0] - v[0].mean()) / v[0].std() for v in volumes]))[:, None]
    label = torch.from_numpy(np.stack([v[2] for v in volumes])).long()[:, None]
    weight = (label != UNLABELED).float()
    return image, pack_target(label * (weight > 0), weight)


def network(run: Run) -> dict[str, Any]:
    """Forward and backward passes; float32 is compared, bfloat16 only timed."""
    image, target = batch(run)
    loss, found, logits = MaskedDiceCELoss(batch=True), {}, {}
    for name, device in run.devices.items():
        net, x, y = make_network().to(device), image.to(device), target.to(device)
        with torch.no_grad():
            logits[name] = net(x).cpu()

        def step(bfloat16: bool, net: Any = net, x: Any = x, y: Any = y, device: Any = device) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                prediction = net(x)
            loss(prediction.float(), y).backward()

        for precision, bfloat16 in (("float32", False), ("bfloat16", True)):
            seconds = seconds_of(lambda: step(bfloat16), device, run.size(8, 1), run.size(20, 2))  # noqa: B023
            found[f"seconds_{name}_{precision}"] = seconds
    difference = float((logits["cpu"] - logits["device"]).abs().max())
    return {"patch": list(image.shape), **found, "difference": difference}


def elastic(run: Run) -> dict[str, Any]:
    """One deformation of image, label and weight."""
    n = run.size(128, 16)
    image, _, sparse = volume(n)
    found: dict[str, Any] = {"patch": n}
    results = []
    for name, device in run.devices.items():
        data = {"image": torch.from_numpy(image)[None].to(device), "label": torch.from_numpy(sparse)[None].to(device)}
        data["weight"] = (data["label"] != UNLABELED).float()
        augment = RandBSplineElasticd(spatial_size=n, rotate_range=0.3, scale_range=0.2)
        augment.set_random_state(0)
        results.append({key: torch.as_tensor(value).cpu() for key, value in augment(data).items()})
        calls = run.size(20, 2)
        found[f"seconds_{name}"] = seconds_of(lambda: augment(data), device, run.size(5, 1), calls)  # noqa: B023
    cpu, other = results
    scale = float(image.max() - image.min())
    found["difference"] = float((cpu["image"] - other["image"]).abs().max()) / scale
    found["labels_that_differ"] = float((cpu["label"] != other["label"]).float().mean())
    return found


def steps(run: Run) -> dict[str, Any]:
    """Some training steps in float32, from the same weights and with the same patches."""
    image, target = batch(run)
    loss, losses, found = MaskedDiceCELoss(batch=True), {}, {}
    count = run.size(8, 3)
    for name, device in run.devices.items():
        net, x, y = make_network().to(device), image.to(device), target.to(device)
        optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
        values = []
        for _ in range(count):
            optimizer.zero_grad()
            value = loss(net(x), y)
            value.backward()
            optimizer.step()
            values.append(float(value))
        losses[name] = np.array(values)
        found[f"losses_{name}"] = values
    first, second = losses["cpu"], losses["device"]
    return {**found, "difference": float((np.abs(first - second) / np.abs(first)).max())}


def command(run: Run, *arguments: object, most: float) -> float:
    """Run ``sparse3dunet`` in a process of its own; return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sparse3dunet", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=min(most, run.left),
    )
    if done.returncode:
        raise RuntimeError(f"sparse3dunet {arguments[0]}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return time.perf_counter() - started


def write_nifti(path: Path, array: np.ndarray) -> Path:
    """Write an array as NIfTI with voxels of 1 mm; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def dice(path: Path, dense: np.ndarray) -> list[float]:
    """Return the Dice of each foreground class of a segmentation on disk."""
    found = np.asarray(nib.load(path).dataobj)
    return [
        float(2 * ((found == c) & (dense == c)).sum() / max((found == c).sum() + (dense == c).sum(), 1)) for c in (1, 2)
    ]


def train(run: Run) -> dict[str, Any]:
    """A training by the command line, on the GPU alone; the prediction uses its model."""
    data, n = run.folder / "data", run.size(128, 24)
    entries = []
    for number in range(4):
        image, _, sparse = volume(n, number)
        write_nifti(data / f"imagesTr/case_{number}.nii.gz", image)
        write_nifti(data / f"labelsTr/case_{number}.nii.gz", sparse)
        entries.append({"image": f"imagesTr/case_{number}.nii.gz", "label": f"labelsTr/case_{number}.nii.gz"})
    labels = {"0": "background", "1": "shell", "2": "core"}
    (data / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    short = ("--overlay", "gpu", "--minutes", 1.0)
    if run.dry:
        short = ("--largest_patch_size", "[16,16,16]", "--max_epochs", 1, "--epoch_length", 2, "--num_workers", 0)
        short += ("--network_def#channels", "[4,8,8]")
    places = ("--dataset_dir", data, "--ckpt_dir", run.folder / "models", "--output_dir", run.folder / "eval")
    seconds = command(run, "run", "training", *short, *places, "--device", run.device, most=150)
    return {"seconds_with_start": seconds}


def predict(run: Run) -> dict[str, Any]:
    """Prediction of a new volume, in float32 on both devices and by default on the GPU."""
    if not (run.folder / "models/model.pt").exists():
        train(run)
    n = run.size(192, 24)
    image, dense, _ = volume(n, 9)
    scan = write_nifti(run.folder / "new/scan.nii.gz", image)
    found: dict[str, Any] = {"voxels": n**3}
    for name, options in {"cpu": ("--device", "cpu"), "device": ("--device", run.device)}.items():
        out = run.folder / f"out_{name}"
        options = (*options, "--precision", "float32", "--overlap", 0.25)
        found[f"seconds_{name}"] = command(run, "predict", run.folder / "models", scan, "-o", out, *options, most=100)
        record = json.loads((out / "records/scan.json").read_text())
        found[f"seconds_{name}_without_start"] = record["seconds"]
        found[f"dice_{name}"] = dice(out / "scan_seg.nii.gz", dense)
    first, second = (np.asarray(nib.load(run.folder / f"out_{d}/scan_seg.nii.gz").dataobj) for d in ("cpu", "device"))
    return {**found, "difference": float((first != second).mean())}


def densify(run: Run) -> dict[str, Any]:
    """Densify of one scan, for a minute on each device."""
    n = run.size(128, 24)
    image, dense, sparse = volume(n, 5)
    scan = write_nifti(run.folder / "densify/scan.nii.gz", image)
    annotation = write_nifti(run.folder / "densify/annotation.nii.gz", sparse)
    found = {}
    for name, device in {"cpu": "cpu", "device": run.device}.items():
        out = run.folder / f"densified_{name}"
        options = ("--minutes", run.size(1, 0) or 0.05, "--device", device, "--ignore-index", UNLABELED)
        found[f"seconds_{name}"] = command(run, "densify", scan, annotation, "-o", out, *options, most=150)
        found[f"dice_{name}"] = dice(out / "scan_seg.nii.gz", dense)
    return found


STEPS: dict[str, tuple[Callable[[Run], dict[str, Any]], float]] = {
    "network": (network, 20),
    "elastic": (elastic, 10),
    "steps": (steps, 10),
    "train": (train, 80),
    "predict": (predict, 40),
    "densify": (densify, 130),
}
"""Each with the seconds that must be left for it to begin."""


def line(name: str, result: dict[str, Any]) -> str:
    """Return a result in one line."""
    numbers = (f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float))
    return f"{name}: " + "; ".join([*numbers, *([f"failed: {result['error']}"] if "error" in result else [])])


def measure(run: Run, names: list[str]) -> bool:
    """Run the steps; return whether all went well."""
    fine = True
    for name in names:
        call, least = STEPS[name]
        started = time.monotonic()
        if run.left < (0 if run.dry else least):
            result: dict[str, Any] = {"skipped": f"{run.left:.0f} s were left"}
        else:
            try:
                result = call(run)
            except Exception as error:  # the other steps are measured all the same
                result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        result["seconds_of_the_step"] = time.monotonic() - started
        if name in TOLERANCE and "difference" in result:
            result["agrees"] = result["difference"] <= TOLERANCE[name]
        fine &= "error" not in result and result.get("agrees", True)
        run.results[name] = result
        run.save()
        print(line(name, result), flush=True)
    return fine


def main() -> None:
    """Parse the command line and run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=7.5, help="for all steps")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    options = parser.parse_args()
    names = options.steps.split(",")
    if not set(names) <= set(STEPS):
        parser.error(f"--steps {options.steps}: expected some of {', '.join(STEPS)}.")
    if not (options.dry_run or torch.cuda.is_available()):
        parser.error("PyTorch finds no GPU; --dry-run does all of it on the CPU.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is compared
    device = torch.device("cpu" if options.dry_run else "cuda")
    with tempfile.TemporaryDirectory(prefix="sparse3dunet-gpu-") as folder:
        run = Run(device, options.dry_run, options.out, Path(folder), time.monotonic() + options.minutes * 60)
        run.results = {"dry_run": options.dry_run, "machine": machine(device)}
        print("; ".join(f"{name} {value}" for name, value in run.results["machine"].items()), flush=True)
        fine = measure(run, names)
    print(options.out)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
