"""`sparse3dunet annotate`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sparse3dunet.cli import arguments, options
from sparse3dunet.errors import DataError
from sparse3dunet.interrupts import ended_at_once

Scan = Annotated[str, typer.Argument(help="Scan, in any format.")]
Annotation = Annotated[str | None, typer.Argument(help="Annotation to begin with; not used if a session goes on.")]
ClassNames = Annotated[str | None, typer.Option(help="background,liver,tumor; more can be added in the page.")]


def annotate(
    scan: Scan,
    output_dir: options.OutputDir,
    annotation: Annotation = None,
    class_names: ClassNames = None,
    minutes: Annotated[float, typer.Option(help="Time for a run of Densify; the page can change it.", min=0.1)] = 2.0,
    port: Annotated[int, typer.Option(help="Port of the page; 0: any that is free.", min=0, max=65535)] = 0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    ignore_index: options.IgnoreIndex = None,
    background: options.Background = None,
    annotated_slices: options.AnnotatedSlices = None,
    voxel_size: options.VoxelSize = None,
    axes: options.Axes = None,
    series: options.Series = None,
    segments: options.Segments = None,
    device: options.Device = None,
    reference: options.Reference = None,
) -> None:
    """Annotate a scan in the browser, with densify at hand.

    The page is served on this machine alone, to those who know its address. All that is drawn is kept in the folder for
    the results; the same command goes on with it. Ctrl-C ends it.
    """
    check_page()
    with ended_at_once():
        from sparse3dunet.annotate.browser import opening, serving
        from sparse3dunet.io.defaults import set_defaults

    set_defaults(voxel_size, axes, series=series, segments=segments)
    given = {
        "device": None if device is None else str(arguments.device(device)),
        "reference": None if reference is None else _reference(reference),
    }
    session = opening.open_session(
        scan,
        annotation,
        output_dir,
        class_names=arguments.class_names(class_names),
        minutes=minutes,
        ignore_index=arguments.numbers(ignore_index, "--ignore-index"),
        annotated_slices=arguments.slices(annotated_slices),
        background=background,
        settings={name: text for name, text in given.items() if text is not None},
    )
    serving.serve(session, port, _tell, open_page)
    print(f"Saved in {session.folder}; run the same command to go on.", flush=True)


def tells_names(reference: str | Path) -> bool:
    """Return whether a dense label tells classes by name; the annotation of the page's runs has values alone."""
    from sparse3dunet.io.dicom_annotation import annotation_file

    file = Path(reference).expanduser()
    return file.name.endswith(".seg.nrrd") or annotation_file(file) is not None


def _reference(path: str) -> str:
    """Return the absolute path of a dense label for the page's runs.

    Raises:
        DataError: when it is missing, or tells classes by name.
    """
    from sparse3dunet.io.suffixes import is_image_file

    file = Path(path).expanduser().absolute()
    if tells_names(file):
        raise DataError(f"{file}: expected a label map with the classes' values as --reference, not named segments.")
    if not is_image_file(file) or not file.exists():
        raise DataError(f"{file} does not exist, or is no label map; expected a dense label of the scan (--reference).")
    return str(file)


def check_page() -> None:
    """Raise DataError if the page cannot be served."""
    if find_spec("sparse3dunet.annotate.browser") is None:
        raise DataError("a packaged bundle has no page. Install all of it: pip install 'sparse3dunet[annotate]'.")
    from sparse3dunet.annotate.browser import serving

    serving.check_packages()


def _tell(address: str) -> None:
    print(f"Annotate at {address}\nThis address works on this machine alone. Ctrl-C ends the program.", flush=True)
