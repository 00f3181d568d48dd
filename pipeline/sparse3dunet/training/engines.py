"""Batches, scores and pictures for MONAI's trainer and evaluator with sparse labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from matplotlib.image import imread
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.transforms import Orientation, ResampleToMatch
from monai.utils import convert_to_tensor
from torch.utils.tensorboard import SummaryWriter

from sparse3dunet.console import Console
from sparse3dunet.data.names import case_name
from sparse3dunet.keys import ANNOTATED_CLASSES, IMAGE, LABEL, PRED, REFERENCE, WEIGHT
from sparse3dunet.losses.regions import Regions
from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics.masked import mean_score
from sparse3dunet.metrics.measures import Measures, measure, summarize
from sparse3dunet.report.pictures import draw_picture
from sparse3dunet.report.scores import by_class, scores_table, write_scores
from sparse3dunet.training.budget import Budget

REGIONS = ("annotated", "unlabeled", "all")
"""Voxels to score: annotated ones; by the dense label, unlabeled ones; by the dense label, all."""

_KIND_NAMES = {"dice": "Dice", "iou": "IoU"}
METRIC_NAMES = tuple(f"{kind}_{region}" for region in REGIONS for kind in ("dice", "iou"))


class PrepareSparseBatch(PrepareBatch):
    """Make (image, target) from a batch; the target has label, weight and, if given, the classes looked for.

    See :func:`~sparse3dunet.losses.target.pack_target`.
    """

    def __call__(
        self,
        batchdata: dict[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Plain tensors: a MetaTensor would carry its metadata through every operation of the network and the loss.
        image, label, weight = (
            convert_to_tensor(batchdata[key], track_meta=False).to(device=device, non_blocking=non_blocking, **kwargs)
            for key in (IMAGE, LABEL, WEIGHT)
        )
        return image, pack_target(label, weight, batchdata.get(ANNOTATED_CLASSES))


class NamedHandler:
    """Handler that wraps one defined elsewhere in the config, where its settings can be set by name.

    MONAI and MONAI Label expect each entry in a list of handlers to be a component, not a mere reference.

    Args:
        handler: object with ``attach(engine)``; None, as the config has it for a disabled one, for nothing.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        if self.handler is not None:
            self.handler.attach(engine)


