"""Templates of a former run in the output folder, the command line of this one, and what to do after it."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.slices import slices_mask
from sparse3dunet.densify.made import pair_of
from sparse3dunet.densify.state import Learned
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.formats import annotation_path, read_segmentation
from sparse3dunet.io.itk_snap import may_be_replaced
from sparse3dunet.io.json_files import load_json
from sparse3dunet.io.suffixes import NIFTI_SUFFIXES, suffix_among
from sparse3dunet.io.volumes import class_numbers
from sparse3dunet.io.written import file_digest
from sparse3dunet.keys import ANNOTATED_SLICES, WEIGHT

if TYPE_CHECKING:
    from sparse3dunet.densify.results import Results

NAMED = 3
"""Number of templates that are named after a run."""


def check_templates(output_dir: Path, templates: dict[str, str], passed: Collection[str]) -> list[str]:
    """Return warnings on templates that were passed unchanged, or changed but not passed.

    Args:
        output_dir: folder of the templates.
        templates: digest by file name, as written; those that were passed, which are the user's now, are removed.
        passed: digests of the annotation files that were passed.
    """
    warnings = []
    for name, written in list(templates.items()):
        path = output_dir / name
        now = file_digest(path) if path.exists() else written
        if written in passed:
            warnings.append(
                f"{path} was passed unchanged: the prediction on the suggested slices now counts as annotation, "
                "although nobody corrected it."
            )
        elif now != written and now not in passed:
            warnings.append(f"{path} was edited, but is not an annotation of this run; pass it to train on it.")
        if written in passed or now in passed:
            del templates[name]
    return warnings


def check_annotation(results: Results, templates: dict[str, str], files: Sequence[str]) -> list[str]:
    """Return warnings as :func:`check_templates`, and on suggested slices that were left as predicted.

    Args:
        results: results in the folder of the former run, if there was one.
        templates: see :func:`check_templates`.
        files: annotation files that were passed.
    """
    passed = {file_digest(file) for file in files}
    is_unchanged = not passed.isdisjoint(templates.values())  # which is told of all its slices
    warnings = check_templates(results.folder, templates, passed)
    return warnings if is_unchanged else [*warnings, *uncorrected(results)]


def keep_annotation(learned: Learned, results: Results, goes_on: bool, before: Mapping[str, str]) -> list[str]:
    """Keep the annotation to be learned; return by case a note on voxels that the former model learned otherwise.

    Args:
        learned: what is kept.
        results: results of the cases.
        goes_on: whether the former model is trained further.
        before: names of the cases in the former run, by their names now.
    """
    learned.start(goes_on)
    notes = []
    for case in results.cases:
        annotation = results.annotation(case.files[0])
        changed = learned.changed(before.get(case.name, case.name), annotation.numbers, annotation.annotated)
        learned.add(case.name, annotation.numbers, annotation.annotated)
        if changed:
            notes.append(
                f"{case.name}: {changed} voxels that the former run's model was trained on have another label now, or "
                "none; the model may still predict the old one. --restart starts from scratch."
            )
    return notes


def uncorrected(results: Results) -> list[str]:
    """Return by case a note on slices suggested by the former run that are annotated just as it predicted them."""
    notes = []
    for case in results.cases:
        with contextlib.suppress(OSError, ValueError, ArithmeticError, LookupError, TypeError):  # of another run
            rows = load_json(results.folder / "suggestions.json", "suggestions")[case.name]
            image, annotation = read_image(case.files[0]), results.annotation(case.files[0])
            found = read_segmentation(results.files(case)["segmentation"], image, results.output.labels)
            same = annotation.annotated & (class_numbers(found, results.data_set.class_values) == annotation.numbers)
            if equal := _equal_slices(same, [(int(row["axis"]), int(row["index"])) for row in rows]):
                notes.append(
                    f"{case.name}: {equal} of the {len(rows)} slices suggested last time equal the prediction exactly, "
                    "and count as annotation: correct them, or erase those that you did not check."
                )
    return notes


def _equal_slices(same: np.ndarray, suggested: Sequence[tuple[int, int]]) -> int:
    """Return the number of slices that are the same everywhere, apart from the lines where others cross them."""
    count = 0
    for axis, index in suggested:
        others = [[i for a, i in suggested if a == other and a != axis] for other in range(3)]
        crossed = slices_mask(same.shape, others)
        count += bool((same | crossed).take(index, axis).all())
    return count


def next_step(templates: Sequence[Path], data_set: DataSet, mark: int | None = None) -> str:
    """Return what to do after a run, in one line; empty if there is no template, or nobody typed the command.

    Args:
        templates: label maps to be corrected.
        data_set: the data set of the run.
        mark: value of unlabeled voxels in the template of a pair, if the annotation has none.
    """
    if not templates or not _is_typed():
        return ""
    shown = ", ".join(shlex.quote(str(path)) for path in templates[:NAMED])
    shown += f" and {len(templates) - NAMED} more" if len(templates) > NAMED else ""
    ways = {
        "list the others as annotated slices": any(
            not isinstance(case.get(ANNOTATED_SLICES, ""), str) for case in data_set.cases
        ),
        "mark the others in the weight image": any(WEIGHT in case for case in data_set.cases),
    }
    more = "".join(f"; {text}" for text, is_needed in ways.items() if is_needed)
    erase = f"(erase {'its' if len(templates) == 1 else 'their'} slices that you did not check{more})"
    pair = pair_of(data_set.source)
    if pair is None:
        return f"Next: correct {shown} {erase}, put them in place of the labels, then: {_again()}"
    return f"Next: correct {shown} {erase}, then: {_again(pair, templates[0], data_set, mark)}"


def _is_typed() -> bool:
    return sys.argv[1:2] == ["densify"] or sys.argv[1:3] == ["run", "densify"]


def _again(
    pair: dict[str, Any] | None = None,
    template: Path | None = None,
    data_set: DataSet | None = None,
    mark: int | None = None,
) -> str:
    """Return the command to run next; for a scan and its annotation, with the template as annotation."""
    words = [word for word in sys.argv[1:] if word not in ("--restart", "--anew")]
    without, slices = _apart(words, "--annotated-slices")
    if mark is not None and slices is not None:
        words = [*_apart(without, "--ignore-index")[0], "--ignore-index", str(mark)]
    if pair is None or template is None or data_set is None:
        return command_line(words)
    places = [i for i, word in enumerate(words) if words[i - 1] != "--reference" and _stands_for(word, pair)]
    if not places:  # the datalist of a former run was passed
        output_dir = str(template.parent)
        return shlex.join(["sparse3dunet", "densify", str(pair["scan"]), str(template), "-o", output_dir])
    is_also_scan = len(places) > 1 and _absolute(words[places[0]]) == pair["scan"]  # a file of both
    words[places[is_also_scan]] = str(template)
    return command_line(_with_names(words, data_set, template.parent) if pair.get("labels") else words)


def _apart(words: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Return words without an option and its value, and this value; None if the option is not given."""
    rest: list[str] = []
    value = None
    for before, word in zip(["", *words], words):
        if before == option or word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        elif word != option:
            rest.append(word)
    return rest, value


