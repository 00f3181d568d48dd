"""Records on disk of each case of a batch, so that a batch can be stopped at any time and continued."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import ImageCase, place_of
from sparse3dunet.io.folders import acquire
from sparse3dunet.io.json_files import load_json, misfit
from sparse3dunet.io.suffixes import ZARR_SUFFIXES, is_other_volume, split, suffix_among
from sparse3dunet.io.writing import check_no_folder, flush, move, remove, write_csv, write_text
from sparse3dunet.io.written import as_written, file_digest, is_as_written, size_and_time

RECORDS, DRAFTS, SUMMARY = "records", ".drafts", "summary.csv"
HEADING = ("case", "status", "seconds")
"""First columns of the summary."""
DONE, FAILED, STARTED = "done", "failed", "started"
VERSION = 1
"""Version of the fields of a record."""
NOT_OURS = (
    "exists and is not what this command wrote there: it was changed, or is another file. Move it, or write into "
    "another folder"
)
OVERWRITE = "; predict --overwrite replaces it"
"""Another remedy, which other commands do not have."""
_FIELDS: dict[str, Any] = {
    **{"version": int, "case": str, "status": str, "key": str, "error": str, "segmentation": str},
    **{"image": list[str], "results": dict[str, list[Any]], "seconds": float | None, "ml": dict[str, float]},
    "mean_confidence": float | None,
    **{"refused": str, "notes": list[str]},
}


class CaseRecord:
    """Results of one case in a folder: written as drafts, then moved into place, so that none is ever incomplete.

    A case is done if its record has status "done" and the same key, and all its results are in place. The record is
    written when all drafts are complete and before they are moved, so that a run which is killed at any moment leaves
    a case done, or to be finished by moving drafts, or to be predicted again.

    Args:
        output_dir: folder of all results.
        case: the image.
        key: what else the results depend on: the model and the settings.
    """

    def __init__(self, output_dir: str | Path, case: ImageCase, key: Mapping[str, Any]) -> None:
        self.case = case
        self.output_dir = Path(output_dir)
        self.path = self.output_dir / RECORDS / f"{case.name}.json"
        if os.path.isabs(case.name) or ".." in Path(case.name).parts:
            raise DataError(f"{case.name!r} cannot name results: it leads out of the output folder.")
        # A number, since the name may be that of another case's folder.
        self.drafts = self.output_dir / DRAFTS / hashlib.sha256(os.fsencode(case.name)).hexdigest()[:16]
        self.before: dict[str, Any] = {}
        self._lock = FileLock(self.path.with_name(f"{self.path.name}.lock"), thread_local=False)
        self.settings = json.loads(json.dumps(key))
        self.key = hashlib.sha256(json.dumps([key, _identity(case)], sort_keys=True).encode()).hexdigest()

    def hold(self, wait: bool = False) -> bool:
        """Hold the case for this process, so that no other one works on it; return whether that succeeded.

        Where the file system has no locks, nothing is held, and that counts as success.

        Args:
            wait: whether to wait until another process has finished it.
        """
        return acquire(self._lock, -1 if wait else 0)

    def release(self) -> None:
        """End holding the case."""
        self._lock.release(force=True)

    def is_done(self, names: Sequence[str] = (), unchanged: bool = False) -> bool:
        """Return whether nothing is left to do; first moves complete drafts of a killed run.

        Args:
            names: names of the requested results.
            unchanged: whether results count only if unchanged since they were written.
        """
        record = self.read()
        if record.get("status") != DONE:
            return False
        results = record.get("results", {})
        self._finish_moves(record)
        self._clear()
        if record.get("key") != self.key or not set(names) <= set(results):
            return False
        if self._other_image(record) is not None and not self._is_copy(record):
            return False
        paths = {name: self.output_dir / name for name in results}
        return all(p.exists() and (not unchanged or is_as_written(p, results[name])) for name, p in paths.items())

    def start(self, names: Sequence[str], overwrite: bool = False, goes_on: bool = False) -> Path:
        """Prepare for results of these names, relative to the output folder; return the folder for drafts.

        With `goes_on`, drafts of a stopped run are kept.

        Raises:
            DataError: when one of them exists and was changed, unless `overwrite` is set; when it is a folder.
        """
        self.before = before = self.read().get("results", {})
        if not overwrite:
            self.check(names, OVERWRITE)
        for name in names:
            if not suffix_among(name, ZARR_SUFFIXES):
                check_no_folder(self.output_dir / name)
        if not goes_on:
            self._clear()
        self._write({"status": STARTED, "results": before})
        for name in names:
            (self.drafts / name).parent.mkdir(parents=True, exist_ok=True)
        return self.drafts

    def check(self, names: Sequence[str], remedy: str = "") -> None:
        """Raise DataError when one of these results exists and was changed, or belongs to another image.

        Args:
            names: names of the results.
            remedy: end of the message, what else the command can do.
        """
        record = self.read()
        before = record.get("results", {})
        if record.get("status") == DONE:
            self._finish_moves(record)
        if before:
            self._check_image(record)
        for name in names:
            path = self.output_dir / name
            if path.exists() and not is_as_written(path, before.get(name)):
                raise DataError(f"{path.absolute()} {NOT_OURS}{remedy}.")

    def finish(self, names: Sequence[str], **facts: Any) -> None:
        """Move the drafts of these names into place, and record the case as done."""
        for name in names:
            flush(self.drafts / name)
        for name in set(self.before) - set(names):  # left by other settings
            path = self.output_dir / name
            if path.exists() and is_as_written(path, self.before[name]):
                remove(path)
        self._write({"status": DONE, "results": {name: as_written(self.drafts / name) for name in names}, **facts})
        for name in names:
            move(self.drafts / name, self._target(name))
        self._clear()

    def fail(self, error: str, goes_on: bool = False, **facts: Any) -> None:
        """Record an error; earlier results and their entries stay. In another image's record it is added.

        With `goes_on`, so do drafts, for the next run. If only moving them failed, the next run does that.
        """
        record = self.read()
        if record.get("status") == DONE and record.get("key") == self.key and self.drafts.exists():
            return
        if record.get("results") and self._other_image(record) is not None:
            write_text(self.path, json.dumps({**record, "refused": error}, indent=1) + "\n")
            return
        if not goes_on:
            self._clear()
        self._write({"status": FAILED, "results": record.get("results", {}), "error": error, **facts})

    def read(self) -> dict[str, Any]:
        """Return the record; empty if there is none."""
        return _read(self.path)

    def _check_image(self, record: Mapping[str, Any]) -> None:
        """Raise DataError if the existing results belong to another image of the same name."""
        other = self._other_image(record)
        if other is not None:
            raise DataError(
                f"{self.case.files[0]}: the results named {self.case.name} are those of {other}. Predict into another "
                "folder, rename one of the images, or, if they are in different folders, pass both in one command; "
                "--overwrite replaces them."
            )

    def _other_image(self, record: Mapping[str, Any]) -> str | None:
        """Return the image that a record is of, if that is there and another one than the case's."""
        other, own = (record.get("image") or self.case.files)[0], self.case.files[0]
        return other if is_other_volume(other, own) else None

    def _is_copy(self, record: Mapping[str, Any]) -> bool:
        """Return whether the case's files have the content of those of a record.

        Name, size and time of change do not tell: archives and copying programs may set the time.
        """
        try:
            return [*map(file_digest, record["image"])] == [*map(file_digest, self.case.files)]
        except OSError:  # one of several channels is gone, for example
            return False

    def _write(self, record: Mapping[str, Any]) -> None:
        content = {"version": VERSION, "case": self.case.name, "image": list(self.case.files), **record}
        content |= {"key": self.key, "settings": self.settings}
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    def _finish_moves(self, record: Mapping[str, Any]) -> None:
        """Move the drafts that a killed run had recorded as done."""
        for name in record.get("results", {}):
            if (self.drafts / name).exists():
                move(self.drafts / name, self._target(name))

    def _target(self, name: str) -> Path:
        target = self.output_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _clear(self) -> None:
        if self.drafts.is_symlink():
            self.drafts.unlink()
        shutil.rmtree(self.drafts, ignore_errors=True)


