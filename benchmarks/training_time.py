"""Measure the parts of a training's time on this machine, and the time saved by each measure of the recipe.

    python benchmarks/training_time.py
    python benchmarks/training_time.py --data ../shared/hippocampus --labels labelsTr_sparse

Prints the milliseconds that an iteration of the preset cpu spends on patches (drawn, deformed, gray values changed), on
the forward and backward pass, the loss and the optimizer, and what reading the data and a validation take. Then the
same iteration without one measure each, in turns in the same run, as a ratio to the preset: in 32-bit (or, where the
preset itself is, since the CPU has no bfloat16, in that), in PyTorch's usual memory layout, with PyTorch's own instance
normalisation, with the paper's half of the channels in first convolutions, and compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from augmentation import machine
from monai.bundle import ConfigParser
from torch import nn
from trainings import show, table

from sparse3dunet.inference.inferers import bfloat16_is_fast
from sparse3dunet.networks import UNet3D
from sparse3dunet.training.engines import PrepareSparseBatch

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("forward", "loss", "backward", "optimizer")
PRESET = "preset cpu"
FAST = bfloat16_is_fast("cpu")


class Step:
    """Variant of an iteration, with its own network, which is trained repeatedly on one batch."""

    def __init__(self, config: ConfigParser, bfloat16: bool = FAST, **network: object) -> None:
        layout = network.pop("layout", torch.channels_last_3d)
        settings = {**config.get_parsed_content("network_def").config, **network}
        self.network = UNet3D(**settings).to(memory_format=layout)  # type: ignore[call-overload]
        self.layout, self.bfloat16, self.run = layout, bfloat16, self.network
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.seconds: list[list[float]] = []

    def __call__(self, image: torch.Tensor, target: torch.Tensor, loss: nn.Module) -> None:
        times = [time.perf_counter()]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits = self.run(image.to(memory_format=self.layout))
        times.append(time.perf_counter())
        value = loss(logits.float(), target)
        times.append(time.perf_counter())
        self.optimizer.zero_grad()
        value.backward()
        times.append(time.perf_counter())
        self.optimizer.step()
        times.append(time.perf_counter())
        self.seconds.append([after - before for before, after in pairwise(times)])

    def milliseconds(self) -> list[float]:
        """Return the median of each part, without the first two iterations."""
        return [1000 * statistics.median(part) for part in zip(*self.seconds[2:])]


def with_pytorchs_norm(network: nn.Module) -> None:
    """Replace our instance normalisation by PyTorch's."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.InstanceNorm3d):
                setattr(parent, name, nn.InstanceNorm3d(layer.num_features, affine=layer.affine))


def variants(config: ConfigParser, compiled: bool) -> dict[str, Step]:
    """The preset, and the preset without one measure each."""
    steps = {
        PRESET: Step(config),
        "32-bit" if FAST else "bfloat16": Step(config, bfloat16=not FAST),
        "PyTorch's usual layout": Step(config, layout=torch.contiguous_format),
        "PyTorch's instance normalisation": Step(config),
        "half the channels in first convolutions": Step(config, halved=True),
    }
    with_pytorchs_norm(steps["PyTorch's instance normalisation"].network)
    if compiled:
        steps["compiled"] = Step(config)
        steps["compiled"].run = torch.compile(steps["compiled"].network)
    return steps


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds of a call, and its result."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def configuration(arguments: argparse.Namespace) -> ConfigParser:
    """train.yaml and cpu.yaml, on the data of the command line."""
    config = ConfigParser()
    config.read_config([str(ROOT / "bundle/configs" / f"{name}.yaml") for name in ("train", "cpu")])
    config.update({"bundle_root": str(ROOT / "bundle"), "epoch_length": 1000})
    if arguments.data:
        split = arguments.data / "split.json"
        config.update({"dataset_dir": str(arguments.data), "split_file": str(split) if split.is_file() else None})
    else:
        config.update({"dataset_dir": str(ROOT / "data/mni152")})
    config["label_dir"] = arguments.labels
    return config


def main() -> None:
    """Time, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set; by default the built-in one")
    parser.add_argument("--labels", help="its folder of labels")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile, which needs a C++ compiler")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    config = configuration(arguments)
    reading, loader = timed(lambda: config.get_parsed_content("train#dataloader"))
    batches = iter(loader)  # type: ignore[call-overload]
    next(batches)
    drawn = [timed(lambda: next(batches)) for _ in range(arguments.iterations)]
    patches = 1000 * statistics.median(seconds for seconds, _ in drawn)
    image, target = PrepareSparseBatch()(drawn[-1][1])[:2]
    loss = config.get_parsed_content("loss")
    steps = variants(config, arguments.compile)
    for _ in range(arguments.iterations + 2):
        for step in steps.values():
            step(image, target, loss)

    parts = steps[PRESET].milliseconds()
    whole = patches + sum(parts)
    title = f"An iteration of {PRESET}: {tuple(image.shape)}, {1000 * len(image) / whole:.1f} patches/s"
    made = table(title, "part", "ms", "share")
    for name, value in zip(("patches", *PARTS), (patches, *parts)):
        made.add_row(name, f"{value:.0f}", f"{value / whole:.0%}")
    show(made)

    made = table("Network, loss and optimizer with one thing otherwise", "", *PARTS, "sum", "ratio to the preset")
    for name, step in steps.items():
        values = step.milliseconds()
        made.add_row(name, *(f"{v:.0f}" for v in (*values, sum(values))), f"{sum(values) / sum(parts):.2f}")
    show(made)

    evaluator = config.get_parsed_content("validate#evaluator")
    evaluator.run()  # reads
    seconds, _ = timed(evaluator.run)
    print(f"Reading and checking the training volumes, once: {reading:.1f} s. A validation: {seconds:.1f} s.")


if __name__ == "__main__":
    main()
