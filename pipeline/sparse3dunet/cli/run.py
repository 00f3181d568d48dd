"""`sparse3dunet run`."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet import missing
from sparse3dunet.bundle.command_line import parse_settings
from sparse3dunet.cli import arguments, options
from sparse3dunet.interrupts import ended_at_once

BUILT_IN = "data/mni152"
"""Folder of the built-in data, which is made where it is used."""
ON_LABELS = ("training", "evaluating", "cross_validating", "densify")
"""Runs on one data set, by its path; inference takes patterns and lists too."""


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
    if what in ON_LABELS and (folder := _data_set(context.args)):
        missing.check_data_set(folder)
    with ended_at_once():
        from sparse3dunet.bundle.running import run_bundle
        from sparse3dunet.io.defaults import set_defaults

    set_defaults(voxel_size, axes, series=series, segments=segments, volume_memory=volume_memory)
    with arguments.as_typed(context, context.args):
        run_bundle(what, overlay or [], context.args)


def _data_set(words: Sequence[str]) -> str | None:
    """Return the path of the data set among the words of the command line; None if there is none, or it is unclear."""
    folder = parse_settings(words).get("dataset_dir")
    if not isinstance(folder, str) or glob.has_magic(folder):
        return None
    return None if Path(BUILT_IN) in (Path(folder), *Path(folder).parents) else folder
