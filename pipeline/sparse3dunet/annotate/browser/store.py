"""A drawing on disk: whole at any moment, also after a crash.

The folder contains ``session.json`` (classes and finished slices), the painted voxels that it names, on the scan's
grid, and in ``journal/`` a small file for each change since these two were written.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.annotate.browser.classes import Class, as_rows, checked
from sparse3dunet.annotate.browser.drawing import Change, Drawing, describe
from sparse3dunet.annotate.browser.scan import Scan
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_map
from sparse3dunet.io.folders import unused_name
from sparse3dunet.io.json_files import load_json, misfit
from sparse3dunet.io.suffixes import is_other_volume
from sparse3dunet.io.volumes import check_same_grid, on_grid_of
from sparse3dunet.io.writing import write_text

SESSION = "session.json"
VERSION = 1
MOST_CHANGES = 100
"""Number of files in the journal after which the whole drawing is written."""
FIELDS = {
    "version": int,
    "scan": str,
    "digest": str,
    "shape": list[int],
    "painted": str,
    "sequence": int,
    "finished": list[list[int]],
    "classes": list[dict[str, Any]],
    "export": str,
    "exported": str,
}
CLASS_FIELDS = {"value": int, "name": str, "color": str}


def _is_file_name(text: str) -> bool:
    return bool(text) and Path(text).name == text and text != ".." and "\0" not in text


VALID: dict[str, Callable[[Any], bool]] = {
    "version": lambda version: version == VERSION,
    "sequence": lambda sequence: sequence >= 0,
    "finished": lambda finished: len(finished) == 3,
    "painted": _is_file_name,
    "export": _is_file_name,
}
"""What their values must be."""
OPTIONAL = ("digest", "exported")
"""Fields that earlier versions did not write."""
CURE = "Move its folder away to start over, or restore the file from a backup."


class Store:
    """Folder of a drawing.

    Args:
        folder: the folder.
        scan: the scan.

    Attributes:
        export: name of the file to export to.
        exported: digest of the last export; "" if there was none.
    """

    def __init__(self, folder: Path, scan: Scan) -> None:
        self.folder, self.scan, self.journal = folder, scan, folder / "journal"
        self.export, self.exported = "", ""
        self._saved: tuple[int, list[list[int]], str] | None = None
        self._pending = 0

    def exists(self) -> bool:
        return (self.folder / SESSION).is_file()

    def is_there(self) -> bool:
        """Return whether the files of the drawing are where they were written last."""
        return self.exists() and self._saved is not None and (self.folder / self._saved[2]).is_file()

    def load(self) -> tuple[Drawing, list[Class]]:
        """Return the drawing and its classes.

        Raises:
            DataError: when a file is damaged, or belongs to another scan.
        """
        path = self.folder / SESSION
        content = load_json(path, "a session of annotation", CURE)
        required = [name for name in FIELDS if name not in OPTIONAL]
        wrong = misfit(content, FIELDS) or next((name for name in required if name not in content), "")
        wrong = wrong or next(filter(None, (misfit(entry, CLASS_FIELDS) for entry in content["classes"])), "")
        wrong = wrong or next((name for name, is_valid in VALID.items() if not is_valid(content[name])), "")
        if wrong:
            raise DataError(f"{path}: {wrong!r} is damaged, or of another version. {CURE}")
        self._check_scan(content)
        self._check_finished(content["finished"])
        try:
            classes = checked([Class(**{name: entry[name] for name in CLASS_FIELDS}) for entry in content["classes"]])
        except (KeyError, DataError) as error:
            raise DataError(f"{path}: the classes are not as expected ({error}). {CURE}") from error
        self.export, self.exported = content["export"], content.get("exported", "")
        file = self.folder / content["painted"]
        painted = on_grid_of(read_image(file), self.scan.volume)
        if painted.data.dtype != np.uint8:
            raise DataError(f"{file}: found voxels of {painted.data.dtype}; expected uint8; it was changed. {CURE}")
        check_same_grid(painted, self.scan.volume)
        drawing = Drawing(self.scan.to_ras(np.array(painted.data)), content["finished"], content["sequence"])
        self._saved = (drawing.sequence, [sorted(indices) for indices in drawing.finished], file.name)
        self._replay(drawing)
        return drawing, classes

    def _check_scan(self, content: dict[str, Any]) -> None:
        former = content["scan"]
        if is_other_volume(former, self.scan.path) or tuple(content["shape"]) != self.scan.shape:
            raise DataError(
                f"{self.folder}: the annotation there is one of {former}, shape {tuple(content['shape'])}, not of "
                f"{self.scan.path}, shape {self.scan.shape}. Pass another folder for this scan (-o)."
            )

        if content.get("digest", self._digest) != self._digest:
            raise DataError(
                f"{self.folder}: the annotation there is one of other voxels than those of {self.scan.path}; it was "
                f"changed, or is another scan than {former} was. Pass another folder for it (-o)."
            )

    def _check_finished(self, finished: list[list[int]]) -> None:
        for axis, indices in enumerate(finished):
            outside = [index for index in indices if not 0 <= index < self.scan.shape[axis]]
            if outside:
                raise DataError(
                    f"{self.folder / SESSION}: the finished {describe(axis, outside[0])} does not exist; expected 0 to "
                    f"{self.scan.shape[axis] - 1}. {CURE}"
                )

    @cached_property
    def _digest(self) -> str:
        """Digest of the scan's voxels."""
        return hashlib.blake2b(np.ascontiguousarray(self.scan.volume.data).data, digest_size=16).hexdigest()

    def _replay(self, drawing: Drawing) -> None:
        """Apply the changes since the painted voxels were written, up to the first that is missing."""
        changes = [file for file in self._changes() if int(file.stem) > drawing.sequence]
        for place, file in enumerate(changes):
            if int(file.stem) != drawing.sequence + 1:
                left = changes[place:]
                print(
                    f"note: {self.journal}: change {drawing.sequence + 1} of the annotation is missing; the "
                    f"{len(left)} after it are left out, and kept in {self._leave_out(left)}. Look whether slices "
                    "must be painted again."
                )
                return
            content = load_json(file, "a change of an annotation", CURE)
            try:
                voxels = base64.b64decode(content["voxels"], validate=True)
                drawing.apply(Change(content["axis"], content["index"], content["finished"], voxels))
            except (KeyError, TypeError, DataError, binascii.Error) as error:
                raise DataError(f"{file}: not a change of an annotation ({error}). {CURE}") from error
            self._pending += 1

    def set_aside(self) -> None:
        """Put aside what is left of a drawing without its ``session.json``: it would be mixed with a new one."""
        left = [*self._changes(), *self.folder.glob("painted_*.nii.gz")]
        if left:
            print(
                f"note: {self.folder}: {SESSION} is missing, and a new annotation begins; {len(left)} file(s) of the "
                f"former one are left out, and kept in {self._leave_out(left)}."
            )

    def _leave_out(self, files: list[Path]) -> Path:
        """Move files to a new folder, which is returned, so that they are not mixed with later ones."""
        aside = self.folder / unused_name(self.folder, "left_out")
        aside.mkdir()
        for file in files:
            file.replace(aside / file.name)
        return aside

    def _changes(self) -> list[Path]:
        """Return the files of the journal, in the order in which they were written."""
        return sorted(file for file in self.journal.glob("*.json") if file.stem.isdecimal())

    def append(self, change: Change, sequence: int) -> bool:
        """Write a change; return whether it is time to write all of the drawing (:meth:`save`)."""
        content = {
            "axis": change.axis,
            "index": change.index,
            "finished": change.finished,
            "voxels": base64.b64encode(change.voxels).decode(),
        }
        write_text(self.journal / f"{sequence:09d}.json", json.dumps(content))
        self._pending += 1
        return self._pending >= MOST_CHANGES

    def save(self, drawing: Drawing, classes: Sequence[Class]) -> None:
        """Write all of the drawing, and remove the journal."""
        name = f"painted_{drawing.sequence:09d}.nii.gz"
        write_map(self.folder / name, self.scan.to_file(drawing.painted), self.scan.volume)
        self._saved = (drawing.sequence, [sorted(indices) for indices in drawing.finished], name)
        self.save_classes(classes)
        for file in self._changes():
            if int(file.stem) <= drawing.sequence:
                file.unlink()
        for file in self.folder.glob("painted_*.nii.gz"):
            if file.name != name:
                file.unlink()
        self._pending = 0

    def save_classes(self, classes: Sequence[Class]) -> None:
        """Write the classes, beside the painted voxels that were last written."""
        assert self._saved is not None, "the drawing is saved first"
        sequence, finished, name = self._saved
        content = {
            "version": VERSION,
            "scan": str(self.scan.path),
            "digest": self._digest,
            "shape": list(self.scan.shape),
            "painted": name,
            "sequence": sequence,
            "finished": finished,
            "classes": as_rows(classes),
            "export": self.export,
            "exported": self.exported,
        }
        write_text(self.folder / SESSION, json.dumps(content, indent=1) + "\n")  # ASCII: names may be no UTF-8
