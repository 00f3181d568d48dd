"""Measure the time to deform a patch: ours against bare resampling and other libraries, in one run.

    python benchmarks/augmentation.py [--repeats 15] [--sizes 64x64x64 132x132x116] [--threads 2]

Prints the machine, tables of milliseconds per patch, and whether the goals are met. Libraries that do not import are
left out (extra `bench`; elasticdeform's wheel is for NumPy 1: give pip `--no-binary elasticdeform`). Each rotates,
scales and bends every patch. All take turns, in an order drawn anew for each turn, so that what else the machine does
hits all alike. The patch is smooth noise: times hardly depend on what it shows.

- bare resampling: a call of torch's grid_sample for each key, on a grid that is there already. With a single volume it
  uses one core. "in parts": the same on all cores, the grid cut in parts and the volume passed as often.
- sparse3dunet, elasticdeform, TorchIO: control points 32 voxels apart, moved by 4 (sd); TorchIO's move voxels by less.
- MONAI: Rand3DElasticd as this bundle had it, 0.5 to 2.5 voxels; a bend as smooth and strong as the others' costs more.
  Its RandGridDistortion is left out: it stretches along the axes, which is no elastic deformation.
- batchgeneratorsv2: smoothed noise, 10 voxels at most; mode_seg "nearest", as all others (its default costs more).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import os
import platform
import random
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import rich
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Rand3DElasticd
from monai.transforms.utils import create_rotate, create_scale
from rich.table import Column, Table
from torch.nn.functional import affine_grid, grid_sample, interpolate

from sparse3dunet import __version__
from sparse3dunet.transforms import RandBSplineElasticd

Patch = dict[str, torch.Tensor]
Call = Callable[[], object]
Library = Callable[[Patch], dict[str, Call]]

LIBRARIES = {"monai", "torchio", "simpleitk", "batchgeneratorsv2", "elasticdeform", "torch", "numpy", "scipy"}
SPACING, DISPLACEMENT, ROTATION, SCALING = 32, 4.0, 0.3, 0.2  # voxels, voxels, radians, fraction
TWO = {"keys": ["image", "label"], "mode": ["bilinear", "nearest"], "padding_mode": ["border", "zeros"]}
THREE = {name: [*of_two, of_two[1]] for name, of_two in TWO.items()} | {"keys": ["image", "label", "weight"]}
BARE, PARTS, OURS, MONAI = "bare resampling", "bare, in parts", "sparse3dunet", "MONAI Rand3DElasticd"
BEND, INTENSITY = "sparse3dunet, bend alone", "intensity chain"
INTENSITY_DRAWS = 100  # its transforms are skipped most of the time: so an average of many
MOST_OVER_BARE, LEAST_FASTER = 1.25, 7


def noise(channels: int, size: Sequence[int], spacing: int) -> torch.Tensor:
    """Return (channels, *size): normal random numbers about `spacing` voxels apart, interpolated between."""
    coarse = torch.randn(1, channels, *(n // spacing + 2 for n in size))
    return interpolate(coarse, size=tuple(size), mode="trilinear")[0]


def make_patch(size: Sequence[int]) -> Patch:
    """An image, a label of four classes, and a weight."""
    label = torch.bucketize(noise(1, size, 16), torch.tensor([-0.5, 0.0, 0.5])).to(torch.int16)
    return {"image": noise(1, size, 8), "label": label, "weight": (noise(1, size, 16) > 0).float()}


def make_grid(size: Sequence[int]) -> torch.Tensor:
    """(1, *size, 3): a typical deformation, ready for grid_sample."""
    matrix = create_rotate(3, [ROTATION / 2] * 3) @ create_scale(3, [1 + SCALING / 2] * 3)
    grid = affine_grid(torch.from_numpy(matrix[None, :3]).float(), [1, 1, *size], align_corners=False)
    return grid + noise(3, size, SPACING).permute(1, 2, 3, 0) * DISPLACEMENT * 2 / torch.tensor(size[::-1])


def bare(patch: Patch, sampling: dict[str, list[str]], grid: torch.Tensor, most_parts: int = 1) -> Call:
    """Bare resampling, which every deformation needs."""
    parts = next(n for n in range(most_parts, 0, -1) if grid.shape[1] % n == 0)
    grids = grid.view(parts, -1, *grid.shape[2:])
    volumes = [patch[key].float().expand(parts, *patch[key].shape) for key in sampling["keys"]]
    plan = list(zip(volumes, sampling["mode"], sampling["padding_mode"]))
    return lambda: [grid_sample(volume, grids, mode, padding, align_corners=False) for volume, mode, padding in plan]


def ours(patch: Patch, sampling: dict[str, list[str]], rotation: float = ROTATION, scaling: float = SCALING) -> Call:
    """The transform of this package."""
    bend = {"control_spacing": SPACING, "displacement": DISPLACEMENT}
    transform = RandBSplineElasticd(**sampling, **bend, prob=1, rotate_range=rotation, scale_range=scaling)
    return lambda: transform(patch)


def monai(patch: Patch) -> dict[str, Call]:
    """MONAI's elastic deformation, as the bundle had it."""
    bend = {"sigma_range": (4, 6), "magnitude_range": (50, 200)}
    affine = {"rotate_range": [ROTATION] * 3, "scale_range": [SCALING] * 3}
    transform = Rand3DElasticd(**TWO, **bend, **affine, prob=1)
    return {MONAI: lambda: transform(patch)}


