"""`sparse3dunet densify`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse3dunet import missing
from sparse3dunet.cli import annotate, arguments, options
from sparse3dunet.errors import DataError
from sparse3dunet.interrupts import ended_at_once

Sources = Annotated[
    list[str], typer.Argument(help="A scan and its annotation; or a folder or JSON datalist of several.")
]
Spacing = Annotated[
    str, typer.Option(help='Voxel size in mm to compute with: auto, null (as it is), median, or "1,1,1".')
]
Folds = Annotated[
    str, typer.Option(help="Parts of the slices that are held out in turn to estimate the quality: auto, 0, 1, 3.")
]
ClassNames = Annotated[
    str | None, typer.Option(help="background,liver,tumor, or ITK-SNAP's labels.txt; default: as declared.")
]
KeepAnnotation = Annotated[
    bool, typer.Option("--keep-annotation/--as-predicted", help="Keep the label of annotated voxels.")
]


def densify(
    context: typer.Context,
    sources: Sources,
    output_dir: options.OutputDir,
    minutes: Annotated[float, typer.Option(help="Time for the whole run.")] = 5.0,
    ignore_index: options.IgnoreIndex = None,
    background: options.Background = None,
    annotated_slices: options.AnnotatedSlices = None,
    class_names: ClassNames = None,
    label_dir: Annotated[str | None, typer.Option(help="Folder with the labels of several volumes.")] = None,
    weight_dir: Annotated[str | None, typer.Option(help="Folder with the weight images of several volumes.")] = None,
    reference: options.Reference = None,
    spacing: Spacing = "auto",
    folds: Folds = "auto",
    suggestions: Annotated[int, typer.Option(help="Slices per plane to suggest for annotation.", min=0)] = 3,
    keep_annotation: KeepAnnotation = True,
    format: options.Format = None,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    volume_memory: options.VolumeMemory = None,
    series: options.Series = None,
    segments: options.Segments = None,
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Start over, without the model of the last run.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Show the result in the browser, to correct it.")] = False,
    anew: Annotated[bool, typer.Option("--anew", hidden=True)] = False,
) -> None:
    """Segment a whole scan from some annotated slices; estimate the quality, and suggest what to annotate next.

    Run again, also with more annotation, it starts from the last model. Ctrl-C ends it early. Any setting of
    bundle/configs/densify.yaml can follow, such as --learning_rate 0.001.
    """
    sources, settings = _without_settings(sources)
    missing.check_sources(sources)
    with ended_at_once():
        from sparse3dunet import io
        from sparse3dunet.bundle import running
        from sparse3dunet.densify.large import densify_large, is_large_pair
        from sparse3dunet.densify.made import naming_sources
        from sparse3dunet.io import folders
        from sparse3dunet.io.defaults import set_defaults

    set_defaults(voxel_size, axes, series=series, segments=segments, volume_memory=volume_memory)
    words = [*settings, *context.args]
    extra = _settings(words)
    ignored, slices = arguments.numbers(ignore_index, "--ignore-index"), arguments.slices(annotated_slices)
    is_large = is_large_pair(sources)
    if open_page:
        _check_page(len(sources) == 2 and not is_large)
    with arguments.as_typed(context, words):
        running.check_run("training" if is_large else "densify", [], extra)
    given = {
        "ignore_index": ignored,
        "background": background,
        "annotated_slices": slices,
        "given_names": arguments.class_names(class_names),
        "label_dir": label_dir,
        "weight_dir": weight_dir,
        "reference_dir": reference if len(sources) == 1 else None,
        "spacing": arguments.spacing(spacing),
        "folds": arguments.folds(folds),
        "suggestions": suggestions,
        "keep_annotation": keep_annotation,
        "format": format or (io.natural_suffix(sources[0]) if len(sources) == 2 else None),
        "device": device if device is None else str(arguments.device(device)),
        "seed": seed,
        "restart": restart or _is_renamed(anew),
    }
    set_values = {name: value for name, value in given.items() if value is not None or name == "spacing"}
    if is_large and reference is not None:
        raise DataError("--reference: a scan larger than memory cannot be scored. Leave it out.")
    with _held(output_dir) as output_dir:
        if is_large:
            densify_large(sources, output_dir, minutes, set_values, extra)
            return
        dataset = _prepared(sources, output_dir, ignored, slices, reference, format)
        places = {"dataset_dir": dataset, "output_dir": str(output_dir), "minutes": minutes}
        with naming_sources(dataset):
            running.run_quietly("densify", {**places, **set_values, **extra})
    if open_page:
        folders.release_folder(output_dir)  # for the page's own runs
        annotate.annotate(
            sources[0],
            output_dir,
            sources[1],
            class_names,
            minutes,
            ignore_index=ignore_index,
            annotated_slices=annotated_slices,
            background=background,
            device=device,
            reference=_without_names(reference),
        )


def _settings(words: list[str]) -> dict[str, Any]:
    """Return the settings of the config among the words of the command line."""
    from sparse3dunet.bundle import running

    settings = running.parse_settings(words)
    if "class_names" in settings:  # of the config, where it is a result
        raise DataError("--class_names: there is no such setting. Did you mean --class-names?")
    return settings


def _prepared(
    sources: list[str], output_dir: Path, ignored: Any, slices: Any, reference: str | None, format: str | None
) -> str:
    """Return the data set to densify; that of a scan and its annotation is made in the folder for results."""
    from sparse3dunet.densify import inputs
    from sparse3dunet.io import suffixes

    return inputs.prepare(
        sources,
        output_dir / "work" / "inputs",
        ignore_index=ignored,
        annotated_slices=slices,
        reference=reference if len(sources) == 2 else None,
        keep_dicom=suffixes.format_suffix(format) in suffixes.DICOM_SUFFIXES,
    )


def _without_names(reference: str | None) -> str | None:
    """Return a dense label for the page's own runs; None, which is told, if it tells classes by name."""
    if reference is None or not annotate.tells_names(reference):
        return reference
    print(f"note: runs of the page are not scored by {reference}, which tells classes by name.")
    return None


def _check_page(is_one_scan: bool) -> None:
    """Raise DataError if the result cannot be shown in the browser."""
    annotate.check_page()
    if not is_one_scan:
        raise DataError("--open shows one scan that fits into memory; pass a scan and its annotation, or leave it out.")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """Check and hold the folder for results; after an error, remove one that was made, and has no result in it."""
    from sparse3dunet import io
    from sparse3dunet.io import folders

    folder = folder.expanduser()
    is_new = not os.path.lexists(folder)
    io.check_output_dir(folder)
    io.hold_folder(folder)
    try:
        yield folder
    except Exception:
        if is_new:
            folders.discard_folder(folder, folder / "work" / "inputs")
        raise


def _is_renamed(anew: bool) -> bool:
    """Return the value of the option's old name, which is told."""
    if anew:
        print("--anew is now called --restart; the old name will be removed.", file=sys.stderr)
    return anew


def _without_settings(sources: list[str]) -> tuple[list[str], list[str]]:
    """Split sources from what follows: an option that typer does not know, a setting of the config, ends up there."""
    known = next((i for i, text in enumerate(sources) if text.startswith("--")), len(sources))
    return sources[:known], sources[known:]
