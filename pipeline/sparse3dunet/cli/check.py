"""`sparse3dunet check`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet import missing
from sparse3dunet.cli import arguments, options
from sparse3dunet.errors import DataError
from sparse3dunet.interrupts import ended_at_once


def check(
    data: Annotated[Path, typer.Argument(help="Decathlon or nnU-Net raw folder, folder of pairs, or JSON datalist.")],
    label_dir: options.LabelDir = None,
    weight_dir: Annotated[str | None, typer.Option(help="Folder in DATA with weight images.")] = None,
    reference_dir: Annotated[str | None, typer.Option(help="Folder in DATA with dense labels for scoring.")] = None,
    ignore_index: options.IgnoreIndex = None,
    background: options.Background = None,
    annotated_slices: options.AnnotatedSlices = None,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    volume_memory: options.VolumeMemory = None,
    series: options.Series = None,
    segments: options.Segments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    all_cases: Annotated[bool, typer.Option("--all", help="List each case and error.")] = False,
) -> None:
    """Check every file of a data set, and list its contents and errors. Exit status 1 on errors."""
    try:
        missing.check_data_set(str(data))
        with ended_at_once():
            from sparse3dunet.data import check_report, checks
            from sparse3dunet.data.datalist import read_data_set
            from sparse3dunet.data.partial_labels import never_looked_for
            from sparse3dunet.data.set_conventions import with_marks
            from sparse3dunet.io.defaults import set_defaults

        set_defaults(voxel_size, axes, series=series, segments=segments, volume_memory=volume_memory)
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # nothing but JSON there
            data_set = read_data_set(
                data,
                label_dir=label_dir,
                weight_dir=weight_dir,
                reference_dir=reference_dir,
                ignore_index=arguments.numbers(ignore_index, "--ignore-index"),
                annotated_slices=arguments.slices(annotated_slices),
            )
            data_set = checks.complete(with_marks(data_set, background=background), background=background)
            report = checks.inspect(data_set)
            names, values = data_set.class_names, data_set.class_values
            report.errors += never_looked_for(data_set.cases, names, values, data_set.source)
    except DataError as error:
        if as_json:
            print(json.dumps({"ok": False, "errors": [str(error)], "warnings": []}, indent=1))
        raise
    if as_json:
        print(check_report.as_json(report))
    else:
        check_report.show(report, all_cases=all_cases)
    if report.all_errors:
        raise typer.Exit(1)
