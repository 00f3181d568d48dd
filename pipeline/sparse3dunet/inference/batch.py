"""Segmentation of many images: read, predicted and written concurrently, and shared by several processes."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sparse3dunet.colors import Labels
from sparse3dunet.data.large import open_large
from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.data.moments import channels_of
from sparse3dunet.errors import TRACEBACK_VARIABLE, DataError
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.large import LargePrediction, Progress, predict_large
from sparse3dunet.inference.notes import image_notes
from sparse3dunet.inference.predictor import IN_MEMORY, Prediction, Predictor, Scratch
from sparse3dunet.inference.processes import Processes
from sparse3dunet.inference.records import CaseRecord, remove_empty_drafts, write_summary
from sparse3dunet.io import check_output, natural_suffix, read_image, write_map, write_segmentation
from sparse3dunet.io.chunked import ChunkedArray
from sparse3dunet.io.defaults import as_key
from sparse3dunet.io.itk_snap import label_descriptions, may_be_replaced
from sparse3dunet.io.suffixes import MAP_SUFFIXES
from sparse3dunet.io.volumes import Volume, class_numbers
from sparse3dunet.io.writing import write_text
from sparse3dunet.progress import BatchProgress, CaseProgress
from sparse3dunet.report.pictures import draw_picture

READ_AHEAD = IN_MEMORY // 4
"""Bytes of an image's files; while a larger one is processed, no other is read or written."""
LARGEST_PICTURE = 400
"""Largest number of voxels along an axis of a picture."""


@dataclass(frozen=True)
class Output:
    """Place and format of the results.

    Attributes:
        folder: folder of all results.
        class_names: names by class number.
        class_values: values on disk by class number.
        format: one of OUTPUT_SUFFIXES; None for each image's own.
        pictures: whether to draw each case.
        overwrite: whether to replace files that this command did not write, or that were changed since.
        is_semi_automatic: whether the images themselves were annotated in part.
        annotation: annotation of the one image, larger than memory, whose voxels keep their class; None for none.
        colors: colours by value on disk, as #rrggbb, of classes that have one of their own.
    """

    folder: Path
    class_names: Sequence[str]
    class_values: Sequence[int]
    format: str | None = None
    pictures: bool = True
    overwrite: bool = False
    is_semi_automatic: bool = False
    annotation: LargeAnnotation | None = None
    colors: Mapping[int, str] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """Each class's name, and colour if it has one, by its value on disk."""
        return Labels(dict(zip(self.class_values, self.class_names)), self.colors)

    def names(self, case: ImageCase, confidence: bool = False, probabilities: bool = False) -> dict[str, str]:
        """Return the files of a case by their content, relative to the folder."""
        suffix = self.format or natural_suffix(case.files[0])
        maps = MAP_SUFFIXES.get(suffix, suffix)
        segmentation = f"{case.name}{suffix}" if suffix in MAP_SUFFIXES else f"{case.name}_seg{suffix}"
        names = {"segmentation": segmentation}
        if confidence:
            names["confidence"] = f"{case.name}_confidence{maps}"
        if probabilities:
            names["probabilities"] = f"{case.name}_prob{maps}"
        if self.pictures:
            names["picture"] = f"pictures/{case.name}.png"
        return names


