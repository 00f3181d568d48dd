"""DICOM files that are shown inverted, MONOCHROME1: GDCM would invert their stored values, some of which get lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.config import disable_value_validation

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_header import DicomFile

KEYWORD, INVERTED, PLAIN = "PhotometricInterpretation", b"MONOCHROME1", b"MONOCHROME2"


@contextmanager
def shown_plainly(file: DicomFile) -> Iterator[Path]:
    """Context with the path of a file that GDCM reads as it is stored: its own, or one of a copy with PLAIN.

    Raises:
        DataError: when there can be no copy; errors within the context name the file itself.
    """
    if file.text(KEYWORD).strip() != INVERTED.decode():
        yield file.path
        return
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        copy = Path(folder) / "image.dcm"
        try:
            _write_plain(file.path, copy)
        except Exception as error:  # of the disk, or a dozen kinds of pydicom's
            raise DataError(
                f"{file.path}: it is shown inverted ({KEYWORD} {INVERTED.decode()}), and could not be copied to "
                f"{tempfile.gettempdir()} to read the stored values ({type(error).__name__}). Make room there, or "
                "convert the series to NIfTI."
            ) from error
        try:
            yield copy
        except DataError as error:
            raise DataError(str(error).replace(str(copy), str(file.path))) from error


def _write_plain(path: Path, copy: Path) -> None:
    """Write a copy with one byte changed; of a file that is compressed as a whole, one written anew."""
    with disable_value_validation():
        element: Any = dcmread(path, specific_tags=[KEYWORD], stop_before_pixels=True, force=True).get_item(KEYWORD)
        shutil.copyfile(path, copy)
        with copy.open("r+b") as content:
            content.seek(element.value_tell)
            if content.read(len(INVERTED)) == INVERTED:
                content.seek(element.value_tell)
                content.write(PLAIN)
                return
        elements = dcmread(path, force=True)
        setattr(elements, KEYWORD, PLAIN.decode())
        elements.save_as(copy)
