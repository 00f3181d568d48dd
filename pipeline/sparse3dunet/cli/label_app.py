"""`sparse3dunet label-app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet.cli import options


def label_app(
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the app.")],
    class_names: Annotated[str, typer.Option(help="Structures, in the order of the segments: liver,tumor.")],
    overwrite: options.Overwrite = False,
) -> None:
    """Write an app for MONAI Label: annotate some slices in 3D Slicer, and get the whole segmentation there."""
    from sparse3dunet.annotate.label_app import write_app

    folder = write_app(output_dir, class_names.split(","), overwrite)
    print(f"Wrote {folder}. In MONAI Label's environment: monailabel start_server --app {folder} --studies SCANS")
