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
Format = Annotated[
    str | None,
    typer.Option(
        help="Default: own. Or nii.gz, nii, nrrd, mha, seg.nrrd, ome.tif, tif, ome.zarr, h5, dicom-seg, rtstruct."
    ),
]
VoxelSize = Annotated[
    str | None,
    typer.Option(help="Voxel size along x, y, z of files without one (TIFF, HDF5), with its unit: 0.5,0.5,2um."),
]
Axes = Annotated[
    str | None, typer.Option(help="Axes of files that state none, slowest first, c for channels: zyx, czyx, zyxc.")
]
VolumeMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory for one volume, 8GiB; larger ones of OME-Zarr and HDF5 are read chunk by chunk. Default: half of "
        "the machine's."
    ),
]
Series = Annotated[str | None, typer.Option(help="UID or number of the DICOM series to read in a folder of several.")]
Reference = Annotated[
    str | None,
    typer.Option(
        help="Dense label of the scan, or folder of those of several, to score the result; nothing is learned from it."
    ),
]
Segments = Annotated[
    str | None,
    typer.Option(
        help="Segments of a DICOM or Slicer annotation to use, later over earlier ones: liver,tumor. In double quotes, "
        "if a name has a comma: '\"Lung, left\",tumor'."
    ),
]
Overlay = Annotated[
    list[str] | None,
    typer.Option(help="Config to override the bundle's: a file, or cpu, gpu, multi_gpu_train, for example."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the program of an app; its data stay.")]
LabelDir = Annotated[str | None, typer.Option(help="Folder in DATA with the labels.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")]
