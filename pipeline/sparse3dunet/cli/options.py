"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the results.")]
IgnoreIndex = Annotated[str | None, typer.Option(help="Value or values of unlabeled voxels: 255 or 4,255.")]
Background = Annotated[int | None, typer.Option(help="Value of the background; default: as declared, else the lowest.")]
AnnotatedSlices = Annotated[
    str | None, typer.Option(help='"axial", "coronal", "sagittal", "all", or JSON as in a datalist.')
]
Format = Annotated[str | None, typer.Option(help="nii.gz, nii, nrrd, mha or seg.nrrd; default: each image's own.")]
Overlay = Annotated[
    list[str] | None,
    typer.Option(help="Config to override the bundle's: a file, or cpu, gpu, multi_gpu_train, for example."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")]
