"""Measure the time to segment a whole volume on the CPU: ours against MONAI's sliding windows, in one run.

    python benchmarks/prediction.py [--model MODEL_DIR] [--data FOLDER] [--overlap 0.5] [--roi 96]
    python benchmarks/prediction.py --large 1024

The first makes the built-in data at 1 mm and trains a network on it, once (8 epochs, about 7 minutes on two cores; both
are kept in --work-dir). Then each contender goes from the image's file to the written segmentation, in a process of its
own, one after another; prints a table, whether the goals are met, and the machine.

- MONAI: LoadImaged, EnsureChannelFirstd, Orientationd, NormalizeIntensityd, SlidingWindowInferer (Gaussian, one window
  at once, border replicated), Invertd of the logits, AsDiscreted, SaveImaged: in the order of MONAI's bundles.
- sparse3dunet: what `sparse3dunet predict` does to an image. Windows in which nothing varies, as around a head, are
  counted, but pass the network once for all.

Seconds of the network are those of the sliding windows, cutting and blending included; seconds in all leave out imports
and loading the model. Where a process got fewer cores than torch has threads, something else was running: measure
again, or with --repeats 3. Memory is the process's largest resident set, after imports and loading and at the end: the
kernel's VmHWM, which is getrusage's ru_maxrss but for what a process takes over from the one that started it.

The second predicts a noisy volume of N x N x N voxels with a small random network (4 classes, windows of 128, overlap
0.25), and prints the largest resident set against the goal. Both the volume and its segmentation lie on disk, never
whole in memory, but pages of files that are mapped count as resident until the kernel wants them back. Needs 4 N^3
bytes of disk (4 GiB for 1024) in --work-dir, given back at the end, and two cores for about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.transforms as mt
import nibabel as nib
import numpy as np
import torch
from augmentation import machine
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.networks.utils import eval_mode
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from torch.nn.functional import interpolate

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.datasets.mni152 import prepare
from sparse3dunet.inference.inferers import bfloat16_is_fast
from sparse3dunet.inference.predictor import Predictor, Scratch
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.metrics.masked import overlap_counts, overlap_scores
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D

Work = Callable[[], tuple[int, float]]
"""Segments; returns the number of windows and the seconds of the network."""

ROOT = Path(__file__).resolve().parents[1]
TRAINING = "--largest_patch_size [96,96,96] --batch_size 1 --max_epochs 8 --val_interval 8"
THEIRS, THEIRS_BF16, OURS, LARGE = "MONAI, fp32", "MONAI, bf16", "sparse3dunet", "large"
LEAST_FASTER, LEAST_DICE, MOST_GIB = 4, 0.995, 8
LARGE_ROI, LARGE_OVERLAP, LARGE_CLASSES = 128, 0.25, 4
SPACING = 16  # voxels between the large volume's independent values


@dataclass(frozen=True)
class Result:
    """Measurement of a contender: windows, seconds, mean number of cores, and resident MiB."""

    windows: int
    network: float
    total: float
    cores: float
    baseline: float
    peak: float


# ---------------------------------------------------------------- in a separate process


def peak_mib() -> float:
    """Return the peak resident set of this process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kib = next((float(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0.0)
    if not kib:
        import resource

        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if platform.system() == "Darwin" else 1)
    return kib / 1024


def measure(work: Work) -> Result:
    """Do it."""
    baseline, started, cpu = peak_mib(), time.perf_counter(), time.process_time()
    windows, network = work()
    total = time.perf_counter() - started
    return Result(windows, network, total, (time.process_time() - cpu) / total, baseline, peak_mib())


def theirs(arguments: argparse.Namespace, bfloat16: bool) -> Work:
    """MONAI's transforms and inferer, as its bundles put them together."""
    network = load_model(arguments.model).network
    normalize = mt.NormalizeIntensityd("image", channel_wise=True)
    read = [mt.LoadImaged("image"), mt.EnsureChannelFirstd("image"), mt.Orientationd("image", "RAS", labels=None)]
    before = mt.Compose([*read, normalize])
    invert = mt.Invertd("pred", before, "image", nearest_interp=False, to_tensor=True)
    place = {"output_dir": arguments.output.parent, "output_postfix": ""}
    kind = {"output_dtype": np.uint8, "resample": False, "separate_folder": False, "print_log": False}
    name = {"output_name_formatter": lambda meta, saver: {"subject": arguments.output.name.split(".")[0]}}
    after = mt.Compose([invert, mt.AsDiscreted("pred", argmax=True), mt.SaveImaged("pred", **place, **name, **kind)])
    inferer = SlidingWindowInferer([arguments.roi] * 3, 1, arguments.overlap, mode="gaussian", padding_mode="replicate")

    def work() -> tuple[int, float]:
        windows, seconds = 0, 0.0

        def counted(window: torch.Tensor) -> torch.Tensor:
            nonlocal windows
            windows += 1
            return network(window)

        for batch in DataLoader(Dataset([{"image": str(arguments.image)}], before), batch_size=1):
            started = time.perf_counter()
            with eval_mode(network), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                batch["pred"] = inferer(batch["image"], counted)
            seconds += time.perf_counter() - started
            for item in decollate_batch(batch):
                after(item)
        return windows, seconds

    return work


class TimedSlabs(SlabInferer):
    """Inferer that counts the seconds of its slabs, and the windows."""

    seconds, count = 0.0, 0

    def slabs(self, channels: Any, network: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[slice, torch.Tensor]]:
        self.count += self.windows(channels[0].shape, network).count
        slabs = super().slabs(channels, network, *args, **kwargs)
        while True:
            started = time.perf_counter()
            slab = next(slabs, None)
            self.seconds += time.perf_counter() - started
            if slab is None:
                return
            yield slab


def ours(arguments: argparse.Namespace, overlap: float, bfloat16: bool | None = None) -> Work:
    """This package, as in its command `predict`."""
    model = load_model(arguments.model)
    inferer = TimedSlabs([arguments.roi] * 3, overlap, bfloat16=bfloat16)
    names = dict(zip(model.class_values, model.class_names))
    predictor = Predictor(model.network, inferer, model.class_values, model.in_channels, model.spacing)
    return lambda: segment(arguments, predictor, inferer, names)


def large(arguments: argparse.Namespace) -> Work:
    """This package on a volume that may not fit into memory, with results on disk."""
    torch.manual_seed(0)
    network = UNet3D(1, LARGE_CLASSES, channels=(4, 8), norm="batch", padding="same")
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()  # otherwise they alone would determine the class
    inferer = TimedSlabs([LARGE_ROI] * 3, LARGE_OVERLAP, on_window=show_progress)
    predictor = Predictor(network, inferer, range(LARGE_CLASSES))
    names = {value: f"class {value}" for value in range(LARGE_CLASSES)}
    return lambda: segment(arguments, predictor, inferer, names, in_memory=2**20)


def segment(
    arguments: argparse.Namespace, predictor: Predictor, inferer: TimedSlabs, names: dict[int, str], **scratch: int
) -> tuple[int, float]:
    """From file to file."""
    volume = read_image(arguments.image)
    with Scratch(arguments.output.parent, **scratch) as results:
        prediction = predictor([volume], results)
        write_segmentation(arguments.output, prediction.segmentation, volume, names)
    return inferer.count, inferer.seconds


def show_progress(done: int, total: int) -> None:
    """Print progress at each tenth."""
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"{done} of {total} windows, {peak_mib() / 1024:.2f} GiB at most so far", file=sys.stderr, flush=True)