class ScoreReport:
    """Handler of an evaluator that scores volumes by class on annotated voxels and, given dense labels, on others.

    Puts into ``engine.state.metrics``, if they can be evaluated: ``dice_annotated`` and ``iou_annotated`` (on annotated
    voxels), ``dice_unlabeled`` and ``iou_unlabeled`` (on unlabeled ones, by the dense label), ``dice_all`` and
    ``iou_all`` (on all, by the dense label). The mean Dice is over the foreground classes, the mean IoU over all
    classes. A class that is in no volume is reported as not evaluable (n = 0) and left out of the means.

    Needs ``pred`` argmaxed to (1, X, Y, Z) by the evaluator's postprocessing. Several processes (DDP) may have
    different volumes or the same ones: scores are over all of them, and the first process prints and writes.

    Args:
        class_names: names by class number; with regions of the background and of each of these
            (:func:`~sparse3dunet.data.regions.scored_names`).
        output_dir: folder for ``scores.csv``, with a row for each volume, region and class, and ``scores_summary.csv``;
            None for no files.
        print_table: whether to print a table at the end.
        regions: class numbers by the name of the region, to score these instead of the classes.
        tolerances: tolerance of the surface Dice in mm by class number, to measure distances of surfaces, too, see
            :func:`~sparse3dunet.metrics.measures.measure`; None: overlap and volume alone, which are fast.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        output_dir: str | Path | None = None,
        print_table: bool = False,
        regions: Regions | None = None,
        tolerances: Sequence[float] | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.output_dir = output_dir
        self.print_table = print_table
        self.regions = regions
        self.tolerances = tolerances
        self.scores: dict[str, dict[str, list[Measures]]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compute)
        engine.add_event_handler(Events.COMPLETED, self.write_csv)
        if self.print_table:
            engine.add_event_handler(Events.COMPLETED, self.show)

    def reset(self) -> None:
        self.scores = {region: {} for region in REGIONS}

    def update(self, engine: Engine) -> None:
        for item, output in _decollated(engine):
            for region, target in _targets(item).items():
                self.scores[region][case_name(item)] = measure(
                    output[PRED].to(target.device),
                    target,
                    len(self.class_names),
                    _spacing_of(item[IMAGE]),
                    tolerances=self.tolerances,
                    reference=None if region == "annotated" else item[REFERENCE],
                    regions=self.regions,
                )

    def compute(self, engine: Engine) -> None:
        if idist.get_world_size() > 1:
            self._gather()
        for region in REGIONS:
            for kind in ("dice", "iou"):
                summaries = [summarize(of_class, kind) for of_class in by_class(self.scores[region])]
                mean = mean_score(summaries[1 if kind == "dice" else 0 :])
                if mean is not None:
                    engine.state.metrics[f"{kind}_{region}"] = mean

    def _gather(self) -> None:
        """Gather the volumes of all processes, by name."""
        parts: list[Any] = [None] * idist.get_world_size()
        dist.all_gather_object(parts, self.scores)
        for region in REGIONS:
            joined = {name: measures for part in parts for name, measures in part[region].items()}
            self.scores[region] = dict(sorted(joined.items()))

    def write_csv(self) -> None:
        if self.output_dir is not None and idist.get_rank() == 0:
            write_scores(self.output_dir, self.scores, self.class_names)

    def show(self) -> None:
        if idist.get_rank() == 0:
            title = f"Scores of {len(self.scores['annotated'])} volume(s)"
            Console().print(scores_table(title, self.scores, self.class_names))


class PictureWriter:
    """Handler of an evaluator that draws a PNG per volume by :func:`~sparse3dunet.report.pictures.draw_picture`.

    Needs ``pred`` argmaxed; image and prediction are turned to RAS orientation by their affines, and an image that was
    resampled is drawn on the prediction's grid.

    Args:
        output_dir: pictures go to its subfolder ``pictures``.
        class_names: names for the legend.
        limit: number of volumes to draw; None for all.
        class_values: values of the classes in ``pred``, by class number; None for 0 ... K-1.
        budget: the training's; in its last epoch all volumes are drawn, whatever the limit, unless it stops early.
        summary_writer: TensorBoard writer for the pictures; None for none.
    """

    def __init__(
        self,
        output_dir: str | Path,
        class_names: Sequence[str] = (),
        limit: int | None = None,
        budget: Budget | None = None,
        class_values: Sequence[int] | None = None,
        summary_writer: SummaryWriter | None = None,
    ) -> None:
        self.summary_writer = summary_writer
        self.class_values = class_values
        self.folder = Path(output_dir) / "pictures"
        self.class_names = list(class_names)
        self.limit = limit
        self.budget = budget
        self.drawn = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)

    def reset(self) -> None:
        self.drawn = 0

    def draw(self, engine: Engine) -> None:
        for item, output in _decollated(engine):
            final = self.budget is not None and self.budget.in_last_epoch
            if self.limit is not None and self.drawn >= self.limit and not final:
                return
            name = case_name(item)
            known: dict[str, Any] = {key: _as_ras(item[key]) for key in (LABEL, WEIGHT, REFERENCE) if key in item}
            pred = _as_ras(output[PRED])
            image = _as_ras(item[IMAGE])
            if image.shape[1:] != pred.shape[1:]:
                image = ResampleToMatch()(image, pred)
            file = self.folder / f"{name}.png"
            draw_picture(
                image,
                self._class_numbers(pred),
                **known,
                class_names=self.class_names,
                title=name,
                spacing=_spacing_of(image),
                sides=getattr(image, "meta", {}).get("is_placed", True),
            ).save(file)
            if self.summary_writer is not None:
                self.summary_writer.add_image(f"pictures/{name}", imread(file), engine.state.epoch, dataformats="HWC")
            self.drawn += 1

    def _class_numbers(self, pred: torch.Tensor) -> torch.Tensor:
        if self.class_values is None:
            return pred
        numbers = torch.zeros_like(pred)
        for number, value in enumerate(self.class_values):
            numbers[pred == value] = number
        return numbers


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def _decollated(engine: Engine) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the volumes of the current batch, each with the engine's output for it."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return zip(batch, output)


def _targets(item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return by region the target (C, X, Y, Z) to score a volume against; a dense label shows all classes."""
    label, weight = item[LABEL][None], item[WEIGHT][None]
    mask = item.get(ANNOTATED_CLASSES)
    targets = {"annotated": pack_target(label, weight, None if mask is None else mask[None])}
    if REFERENCE in item:
        reference = item[REFERENCE][None]
        targets["unlabeled"] = pack_target(reference, weight == 0)
        targets["all"] = pack_target(reference, torch.ones_like(weight))
    return {region: target[0] for region, target in targets.items()}


def _spacing_of(image: torch.Tensor) -> list[float]:
    return image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0, 1.0, 1.0]


def _as_ras(volume: torch.Tensor) -> torch.Tensor:
    return Orientation("RAS", labels=None)(volume) if isinstance(volume, MetaTensor) else volume


def scores_in_words(metrics: Mapping[str, float]) -> str:
    """Format the scores of a validation, as in "  Dice 0.912 annotated, 0.905 all  IoU 0.890 annotated"."""
    words = ""
    for kind in ("dice", "iou"):
        names = [(region, f"{kind}_{region}") for region in REGIONS]
        scores = [f"{metrics[name]:.3f} {region}" for region, name in names if name in metrics]
        if scores:
            words += f"  {_KIND_NAMES[kind]} {', '.join(scores)}"
    return words


def score_text(score: float | None) -> str:
    """Format a score with three decimals."""
    return "not evaluable" if score is None else f"{score:.3f}"