def _absolute(word: str) -> str:
    return os.path.abspath(os.path.expanduser(word))


def _stands_for(word: str, pair: dict[str, Any]) -> bool:
    """Return whether a word is the path of the annotation, or of the file or folder that it was found in."""
    path = _absolute(word)
    if path == pair["annotation"]:
        return True
    with contextlib.suppress(DataError, OSError, ValueError):  # of a word that is no annotation
        return annotation_path(path) == pair["annotation"]
    return False


def _with_names(words: list[str], data_set: DataSet, folder: Path) -> list[str]:
    """Return words with what the names of segments said: a template has values alone.

    Names with a comma, at which --class-names splits, are read from the label descriptions in the folder for results.
    """
    kept, segments = _apart(words, "--segments")
    without, reference = _apart(kept, "--reference")
    if segments is not None and reference is not None and not suffix_among(reference, NIFTI_SUFFIXES):
        kept = without  # of the reference, too, segments were left out, which --class-names does not say
    names, values = data_set.class_names, data_set.class_values
    is_given = any(word.startswith("--class-names") for word in words)
    descriptions = folder / "labels.txt"
    if not is_given and not any("," in name for name in names):
        kept += ["--class-names", ",".join(names)]
    elif not is_given and may_be_replaced(descriptions):  # not the user's own
        kept += ["--class-names", str(descriptions)]
    if values[0] != min(values) and not any(word.startswith("--background") for word in words):
        kept += ["--background", str(values[0])]
    return kept


def command_line(words: Sequence[str] | None = None) -> str:
    """Return the command line of this process, quoted for a shell; or one with other words after the program."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else ""
    start = ["python", "-m", "monai.bundle" if module == "bundle" else module] if module else [program.name]
    return shlex.join([*start, *(sys.argv[1:] if words is None else words)])