CONTENDERS: dict[str, Callable[[argparse.Namespace], Work]] = {
    THEIRS: lambda arguments: theirs(arguments, bfloat16=False),
    THEIRS_BF16: lambda arguments: theirs(arguments, bfloat16=True),
    OURS: lambda arguments: ours(arguments, arguments.overlap),
    f"{OURS}, fp32": lambda arguments: ours(arguments, arguments.overlap, bfloat16=False),
    f"{OURS}, overlap 0.25": lambda arguments: ours(arguments, 0.25),
}

# ---------------------------------------------------------------- in the main process


def run(name: str, arguments: argparse.Namespace, image: Path, output: Path) -> Result:
    """Measure a contender in a fresh process."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    options = {"run": name, "image": image, "output": output, "model": arguments.model}
    options |= {"overlap": arguments.overlap, "roi": arguments.roi}
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items() if value is not None)]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def train(data: Path, work_dir: Path) -> Path:
    """Return the folder of a network trained on `data`, in an earlier run or now."""
    folder = work_dir / "model"
    if not (folder / "model.pt").is_file():  # written at the only validation, after the last epoch
        print(f"Training a network, once, about 7 minutes on two cores: {folder}", flush=True)
        places = {"dataset_dir": data, "ckpt_dir": folder, "output_dir": work_dir / "training"}
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training"]
        command += ["--config_file", "bundle/configs/train.yaml", *TRAINING.split()]
        command += [part for key, value in places.items() for part in (f"--{key}", str(value))]
        subprocess.run(command, cwd=ROOT, check=True)
    return folder


def dice(segmentation: np.ndarray, reference: np.ndarray, num_classes: int) -> list[float]:
    """Return Dice of the foreground classes: mean, then by class."""
    volumes = [torch.from_numpy(array.astype(np.int64))[None, None] for array in (segmentation, reference)]
    scores = overlap_scores(overlap_counts(volumes[0], volumes[1], num_classes), "dice")[0, 1:].tolist()
    return [float(np.nanmean(scores)), *scores]


def compare(arguments: argparse.Namespace) -> None:
    """Measure all contenders on the built-in data; print the table and the goals."""
    data = (arguments.data or arguments.work_dir / "mni152_1mm").absolute()
    if not data.exists():
        print(f"Preparing the built-in data at 1 mm: {data}", flush=True)
        prepare(data, 3, 1)
    arguments.model = arguments.model or train(data, arguments.work_dir)
    model, (case,) = load_model(arguments.model), read_data_set(data).cases
    if model.spacing or list(model.class_values) != list(range(len(model.class_values))):
        sys.exit("error: expected a model trained at the data's own spacing, with the classes 0, 1, 2 and so on.")
    dense = np.asarray(nib.load(case["reference"]).dataobj)
    results: dict[str, Result] = {}
    segmentations = {}
    contenders = [name for name in CONTENDERS if name != THEIRS_BF16 or bfloat16_is_fast("cpu")]
    if THEIRS_BF16 not in contenders:
        print(f"{THEIRS_BF16} is skipped: it would take many times as long on this CPU.", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="segmentations-") as folder:
        output = Path(folder) / "segmentation.nii.gz"
        for name in contenders * arguments.repeats:
            result = run(name, arguments, Path(case["image"]), output)
            results[name] = min(results.get(name, result), result, key=lambda each: each.total)
            segmentations[name] = np.array(nib.load(output).dataobj)

    numbers = ("windows", "network", "in all", "x faster", "cores", "before", "peak", f"Dice with {THEIRS}", "Dice")
    columns = [Column(heading, justify="right", no_wrap=True) for heading in numbers]
    title = f"MNI152 at 1 mm, {dense.shape}; windows of {arguments.roi}, overlap {arguments.overlap}; seconds, MiB"
    table = Table(Column("", no_wrap=True), *columns, title=title, box=SIMPLE, title_justify="left")
    table.caption = f"Dice: mean ({', '.join(model.class_names[1:])}); the last column's with the dense label"
    for name, result in results.items():
        scores = [dice(segmentations[name], other, len(model.class_names)) for other in (segmentations[THEIRS], dense)]
        agreements = [f"{mean:.4f} ({', '.join(f'{score:.4f}' for score in rest)})" for mean, *rest in scores]
        seconds = [f"{result.network:.1f}", f"{result.total:.1f}", f"{results[THEIRS].total / result.total:.2f}"]
        machine_use = [f"{result.cores:.1f}", f"{result.baseline:.0f}", f"{result.peak:.0f}"]
        table.add_row(name, str(result.windows), *seconds, *machine_use, *agreements)
    Console(width=160).print(table)

    first, second = results[THEIRS], results[OURS]
    ratios = [first.total / second.total, first.network / second.network]
    agreement = dice(segmentations[OURS], segmentations[THEIRS], len(model.class_names))[0]
    say(f"at least {LEAST_FASTER} times faster than {THEIRS}", ratios[0] >= LEAST_FASTER, f"{ratios[0]:.1f}")
    cpu = first.cores * first.total / (second.cores * second.total)
    print(f"  (the network with its windows alone: {ratios[1]:.1f}; by the processor's time instead: {cpu:.1f})")
    say(f"Dice with it at least {LEAST_DICE}", agreement >= LEAST_DICE, f"{agreement:.4f}")
    say("peak memory not above it", second.peak <= first.peak, f"{second.peak:.0f} and {first.peak:.0f} MiB")
    disturbed = [name for name, result in results.items() if result.cores < 0.85 * torch.get_num_threads()]
    if disturbed:
        print(f"too few cores available, so these times are too long: {'; '.join(disturbed)}")


def say(goal: str, met: bool, found: str) -> None:
    """Print whether a goal is met."""
    print(f"{goal}: {'yes' if met else 'NO'} ({found})")


def write_volume(path: Path, n: int) -> None:
    """An uncompressed NIfTI of smooth structure under noise, (n, n, n) int16, written slice by slice."""
    header = nib.Nifti1Header()
    header.set_data_shape((n, n, n))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"] = 352
    with path.open("wb") as file:
        header.write_to(file)
    voxels = np.memmap(path, np.int16, "r+", offset=352, shape=(n, n, n), order="F")
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.standard_normal((n // SPACING + 2,) * 3, np.float32))
    for z in range(n):
        below, part = divmod(z / SPACING, 1)
        plane = torch.lerp(coarse[int(below)], coarse[int(below) + 1], part)
        smooth = interpolate(plane[None, None], size=(n, n), mode="bilinear")[0, 0].numpy()
        voxels[..., z] = 1000 + 300 * smooth + 100 * rng.standard_normal((n, n), np.float32)
    voxels.flush()


def predict_large(arguments: argparse.Namespace) -> None:
    """Predict a volume of N x N x N voxels; print windows, seconds, memory."""
    n, needed = arguments.large, 4.2 * arguments.large**3 / 2**30
    free = shutil.disk_usage(arguments.work_dir).free / 2**30
    if free < needed:
        sys.exit(f"error: needs {needed:.1f} GiB of disk in {arguments.work_dir}, {free:.1f} are free; see --work-dir.")
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="large-") as folder:
        image, output = Path(folder) / "image.nii", Path(folder) / "image_seg.nii"
        print(f"Writing {n} x {n} x {n} voxels; {needed:.1f} GiB of disk are needed, {free:.1f} are free", flush=True)
        write_volume(image, n)
        result = run(LARGE, arguments, image, output)
        classes = np.bincount(np.asarray(nib.load(output).dataobj[..., n // 2]).ravel(), minlength=LARGE_CLASSES)
    print(f"{n} x {n} x {n}: {result.windows} windows of {LARGE_ROI}, overlap {LARGE_OVERLAP}")
    print(f"seconds: {result.total:.0f}, of which the network with its windows {result.network:.0f}")
    print(f"classes in the middle slice: {', '.join(f'{share:.1%}' for share in classes / classes.sum())}")
    peak, before = result.peak / 1024, result.baseline / 1024
    say(f"largest resident set within {MOST_GIB} GiB", peak <= MOST_GIB, f"{peak:.2f} GiB, {before:.2f} at the start")
    print("  (pages of the mapped image and results are part of it)")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a trained model; trained if not given")
    parser.add_argument("--data", type=Path, help="folder of the built-in data at 1 mm; created if not given")
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of windows (default: %(default)s)")
    parser.add_argument("--roi", type=int, default=96, help="length of a window (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="rounds; the fastest of each contender counts")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "bundle/eval/benchmark", help="(default: %(default)s)")
    parser.add_argument("--large", type=int, metavar="N", help="predict a volume of N x N x N voxels instead")
    for hidden, kind in (("--run", str), ("--image", Path), ("--output", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.run:
        with contextlib.redirect_stdout(sys.stderr):
            result = measure((CONTENDERS | {LARGE: large})[arguments.run](arguments))
        print(json.dumps(vars(result)))
        return
    arguments.work_dir = arguments.work_dir.absolute()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    if arguments.large:
        predict_large(arguments)
    else:
        compare(arguments)
    print(f"{machine()}; bfloat16 {'in' if bfloat16_is_fast('cpu') else 'not in'} hardware")


if __name__ == "__main__":
    main()
