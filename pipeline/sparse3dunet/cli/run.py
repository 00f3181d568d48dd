"""`sparse3dunet run`."""

from __future__ import annotations

from typing import Annotated

import typer

from sparse3dunet.cli import options


def run(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="training, evaluating, inference, cross_validating or densify.")],
    overlay: options.Overlay = None,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    volume_memory: options.VolumeMemory = None,
    series: options.Series = None,
    segments: options.Segments = None,
) -> None:
    """Run the bundle, with any of its settings, such as --dataset_dir FOLDER --max_epochs 20 (see bundle/configs).

    Like python -m monai.bundle run, except that settings are checked first and must be plain values.
    """
    from sparse3dunet.bundle.running import run_bundle
    from sparse3dunet.io.defaults import set_defaults

    set_defaults(voxel_size, axes, series=series, segments=segments, volume_memory=volume_memory)
    run_bundle(what, overlay or [], context.args)
