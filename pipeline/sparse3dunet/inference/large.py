"""Segmentation of an image larger than memory: read, predicted and written chunk by chunk, and continued after a stop.

The result is that of :class:`~sparse3dunet.inference.predictor.Predictor`, voxel by voxel, but for the mean and
standard deviation, which are those of the stored voxels, also if the network sees others. The volume is cut into strips
along one axis, so that the sums of a row of windows fit in memory; each strip is predicted slab by slab.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.data.memory import machine_memory
from sparse3dunet.data.moments import channel_moments, channels_of, contrast_notes
from sparse3dunet.errors import DataError
from sparse3dunet.inference.predictor import (
    CONFIDENCE,
    SEGMENTATION,
    AbsoluteScale,
    Grid,
    Prediction,
    Predictor,
    Scratch,
    Tally,
    ZScore,
    count_classes,
    decide,
)
from sparse3dunet.inference.resizing import PLANES, SlabResizer
from sparse3dunet.inference.rows_ahead import RowsAhead
from sparse3dunet.io.chunked import ChunkedArray, pieces
from sparse3dunet.io.chunked_results import ChunkedResult, check_suffix
from sparse3dunet.io.json_files import load_json, misfit
from sparse3dunet.io.ome_zarr import CHUNK
from sparse3dunet.io.volumes import Volume, check_channels
from sparse3dunet.io.writing import write_text

STATE = "large.json"
"""Name of the file, among the drafts, that says how far a prediction got."""
BLEND = 2**30
"""Bytes that the sums of the windows in one row may take; a strip of the volume is as wide as this allows."""
_FIELDS = {
    **{"key": str, "moments": list[list[float]] | None, "strip": int, "row": int, "voxels": list[int]},
    **{"sum_of_confidence": float, "foreground": int},
}


@dataclass
class Progress:
    """How far the prediction of an image got.

    Attributes:
        key: what the result depends on.
        moments: mean and standard deviation of each channel; None if not known yet.
        strip: number of the current strip.
        row: first row of this strip, in RAS order, that is not written yet.
        voxels: see :class:`~sparse3dunet.inference.predictor.Tally`, as for the others.
        sum_of_confidence: the same.
        foreground: the same.
    """

    key: str
    moments: list[list[float]] | None = None
    strip: int = 0
    row: int = 0
    voxels: list[int] = field(default_factory=list)
    sum_of_confidence: float = 0.0
    foreground: int = 0

    @classmethod
    def read(cls, folder: Path, key: str) -> Progress | None:
        """Return the progress of a stopped run with this key; None if there is none, or it cannot be read."""
        try:
            content = load_json(folder / STATE, "progress")
        except (OSError, DataError):
            return None
        if misfit(content, _FIELDS) or set(content) != set(_FIELDS) or content["key"] != key:
            return None
        return cls(**content)

    def write(self, folder: Path) -> None:
        write_text(folder / STATE, json.dumps(asdict(self)) + "\n")


@dataclass
class LargePrediction(Prediction):
    """Results for an image that are on disk already: arrays of these, and :meth:`finish` to complete the files."""

    files: Sequence[ChunkedResult] = ()

    def finish(self) -> None:
        for file in self.files:
            file.finish()


def predict_large(
    predictor: Predictor,
    volumes: Sequence[Volume],
    drafts: Path,
    names: Mapping[str, str],
    class_names: Mapping[int, str],
    key: str,
    annotation: LargeAnnotation | None = None,
) -> LargePrediction:
    """Segment an image chunk by chunk, or continue that.

    Args:
        predictor: network and settings.
        volumes: the opened image, as one volume or one for each channel.
        drafts: folder for the results and the progress; what a stopped run with the same key left there is used.
        names: file in this folder by kind of result.
        class_names: names of the classes by value.
        key: what the results depend on.
        annotation: annotated voxels that keep their class, with a confidence of 1; None for none.

    Raises:
        DataError: when the image does not fit the model, a result's format is not written in chunks, or a setting needs
            the whole volume in memory.
    """
    check_channels(volumes, predictor.num_channels)
    _check_settings(predictor, volumes[0].path, names)
    progress = Progress.read(drafts, key)
    for left in drafts.glob("scratch-*"):  # of the process that was stopped
        shutil.rmtree(left, ignore_errors=True)
    files = {
        kind: ChunkedResult(
            drafts / names[kind],
            (*volumes[0].spatial_shape, *more),
            dtype,
            volumes[0],
            class_names if kind == SEGMENTATION else None,
            "" if kind == SEGMENTATION else kind,
        )
        for kind, (more, dtype) in predictor.kinds().items()
    }
    if progress is None:
        for file in files.values():
            file.begin()
        progress = Progress(key)
        progress.write(drafts)
    with Scratch(drafts) as scratch:
        tally = _Large(predictor, volumes, files, progress, drafts, scratch, annotation).run()
    arrays: list[Any] = [file.voxels for file in files.values()]
    found = dict(zip(files, arrays))
    mean = tally.mean_confidence
    means, deviations = progress.moments or ([], [])
    return LargePrediction(
        found[SEGMENTATION],
        found.get("confidence"),
        found.get("probabilities"),
        tally.voxels.tolist(),
        mean,
        contrast_notes(means, deviations, volumes[0].path),
        list(files.values()),
    )


def _check_settings(predictor: Predictor, path: str, names: Mapping[str, str]) -> None:
    for kind in predictor.kinds():
        check_suffix(names[kind])
    unfit = [
        *(["--largest"] if predictor.largest else []),
        *(["--min-ml"] if predictor.min_ml else []),
        *(["a normalisation of one's own"] if predictor.normalize else []),
    ]
    if unfit:
        raise DataError(
            f"{path}: {' and '.join(unfit)} need(s) the whole volume in memory, which is read chunk by chunk. Leave it "
            "out, or allow more memory (--volume-memory)."
        )


class _Large:
    """Prediction of one image, strip by strip and slab by slab."""

    def __init__(
        self,
        predictor: Predictor,
        volumes: Sequence[Volume],
        files: Mapping[str, ChunkedResult],
        progress: Progress,
        drafts: Path,
        scratch: Scratch,
        annotation: LargeAnnotation | None,
    ) -> None:
        self.predictor, self.image, self.files, self.annotation = predictor, volumes[0], files, annotation
        self.progress, self.drafts = progress, drafts
        self.grid = Grid.of(self.image, predictor.spacing)
        self.windows = predictor.inferer.windows(self.grid.shape, predictor.network)
        self.row_axis = self.windows.row_axis
        if self.grid.resampled:
            self._check_memory()
        self.stored: list[Any] = [
            array.turned(self.grid.orientation)
            for volume in volumes
            for array in channels_of(volume.data)
            if isinstance(array, ChunkedArray)
        ]
        moments = self._moments()
        self.channels = [self.grid.resized(array, scratch) for array in self.stored]
        self.prepare = self._normalisation(moments)
        self.flips = self.grid.orientation[np.argsort(self.grid.orientation[:, 0]), 1] < 0
        self.tally = Tally(len(predictor.class_values))
        if progress.voxels:
            self.tally.voxels = np.array(progress.voxels, np.int64)
            self.tally.sum_of_confidence, self.tally.foreground = progress.sum_of_confidence, progress.foreground

    def run(self) -> Tally:
        """Predict what is not done yet, and return the counts over all voxels."""
        strip_axis, strips = self._strips()
        start = (self.progress.strip, self.progress.row)
        rows = [start[1] if number == start[0] else 0 for number in range(len(strips))]
        boxes = [self._box(strip_axis, strip, row) for strip, row in zip(strips, rows)]
        counts = [self.windows.within(self._seen(box)).count for box in boxes]
        total, on_window = sum(counts), self.predictor.inferer.on_window
        try:
            for number in range(start[0], len(strips)):
                before = sum(counts[:number])
                if on_window is not None:
                    self.predictor.inferer.on_window = _counting(on_window, before, total)
                if boxes[number][self.row_axis].start < boxes[number][self.row_axis].stop:
                    self._predict(boxes[number])
                self.progress.strip, self.progress.row = number + 1, 0
                self.progress.write(self.drafts)
        finally:
            self.predictor.inferer.on_window = on_window
        return self.tally

    def _moments(self) -> list[list[float]]:
        """Return mean and standard deviation of each channel as stored, as training does, unless a stopped run did."""
        if self.progress.moments is None:  # also on an absolute scale: NaN is to be found before hours of work
            self.progress.moments = list(channel_moments(self.stored, self.image.path))
            self.progress.write(self.drafts)
        return self.progress.moments

    def _normalisation(self, moments: list[list[float]]) -> Callable[[np.ndarray], np.ndarray]:
        """Return the normalisation of windows."""
        if self.predictor.intensity is not None:
            scale = AbsoluteScale(**self.predictor.intensity)
            scale.check(self.channels[0], self.image.path)
            return scale
        return ZScore.by(*moments)

    def _check_memory(self) -> None:
        """Raise DataError if resampling, for which slabs are whole planes, would take more memory than there is."""
        needed, memory = self._memory_of_resampling(), machine_memory()
        if not memory or needed <= memory:
            return
        sizes = " x ".join(f"{size:g}" for size in self.predictor.spacing or ())
        raise DataError(
            f"{self.image.path}: resampling to the model's voxel size, {sizes} mm, and back takes about "
            f"{needed / 2**30:.3g} GiB of memory, more than the {memory / 2**30:.3g} GiB of this machine. Convert the "
            "image to that voxel size, or train a model without --spacing."
        )

    def _memory_of_resampling(self) -> int:
        """Return the bytes that the volume's planes take on the way to the network's voxels or, if more, back."""
        row, count, shapes = self.row_axis, self.predictor.num_outputs(), (self.grid.shape, self.grid.ras_shape)
        network, image = (math.prod(shape) // shape[row] for shape in shapes)
        ratio = self.grid.shape[row] / self.grid.ras_shape[row]
        logits = 4 * (2 * count + 1) * self.windows.axes[row].size * network  # sums, weights, and those that are done
        interpolated = 4 * count * image * (3 * PLANES + math.ceil(PLANES * ratio) + 2)
        kinds = self.predictor.kinds().values()
        results = CHUNK * image * sum(math.prod(more) * np.dtype(dtype).itemsize for more, dtype in kinds)
        network, image = (shape[1] * shape[2] for shape in shapes)  # resized across the first axis, in 64 bits
        source = math.ceil(PLANES * self.grid.ras_shape[0] / self.grid.shape[0]) + 2
        return max(logits + interpolated + results, 8 * (source * (image + network) + 3 * PLANES * network))

    def _strips(self) -> tuple[int, list[slice]]:
        """Return the axis along which the volume is cut, and its parts; one if logits are resampled."""
        row, count = self.row_axis, self.predictor.num_outputs()
        across, along = sorted((axis for axis in range(3) if axis != row), key=lambda i: self.grid.ras_shape[i])
        n = self.grid.ras_shape[along]
        if self.grid.resampled:
            return along, [slice(0, n)]
        bytes_of_row = 4 * (count + 1) * self.windows.axes[row].size * self.grid.shape[across]
        width = max(BLEND // bytes_of_row, self.windows.axes[along].size)
        return along, pieces(n, max(width // CHUNK, 1) * CHUNK, bool(self.flips[along]))

    def _box(self, axis: int, strip: slice, row: int) -> list[slice]:
        """Return the voxels of a strip from a row on, in RAS order."""
        box = [slice(0, n) for n in self.grid.ras_shape]
        box[axis] = strip
        box[self.row_axis] = slice(row, self.grid.ras_shape[self.row_axis])
        return box

    def _seen(self, box: Sequence[slice]) -> list[slice]:
        """Return the voxels of the network's grid that are needed for a box of the image."""
        if not self.grid.resampled:
            return list(box)
        row, n = self.row_axis, self.grid.ras_shape[self.row_axis]
        first = box[row].start
        start = self._resizer().begin_at(first) if first < n else self.grid.shape[row]
        return [slice(start if axis == row else 0, length) for axis, length in enumerate(self.grid.shape)]

    def _resizer(self) -> SlabResizer:
        return SlabResizer(self.row_axis, self.grid.shape, self.grid.ras_shape)

    def _predict(self, box: list[slice]) -> None:
        """Predict a box of the image, and write it section by section: as many rows as a chunk has."""
        row = self.row_axis
        parts = pieces(self.grid.ras_shape[row], CHUNK, bool(self.flips[row]))
        left = (part for part in parts if part.stop > box[row].start)
        pending = (_Section(self, [*box[:row], part, *box[row + 1 :]]) for part in left)
        section = next(pending)
        for rows, logits in self._logits(box):
            start = rows.start
            while start < rows.stop:
                stop = min(section.rows.stop, rows.stop)
                part = logits.narrow(row + 1, start - rows.start, stop - start)
                section.add(slice(start, stop), decide(self.predictor, part, self.tally, self.image.path))
                start = stop
                if stop == section.rows.stop:
                    self._keep_annotation(section)
                    section.write()
                    self._keep(stop)
                    section = next(pending, section)

    def _keep_annotation(self, section: _Section) -> None:
        """Give annotated voxels their class, and count them as such."""
        values = self.predictor.class_values
        found = None if self.annotation is None else self.annotation.classes_in(section.box, values)
        if found is None:
            return
        annotated, classes = found
        segmentation, confidence = section.values[SEGMENTATION], section.values.get(CONFIDENCE)
        predicted = segmentation[annotated]
        segmentation[annotated] = classes
        for sign, of_voxels in ((-1, predicted), (1, classes)):
            self.tally.voxels += sign * count_classes(of_voxels, values)
            self.tally.foreground += sign * int((of_voxels != values[0]).sum())
        if confidence is not None:
            before = confidence[annotated][predicted != values[0]]
            self.tally.sum_of_confidence += float((classes != values[0]).sum()) - float(before.sum(dtype=float)) / 255
            confidence[annotated] = 255

    def _logits(self, box: Sequence[slice]) -> Iterator[tuple[slice, Any]]:
        """Yield rows of the image and their logits, from the first row of the box on."""
        seen = self._seen(box)
        first = seen[self.row_axis].start
        ahead: Any = self.channels
        if not self.grid.resampled:  # else they are in a file that the system caches
            ahead = [RowsAhead(channel, self.windows.within(seen)) for channel in self.channels]
        predictor, resizer = self.predictor, self._resizer() if self.grid.resampled else None
        if resizer is not None:
            resizer.begin_at(box[self.row_axis].start)
        slabs = predictor.inferer.slabs(ahead, predictor.network, predictor.device, self.prepare, seen)
        for rows, logits in slabs:
            rows = slice(rows.start + first, rows.stop + first)
            yield from [(rows, logits)] if resizer is None else resizer.add(rows, logits)

    def _keep(self, row: int) -> None:
        """Record that all rows before this one are written."""
        progress, tally = self.progress, self.tally
        progress.row, progress.voxels = row, tally.voxels.tolist()
        progress.sum_of_confidence, progress.foreground = tally.sum_of_confidence, tally.foreground
        progress.write(self.drafts)


class _Section:
    """Results of a box of whole chunks, in RAS order, kept until all of its rows are known."""

    def __init__(self, large: _Large, box: Sequence[slice]) -> None:
        self.files, self.row_axis, self.rows = large.files, large.row_axis, box[large.row_axis]
        self.orientation = large.grid.orientation
        self.box = []
        for (target, sign), n in zip(self.orientation, large.image.spatial_shape):
            along = box[int(target)]
            self.box.append(along if sign > 0 else slice(n - along.stop, n - along.start))
        lengths = [along.stop - along.start for along in self.box]
        self.values = {kind: np.zeros((*lengths, *file.shape[3:]), file.dtype) for kind, file in self.files.items()}

    def add(self, rows: slice, found: Mapping[str, np.ndarray]) -> None:
        within = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        for kind, values in found.items():
            turned = nib.apply_orientation(self.values[kind], self.orientation)
            np.moveaxis(turned, self.row_axis, 0)[within] = np.moveaxis(values, self.row_axis, 0)

    def write(self) -> None:
        for kind, file in self.files.items():
            file.write(self.box, self.values[kind])


def _counting(on_window: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: on_window(before + done, total)
