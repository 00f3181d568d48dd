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
    from sparse3dunet import check_report, checks
    from sparse3dunet.datalist import read_data_set

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
    from sparse3dunet import simulation, transforms

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
