"""`sparse3dunet plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet.cli import arguments, options
from sparse3dunet.errors import DataError
from sparse3dunet.interrupts import ended_at_once


def plan(
    context: typer.Context,
    data: Annotated[str, typer.Argument(help="Decathlon or nnU-Net raw folder, folder of pairs, or JSON datalist.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the plan: plan.json.")] = None,
    overlay: options.Overlay = None,
    minutes: Annotated[float | None, typer.Option(help="Duration of the training that is planned.")] = None,
    label_dir: options.LabelDir = None,
    ignore_index: options.IgnoreIndex = None,
    annotated_slices: options.AnnotatedSlices = None,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    volume_memory: options.VolumeMemory = None,
    series: options.Series = None,
    segments: options.Segments = None,
) -> None:
    """Plan a training from its data: voxel size, patches, network, normalisation, sampling, each with its reason.

    A training makes the same plan by itself; --plan plan.json takes one from a file, for example one that you changed.
    Any setting of bundle/configs/train.yaml can follow, such as --spacing median.
    """
    with ended_at_once():
        from sparse3dunet import io
        from sparse3dunet.bundle import running
        from sparse3dunet.io.defaults import set_defaults
        from sparse3dunet.planning.plan import check_replaceable

    set_defaults(voxel_size, axes, series=series, segments=segments, volume_memory=volume_memory)
    if output is not None:
        output = output.expanduser()
        if output.is_dir():
            raise DataError(f"{output} is a folder; pass a file for the plan, such as {output / 'plan.json'} (-o).")
        io.check_output_dir(output.absolute().parent)
        check_replaceable(output)
    given = {
        "dataset_dir": data,
        "plan_output": None if output is None else str(output),
        "minutes": minutes,
        "label_dir": label_dir,
        "ignore_index": arguments.numbers(ignore_index, "--ignore-index"),
        "annotated_slices": arguments.slices(annotated_slices),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    with arguments.as_typed(context, context.args):
        running.run_quietly("planning", {**chosen, **running.parse_settings(context.args)}, overlay or [])
