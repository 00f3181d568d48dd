"""Package a trained model, run every command of monai.bundle on the package, and report success and run time.

    python benchmarks/bundle_commands.py MODEL [--seconds 600]

The package is made in a temporary folder. Each command runs in a process of its own from there, with -S and what pip
installed alone, so that `sparse3dunet` is the package's own copy and no checkout. Training, evaluating and inference
get three small random volumes of the model's channels and classes. Prints a table and the machine; exit status 1 where
a command fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
from augmentation import machine
from monai.bundle import ConfigParser
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sparse3dunet.bundle.package import package
from sparse3dunet.models.loading import Model, load_model

SCHEMA = Path(__file__).resolve().parents[1] / "tests/metadata_schema.json"
SMALL = ("--max_epochs", 1, "--epoch_length", 1, "--batch_size", 1, "--num_workers", 0, "--val_interval", 1)
Command = tuple[str, list[Any]]


def make_data(folder: Path, model: Model) -> Path:
    """Write three cases of noise, as large as the model's patches, with each class in a box."""
    channels, names, values = model.in_channels, model.class_names, model.class_values
    unlabeled = max(values) + 1
    entries = []
    for number in range(3):
        random = np.random.default_rng(number)
        label = np.full(model.patch_size, values[0], np.int16)
        for box, value in zip(np.array_split(np.arange(label.shape[2]), len(values)), values):
            label[:, 2:-2, box] = value
        label[random.random(label.shape) < 0.5] = unlabeled
        image = random.normal(size=(*label.shape, channels)).astype(np.float32) + label[..., None]
        entry = {key: f"{key}s/case_{number}.nii.gz" for key in ("image", "label")}
        for path, array in zip(entry.values(), (image if channels > 1 else image[..., 0], label)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([*(model.spacing or (1, 1, 1)), 1])), folder / path)
        entries.append(entry)
    description = {
        "modality": {str(i): f"channel {i}" for i in range(channels)},
        "labels": {str(value): name for name, value in zip(names, values)},
        "ignore_index": unlabeled,
        "training": entries,
    }
    ConfigParser.export_config_file(description, folder / "dataset.json")
    return folder


def commands(bundle: Path, data: Path, out: Path, model: Model) -> Iterator[Command]:
    """Each with a name."""
    network = ("network_def", "--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json")
    weights = ("--ckpt_file", "models/model.pt", "--filepath")
    images = ("--dataset_dir", data / "images")
    train = ("--dataset_dir", data, "--ckpt_dir", out / "models", "--output_dir", out / "training", *SMALL)
    evaluate = "['configs/train.json','configs/evaluate.json']"
    metadata = ("--meta_file", "configs/metadata.json", "--filepath", SCHEMA)

    def monai_bundle(*arguments: Any) -> list[Any]:
        return ["-m", "monai.bundle", *arguments]

    yield "verify_metadata", monai_bundle("verify_metadata", *metadata)
    yield "verify_net_in_out", monai_bundle("verify_net_in_out", *network, "--device", "cpu")
    yield "run training", monai_bundle("run", "training", "--config_file", "configs/train.json", *train)
    scores = ("--dataset_dir", data, "--output_dir", out / "scores")
    yield "run evaluating", monai_bundle("run", "evaluating", "--config_file", evaluate, *scores)
    for config in ("inference", "standalone"):
        if (bundle / f"configs/{config}.json").exists():
            arguments = ("--config_file", f"configs/{config}.json", *images, "--output_dir", out / config)
            yield f"run inference ({config}.json)", monai_bundle("run", "inference", *arguments)
    yield "ckpt_export", monai_bundle("ckpt_export", *network, *weights, out / "exported.ts")
    yield "onnx_export", monai_bundle("onnx_export", *network, *weights, out / "model.onnx", *onnx_options(model))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    configs = "['configs/train.json','configs/multi_gpu_train.json']"
    yield "run training (torchrun x 2)", [*torchrun, *monai_bundle("run", "training", "--config_file", configs, *train)]
    configs = f"{evaluate[:-1]},'configs/multi_gpu_evaluate.json']"
    several = monai_bundle("run", "evaluating", "--config_file", configs, *scores)
    yield "run evaluating (torchrun x 2)", [*torchrun, *several]


def onnx_options(model: Model) -> list[Any]:
    """Return an input for tracing, and the axes of its shape that may vary."""
    same = model.description.network["padding"] == "same"
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"} if same else {0: "batch"}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    shape = [2, model.in_channels, *model.patch_size]
    return ["--input_shape", str(shape).replace(" ", ""), "--converter_kwargs", names]


def run(arguments: list[Any], bundle: Path, seconds: float) -> tuple[bool, float, str]:
    """Run a command; return whether it succeeded, its seconds, and the end of its output."""
    installed = str(Path(monai.__file__).parents[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = os.pathsep.join([str(bundle), installed])
    start = time.perf_counter()
    try:
        result = subprocess.run(
            [sys.executable, "-S", "-W", "ignore", *map(str, arguments)],
            cwd=bundle,
            env={**environment, "PYTHONPATH": paths},
            capture_output=True,
            encoding="utf-8",
            timeout=seconds,
        )
        done, output = result.returncode == 0, result.stdout + result.stderr
    except subprocess.TimeoutExpired:
        done, output = False, f"not done in {seconds} s"
    return done, time.perf_counter() - start, "\n".join(output.strip().splitlines()[-15:])


def main() -> None:
    """Package, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=600, help="seconds after which a command counts as failed")
    arguments = parser.parse_args()
    console, failed = Console(), False
    table = Table(
        "command", "seconds", "", title="monai.bundle on the package, each from a process's start", box=SIMPLE
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        bundle = package(arguments.model, root / "package").folder
        table.add_row("sparse3dunet package", f"{time.perf_counter() - start:.1f}", "[green]green[/]")
        model = load_model(bundle)
        data, out = make_data(root / "data", model), root / "out"
        out.mkdir()
        check = f"import sparse3dunet; assert sparse3dunet.__file__.startswith(r'{bundle}')"
        for name, command in [("its own code", ["-c", check]), *commands(bundle, data, out, model)]:
            done, seconds, output = run(command, bundle, arguments.seconds)
            failed |= not done
            table.add_row(name, f"{seconds:.1f}", "[green]green[/]" if done else "[red]red[/]")
            if not done:
                console.print(f"{name} failed:\n{output}\n", markup=False)
    console.print(table)
    print(machine())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
