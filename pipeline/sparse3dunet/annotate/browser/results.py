"""What densify has found so far in its folder: the preview, a better one, or the result."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.annotate.browser.imports import import_later
from sparse3dunet.annotate.browser.scan import Scan
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.json_files import load_json
from sparse3dunet.io.suffixes import is_other_volume
from sparse3dunet.io.volumes import check_same_grid, class_numbers, on_grid_of

PREVIEW, REFINED, RESULT = "preview", "refined", "result"
SUGGESTIONS = 3
"""Number of slices of each plane to suggest."""


@dataclass(frozen=True)
class Found:
    """Segmentation of the scan, in RAS order.

    Attributes:
        kind: preview, refined (better, still without the network), or result.
        numbers: (X, Y, Z) uint8, class numbers.
        confidence: (X, Y, Z) uint8, probability of the class; 255 for 1.
        suggestions: slices to annotate next, the best first: plane, axis and index in RAS order, benefit, doubt.
        quality: expected quality by :mod:`~sparse3dunet.densify.estimate`; empty if unknown.
        version: number of the segmentations that this program has shown, up to this one.
    """

    kind: str
    numbers: np.ndarray
    confidence: np.ndarray
    suggestions: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    version: int = 0


class Results:
    """The best segmentation that the current run has found, or the former one.

    Args:
        output_dir: folder of the run.
        scan: the scan.
    """

    def __init__(self, output_dir: Path, scan: Scan) -> None:
        self.folder, self.scan = output_dir, scan
        self.found: Found | None = None
        self.fault = ""
        self._values: list[int] = []
        self._order: list[int] = []
        self._annotation: tuple[np.ndarray, np.ndarray] | None = None
        self._seen: dict[Path, int] = {}
        self._lock = threading.Lock()

    def begin(self, values: Sequence[int], numbers: np.ndarray, annotated: np.ndarray) -> None:
        """Take over what the run that starts now will learn.

        Args:
            values: value on disk of each class.
            numbers: (X, Y, Z) class numbers in RAS order, 0 where unlabeled.
            annotated: (X, Y, Z) whether a voxel is annotated.
        """
        with self._lock:
            self._values, self._annotation, self.fault = list(values), (numbers, annotated), ""
            shown = np.flatnonzero(np.bincount(numbers[annotated], minlength=1)).tolist()
            self._order = sorted(shown, key=lambda number: (number > 0, values[number]))
            self._seen = {path: _changed(path) for path in self._files()}

    def restore(self, values: Sequence[int]) -> None:
        """Show the result of a former run, if there is one."""
        self._values = list(values)
        with contextlib.suppress(DataError, OSError, ValueError):  # it was moved or changed
            if self._files()[0].is_file():
                self._show(self._result())

    def look(self, is_new: bool) -> None:
        """Read what was written since; faults are kept in :attr:`fault`, as the run goes on.

        Args:
            is_new: whether something is there that must be shown, though its file may be an older one.
        """
        with self._lock:
            seg, *others = self._files()
            try:
                if _changed(seg) != self._seen.get(seg, 0) and (self.folder / "report.html").is_file() and is_new:
                    self._show(self._result())
                elif any(_changed(path) != self._seen.get(path, 0) for path in others) or is_new:
                    self._show(self._propagated())
                else:
                    return
                self._seen |= {path: _changed(path) for path in (seg, *others)}
            except (DataError, OSError, ValueError) as error:
                self.fault = f"the segmentation cannot be shown: {' '.join(str(error).split())[:300]}"

    def _show(self, found: Found | None) -> None:
        if found is not None:
            self.found = replace(found, version=self.found.version + 1 if self.found else 1)

    def _files(self) -> list[Path]:
        """Return the segmentation, and what propagation keeps: the refined probabilities, those of the preview."""
        seg, folder = self.folder / f"{self.scan.name}_seg{self.scan.suffix}", self.folder / "work" / "propagation"
        kept = (next(folder.glob(f"*_{kind}.npz"), folder / kind) for kind in (REFINED, PREVIEW))
        return [seg, *kept]

    def _result(self) -> Found:
        seg = self._files()[0]
        image = read_image(seg)
        confidence = read_image(seg.with_name(f"{self.scan.name}_confidence{self.scan.suffix}"))
        for volume in (image, confidence):
            check_same_grid(on_grid_of(volume, self.scan.volume), self.scan.volume)
        numbers = class_numbers(image.data, self._values).astype(np.uint8)
        suggestions = [
            {**row, **dict(zip(("axis", "index"), self.scan.slice_in_ras(row["axis"], row["index"])))}
            for row in _read_json(self.folder / "suggestions.json").get(self.scan.name, [])
        ]
        quality = _read_json(self.folder / "quality.json")
        to_ras = self.scan.to_ras
        return Found(RESULT, to_ras(numbers), to_ras(np.asarray(confidence.data, np.uint8)), suggestions, quality)

    def _propagated(self) -> Found | None:
        """Return the segmentation by the probabilities that the run keeps on disk; None if there are none yet."""
        import_later()
        from sparse3dunet.densify.densifier import Annotation, decided
        from sparse3dunet.densify.propagated import Propagation
        from sparse3dunet.densify.suggest import as_rows, suggest_slices
        from sparse3dunet.inference.inputs import ImageCase

        if self._annotation is None:
            return None
        _, refined, _ = self._files()
        numbers, annotated = (self.scan.to_file(array) for array in self._annotation)
        kept = Propagation(refined.parent, lambda path: None, len(self._order), 0.0, 1, 0)
        best = kept.best(ImageCase(self.scan.name, (str(self.scan.path),)))
        if best is None or len(best.prob) != len(self._order):
            return None
        in_run, _ = decided(best.prob, best.box, Annotation(numbers, numbers, annotated))
        confidence = np.full(in_run.shape, 255, np.uint8)
        confidence[best.box] = np.rint(255 * np.take_along_axis(best.prob, in_run[best.box][None].astype(int), 0)[0])
        found = np.asarray(self._order, np.uint8)[in_run]  # a class that is not annotated is none for the run
        found[annotated], confidence[annotated] = numbers[annotated], 255
        rows = as_rows(suggest_slices(confidence, found, annotated, self.scan.volume.affine, SUGGESTIONS))
        for row in rows:
            row["axis"], row["index"] = self.scan.slice_in_ras(row["axis"], row["index"])
        kind = REFINED if refined.is_file() else PREVIEW
        return Found(kind, self.scan.to_ras(found), self.scan.to_ras(confidence), rows)


def check_results(folder: Path, scan: Scan) -> None:
    """Raise DataError if a folder has the results of another scan: runs would be refused, and it must not be shown."""
    from sparse3dunet.densify.made import Made

    Made(folder / "work" / "inputs", ()).check_scan(scan.path)
    images = _read_json(folder / "records" / f"{scan.name}.json").get("image")
    former = Path(images[0]) if isinstance(images, list) and images and isinstance(images[0], str) else scan.path
    is_made = former.parent.parts[-2:] == ("work", "inputs")  # by a run, from the scan that was checked above
    if not is_made and is_other_volume(former, scan.path):
        raise DataError(
            f"{scan.path}: the results named {scan.name} in {folder} are those of {former}. Pass another folder for "
            "this scan (-o)."
        )


def _changed(path: Path) -> int:
    """Return the time of a file's last change in ns; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        content = load_json(path, "results")
        return content if isinstance(content, dict) else {}
    return {}