def remove_empty_drafts(output_dir: str | Path) -> None:
    """Remove the folder for drafts if it has no file; not while others predict into the output folder."""
    for folder, _, _ in os.walk(Path(output_dir) / DRAFTS, topdown=False):
        try:
            os.rmdir(folder)
        except OSError:
            continue  # not empty


def results_in(output_dir: str | Path) -> set[str]:
    """Return the places (:func:`~sparse3dunet.inference.inputs.place_of`) of all results recorded in a folder."""
    records = (_read(path) for path in (Path(output_dir) / RECORDS).rglob("*.json"))
    return {place_of(os.path.join(output_dir, name)) for record in records for name in record.get("results", {})}


def check_summary(output_dir: str | Path, overwrite: bool = False, remedy: str = "") -> None:
    """Raise DataError if :func:`write_summary` would replace a file that it did not write, or a folder.

    Args:
        output_dir: folder of the results.
        overwrite: whether other files may be replaced.
        remedy: see :meth:`CaseRecord.check`.
    """
    path = Path(output_dir) / SUMMARY
    check_no_folder(path)
    if path.exists() and not overwrite and not path.with_name(RECORDS).exists() and not _has_our_heading(path):
        raise DataError(f"{path.absolute()} {NOT_OURS}{remedy}.")


