"""`sparse3dunet package`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet.cli import options
from sparse3dunet.interrupts import ended_at_once


def package(
    model: Annotated[Path, typer.Argument(help="A training's folder, or its model.pt.")],
    output_dir: options.OutputDir,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "sparse3dunet_segmentation",
    version: Annotated[str | None, typer.Option(help="Version of the bundle; default: sparse3dunet's.")] = None,
    data_license: Annotated[
        Path | None, typer.Option(help="Text file with the licence of the data that the model was trained on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an unchanged earlier bundle.")] = False,
) -> None:
    """Write a trained model as a self-contained MONAI bundle: the folder NAME and NAME-VERSION.zip."""
    with ended_at_once():
        from sparse3dunet import __version__
        from sparse3dunet.bundle import package as packaging

    done = packaging.package(
        model, output_dir, name, version=version or __version__, data_license=data_license, overwrite=overwrite
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"Packaged {model}: {done.folder} and {done.archive}")
