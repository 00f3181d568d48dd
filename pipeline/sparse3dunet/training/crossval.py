"""Cross-validation over annotated slices: runs the folds one after the other, and makes one table of their scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose

from sparse3dunet.console import Console, Table, escape
from sparse3dunet.data.datalist import Case, DataSet, without_references
from sparse3dunet.data.slices import find_slices, runs
from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import write_csv, write_text
from sparse3dunet.keys import WEIGHT
from sparse3dunet.metrics.masked import ClassScore, mean_score
from sparse3dunet.metrics.measures import Measures, summarize
from sparse3dunet.report.scores import FILE as SCORES_FILE
from sparse3dunet.report.scores import read_scores, scores_table, write_summary
from sparse3dunet.training.resume import LAST_FILE
from sparse3dunet.transforms.holdout import VALIDATION

_Cases = Mapping[str, Sequence[Measures]]
_Rows = Sequence[Sequence[ClassScore]]
FOLD_RUN = "one_fold"
"""Id in crossval.yaml that trains and scores one fold."""
HELD_OUT_FILE = "held_out.json"


def same_cases(data_set: DataSet) -> tuple[list[Case], list[Case]]:
    """Return all cases for training and the same for validation, without their dense labels."""
    cases = without_references(data_set.cases)
    return cases, list(cases)


def check_folds(cases: Sequence[Case], load: Sequence[Callable], hold_out: Callable, folds: int) -> None:
    """Raise DataError unless slices of every case can be held out, and some in each fold, before the first one trains.

    Args:
        cases: the cases for validation.
        load: the transforms that read a case.
        hold_out: returns the transform that holds out the slices of `fold` for a `part`.
        folds: number of folds, at least 2.
    """
    empty = set(range(folds))
    for case in cases:  # one at a time, keeping nothing: the folds need the memory
        loaded = Compose(load)(case)
        for fold in sorted({0} | empty):  # even if none is left, each case must be one of slices
            if hold_out(part=VALIDATION, fold=fold)(loaded)[WEIGHT].any():
                empty.discard(fold)
    if empty:
        raise DataError(
            f"folds is {folds}, more than there are annotated slices (or runs of adjacent ones) to hold out: "
            f"{folds - len(empty)} fold(s) would have some. Pass fewer, for example --folds 3."
        )
    print(f"{folds} folds over the annotated slices of {len(cases)} volume(s)")


def cross_validate(
    folds: int, output_dir: str | Path, ckpt_dir: str | Path, class_names: Sequence[str], resume: bool = False
) -> None:
    """Run all folds (:func:`run_folds`), then write and show their scores (:func:`show_table`)."""
    show_table(run_folds(folds, output_dir, ckpt_dir, resume), class_names, output_dir)


def run_folds(folds: int, output_dir: str | Path, ckpt_dir: str | Path, resume: bool = False) -> list[Path]:
    """Run this process's own command once for each fold, and return the folds' output folders.

    Each fold is a separate process, so that nothing learned in one reaches the next.

    Args:
        folds: number of folds.
        output_dir: fold i writes to its subfolder ``fold_i``.
        ckpt_dir: fold i keeps its models in its subfolder ``fold_i``.
        resume: whether the folds go on from their states; otherwise those of all folds are removed first, since a later
            --resume would take the ones that this run did not reach for its own.

    Raises:
        DataError: when this process was not started as ``python -m monai.bundle run``, a fold fails or has no scores.
    """
    arguments = sys.argv[1:]
    if not arguments or arguments[0] != "run" or "--config_file" not in " ".join(arguments):
        raise DataError(
            "cross-validation runs only from the command line: python -m monai.bundle run --config_file ..."
        )
    if any(argument.startswith("--run_id") for argument in arguments):
        raise DataError("write the id without --run_id: python -m monai.bundle run cross_validating --config_file ...")
    options = arguments[2:] if len(arguments) > 1 and not arguments[1].startswith("-") else arguments[1:]
    for fold in () if resume else range(folds):
        former = (Path(ckpt_dir) / f"fold_{fold}" / LAST_FILE, Path(output_dir) / f"fold_{fold}" / SCORES_FILE)
        for file in former:
            file.expanduser().unlink(missing_ok=True)
    outputs = []
    for fold in range(folds):
        output = Path(output_dir) / f"fold_{fold}"
        places = ("--fold", fold, "--output_dir", output, "--ckpt_dir", Path(ckpt_dir) / f"fold_{fold}")
        print(f"Fold {fold + 1} of {folds}", flush=True)
        command = [sys.executable, *_warning_options(), "-m", "monai.bundle", "run", FOLD_RUN, *options]
        if subprocess.run([*command, *map(str, places)], check=False).returncode:
            raise DataError(f"fold {fold + 1} of {folds} failed, see above; any results of it are in {output}.")
        if not (output.expanduser() / SCORES_FILE).is_file():
            raise DataError(
                f"{output / SCORES_FILE}: missing, although fold {fold + 1} of {folds} has ended; expected it in the "
                "--output_dir of the run that trained it. Pass that one, or leave out --resume to train all again."
            )
        outputs.append(output)
    return outputs


def _warning_options() -> list[str]:
    return [f"-W{option}" for option in sys.warnoptions]


def write_held_out(dataset: Sequence[dict[str, Any]], output_dir: str | Path, adjacent_together: bool = False) -> None:
    """Write ``held_out.json``: the number of slices in a fold's validation, and of volumes that have any.

    Args:
        dataset: the validation set; ``weight`` (1, X, Y, Z) is above 0 only on the held-out slices.
        output_dir: the fold's output folder.
        adjacent_together: whether adjacent slices count as one, see :class:`~sparse3dunet.transforms.HoldOutSlices`.
    """
    found = [find_slices((item[WEIGHT][0] > 0).numpy()) or [] for item in dataset]
    units = runs if adjacent_together else list
    counts = [sum(len(units(indices)) for indices in slices) for slices in found]
    content = {"slices": sum(counts), "volumes": sum(1 for count in counts if count)}
    write_text(Path(output_dir) / HELD_OUT_FILE, json.dumps(content) + "\n")


def show_table(outputs: Sequence[Path], class_names: Sequence[str], output_dir: str | Path) -> None:
    """Write a table of the IoU of each fold and class with the means, as in Çiçek et al. 2016, as CSV, and print it.

    The IoU of a class in a fold is the mean over the volumes whose held-out slices contain it. A second table has the
    other scores, by class, over the volumes of all folds. Both files are written before anything is printed.

    Args:
        outputs: the folds' output folders.
        class_names: by class number.
        output_dir: where ``crossval.csv`` and ``crossval_scores.csv`` are written.
    """
    by_fold = [read_scores(output).get("annotated", {}) for output in outputs]
    counts = [json.loads((output / HELD_OUT_FILE).read_text(encoding="utf-8")) for output in outputs]
    rows = [_fold_scores(cases, len(class_names)) for cases in by_fold]
    rows.append([_over_folds([scores[number] for scores in rows]) for number in range(len(class_names))])
    counts.append({"slices": sum(count["slices"] for count in counts), "volumes": ""})
    folds = [*map(str, range(1, len(by_fold) + 1)), "mean"]
    file, scores_file = Path(output_dir) / "crossval.csv", Path(output_dir) / "crossval_scores.csv"
    _write_table(file, folds, rows, counts, class_names)
    scored = dict(zip(folds, by_fold))
    joined = {f"{fold}/{case}": measures for fold, cases in scored.items() for case, measures in cases.items()}
    write_summary(scores_file, {**scored, "all": joined}, class_names, "fold")
    Console().print(_table(folds, rows, counts, class_names))
    print(f"Table: {file}")
    title = "Scores on held-out slices, mean over volumes and folds"
    Console().print(scores_table(title, {"held out": joined}, class_names))
    print(f"Means and medians: {scores_file}")


def _write_table(
    file: Path, folds: Sequence[str], rows: _Rows, counts: Sequence[Mapping[str, Any]], class_names: Sequence[str]
) -> None:
    numbered = [heading for name in class_names for heading in (name, f"{name} n")]
    written: list[list[object]] = [["fold", "slices", *numbered, "mean"]]
    for name, scores, count in zip(folds, rows, counts):
        cells = [cell for s in scores for cell in ("" if s.mean is None else f"{s.mean:.4f}", s.n)]
        mean = mean_score(scores)
        written.append([name, count["slices"], *cells, "" if mean is None else f"{mean:.4f}"])
    write_csv(file, written)


def _table(folds: Sequence[str], rows: _Rows, counts: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    table = Table(title="IoU on held-out slices")
    for heading in ("fold", "slices", "volumes", *class_names, "mean"):
        table.add_column(escape(heading), justify="left" if heading == "fold" else "right")
    for fold, scores, count in zip(folds, rows, counts):
        cells = [fold, str(count["slices"]), str(count["volumes"]), *_cells(scores)]
        table.add_row(*cells, end_section=fold == folds[-2])
    table.caption = (
        "(n): volumes whose held-out slices show the class. Scores of the last epoch; nothing was selected by them."
    )
    return table


def _fold_scores(cases: _Cases, num_classes: int) -> list[ClassScore]:
    """Return the mean IoU of each class over the volumes that show it."""
    found = [summarize([measures[number] for measures in cases.values()], "iou") for number in range(num_classes)]
    return [ClassScore(score.mean, score.n) for score in found]


def _over_folds(scores: Sequence[ClassScore]) -> ClassScore:
    return ClassScore(mean_score(scores), sum(score.n for score in scores))


def _cells(scores: Sequence[ClassScore]) -> list[str]:
    mean = mean_score(scores)
    cells = ["not evaluable (0)" if s.mean is None else f"{s.mean:.3f} ({s.n})" for s in scores]
    return [*cells, "not evaluable" if mean is None else f"{mean:.3f}"]