def _has_our_heading(path: Path) -> bool:
    """Return whether a table begins as the summary, which a run that was stopped early leaves without records."""
    with path.open("rb") as file:
        return file.readline(1000).decode(errors="replace").split(",")[: len(HEADING)] == list(HEADING)


def write_summary(
    output_dir: str | Path,
    class_names: Sequence[str],
    more: Mapping[str, Mapping[str, float | None]] | None = None,
    cases: Sequence[ImageCase] = (),
) -> Path:
    """Write ``summary.csv`` with a row for each case that is recorded in the folder, sorted by name.

    Columns: case, status (done or failed), seconds, the volume in ml of each foreground class, the mean confidence over
    the foreground, the segmentation's file, the error, notes on the image.

    Args:
        output_dir: the folder.
        class_names: names by class number, background first.
        more: numbers by case for further columns, by heading.
        cases: cases of this run; a row of the same image under another name, as another run called it, is left out.
    """
    more = more or {}
    folder = Path(output_dir)
    names = {case.files: case.name for case in cases}
    records = [_read(path) for path in sorted((folder / RECORDS).rglob("*.json"))]
    volumes = [f"{name} ml" for name in class_names[1:]]
    rows = [[*HEADING, *volumes, "mean confidence", "segmentation", "error", "notes", *more]]
    for record in records:
        if "refused" in record:  # another image of this name
            blank = [""] * len(volumes)
            rows.append(
                [record.get("case", ""), FAILED, "", *blank, "", "", record["refused"], "", *([""] * len(more))]
            )
        own = record.get("case")
        if record.get("status") not in (DONE, FAILED) or names.get(tuple(record.get("image", ())), own) != own:
            continue
        ml = record.get("ml", {})
        volumes = [_ml_text(ml[name]) if name in ml else "" for name in class_names[1:]]
        seconds, confidence = record.get("seconds"), record.get("mean_confidence")
        cells = [
            *(record.get("case"), record["status"], "" if seconds is None else f"{seconds:.2f}", *volumes),
            "" if confidence is None else f"{confidence:.4f}",
            *(record.get("segmentation", ""), record.get("error", ""), " ".join(record.get("notes", []))),
            *(_rounded(column.get(record.get("case", ""))) for column in more.values()),
        ]
        rows.append(cells)
    path = folder / SUMMARY
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)  # by which the summary is known to be ours
    write_csv(path, rows)
    return path


def _read(path: Path) -> dict[str, Any]:
    """Read a record; empty if there is none, or the file is damaged, of a newer version, or something else."""
    try:
        record = load_json(path, "a record")
    except (OSError, DataError):
        return {}
    if misfit(record, _FIELDS) or record.get("version", 1) > VERSION:
        return {}
    if not all(map(_is_inside, record.get("results", {}))):
        return {}
    return record


def _is_inside(name: str) -> bool:
    """Return whether the name of a result leads to no other folder than that of the results."""
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def _identity(case: ImageCase) -> list[Any]:
    """Return values that change with the image."""
    if case.fault:
        return [case.fault]  # of which no file need be there
    places = [place for _, place in map(split, case.files) if place]
    return [*([os.path.basename(file), *size_and_time(Path(file))] for file in case.all_files()), *places]


def _rounded(value: float | None) -> float | str:
    """Return a number to six digits: no text, which with a minus would be taken for a formula."""
    return "" if value is None else float(f"{value:.6g}")


def _ml_text(ml: float) -> str:
    """Return a volume as text: to a ten-thousandth of a ml, unless it is smaller, as in microscopy."""
    return f"{ml:.4f}" if ml == 0 or ml >= 0.001 else f"{ml:.4g}"
