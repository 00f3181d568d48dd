"""Whether the results of a run may be written to their places."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparse3dunet.densify.made import pair_of
from sparse3dunet.densify.state import LEARNED_FILE, State
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.records import CaseRecord
from sparse3dunet.io import check_output, read_image
from sparse3dunet.io.suffixes import split
from sparse3dunet.io.written import file_digest
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE, WEIGHT

if TYPE_CHECKING:
    from sparse3dunet.densify.results import Results

OWN_FILES = (
    "config.yaml",
    "report.html",
    "quality.json",
    "suggestions.json",
    "summary.csv",
    "model",
    "records",
    "reference",
)
"""Files in an output folder, besides the results of each case."""
PREVIEW, SEGMENTATION = "preview", "segmentation"
INPUTS = {IMAGE: "image", LABEL: "annotation", WEIGHT: "weight image", REFERENCE: "dense label"}
OF_A_PAIR = {"scan": "image", "annotation": "annotation", "reference": "dense label"}
"""What the files are that a datalist of :func:`~sparse3dunet.densify.inputs.prepare_pair` was made from."""


def check_places(results: Results, before: State | None) -> None:
    """Check that all results can be written.

    Args:
        results: the results.
        before: state of a former run in the folder; None if there is none.

    Raises:
        DataError: when a result would replace a file that no former run wrote, or that was changed since, or one that
            is read, or another volume's result; or when the output format cannot hold it.
    """
    folder, previews = results.folder, {} if before is None else before.previews
    _check_names(results)
    _check_inputs(results)
    for case in results.cases:
        names = {kind: path.name for kind, path in results.files(case).items()}
        CaseRecord(folder, case, {}).check(list(names.values()))
        image = read_image(case.files[0])
        for name in names.values():
            check_output(name, image, results.output.labels)
        preview = results.preview(case)
        is_unknown = before is not None and not before.digest  # of a damaged state; the preview is kept aside
        if not is_unknown and not is_ours(preview, previews):
            raise DataError(
                f"{preview.absolute()} exists and is not what a former run wrote there: it was changed, or is another "
                "file. Move it, or change -o."
            )
    existing = [folder / name for name in OWN_FILES if (folder / name).exists()]
    existing += [path for path in (folder / "work").glob("*") if not _is_begun(path)]
    if existing and before is None:
        raise DataError(
            f"{existing[0].absolute()} exists, and no former run wrote it: there is no work/state.json. Pass another "
            "folder for the results (-o)."
        )


def _is_begun(path: Path) -> bool:
    """Return whether a path in ``work`` may be of a run that was killed before it wrote its state, or of annotate."""
    if path.name.startswith(".") or path.name in ("inputs", "annotate"):
        return True
    is_learned = path.name in ("learning", "learned") and path.is_dir()
    return is_learned and all(LEARNED_FILE.match(file.name) for file in path.iterdir())


def is_ours(path: Path, written: Mapping[str, str]) -> bool:
    """Return whether a file of the run may be written there: there is none, or one as a run wrote it.

    Args:
        path: path of the file.
        written: digest by file name, as written; several, with spaces between them, of one that was being replaced.
    """
    return not path.exists() or file_digest(path) in written.get(path.name, "").split()


def is_same(path: Path, file: str) -> bool:
    """Return whether a volume is read from the file or folder at a path."""
    source = split(file)[0]
    return path.exists() and os.path.exists(source) and os.path.samefile(path, source)


def inputs(results: Results, case: ImageCase) -> Iterator[tuple[str, str]]:
    """Yield what a file of a case is, and its path; also of files that were converted to those of the data set."""
    entry, pair = results.by_path[case.files[0]], pair_of(results.data_set.source) or {}
    for source, kinds in ((entry, INPUTS), (pair, OF_A_PAIR)):
        for key, what in kinds.items():
            listed = source.get(key, [])
            files = listed if isinstance(listed, list) else [listed]
            yield from ((what, file) for file in files if isinstance(file, str))


def _check_names(results: Results) -> None:
    owners: dict[str, str] = {}
    for case in results.cases:
        for path in (*results.files(case).values(), results.preview(case)):
            other = owners.setdefault(path.name, case.name)
            if other != case.name:
                raise DataError(
                    f"the volumes {other} and {case.name} would both have the result {path.name}; expected names that "
                    "differ in more than _preview or _seg. Rename an image, or pass another --format."
                )


def _check_inputs(results: Results) -> None:
    """Raise DataError if a result would replace a file that is read: the next run would learn or score its own result.

    A segmentation of a former run may be the annotation, once it was copied or declared so: edited, it is not replaced.
    """
    places: dict[tuple[int, int], tuple[str, Path]] = {}
    for case in results.cases:
        for kind, path in {**results.files(case), PREVIEW: results.preview(case)}.items():
            with contextlib.suppress(OSError):  # not there yet
                places[_identity(path)] = (kind, path)
    for case in results.cases if places else ():
        for what, file in inputs(results, case):
            with contextlib.suppress(OSError):  # who reads it tells
                kind, path = places.get(_identity(split(file)[0]), ("", Path()))
                if kind and (what, kind) != ("annotation", SEGMENTATION):
                    raise DataError(
                        f"{file}: the {what} of {case.name} is the {kind} {path.name} in the output folder, which this "
                        f"run would replace; expected another file. Copy it to another name and pass that, or change "
                        "-o."
                    )


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino
