"""`sparse3dunet simulate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse3dunet.cli import arguments, options
from sparse3dunet.errors import DataError
from sparse3dunet.interrupts import ended_at_once


def simulate(
    labels: Annotated[Path, typer.Argument(help="Dense label map, or a folder of them.")],
    output_dir: options.OutputDir,
    slices: Annotated[str | None, typer.Option(help="Slices to keep per array axis: 3 or 7,5,21.")] = None,
    placement: Annotated[
        str, typer.Option(help="Placement: equidistant, random, or foreground (random among slices that cross it).")
    ] = "equidistant",
    fraction: Annotated[float | None, typer.Option(help="Or: random share of the voxels to keep.")] = None,
    scribbles: Annotated[int | None, typer.Option(help="Or: number of random-walk scribbles to keep.")] = None,
    length: Annotated[int, typer.Option(help="Length of a scribble, in voxels.")] = 50,
    width: Annotated[int, typer.Option(help="Width of a scribble, in voxels.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed; a file's draw depends on it and the file's name only.")] = 0,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    series: options.Series = None,
    segments: options.Segments = None,
    ignore_index: Annotated[int | None, typer.Option(help="Value of unlabeled voxels; default: largest + 1.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image that a DICOM structure set was drawn on.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are no former copies.")] = False,
) -> None:
    """Make sparse label maps from dense ones, for experiments: how much annotation is needed?"""
    with ended_at_once():
        from sparse3dunet import transforms
        from sparse3dunet.data import simulation
        from sparse3dunet.io.defaults import set_defaults

    set_defaults(voxel_size, axes, series=series, segments=segments)
    kinds = {"--slices": slices, "--fraction": fraction, "--scribbles": scribbles}
    if sum(option is not None for option in kinds.values()) != 1:
        given = [name for name, option in kinds.items() if option is not None]
        raise DataError(
            f"found {' and '.join(given) or 'no option'} for what to keep; expected exactly one of {', '.join(kinds)}. "
            "Pass one, for example --slices 3."
        )
    keep: Any
    if slices is not None:
        counts = arguments.numbers(slices, "--slices") or []
        keep = transforms.KeepSlices(counts[0] if len(counts) == 1 else counts, placement)
    elif fraction is not None:
        keep = transforms.KeepFraction(fraction)
    else:
        keep = transforms.KeepScribbles(scribbles or 0, length, width)
    output_dir = output_dir.expanduser()
    done = simulation.simulate(labels, output_dir, keep, seed, ignore_index, image, overwrite)
    for note in done.notes:
        print(f"note: {note}")
    print(
        f"Wrote {len(done.files)} label map(s) to {output_dir}: {sum(done.shares) / len(done.shares):.2%} of the "
        f"voxels kept; the others are {done.ignore_index} (unlabeled)."
    )
    in_slices = slices is not None
    step = next_step(labels.expanduser(), done.files, done.ignore_index, in_slices, segments, done.leaves_out)
    print(f"Next: {step}")


def next_step(
    labels: Path,
    copies: Sequence[Path],
    ignore_index: int,
    in_slices: bool,
    segments: str | None = None,
    leaves_out: bool = False,
) -> str:
    """Return what to do with sparse copies of dense labels, as a command.

    Args:
        labels: the dense label map, or the folder of several.
        copies: the sparse ones.
        ignore_index: value of unlabeled voxels in them.
        in_slices: whether whole slices are kept, around which this value is inferred.
        segments: names of the segments that copies have alone, as an option; None for all.
        leaves_out: whether the dense labels have others, or other values for these: then they cannot be references of
            data sets, in which segments are told by value.
    """
    from sparse3dunet.io.volumes import UNLABELED_VALUE

    is_clear = in_slices or ignore_index == UNLABELED_VALUE or ignore_index < 0
    if len(copies) == 1:
        values = [] if is_clear else ["--ignore-index", str(ignore_index)]
        is_named = copies[0].name.endswith(".seg.nrrd")
        if segments is not None and is_named:
            values += ["--segments", segments]
        dense = ["--reference", str(labels)] if labels.is_file() and (segments is None or is_named) else []
        return f"sparse3dunet densify SCAN {shlex.join([str(copies[0]), '-o', 'OUT', *values, *dense])}"
    root, folder = labels.absolute().parent, copies[0].absolute().parent
    values = [] if is_clear or (root / "dataset.json").is_file() else ["--ignore_index", str(ignore_index)]
    if not folder.is_relative_to(root):
        where = "beside the folder of the images, then"
        return f"put {shlex.quote(str(copies[0].parent))} {where}: sparse3dunet run training --dataset_dir DATA " + (
            shlex.join(["--label_dir", folder.name, *values])
        )
    places = ["--dataset_dir", str(labels.parent), "--label_dir", str(folder.relative_to(root))]
    dense = [] if leaves_out else ["--reference_dir", labels.name]
    return shlex.join(["sparse3dunet", "run", "training", *places, *dense, *values])
