"""`sparse3dunet predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet import missing
from sparse3dunet.cli import arguments, options
from sparse3dunet.interrupts import ended_at_once

TrainedModel = Annotated[
    Path, typer.Argument(help="A training's model.pt or folder, a model.ts, or a packaged bundle.")
]
Images = Annotated[
    list[str], typer.Argument(help="Images, folders, patterns, DICOM folders, or JSON datalists.", show_default=False)
]
Largest = Annotated[str | None, typer.Option(help='Keep only the largest component of these classes: "all", or names.')]
MinMl = Annotated[
    str | None, typer.Option(help="Remove components smaller than so many ml: 0.5, or by class: liver=5,tumor=0.1.")
]
Mirror = Annotated[
    str | None, typer.Option(help="Average over reflections: lr, ap, si (axes; lr,ap for several) or all.")
]
Dask = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Dask scheduler, whose workers predict; they need the same folders.")
]
Part = Annotated[str | None, typer.Option(help="3/16: only the third of 16 parts, as in a job of an array.")]
RoiSize = Annotated[str | None, typer.Option(help="Window size in voxels: 96 or 96,96,64; default: training's.")]


def predict(
    model: TrainedModel,
    images: Images,
    output_dir: options.OutputDir,
    format: options.Format = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write confidence maps, 0 to 255.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    largest: Largest = None,
    min_ml: MinMl = None,
    mirror: Mirror = None,
    overlap: Annotated[float, typer.Option(help="Overlap of windows, as a fraction.", min=0, max=0.95)] = 0.5,
    roi_size: RoiSize = None,
    precision: Annotated[str, typer.Option(help="auto (bfloat16 where it is fast), float32 or bfloat16.")] = "auto",
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    volume_memory: options.VolumeMemory = None,
    series: options.Series = None,
    device: options.Device = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw each image.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that were changed.")] = False,
    dask: Dask = None,
    part: Part = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only failures.")] = False,
) -> None:
    """Segment images with a trained model, each on its own grid. Images that are already done are skipped."""
    missing.check_prediction(str(model), images)
    with ended_at_once():
        from sparse3dunet.inference import run
        from sparse3dunet.inference.slabs import SlabInferer
        from sparse3dunet.io.defaults import set_defaults
        from sparse3dunet.models.loading import load_model

    set_defaults(voxel_size, axes, series=series, volume_memory=volume_memory)
    run.check_not_densified(output_dir)
    trained = load_model(model)
    inferer = SlabInferer(
        arguments.window(roi_size) or trained.patch_size,
        overlap,
        mirror_axes=arguments.axes(mirror),
        bfloat16=arguments.choice(precision, {"auto": None, "float32": False, "bfloat16": True}, "--precision"),
    )
    outcome = run.predict(
        trained,
        images,
        output_dir,
        inferer,
        device=device if dask else arguments.device(device),  # the workers' may not exist here
        format=format,
        confidence=confidence,
        probabilities=probabilities,
        pictures=pictures,
        largest=True if largest == "all" else arguments.names(largest),
        min_ml=arguments.volumes(min_ml),
        overwrite=overwrite,
        quiet=quiet,
        dask=dask,
        part=arguments.part(part),
    )
    run.report(outcome, output_dir)
