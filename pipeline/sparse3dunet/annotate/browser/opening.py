"""Opening of a session: a new one, also from an annotation in a file, or the one in the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.annotate.browser.classes import Class, make_classes
from sparse3dunet.annotate.browser.drawing import Drawing, from_annotation
from sparse3dunet.annotate.browser.results import check_results
from sparse3dunet.annotate.browser.scan import Scan, read_scan
from sparse3dunet.annotate.browser.session import Session
from sparse3dunet.annotate.browser.store import Store
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output_dir, hold_folder
from sparse3dunet.io.folders import unused_name

FOLDER = Path("work", "annotate")
DEFAULT_NAMES = ("background", "structure")


def open_session(
    source: str | Path,
    annotation: str | Path | None,
    output_dir: str | Path,
    *,
    class_names: Sequence[str] | str | None = None,
    minutes: float = 2.0,
    ignore_index: Sequence[int] | None = None,
    annotated_slices: Any = None,
    background: int | None = None,
    settings: dict[str, Any] | None = None,
) -> Session:
    """Return the session in a folder, or a new one.

    Args:
        source: the scan, in any format.
        annotation: label map to begin with; not read if the folder has a session.
        output_dir: folder for all results.
        class_names: names of the classes of a new session, background first; with an annotation also ITK-SNAP's file.
        minutes: duration of a run.
        ignore_index: values of unlabeled voxels in the annotation.
        annotated_slices: its annotated slices, as for densify.
        background: its value of the background.
        settings: further settings of the runs.

    Raises:
        DataError: when a file cannot be read, the folder is in use or has the session or results of another scan, or
            the classes are not as expected.
    """
    folder = Path(output_dir).expanduser().absolute()
    check_output_dir(folder)
    hold_folder(folder / FOLDER)
    scan = read_scan(source)
    check_results(folder, scan)
    store = Store(folder / FOLDER, scan)
    if store.exists():
        drawing, classes = store.load()
        given = [text for text, value in (("ANNOTATION", annotation), ("--class-names", class_names)) if value]
        if given:
            print(f"note: the session in {folder} goes on; {' and '.join(given)} is for new ones, and not used.")
        return Session(scan, folder, store, drawing, classes, minutes, settings)
    if annotation is None:
        if isinstance(class_names, str):
            raise DataError(f"--class-names is {class_names}, a file; without ANNOTATION, pass background,liver,tumor.")
        classes = make_classes(list(class_names or DEFAULT_NAMES))
        drawing = Drawing(np.zeros(scan.shape, np.uint8, order="F"))
    else:
        drawing, classes = _read(
            scan, annotation, store.folder / "inputs", class_names, ignore_index, annotated_slices, background
        )
    store.set_aside()
    store.export = unused_name(folder, f"{scan.name}_annotation", scan.suffix)
    store.save(drawing, classes)
    return Session(scan, folder, store, drawing, classes, minutes, settings)


def _read(
    scan: Scan,
    annotation: str | Path,
    folder: Path,
    class_names: Sequence[str] | str | None,
    ignore_index: Sequence[int] | None,
    annotated_slices: Any,
    background: int | None,
) -> tuple[Drawing, list[Class]]:
    """Return a drawing that means the same as an annotation in a file, and its classes, as densify reads them."""
    from sparse3dunet.data.datalist import read_data_set
    from sparse3dunet.data.set_conventions import complete
    from sparse3dunet.densify.inputs import prepare_pair
    from sparse3dunet.densify.made import naming_sources
    from sparse3dunet.densify.results import Results

    listed = prepare_pair(scan.path, annotation, folder, ignore_index=ignore_index, annotated_slices=annotated_slices)
    with naming_sources(listed):
        data_set = complete(
            read_data_set(listed, ignore_index=ignore_index, annotated_slices=annotated_slices),
            class_names,
            background=background,
        )
    results = Results(folder, data_set, None, True)
    read = results.annotation(results.cases[0].files[0])
    names = [" ".join(name.replace('"', "'").split())[:60] for name in data_set.class_names]
    classes = make_classes(names, data_set.class_values, data_set.colors)
    return from_annotation(scan.to_ras(read.numbers), scan.to_ras(read.annotated)), classes
