"""Session of annotation: one scan, what is drawn on it, and the runs of densify that learn from it."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.annotate.browser import classes as class_lists
from sparse3dunet.annotate.browser.classes import Class
from sparse3dunet.annotate.browser.drawing import Change, Drawing
from sparse3dunet.annotate.browser.imports import import_later
from sparse3dunet.annotate.browser.results import Found, Results
from sparse3dunet.annotate.browser.runs import Runs
from sparse3dunet.annotate.browser.scan import Scan
from sparse3dunet.annotate.browser.store import Store
from sparse3dunet.data.slices import PLANES
from sparse3dunet.errors import DataError
from sparse3dunet.io import write_segmentation
from sparse3dunet.io.folders import unused_name
from sparse3dunet.io.itk_snap import label_descriptions
from sparse3dunet.io.writing import write_text
from sparse3dunet.io.written import file_digest

UNLABELED_NAME = "unlabeled"
LISTED = 8


class OutdatedError(DataError):
    """Error for a change to another state of the drawing than the present one."""


class ReplacedError(DataError):
    """Error for the use of a segmentation in whose place there is a newer one."""


class Session:
    """What the page sees and changes.

    Everything that is changed is on disk when the method returns.

    Args:
        scan: the scan.
        output_dir: folder for all results.
        store: folder of the drawing, which exists.
        drawing: the drawing.
        classes: its classes.
        minutes: duration of a run unless the page says otherwise.
        settings: further settings of the runs.
    """

    def __init__(
        self,
        scan: Scan,
        output_dir: Path,
        store: Store,
        drawing: Drawing,
        classes: list[Class],
        minutes: float,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.scan, self.folder, self.store = scan, output_dir, store
        self.drawing, self.classes, self.minutes = drawing, classes, minutes
        self.settings = dict(settings or {})
        self.results = Results(output_dir, scan)
        self.results.restore([entry.value for entry in classes])
        self.runs = Runs(self.results.look)
        self._class_edits = 0
        self._lock = threading.RLock()

    @property
    def sequence(self) -> int:
        """Number of changes so far of the drawing and of its classes."""
        return self.drawing.sequence + self._class_edits

    # ------------------------------------------------------------ what the page shows

    def as_json(self) -> dict[str, Any]:
        """Return all but the voxels."""
        scan, found = self.scan, self.results.found
        with self._lock:
            return {
                "scan": {
                    "name": scan.name,
                    "path": str(scan.path),
                    "shape": scan.shape,
                    "spacing": scan.spacing,
                    "channels": scan.volume.num_channels,
                    "planes": list(PLANES),
                    "flipped": scan.flipped,
                },
                "classes": class_lists.as_rows(self.classes),
                "finished": [sorted(indices) for indices in self.drawing.finished],
                "sequence": self.sequence,
                "undoable": len(self.drawing.undoable),
                "minutes": self.minutes,
                "export": str(self.export_path),
                "run": self.runs.as_json(),
                "found": None if found is None else self._found_as_json(found),
                "fault": self.results.fault,
                "report": (self.folder / "report.html").is_file(),
            }

    def _found_as_json(self, found: Found) -> dict[str, Any]:
        return {
            "version": found.version,
            "kind": found.kind,
            "suggestions": found.suggestions,
            "quality": found.quality,
        }

    def painted(self) -> bytes:
        """Return all painted voxels, first axis fastest."""
        with self._lock:
            return self.drawing.painted.tobytes(order="F")

    def found(self, version: int | None = None) -> Found:
        """Return what densify has found.

        Args:
            version: the version that the page means; None for the newest.

        Raises:
            DataError: when it has found nothing yet.
            ReplacedError: when it has found another one meanwhile.
        """
        found = self.results.found
        if found is None:
            raise DataError("there is no segmentation yet; press Densify first.")
        if version not in (None, found.version):
            raise ReplacedError("there is a newer segmentation than the one that was shown; look at it, and try again.")
        return found

    @property
    def export_path(self) -> Path:
        return self.folder / self.store.export

    # ------------------------------------------------------------ what the page changes

    def paint(self, axis: int, index: int, voxels: np.ndarray, after: int) -> dict[str, Any]:
        """Replace the painted voxels of a slice.

        Args:
            axis: axis of the slice in RAS order.
            index: its index.
            voxels: class numbers + 1, 0 where nothing is painted, in the shape of the slice.
            after: the number of changes that the page knows of.

        Raises:
            DataError: when there is no such slice or class.
            OutdatedError: when there were other changes meanwhile.
        """
        with self._lock:
            if voxels.max(initial=0) > len(self.classes):
                raise DataError(
                    f"{self.scan.slice_name(axis, index)}: found class {int(voxels.max()) - 1}; the last one is "
                    f"{len(self.classes) - 1} ({self.classes[-1].name})."
                )
            return self._change(after, axis, index, voxels)

    def finish(self, axis: int, index: int, finished: bool, after: int) -> dict[str, Any]:
        """Mark a slice as finished, or not; arguments and errors as for :meth:`paint`."""
        with self._lock:
            return self._change(after, axis, index, None, finished)

    def accept(self, axis: int, index: int, finished: bool, after: int, version: int) -> dict[str, Any]:
        """Paint the segmentation on a slice where nothing is painted; return its voxels, too.

        Args:
            axis: axis of the slice in RAS order.
            index: its index.
            finished: whether the slice is finished with this; otherwise that stays as it is.
            after: the number of changes that the page knows of.
            version: version of the segmentation that the page shows.

        Raises:
            DataError: when there is no such slice, or no segmentation.
            OutdatedError: when there were other changes meanwhile.
            ReplacedError: when another segmentation is shown than the newest.
        """
        with self._lock:
            painted, place = self.drawing.slice_of(axis, index), (slice(None),) * axis + (index,)
            numbers, known = self.found(version).numbers[place], self.drawing.annotation()[1][place]
            voxels = np.where((numbers > 0) & ~known, numbers + 1, painted).astype(np.uint8)
            return self._with_voxels(self._change(after, axis, index, voxels, finished or None))

    def undo(self, after: int) -> dict[str, Any]:
        """Undo the last change of this session; return the slice's voxels, too.

        Raises:
            DataError: when there is nothing to undo.
            OutdatedError: when there were other changes meanwhile.
        """
        with self._lock:
            self._check_current(after)
            if not self.drawing.undoable:
                raise DataError("there is nothing to undo: earlier sessions cannot be undone.")
            change = self.drawing.undoable[-1]
            self._write_change(change, self.drawing.undo)
            return self._with_voxels(self._answer(change.axis, change.index))

    def set_classes(self, entries: Any, after: int) -> dict[str, Any]:
        """Rename or recolour classes, and add some.

        Raises:
            DataError: see :func:`~sparse3dunet.annotate.browser.classes.edited`.
            OutdatedError: when there were other changes meanwhile.
        """
        with self._lock:
            self._check_current(after)
            classes = class_lists.edited(self.classes, entries)
            self._write_anew()
            self.store.save_classes(classes)
            self.classes = classes
            self._class_edits += 1
            return {"classes": class_lists.as_rows(self.classes), "sequence": self.sequence}

    def _change(
        self, after: int, axis: int, index: int, voxels: np.ndarray | None, finished: bool | None = None
    ) -> dict[str, Any]:
        self._check_current(after)
        change = self.drawing.change(axis, index, voxels, finished)
        if change is not None:
            self._write_change(change, partial(self.drawing.keep, change))
        return self._answer(axis, index)

    def _check_current(self, after: int) -> None:
        if after != self.sequence:
            raise OutdatedError(
                "the annotation was changed in another window of the browser; reload this page, and use one window."
            )

    def _write_change(self, change: Change, apply: Callable[[], None]) -> None:
        """Write a change, then apply it: if it cannot be written, for example to a full disk, nothing has changed."""
        self._write_anew()
        is_time_to_save = self.store.append(change, self.drawing.sequence + 1)
        apply()
        if is_time_to_save:
            with contextlib.suppress(OSError, DataError):  # the change is on disk; the next one tries again
                self.store.save(self.drawing, self.classes)

    def _write_anew(self) -> None:
        """Write all of the drawing if its files are gone: a change beside none of them would be lost, or mixed up."""
        if not self.store.is_there():
            self.store.save(self.drawing, self.classes)
            print(f"note: {self.store.folder}: the annotation was not there any more, and is written anew.", flush=True)

    def _with_voxels(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Add the painted voxels of the slice, first axis fastest, in base64."""
        voxels = self.drawing.slice_of(answer["axis"], answer["index"]).tobytes(order="F")
        return {**answer, "voxels": base64.b64encode(voxels).decode()}

    def _answer(self, axis: int, index: int) -> dict[str, Any]:
        """Return what a change of a slice means for the page."""
        return {
            "sequence": self.sequence,
            "axis": axis,
            "index": index,
            "finished": [sorted(indices) for indices in self.drawing.finished],
            "undoable": len(self.drawing.undoable),
        }

    # ------------------------------------------------------------ files and runs

    def save(self) -> None:
        """Write all of the drawing, for example at the end."""
        with self._lock:
            self.store.save(self.drawing, self.classes)

    def export(self) -> dict[str, Any]:
        """Write the annotation as a label map in the scan's format; return its path, and what the values mean."""
        with self._lock:
            numbers, annotated = self.drawing.annotation()
            if not self._is_own_export():
                self.store.export = unused_name(self.folder, f"{self.scan.name}_annotation", self.scan.suffix)
            names = self._write(self.export_path, numbers, annotated)
            self.store.exported = file_digest(self.export_path)
            self.store.save(self.drawing, self.classes)
        return {"path": str(self.export_path), "values": {str(value): name for value, name in names.items()}}

    def _is_own_export(self) -> bool:
        """Return whether the place of the export is free, or has what was last written there: else it is the user's."""
        path = self.export_path
        if not os.path.lexists(path):
            return True
        with contextlib.suppress(OSError, DataError):  # damaged, and so changed
            return file_digest(path) == self.store.exported
        return False

    def densify(self, minutes: float) -> dict[str, Any]:
        """Start a run that learns from the present annotation; a run that goes on is ended.

        Returns:
            Under "unfinished", the slices that were painted but not finished, by name.

        Raises:
            DataError: when there is too little annotation, or no such number of minutes.
        """
        import_later()
        from sparse3dunet.densify.schedule import check_minutes

        check_minutes(minutes)
        with self._lock:
            numbers, annotated = self.drawing.annotation()
            self._check_enough(np.bincount(numbers[annotated], minlength=len(self.classes)))
            self.runs.end()
            self.store.save(self.drawing, self.classes)
            label, names = self.store.folder / "densified.nii.gz", self.store.folder / "labels.txt"
            self._write(label, numbers, annotated)
            write_text(names, label_descriptions(class_lists.labels(self.classes)))
            self.results.begin([entry.value for entry in self.classes], numbers, annotated)
            settings = {
                "scan": str(self.scan.path),
                "annotation": str(label),
                "output_dir": str(self.folder),
                "ignore_index": class_lists.unlabeled_value(self.classes),
                "minutes": minutes,
                "given_names": str(names),
                "background": self.classes[0].value,
                "format": self.scan.suffix.lstrip("."),
            }
            self.runs.start({**settings, **self.settings})
            unfinished = [
                self.scan.slice_name(axis, i) for axis, found in enumerate(self.drawing.touched()) for i in found
            ]
        return {"unfinished": unfinished[:LISTED], "more": max(len(unfinished) - LISTED, 0)}

    def stop(self) -> dict[str, Any]:
        """End the current run early, with results of what it has found so far."""
        self.runs.stop()
        return {}

    def _check_enough(self, counts: Sequence[int] | np.ndarray) -> None:
        if not counts[0]:
            raise DataError(
                f"no voxel is {self.classes[0].name} yet: mark a slice as finished, or paint this class somewhere."
            )
        if not any(counts[1:]):
            raise DataError(f"nothing but {self.classes[0].name} is annotated yet: paint a structure on a slice.")

    def _write(self, path: Path, numbers: np.ndarray, annotated: np.ndarray) -> dict[int, str]:
        """Write an annotation (X, Y, Z) in RAS order on the scan's grid; return the names of its values."""
        unlabeled = class_lists.unlabeled_value(self.classes)
        values = np.asarray([entry.value for entry in self.classes])[numbers]
        values[~annotated] = unlabeled
        low, high = min(0, int(values.min())), max(unlabeled, int(values.max()))
        names = class_lists.labels(self.classes)
        names[unlabeled] = UNLABELED_NAME
        stored = values.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
        write_segmentation(path, self.scan.to_file(stored), self.scan.volume, names)
        return names
