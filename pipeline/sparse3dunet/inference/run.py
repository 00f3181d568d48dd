"""Prediction of images with a trained model, for ``sparse3dunet predict`` and the bundle's ``run inference``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.datasets.mni152 import ensure_defaults
from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Outcome, Output, largest_first, predict_batch
from sparse3dunet.inference.inputs import find_images
from sparse3dunet.inference.processes import rank_and_count
from sparse3dunet.inference.records import OVERWRITE, check_summary, results_in
from sparse3dunet.inference.settings import Settings
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import check_output_dir
from sparse3dunet.io.suffixes import format_suffix
from sparse3dunet.models.loading import Model, load_model
from sparse3dunet.models.normalization import intensity_of, normalization_names

DENSIFIED, DENSIFIED_LARGE = ("work/state.json", "quality.json"), ("work/large.txt", "model/model.json")
"""Files in a folder with results of densify, of volumes in memory and of larger ones."""


def predict(
    model: Model,
    sources: Sequence[str | Path],
    output_dir: str | Path,
    inferer: SlabInferer,
    *,
    device: torch.device | str | None = None,
    normalize: Sequence[Any] | None = None,
    format: str | None = None,
    confidence: bool = False,
    probabilities: bool = False,
    pictures: bool = True,
    largest: bool | Sequence[str | int] = (),
    min_ml: float | Mapping[str, float] = 0.0,
    overwrite: bool = False,
    quiet: bool = False,
    dask: str | None = None,
    part: tuple[int, int] | None = None,
    annotation: LargeAnnotation | None = None,
) -> Outcome:
    """Segment images, each on its own grid, into `output_dir`.

    It then contains ``NAME_seg.*`` for each image, never an incomplete one, and ``summary.csv``; on request also
    ``NAME_confidence.*`` and ``NAME_prob.*``. Images that were already done with the same model and settings are
    skipped. Under torchrun, the images are divided among the processes.

    Args:
        model: see :func:`~sparse3dunet.models.loading.load_model`.
        sources: see :func:`~sparse3dunet.inference.inputs.find_images`.
        output_dir: folder for all results.
        inferer: inferer that runs the network on windows.
        device: device of the network; None for this process's GPU, if there is one.
        normalize: dictionary transforms that normalise; None for the bundle's, as the model's description says.
        format: ".nii.gz", ".seg.nrrd" (3D Slicer's), "dicom-seg" or another one of docs/formats.md; None for each
            image's own, and .nii.gz for DICOM.
        confidence: whether to write the probability of the chosen class, 0 to 255.
        probabilities: whether to write the probabilities of all classes, or of all regions.
        pictures: whether to draw each image with its segmentation.
        largest: True, or names or numbers of classes of which only the largest connected component is kept.
        min_ml: volume in ml, for all classes or by name, below which a connected component becomes background.
        overwrite: whether to replace files that were not written by this function, or changed since.
        quiet: whether to show only failures.
        dask: address of a Dask scheduler, "host:port", whose workers predict; they see the same folders. None for this
            process, or those of torchrun.
        part: (i, n) to segment the i-th of n parts of the images alone, i from 1, as jobs of an array do; None for all.
        annotation: of the one image, which is larger than memory, whose annotated voxels keep their class.

    Raises:
        DataError: when prediction cannot start: no image, no class of that name, no place for results, or a
            summary there that is the user's. Images that fail
            are listed in the :class:`~sparse3dunet.inference.batch.Outcome`.
    """
    format = format_suffix(format)
    output_dir = Path(output_dir).expanduser() if isinstance(output_dir, (str, Path)) else output_dir
    for source in sources:
        check_output_dir(output_dir, source)
    check_summary(output_dir, overwrite, OVERWRITE)
    _check_normalization(model, normalize)
    cases = find_images(sources, model.in_channels, results_in(output_dir))
    if part is not None:
        cases = largest_first(cases)[part[0] - 1 :: part[1]]
    settings = Settings(inferer, device, normalize, confidence, probabilities, largest, min_ml)
    inferer.windows((1, 1, 1), model.network)  # checks that the network accepts such windows
    named: dict[str, Any] = {"annotation": annotation, "colors": model.class_colors}
    output = Output(output_dir, model.class_names, model.class_values, format, pictures, overwrite, **named)
    if dask is not None:
        from sparse3dunet.inference.cluster import predict_on_cluster

        return predict_on_cluster(dask, cases, model, settings, output, quiet)
    predictor = settings.predictor(model)
    return predict_batch(cases, predictor, output, settings.key(model, predictor), quiet)


def predict_and_report(
    model_file: str | Path,
    dataset_dir: str | list[str] | None,
    output_dir: str | Path,
    inferer: SlabInferer,
    **options: Any,
) -> None:
    """Run :func:`predict`, then :func:`report`, for the bundle's ``run inference``.

    Args:
        model_file: see :func:`~sparse3dunet.models.loading.load_model`.
        dataset_dir: one or several sources of images; the built-in ones are prepared if absent.
        output_dir: folder for all results.
        inferer: inferer that runs the network on windows.
        options: further arguments of :func:`predict`.

    Raises:
        DataError: as both do.
    """
    if isinstance(output_dir, (str, Path)):  # else told later, with what it is
        check_not_densified(output_dir)
    report(predict(load_model(model_file), ensure_defaults(dataset_dir), output_dir, inferer, **options), output_dir)


def report(outcome: Outcome, output_dir: str | Path) -> None:
    """Print the outcome of a batch.

    Raises:
        DataError: when images failed.
    """
    is_first = rank_and_count()[0] == 0
    if is_first:
        before = f", {outcome.skipped} already done" if outcome.skipped else ""
        print(f"Segmented {outcome.done} volume(s){before}: {output_dir}", flush=True)
    if outcome.failed and is_first:
        total = outcome.done + outcome.skipped + len(outcome.failed)
        more = f" (and {len(outcome.failed) - 1} more)" if len(outcome.failed) > 1 else ""
        raise DataError(
            f"{len(outcome.failed)} of {total} volume(s) failed, see {Path(output_dir) / 'summary.csv'}: "
            f"{outcome.failed[0]}{more}"
        )


def check_not_densified(output_dir: str | Path) -> None:
    """Raise DataError if a folder is that of a densification.

    Its segmentations keep the annotation, and its report and summary are about them: predictions would replace them.
    """
    folder = str(Path(output_dir).expanduser())
    if any(all(os.path.isfile(os.path.join(folder, name)) for name in names) for names in (DENSIFIED, DENSIFIED_LARGE)):
        raise DataError(
            f"{os.path.abspath(folder)} has the results of densify, with annotated voxels as they are and a report on "
            "them, which predictions would replace. Pass another folder (-o) for predictions."
        )


def _check_normalization(model: Model, normalize: Sequence[Any] | None) -> None:
    """Raise DataError unless images are normalised as in training."""
    found, expected = normalization_names(normalize), list(model.description.normalize)
    scale = model.description.intensity
    if normalize is not None and not found and intensity_of(normalize) != scale:
        raise DataError(
            f"{model.path} was trained on images normalised by {scale or 'their own z-score'}, not by "
            f"{intensity_of(normalize) or 'their own z-score'}. Use the bundle's run inference, with its `normalize`."
        )
    if found != expected:
        raise DataError(
            f"{model.path} was trained with another normalisation ({_listed(expected)}) than the one for prediction "
            f"({_listed(found)}). Use the bundle's run inference, with `normalize` as in the training's config."
        )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) or "to mean 0 and standard deviation 1"
