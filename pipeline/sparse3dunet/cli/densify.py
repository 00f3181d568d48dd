"""`sparse3dunet densify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet.cli import arguments


def densify(
    context: typer.Context,
    sources: Annotated[
        list[str], typer.Argument(help="A scan and its annotation; or a folder or JSON datalist of several.")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the results.")],
    minutes: Annotated[float, typer.Option(help="For all of it.")] = 5.0,
    ignore_index: Annotated[str | None, typer.Option(help="Unlabeled voxels' value or values: 255 or 4,255.")] = None,
    annotated_slices: Annotated[
        str | None, typer.Option(help='"axial", "coronal", "sagittal", "all", or JSON as in a datalist.')
    ] = None,
    class_names: Annotated[str | None, typer.Option(help="background,liver,tumor; default: as declared.")] = None,
    label_dir: Annotated[str | None, typer.Option(help="Folder of several, with their labels.")] = None,
    weight_dir: Annotated[str | None, typer.Option(help="Folder of several, with their weight images.")] = None,
    spacing: Annotated[
        str, typer.Option(help='Voxel size in mm to compute with: auto, null (as it is), median, or "1,1,1".')
    ] = "auto",
    folds: Annotated[
        str, typer.Option(help="Parts of the slices that are held out in turn, to tell the quality: auto, 0, 1, 3.")
    ] = "auto",
    suggestions: Annotated[int, typer.Option(help="Slices of each plane to annotate next.", min=0)] = 3,
    keep_annotation: Annotated[
        bool, typer.Option("--keep-annotation/--as-predicted", help="Annotated voxels keep their label.")
    ] = True,
    format: Annotated[str | None, typer.Option(help="nii.gz, nii, nrrd, mha or seg.nrrd; default: the scan's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is random.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what a former run in the folder learned.")] = False,
    anew: Annotated[bool, typer.Option("--anew", hidden=True)] = False,
) -> None:
    """Segment all of a scan of which some slices are annotated; tell how good it is, and what to annotate next.

    Run again, it goes on: with what else is annotated by then, it starts from the last model. Ctrl-C ends it early.
    Any setting of bundle/configs/densify.yaml can follow, as --learning_rate 0.001.
    """
    from sparse3dunet import io
    from sparse3dunet.bundle import running
    from sparse3dunet.densify import inputs

    if anew:
        print("--anew is now called --restart; the old name will go.", file=sys.stderr)
    # What typer does not know, a setting of the config, ends up behind the sources.
    known = next((i for i, text in enumerate(sources) if text.startswith("--")), len(sources))
    extra = running.parse_settings([*sources[known:], *context.args])
    sources = sources[:known]
    ignored, slices = arguments.numbers(ignore_index, "--ignore-index"), arguments.slices(annotated_slices)
    io.check_output_dir(output_dir)
    dataset = inputs.prepare(sources, output_dir / "work" / "inputs", ignore_index=ignored, annotated_slices=slices)
    own_format = io.natural_suffix(sources[0]) if len(sources) == 2 else None
    given = {
        "dataset_dir": str(dataset),
        "output_dir": str(output_dir),
        "minutes": minutes,
        "ignore_index": ignored,
        "annotated_slices": slices,
        "given_names": arguments.names(class_names) or None,
        "label_dir": label_dir,
        "weight_dir": weight_dir,
        "spacing": arguments.spacing(spacing),
        "folds": arguments.folds(folds),
        "suggestions": suggestions,
        "keep_annotation": keep_annotation,
        "format": format or own_format,
        "device": device if device is None else str(arguments.device(device)),
        "seed": seed,
        "restart": restart or anew,
    }
    set_values = {name: value for name, value in given.items() if value is not None or name == "spacing"}
    running.run_quietly("densify", {**set_values, **extra})
