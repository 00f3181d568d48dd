"""DICOM series in folders, and the choice of one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_series
from sparse3dunet.io.dicom_header import DicomFile, is_dicom_file, is_dicom_image, read_header, uid_text

MOST_FILES = 50_000
"""Number of files in sub-folders up to which series are looked for in them."""


@dataclass(frozen=True)
class DicomSeries:
    """Files of a folder that share a SeriesInstanceUID, sorted by name."""

    uid: str
    files: tuple[DicomFile, ...]

    @property
    def number(self) -> str:
        """Its number in the study; empty if it has none."""
        number = self.files[0].text("SeriesNumber").strip()
        return str(int(number)) if number.isdecimal() else ""

    def __str__(self) -> str:
        # Not the description, in which some write the patient's name: messages are kept in files
        first, slices = self.files[0], sum(file.shape[2] for file in self.files)
        number = f"number {self.number}, " if self.number else ""
        kind = first.text("Modality")
        kind = kind if re.fullmatch(r"[A-Z]{2,16}", kind) else "unknown modality"
        uid = uid_text(self.uid) if self.uid else "without UID"
        return f"{uid} ({number}{kind}, {slices} slice(s))"


def is_dicom_folder(path: str | Path) -> bool:
    """Return whether a folder directly contains a DICOM image."""
    folder = Path(path)
    return folder.is_dir() and any(is_dicom_image(file) for file in sorted(folder.iterdir()))


def dicom_folders(path: str | Path) -> list[Path]:
    """Return the folders below `path`, at any depth, that directly contain a DICOM image, sorted."""
    found = dict.fromkeys(file.parent for file in _below(Path(path)) if is_dicom_image(file))
    return sorted(found)


def dicom_images(path: str | Path) -> list[Path]:
    """Return the files of DICOM images in a folder; if there are none directly in it, those in its sub-folders.

    Raises:
        DataError: when there are too many files to look into.
    """
    files = [file for file in sorted(Path(path).iterdir()) if is_dicom_image(file)]
    return files or [file for file in _below(Path(path)) if is_dicom_image(file)]


def dicom_series(path: str | Path) -> list[DicomSeries]:
    """Return the series in a folder, by their number; if there is none directly in it, those in its sub-folders.

    Files other than DICOM, objects other than images, and a DICOMDIR are ignored.

    Raises:
        DataError: when one of the DICOM images is not readable, or there are too many files to look into.
    """
    by_uid: dict[str, list[DicomFile]] = {}
    for file in map(read_header, dicom_images(path)):
        by_uid.setdefault(file.text("SeriesInstanceUID"), []).append(file)
    series = [DicomSeries(uid, tuple(files)) for uid, files in by_uid.items()]
    return sorted(series, key=lambda one: (int(one.number or 0), one.uid))


def choose_series(path: str | Path) -> DicomSeries:
    """Return the only series in a folder, or the one that ``--series`` names by its UID or number.

    Raises:
        DataError: when there is none, or several, which are listed.
    """
    series = dicom_series(path)
    if not series:
        others = sum(map(is_dicom_file, Path(path).iterdir()))
        found = f"{others} DICOM file(s), but no image" if others else "a folder without DICOM files"
        raise DataError(f"{path}: {found}; expected an image, or a DICOM series. Check for a mix-up of folders.")
    wanted = default_series()
    chosen = [one for one in series if wanted in ("", one.uid, one.number)]
    if len(chosen) == 1:
        return chosen[0]
    found = f"found {len(series)} DICOM series: {'; '.join(map(str, series))}"
    if wanted:
        count = f"{len(chosen)} of them have" if chosen else "none of them has"
        raise DataError(f"{path}: {found}; {count} the UID or number {wanted} (--series). Pass the UID of one.")
    raise DataError(
        f"{path}: {found}; expected one. Pass its UID or number, for example --series {_name_of_one(series)}; or move "
        "each series to its own folder."
    )


def _name_of_one(series: Sequence[DicomSeries]) -> str:
    """Return a number that only one series has, or the UID of one."""
    numbers = [one.number for one in series]
    names = [number for number in numbers if number and numbers.count(number) == 1]
    return [*names, *(one.uid for one in series if uid_text(one.uid) == one.uid), "1.2.3"][0]


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files in sub-folders, sorted by folder.

    Raises:
        DataError: when there are too many.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        count += len(names)
        if count > MOST_FILES:
            raise DataError(
                f"{folder}: more than {MOST_FILES} files in its sub-folders, too many to look for a DICOM series. Pass "
                "the folder of the series."
            )
        if Path(place) != folder:
            yield from (Path(place, name) for name in sorted(names))