def torchio(patch: Patch) -> dict[str, Call]:
    """TorchIO's: the bend (of uniform displacements), an affine transform after it, and both in one resampling."""
    import SimpleITK
    import torchio as tio

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    subject = tio.Subject(image=tio.ScalarImage(tensor=patch["image"]), label=tio.LabelMap(tensor=patch["label"]))
    points = tuple(math.ceil(n / SPACING) + 3 for n in patch["image"].shape[1:])
    bend = {"num_control_points": points, "max_displacement": DISPLACEMENT * math.sqrt(3), "locked_borders": 0}
    affine = {"scales": SCALING, "degrees": math.degrees(ROTATION)}
    elastic = tio.RandomElasticDeformation(**bend)
    composed = tio.Compose([elastic, tio.RandomAffine(**affine)])
    at_once = tio.RandomAffineElasticDeformation(affine_kwargs=affine, elastic_kwargs=bend)
    return {
        "TorchIO Elastic alone": lambda: elastic(subject),
        "TorchIO Elastic + Affine": lambda: composed(subject),
        "TorchIO AffineElastic": lambda: at_once(subject),
    }


def batchgeneratorsv2(patch: Patch) -> dict[str, Call]:
    """nnU-Net's transform, which has no bend by default."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    bend = {"p_elastic_deform": 1, "elastic_deform_scale": 0.2, "elastic_deform_magnitude": 10}
    affine = {"p_rotation": 1, "rotation": (-ROTATION, ROTATION), "p_scaling": 1, "scaling": (1 - SCALING, 1 + SCALING)}
    modes = {"mode_seg": "nearest", "border_mode_seg": "zeros", "padding_mode_image": "border"}
    transform = SpatialTransform(patch["image"].shape[1:], 0, random_crop=False, **bend, **affine, **modes)
    return {"batchgeneratorsv2": lambda: transform(image=patch["image"], segmentation=patch["label"])}


def elasticdeform(patch: Patch) -> dict[str, Call]:
    """Control points in C. In three dimensions it takes rotation and scaling as a matrix."""
    from elasticdeform import deform_random_grid

    volumes = [patch[key][0].numpy() for key in TWO["keys"]]
    middle = (np.array(volumes[0].shape) - 1) / 2
    points = [math.ceil((n - 1) / SPACING) + 1 for n in volumes[0].shape]

    def call() -> object:
        matrix = create_rotate(3, np.random.uniform(-ROTATION, ROTATION, 3))[:3, :3]
        matrix = matrix * np.random.uniform(1 - SCALING, 1 + SCALING, 3)
        affine = np.column_stack([matrix, middle - matrix @ middle])
        return deform_random_grid(volumes, DISPLACEMENT, points, [1, 0], ["nearest", "constant"], affine=affine)

    return {"elasticdeform": call}


def intensity(patch: Patch) -> Call:
    """Intensity transforms of the bundle's training."""
    parser = ConfigParser()
    parser.read_config(Path(__file__).parents[1] / "bundle" / "configs" / "train.yaml")
    transform = Compose(parser.get_parsed_content("train#intensity")).set_random_state(0)
    return lambda: transform({"image": patch["image"]})