@dataclass
class Outcome:
    """Numbers of cases done and skipped, and the failures, of a batch over all processes."""

    done: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    @classmethod
    def of_all(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the sum of several outcomes; failures are sorted."""
        failed = sorted(text for outcome in outcomes for text in outcome.failed)
        return cls(sum(o.done for o in outcomes), sum(o.skipped for o in outcomes), failed)

    def stopped_text(self) -> str:
        """Return what is printed when a batch is stopped."""
        return f"Stopped after {self.done} volume(s); run the same command to continue."


def predict_batch(
    cases: Sequence[ImageCase], predictor: Predictor, output: Output, key: Mapping[str, Any], quiet: bool = False
) -> Outcome:
    """Predict images, and write results, records, ``summary.csv``, and ``labels.txt`` for ITK-SNAP.

    Cases that are already done with the same `key` are skipped. If one fails, it is reported, and the others continue.
    Under torchrun, the cases are divided among the processes.

    Args:
        cases: the images.
        predictor: predictor of a single image.
        output: place and format of the results.
        key: plain values that the results depend on: the model's digest, the settings.
        quiet: whether to show no progress.

    Returns:
        The outcome of all cases, in each process.
    """
    processes = Processes()
    mine = processes.share(processes.agree(largest_first(cases)))
    outcome = Outcome()
    with BatchProgress(len(mine), quiet or not processes.is_first, notes=not quiet) as progress:
        predictor.inferer.on_window = progress.windows
        try:
            Batch(predictor, output, record_key(key, output), progress, outcome).run(mine)
        except KeyboardInterrupt:
            summarise(output, cases)
            print(outcome.stopped_text(), flush=True)
            raise
    total = Outcome.of_all(processes.gather(outcome))
    if processes.is_first:
        remove_empty_drafts(output.folder)
        summarise(output, cases)
    processes.gather(None)  # else a process that ends with an error would stop the first one too early
    processes.close()
    return total


def largest_first(cases: Sequence[ImageCase]) -> list[ImageCase]:
    """Return the images in the order in which they are predicted."""
    return sorted(cases, key=lambda case: (-case.size, case.name))


def record_key(key: Mapping[str, Any], output: Output) -> dict[str, Any]:
    """Return all that results depend on besides the image, for their records: also their format, how files are read."""
    kept = {} if output.annotation is None else {"annotation": output.annotation.key}
    return {**key, "format": output.format, "pictures": output.pictures, **as_key(), **kept}


def summarise(output: Output, cases: Sequence[ImageCase] = ()) -> None:
    """Write ``summary.csv`` and ``labels.txt``.

    Args:
        output: place of the results.
        cases: cases of this run, see :func:`~sparse3dunet.inference.records.write_summary`.

    Raises:
        DataError: when they cannot be written.
    """
    try:
        write_summary(output.folder, output.class_names, cases=cases)
        labels = output.folder / "labels.txt"
        if may_be_replaced(labels):
            write_text(labels, label_descriptions(output.labels))
    except OSError as error:
        raise DataError(f"{output.folder / 'summary.csv'} cannot be written ({error}).") from error


@dataclass
class _Job:
    case: ImageCase
    record: CaseRecord
    names: dict[str, str]
    seconds: float = 0.0

    def read(self) -> list[Volume]:
        started = time.perf_counter()
        volumes = open_large(self.case.files) or [read_image(file) for file in self.case.files]
        self.seconds += time.perf_counter() - started
        return volumes


class Batch:
    """Loop over the cases: while one is predicted, the next one is read and the previous one written.

    Args:
        predictor: predictor of a single image.
        output: place and format of the results.
        key: see :func:`record_key`.
        progress: what shows the progress.
        outcome: what happened to the cases, which is added to.
        wait: whether to wait in the end for cases that other processes are working on; if not, they are in `held`.
    """

    def __init__(
        self,
        predictor: Predictor,
        output: Output,
        key: Mapping[str, Any],
        progress: CaseProgress,
        outcome: Outcome,
        wait: bool = True,
    ) -> None:
        self.predictor, self.output, self.key = predictor, output, key
        self.progress, self.outcome, self.wait = progress, outcome, wait
        self.held: list[ImageCase] = []

    def run(self, cases: Sequence[ImageCase]) -> None:
        """Predict cases; those that fail are reported, and the others continue."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            writing: Future | None = None
            for job, reading in self._all(cases, reader):
                volumes, done = self._predict(job, reading)
                if writing is not None:
                    writing.result()
                    writing = None
                if done is not None:
                    writing = writer.submit(self._write, job, volumes, *done)
                    if job.case.size > READ_AHEAD:
                        writing.result()
                del volumes, done

    def _all(self, cases: Sequence[ImageCase], reader: ThreadPoolExecutor) -> Iterator[tuple[_Job, Future]]:
        """Yield the cases that are not done yet; last those that other processes are working on, if they failed.

        The latter one by one: what this process holds must be done before it waits for another one, which may be
        waiting for that.
        """
        yield from self._reading(self._jobs(cases, wait=False), reader)
        for case in list(self.held) if self.wait else ():
            yield from self._reading(self._jobs([case], wait=True), reader)

    def _jobs(self, cases: Sequence[ImageCase], wait: bool) -> Iterator[_Job]:
        for case in cases:
            job, free = self._job(case, wait)
            if not free:
                self.held.append(case)
            elif job is not None:
                yield job

    def _job(self, case: ImageCase, wait: bool) -> tuple[_Job | None, bool]:
        """Return the job of a case, None if there is nothing to do; and whether no other process holds the case."""
        names = self.output.names(case, self.predictor.confidence, self.predictor.probabilities)
        record = None
        try:
            record = CaseRecord(self.output.folder, case, self.key)
            if not record.hold(wait):
                return None, False
            if case.fault:
                self._failed(case.name, DataError(case.fault), record)
                return None, True
            done = record.is_done(list(names.values()), self.output.overwrite)
        except Exception as error:  # a link to nothing, for example
            self._failed(case.name, error)
            if record is not None:
                record.release()
            return None, True
        if not done:
            return _Job(case, record, names), True
        record.release()
        self.outcome.skipped += 1
        self.progress.skip()
        return None, True

    @staticmethod
    def _reading(jobs: Iterator[_Job], reader: ThreadPoolExecutor) -> Iterator[tuple[_Job, Future]]:
        """Yield cases while the next one is being read, unless either is large."""
        ahead: deque[tuple[_Job, Future]] = deque()
        for job in jobs:
            if ahead and max(job.case.size, ahead[0][0].case.size) > READ_AHEAD:
                yield ahead.popleft()
            ahead.append((job, reader.submit(job.read)))
            if len(ahead) == 2:
                yield ahead.popleft()
        yield from ahead

    def _predict(self, job: _Job, reading: Future) -> tuple[list[Volume], tuple[Prediction, Scratch] | None]:
        scratch = None
        try:
            self.progress.start(job.case.name)
            volumes = reading.result()
            for name in (name for kind, name in job.names.items() if kind != "picture"):
                check_output(name, volumes[0], self.output.labels)
            started, names = time.perf_counter(), list(job.names.values())
            if isinstance(volumes[0].data, ChunkedArray):
                goes_on = Progress.read(job.record.drafts, job.record.key) is not None
                drafts = job.record.start(names, self.output.overwrite, goes_on)
                scratch = Scratch(drafts)
                if goes_on:
                    self.progress.line(f"{job.case.name}: continued where it was stopped")
                labels, key, kept = self.output.labels, job.record.key, self.output.annotation
                prediction: Prediction = predict_large(self.predictor, volumes, drafts, job.names, labels, key, kept)
            else:
                scratch = Scratch(job.record.start(names, self.output.overwrite))
                prediction = self.predictor(volumes, scratch)
            job.seconds += time.perf_counter() - started
            return volumes, (prediction, scratch)
        except Exception as error:  # in any case, the other cases continue
            if scratch is not None:
                scratch.close()
            self._failed(job.case.name, error, job.record)
            return [], None

    def _write(self, job: _Job, volumes: list[Volume], prediction: Prediction, scratch: Scratch) -> None:
        started = time.perf_counter()
        try:
            with scratch:
                self._write_drafts(job, volumes[0], prediction)
                if "picture" in job.names:
                    _draw(job.record.drafts / job.names["picture"], job.case.name, volumes[0], prediction, self.output)
            notes = image_notes(volumes, self.predictor.voxel_size, prediction.notes)
            voxel_ml = float(abs(np.linalg.det(volumes[0].affine[:3, :3]))) / 1000
            job.record.finish(
                list(job.names.values()),
                seconds=job.seconds + time.perf_counter() - started,
                ml={name: n * voxel_ml for name, n in zip(self.output.class_names, prediction.voxels)},
                mean_confidence=prediction.mean_confidence,
                segmentation=job.names["segmentation"],
                notes=[text for _, text in notes],
            )
            job.record.release()
        except Exception as error:  # a full disk, for example
            self._failed(job.case.name, error, job.record)
            return
        self.outcome.done += 1
        for kind, text in notes:
            self.progress.note(kind, text)
        self.progress.done(job.record.read())

    def _write_drafts(self, job: _Job, image: Volume, prediction: Prediction) -> None:
        drafts = job.record.drafts
        if isinstance(prediction, LargePrediction):
            prediction.finish()
            return
        path, labels = drafts / job.names["segmentation"], self.output.labels
        write_segmentation(path, prediction.segmentation, image, labels, self.output.is_semi_automatic)
        for kind, values in (("confidence", prediction.confidence), ("probabilities", prediction.probabilities)):
            if kind in job.names and values is not None:
                write_map(drafts / job.names[kind], values, image, kind)

    def _failed(self, name: str, error: Exception, record: CaseRecord | None = None) -> None:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text:
            text += ". Pass smaller windows (--roi-size), or --device cpu if the GPU is too small."
        text = " ".join(text.split())
        self.outcome.failed.append(f"{name}: {text}")
        self.progress.failed(name, text)
        if record is None:
            return
        try:
            # Hours of work on a large image are worth more than the place that they take
            record.fail(text, Progress.read(record.drafts, record.key) is not None)
        except OSError:  # the disk is full or gone, as was reported above
            return
        finally:
            record.release()


def _draw(path: Path, name: str, image: Volume, prediction: Prediction, output: Output) -> None:
    """Draw a picture of the case, subsampled if it is large."""
    step = max(math.ceil(n / LARGEST_PICTURE) for n in image.spatial_shape)
    thin = (slice(None, None, step),) * 3
    data = channels_of(image.data)[0]
    orientation = nib.io_orientation(image.affine)
    scan, classes = (nib.apply_orientation(array[thin], orientation) for array in (data, prediction.segmentation))
    spacing = image.in_ras_order(image.spacing)
    draw_picture(
        scan,
        class_numbers(classes, output.class_values),
        class_names=output.class_names,
        title=name,
        spacing=spacing,
        step=step,
        sides=image.is_placed,
    ).save(path)
