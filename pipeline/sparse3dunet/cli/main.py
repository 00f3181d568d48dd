"""The command ``sparse3dunet``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sparse3dunet.errors import TRACEBACK_VARIABLE, DataError

app = typer.Typer(
    help="Dense 3D segmentation from sparsely annotated volumes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _main() -> None:
    """Dense 3D segmentation from sparsely annotated volumes. Training: python -m monai.bundle run training."""


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Decathlon or nnU-Net raw folder, folder of pairs, or JSON datalist.")],
    label_dir: Annotated[str | None, typer.Option(help="Folder in DATA with the labels.")] = None,
    weight_dir: Annotated[str | None, typer.Option(help="Folder in DATA with weight images.")] = None,
    reference_dir: Annotated[str | None, typer.Option(help="Folder in DATA with dense labels for scoring.")] = None,
    ignore_index: Annotated[str | None, typer.Option(help="Unlabeled voxels' value or values: 255 or 4,255.")] = None,
    annotated_slices: Annotated[
        str | None, typer.Option(help='"axial", "coronal", "sagittal", "all", or JSON as in a datalist.')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    all_cases: Annotated[bool, typer.Option("--all", help="List each case and error.")] = False,
) -> None:
    """Look at every file of a data set: what is there, and what is wrong. Exit status 1 on errors."""
    from sparse3dunet.data import check_report, checks
    from sparse3dunet.data.datalist import read_data_set

    try:
        data_set = read_data_set(
            data,
            label_dir=label_dir,
            weight_dir=weight_dir,
            reference_dir=reference_dir,
            ignore_index=_numbers(ignore_index, "--ignore-index"),
            annotated_slices=_slices(annotated_slices),
        )
        report = checks.inspect(checks.complete(data_set))
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


@app.command()
def simulate(
    labels: Annotated[Path, typer.Argument(help="Dense label map, or a folder of them.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the sparse label maps.")],
    slices: Annotated[str | None, typer.Option(help="Slices to keep per array axis: 3 or 7,5,21.")] = None,
    placement: Annotated[
        str, typer.Option(help="Of slices: equidistant, random, or foreground (random among those that cross it).")
    ] = "equidistant",
    fraction: Annotated[float | None, typer.Option(help="Or: random share of the voxels to keep.")] = None,
    scribbles: Annotated[int | None, typer.Option(help="Or: scribbles to keep, by random walk in slices.")] = None,
    length: Annotated[int, typer.Option(help="Of a scribble, in voxels.")] = 50,
    width: Annotated[int, typer.Option(help="Of a scribble, in voxels.")] = 1,
    seed: Annotated[int, typer.Option(help="Of what is random; a file's draw depends on it and the name alone.")] = 0,
    ignore_index: Annotated[int | None, typer.Option(help="Value of unlabeled voxels; one past the largest.")] = None,
) -> None:
    """Make sparse label maps from dense ones, for experiments: how much annotation is needed?"""
    from sparse3dunet import transforms
    from sparse3dunet.data import simulation

    kinds = {"--slices": slices, "--fraction": fraction, "--scribbles": scribbles}
    if sum(option is not None for option in kinds.values()) != 1:
        given = [name for name, option in kinds.items() if option is not None]
        raise DataError(
            f"found {' and '.join(given) or 'no option'} for what to keep; expected exactly one of {', '.join(kinds)}. "
            "Pass one, --slices 3 for example."
        )
    keep: Any
    if slices is not None:
        counts = _numbers(slices, "--slices") or []
        keep = transforms.KeepSlices(counts[0] if len(counts) == 1 else counts, placement)
    elif fraction is not None:
        keep = transforms.KeepFraction(fraction)
    else:
        keep = transforms.KeepScribbles(scribbles or 0, length, width)
    done = simulation.simulate(labels, output_dir, keep, seed, ignore_index)
    print(
        f"Wrote {len(done.files)} label map(s) to {output_dir}: {sum(done.shares) / len(done.shares):.2%} of the "
        f"voxels kept, the others are {done.ignore_index} (unlabeled)."
    )


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.pt of a training, its folder, model.ts, or a packaged bundle.")],
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders, patterns, DICOM folders, or JSON datalists.", show_default=False),
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the results.")],
    format: Annotated[
        str | None, typer.Option(help="nii.gz, nii, nrrd, mha or seg.nrrd (3D Slicer's); default: each image's own.")
    ] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write confidence maps, 0 to 255.")] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write each class's probability.")
    ] = False,
    largest: Annotated[
        str | None, typer.Option(help='Keep only the largest component of these classes: "all", or names.')
    ] = None,
    min_ml: Annotated[
        str | None, typer.Option(help="Remove components that are smaller: 0.5, or by class: liver=5,tumor=0.1.")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Average over reflections: lr, ap, si (axes; lr,ap for several) or all.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Of windows, a fraction.", min=0, max=0.95)] = 0.5,
    roi_size: Annotated[
        str | None, typer.Option(help="Of windows, in voxels: 96 or 96,96,64; default: training's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto (bfloat16 where it is fast), float32 or bfloat16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw each image.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that were changed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print failures alone.")] = False,
) -> None:
    """Segment images with a trained model, each on its own grid. What is done already is skipped."""
    from sparse3dunet.inference import predict as prediction
    from sparse3dunet.inference.slabs import SlabInferer
    from sparse3dunet.models.description import load_model

    trained = load_model(model)
    inferer = SlabInferer(
        _window(roi_size) or trained.patch_size,
        overlap,
        mirror_axes=_axes(mirror),
        bfloat16=_choice(precision, {"auto": None, "float32": False, "bfloat16": True}, "--precision"),
    )
    outcome = prediction.predict(
        trained,
        images,
        output_dir,
        inferer,
        device=_device(device),
        format=format,
        confidence=confidence,
        probabilities=probabilities,
        pictures=pictures,
        largest=True if largest == "all" else _names(largest),
        min_ml=_volumes(min_ml),
        overwrite=overwrite,
        quiet=quiet,
    )
    prediction.report(outcome, output_dir)


@app.command()
def package(
    model: Annotated[Path, typer.Argument(help="A training's folder, or its model.pt.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder for the bundle.")],
    name: Annotated[str, typer.Option(help="Of the bundle.")] = "sparse3dunet_segmentation",
    version: Annotated[str | None, typer.Option(help="Of the bundle; default: that of sparse3dunet.")] = None,
    data_license: Annotated[
        Path | None, typer.Option(help="Text file with the licence of the data that the model was trained on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former bundle that is unchanged.")] = False,
) -> None:
    """Write a trained model as a MONAI bundle that needs nothing else: the folder NAME and NAME-VERSION.zip."""
    from sparse3dunet import __version__
    from sparse3dunet.bundle import package as packaging

    done = packaging.package(
        model, output_dir, name, version=version or __version__, data_license=data_license, overwrite=overwrite
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"Packaged {model}: {done.folder} and {done.archive}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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
    anew: Annotated[bool, typer.Option("--anew", help="Forget what a former run in the folder learned.")] = False,
) -> None:
    """Segment all of a scan of which some slices are annotated; tell how good it is, and what to annotate next.

    Run again, it goes on: with what else is annotated by then, it starts from the last model. Ctrl-C ends it early.
    Any setting of bundle/configs/densify.yaml can follow, as --learning_rate 0.001.
    """
    from sparse3dunet import io
    from sparse3dunet.bundle import running
    from sparse3dunet.densify import inputs

    # What typer does not know, a setting of the config, ends up behind the sources.
    known = next((i for i, text in enumerate(sources) if text.startswith("--")), len(sources))
    extra = running.parse_settings([*sources[known:], *context.args])
    sources = sources[:known]
    ignored, slices = _numbers(ignore_index, "--ignore-index"), _slices(annotated_slices)
    io.check_output_dir(output_dir)
    dataset = inputs.prepare(sources, output_dir / "work" / "inputs", ignore_index=ignored, annotated_slices=slices)
    own_format = io.natural_suffix(sources[0]) if len(sources) == 2 else None
    given = {
        "dataset_dir": str(dataset),
        "output_dir": str(output_dir),
        "minutes": minutes,
        "ignore_index": ignored,
        "annotated_slices": slices,
        "given_names": _names(class_names) or None,
        "label_dir": label_dir,
        "weight_dir": weight_dir,
        "spacing": _spacing(spacing),
        "folds": _folds(folds),
        "suggestions": suggestions,
        "keep_annotation": keep_annotation,
        "format": format or own_format,
        "device": device if device is None else str(_device(device)),
        "seed": seed,
        "anew": anew,
    }
    set_values = {name: value for name, value in given.items() if value is not None or name == "spacing"}
    running.run_quietly("densify", {**set_values, **extra})


def _spacing(text: str) -> Any:
    """As the config has it: a word, None, or three sizes."""
    if text in ("auto", "median"):
        return text
    if text in ("null", "none", "None"):
        return None
    try:
        sizes = [float(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3:
        raise DataError(f"--spacing is {text!r}; expected auto, null, median, or three sizes in mm, as 1,1,1.")
    return sizes


def _folds(text: str) -> Any:
    if text != "auto" and not text.isdecimal():
        raise DataError(f"--folds is {text!r}; expected auto, or a number from 0 on.")
    return text if text == "auto" else int(text)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def _volumes(text: str | None) -> float | dict[str, float]:
    """Millilitres from "0.5", or by class from "liver=5,tumor=0.1"."""
    try:
        if text is None or "=" not in text:
            return float(text or 0)
        pairs = (part.rsplit("=", 1) for part in text.split(","))
        return {name.strip(): float(ml) for name, ml in pairs}
    except ValueError as error:
        raise DataError(f"--min-ml is {text!r}; expected ml as in 0.5, or by class as in liver=5,tumor=0.1.") from error


def _window(text: str | None) -> list[int] | None:
    numbers = _numbers(text, "--roi-size")
    if numbers is None:
        return None
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or min(numbers) < 1:
        raise DataError(f"--roi-size is {text!r}; expected one or three numbers of voxels, as 96 or 96,96,64.")
    return numbers


def _axes(text: str | None) -> list[int]:
    """Axes in RAS order from "lr,ap" or "all"."""
    if text == "all":
        return [0, 1, 2]
    axes = {"lr": 0, "ap": 1, "si": 2}
    return [_choice(name, axes, "--mirror") for name in _names(text)]


def _choice(text: str, choices: dict[str, Any], option: str) -> Any:
    if text not in choices:
        raise DataError(f"{option} is {text!r}; expected {', '.join(choices)}.")
    return choices[text]


def _device(text: str | None) -> Any:
    import torch

    if text is None:
        return None
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--device is {text!r}, which cannot be used ({reason}). Pass cpu, cuda or cuda:0.") from error
    return device


def _numbers(text: str | None, option: str) -> list[int] | None:
    """Whole numbers from "4,255", with or without brackets."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.strip("[] ").split(",")]
    except ValueError as error:
        raise DataError(
            f"{option} must be a whole number or several; found {text!r}. Write it as 255 or 4,255."
        ) from error


def _slices(text: str | None) -> Any:
    """The specification of annotated slices: JSON, or a word."""
    if text is None or not text.strip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            f"--annotated-slices {text!r} is no JSON ({error}); expected a word (axial, coronal, sagittal, all) or "
            "JSON. Write it as '{\"axial\": [3, 20]}'."
        ) from error


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="training, evaluating, inference, cross_validating or densify.")],
    overlay: Annotated[
        list[str] | None, typer.Option(help="Config laid over the bundle's: a file, or multi_gpu_train, for example.")
    ] = None,
) -> None:
    """Run the bundle, with any of its settings, as --dataset_dir FOLDER --max_epochs 20 (see bundle/configs).

    It is python -m monai.bundle run, but for that settings are looked at first, and can be plain values alone.
    """
    from sparse3dunet.bundle.running import run_bundle

    run_bundle(what, overlay or [], context.args)


def main() -> None:
    """Run the command; a DataError ends it with its message alone and exit status 1."""
    try:
        app()
    except DataError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