def imports(library: str) -> bool:
    """Return whether a library can be imported; print why not."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # NumPy writes a page about what was compiled with another one
            importlib.import_module(library)
        return True
    except ImportError as error:
        print(f"{library} is skipped, as it cannot be imported: {error}")
        return False


def take_turns(calls: dict[str, Call], repeats: int) -> dict[str, np.ndarray]:
    """Return the seconds of each call, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name in random.sample(list(calls), len(calls)):
            started = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def ratio(times: dict[str, np.ndarray], name: str, reference: str) -> float:
    """Return the ratio of the medians."""
    return float(np.median(times[name]) / np.median(times[reference]))


def show(title: str, times: dict[str, np.ndarray]) -> None:
    """Print a table."""
    numbers = [Column(heading, justify="right") for heading in ("median", "quartiles", "mean", "x bare", "x ours")]
    table = Table("", *numbers, title=f"{title} (milliseconds)", title_justify="left")
    for name, seconds in times.items():
        low, median, high, mean = 1e3 * np.array([*np.quantile(seconds, [0.25, 0.5, 0.75]), seconds.mean()])
        ratios = [f"{ratio(times, name, reference):.2f}" for reference in (BARE, OURS)]
        table.add_row(name, f"{median:.1f}", f"{low:.1f}-{high:.1f}", f"{mean:.1f}", *ratios)
    rich.print(table)


def machine() -> str:
    """Return a description of the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    others = sorted({f"{d.name} {d.version}" for d in distributions() if d.name.lower() in LIBRARIES})
    versions = [platform.system(), f"Python {platform.python_version()}", f"sparse3dunet {__version__}", *others]
    return ", ".join([model, f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads", *versions])


def measure(size: Sequence[int], libraries: Sequence[Library], repeats: int) -> list[str]:
    """Print the tables of one size; return a line for each goal."""
    patch, grid, threads = make_patch(size), make_grid(size), torch.get_num_threads()
    two, three = (
        {BARE: bare(patch, keys, grid), PARTS: bare(patch, keys, grid, threads), OURS: ours(patch, keys)}
        for keys in (TWO, THREE)
    )
    others = {name: call for library in libraries for name, call in library(patch).items()}
    pairs = take_turns({**two, BEND: ours(patch, TWO, rotation=0, scaling=0), **others}, repeats)
    triples = take_turns(three, repeats)
    chain = take_turns({**two, INTENSITY: intensity(patch)}, INTENSITY_DRAWS)
    shape = "x".join(map(str, size))
    show(f"{shape}, image and label", pairs)
    show(f"{shape}, image, label and weight", triples)
    show(f"{shape}, and the intensity chain", chain)
    over, in_parts = ([ratio(times, OURS, name) for times in (pairs, triples)] for name in (BARE, PARTS))
    faster, share = ratio(pairs, MONAI, OURS), chain[INTENSITY].mean() / chain[OURS].mean()
    goals = {
        f"{over[0]:.2f} times bare resampling, {over[1]:.2f} with a weight, at most {MOST_OVER_BARE} wanted "
        f"(in parts: {in_parts[0]:.2f}, {in_parts[1]:.2f})": max(over) <= MOST_OVER_BARE,
        f"{faster:.1f} times faster than {MONAI}, at least {LEAST_FASTER} wanted": faster >= LEAST_FASTER,
        f"{INTENSITY} costs {share:.2f} of the deformation on average, less than 1 wanted": share < 1,
    }
    return [f"{'met' if met else 'NOT MET'}: {shape}: {text}" for text, met in goals.items()]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and SimpleITK")
    parser.add_argument("--sizes", nargs="+", default=["64x64x64", "132x132x116"], help="sizes of patches, in voxels")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    print(machine())
    libraries = [library for library in (monai, torchio, batchgeneratorsv2, elasticdeform) if imports(library.__name__)]
    goals = [measure([int(n) for n in size.split("x")], libraries, arguments.repeats) for size in arguments.sizes]
    print("\n".join(line for lines in goals for line in lines))


if __name__ == "__main__":
    main()
