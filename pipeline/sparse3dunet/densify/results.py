"""Results of a densification: segmentations, confidence, suggested slices, and the report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse3dunet.data.checks import as_tensor
from sparse3dunet.data.datalist import Case, DataSet
from sparse3dunet.data.label_and_weight import SparseLabel
from sparse3dunet.data.names import case_name
from sparse3dunet.data.reports import DataReport
from sparse3dunet.densify.densifier import Annotation, Densifier, decided
from sparse3dunet.densify.estimate import Estimate, Expected, estimate
from sparse3dunet.densify.former import next_step
from sparse3dunet.densify.made import pair_of
from sparse3dunet.densify.page import CaseSection, Report, versions, view_of, write_report
from sparse3dunet.densify.places import check_places, inputs, is_ours, is_same
from sparse3dunet.densify.propagated import Outlook
from sparse3dunet.densify.reference import ReferenceScores
from sparse3dunet.densify.schedule import FINAL, slices_showing
from sparse3dunet.densify.state import State
from sparse3dunet.densify.suggest import Suggestion, suggest_slices, template, with_mark, write_json
from sparse3dunet.densify.suggest import show as show_suggestions
from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Output, predict_batch
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.predictor import smallest_type
from sparse3dunet.inference.records import CaseRecord, write_summary
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import OUTPUT_SUFFIXES, read_image, read_label, write_segmentation
from sparse3dunet.io.folders import numbered
from sparse3dunet.io.formats import read_segmentation
from sparse3dunet.io.suffixes import MAP_SUFFIXES, format_suffix, natural_suffix, suffix_among
from sparse3dunet.io.volumes import UNLABELED_VALUE, class_numbers
from sparse3dunet.io.writing import aside, move, replacing, write_text
from sparse3dunet.io.written import file_digest
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, REFERENCE, WEIGHT
from sparse3dunet.models.loading import Model
from sparse3dunet.propagation.ensemble import Held, Propagated
from sparse3dunet.training.log import read_log

PICTURED = 10
"""Maximum number of cases with pictures in the report."""


class Results:
    """Files of each case in an output folder.

    Args:
        output_dir: the folder.
        data_set: data set with the cases.
        format: one of OUTPUT_SUFFIXES, with or without the dot; None: that of each image.
        keep_annotation: whether annotated voxels keep their label.
    """

    def __init__(self, output_dir: Path, data_set: DataSet, format: str | None, keep_annotation: bool) -> None:
        self.folder, self.data_set, self.keep = output_dir, data_set, keep_annotation
        self.format = format_suffix(format)
        self.cases = [ImageCase(case_name(case), _files(case)) for case in data_set.cases]
        names, values = data_set.class_names, data_set.class_values
        named: dict[str, Any] = {"is_semi_automatic": True, "colors": data_set.colors}
        self.output = Output(output_dir, names, values, self.format, pictures=False, **named)
        self.by_path = {_files(case)[0]: case for case in data_set.cases}
        self.mark: int | None = None
        """Value of unlabeled voxels in a template where the annotation has none; see :func:`with_mark`."""

    def annotation(self, image: str) -> Annotation:
        """Read the annotation of the case whose (first) image file is `image`."""
        case, data_set = self.by_path[image], self.data_set
        label = read_label(case[LABEL])
        weight = as_tensor(read_image(case[WEIGHT])) if WEIGHT in case else None
        split = SparseLabel(data_set.class_values, data_set.ignore_index)
        numbers, weights = split(as_tensor(label), weight, case.get(ANNOTATED_SLICES))
        return Annotation(label.data, np.asarray(numbers[0]), np.asarray(weights[0]) > 0)

    def reference(self, case: ImageCase) -> np.ndarray | None:
        """Read the class numbers (X, Y, Z) of a case's dense label; None if it has none."""
        entry = self.by_path[case.files[0]]
        if REFERENCE not in entry:
            return None
        return class_numbers(read_label(entry[REFERENCE]).data, self.data_set.class_values)

    def check(self, before: State | None) -> None:
        """Check that all results can be written, before anything is trained; see :func:`check_places`."""
        check_places(self, before)

    def predict(
        self,
        model: Model,
        outlook_of: Callable[[str], Outlook],
        device: Any,
        normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
        probabilities: bool = False,
    ) -> dict[str, Expected]:
        """Write segmentation and confidence of each case; return the quality to expect of each, by name.

        Args:
            model: model with the network.
            outlook_of: returns the outlook of a case by its name.
            device: device of the network.
            normalize: as in training; see :class:`~sparse3dunet.inference.predictor.Predictor`.
            probabilities: whether to keep those of all classes in ``work/probabilities``.

        Raises:
            DataError: when a case fails.
        """
        device = torch.device(device)
        predictor = Densifier(
            self.name_of,
            self.annotation,
            outlook_of,
            self.keep,
            self._keep_prob if probabilities else None,
            model.network.to(device),
            SlabInferer(model.patch_size, 0.5),
            model.class_values,
            model.in_channels,
            model.spacing,
            device,
            normalize,
            confidence=True,
            intensity=model.description.intensity,
        )
        # Never skipped as done before: the expected quality is computed along with it
        outcome = predict_batch(self.cases, predictor, self.output, {"run": time.time_ns()})
        if outcome.failed:
            raise DataError(f"{len(outcome.failed)} of {len(self.cases)} volume(s) failed: {outcome.failed[0]}")
        return predictor.expected

    def _keep_prob(self, name: str, prob: np.ndarray, box: tuple[slice, ...]) -> None:
        """Keep the probabilities of a case, by its number, within their box; outside of it is background."""
        number = [case.name for case in self.cases].index(name)
        with replacing(_prob_file(self.folder, number)) as draft, draft.open("wb") as file:
            np.savez(file, prob=prob.astype(np.float16), box=[[b.start, b.stop] for b in box])

    def write_preview(
        self, case: ImageCase, found: Propagated, previews: dict[str, str], keep: Callable[[], None]
    ) -> Path:
        """Write the preview of a case, and return its path; what is there of unknown origin is kept aside.

        Args:
            case: the case.
            found: its probabilities.
            previews: digest by file name of each preview written so far; this one's is added.
            keep: called when `previews` has changed.
        """
        image, annotation = read_image(case.files[0]), self.annotation(case.files[0])
        numbers, _ = decided(found.prob, found.box, annotation)
        if self.keep:
            numbers[annotation.annotated] = annotation.numbers[annotation.annotated]
        path = self.preview(case)
        values = np.asarray(self.data_set.class_values)[numbers].astype(smallest_type(self.data_set.class_values))
        draft = self.folder / "work" / path.name
        write_segmentation(draft, values, image, self.output.labels, is_semi_automatic=True)
        if not is_ours(path, previews):
            os.replace(path, aside(path, suffix_among(path, OUTPUT_SUFFIXES)))
        # Recorded first, beside the one that it replaces: a killed run's preview is told from one that was edited
        digest = file_digest(draft)
        previews[path.name] = f"{previews.get(path.name, '')} {digest}".strip()
        keep()
        move(draft, path)
        previews[path.name] = digest
        keep()
        return path

    def preview(self, case: ImageCase) -> Path:
        """Return the path of the preview of a case."""
        segmentation = self._names(case)["segmentation"]
        suffix = suffix_among(segmentation, OUTPUT_SUFFIXES)
        return self.folder / f"{case.name}_preview{suffix}"

    def name_of(self, image: str) -> str:
        """Return the name of the case whose (first) image file is `image`."""
        return case_name(self.by_path[image])

    def _names(self, case: ImageCase) -> dict[str, str]:
        return self.output.names(case, confidence=True)

    def files(self, case: ImageCase) -> dict[str, Path]:
        """Return the paths of segmentation and confidence of a case."""
        return {kind: self.folder / name for kind, name in self._names(case).items()}

    def write_template(
        self, case: ImageCase, annotation: Annotation, found: np.ndarray, suggestions: Any, templates: dict[str, str]
    ) -> Path:
        """Write the label map to continue the annotation with, and return its path.

        An edited template is never overwritten: it may be the annotation by now.

        Args:
            case: the case.
            annotation: the user's annotation.
            found: (X, Y, Z) segmentation, values on disk.
            suggestions: suggested slices.
            templates: digest by file name of each template written so far; this one's is added.
        """
        image = read_image(case.files[0])
        suffix = self.format or natural_suffix(case.files[0])
        suffix = MAP_SUFFIXES.get(suffix, suffix)  # the others require the background to be 0
        own = [file for _, file in inputs(self, case)]
        paths = (self.folder / name for name in numbered(f"{case.name}_next", suffix))
        path = next(p for p in paths if is_ours(p, templates) and not any(is_same(p, file) for file in own))
        values = template(annotation.raw, found, suggestions, annotation.annotated)
        specification, unlabeled = self.by_path[case.files[0]].get(ANNOTATED_SLICES), list(self.data_set.ignore_index)
        if isinstance(specification, str) and pair_of(self.data_set.source) is not None:
            mark = next(value for value in (*unlabeled, UNLABELED_VALUE, -1) if value not in self.data_set.class_values)
            marked = with_mark(values, suggestions, annotation.annotated, specification, image.affine, mark)
            if marked is not values:
                values, self.mark, unlabeled = marked, mark, [*unlabeled, mark]
        labels = self.output.labels
        labels |= dict.fromkeys(unlabeled, "unlabeled")  # in place: `|` would leave out the colours
        write_segmentation(path, values, image, labels)
        templates[path.name] = file_digest(path)
        return path


def write_results(
    results: Results,
    quality: Estimate,
    *,
    tolerances: Sequence[float],
    suggestions: int,
    plan: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
    command: str,
    work: Mapping[str, Path],
    templates: dict[str, str],
    keep: Callable[[], None],
) -> str:
    """Write ``quality.json``, ``suggestions.json``, templates, ``report.html``, and scores by dense labels, if any.

    Args:
        results: the results of the cases.
        quality: quality estimate.
        tolerances: tolerance of the surface Dice in mm by class number.
        suggestions: number of slices of each plane to suggest for annotation.
        plan: (name, value, reason) of each setting that was determined from the data.
        notes: other facts that a reader must know.
        command: command line of the run.
        work: by part of the training, the folder with its ``training.csv``.
        templates: see :meth:`Results.write_template`.
        keep: called when `templates` has changed.

    Returns:
        What to do next, in one line; empty for nothing.
    """
    _write_json(results.folder / "quality.json", quality.as_json())  # again with scores; these may take a while
    scores = ReferenceScores(results.data_set.class_names, tolerances)
    sections: list[CaseSection] = []
    for case in results.cases:
        sections.append(_section(results, case, suggestions, templates, scores, pictures=len(sections) < PICTURED))
        keep()
    by_case = {section.name: section.suggestions for section in sections}
    scores.write(results.folder)
    if scores:
        _write_json(results.folder / "quality.json", {**quality.as_json(), "reference": scores.as_json()})
        write_summary(results.folder, results.data_set.class_names, scores.columns(), results.cases)
        scores.show()
    write_json(results.folder / "suggestions.json", by_case)
    show_suggestions(by_case)
    config = results.folder / "config.yaml"
    made = [results.folder / section.files["template"] for section in sections if "template" in section.files]
    step = next_step(made, results.data_set, results.mark)
    content = Report(
        title=results.cases[0].name if len(results.cases) == 1 else f"{len(results.cases)} volumes",
        class_names=results.data_set.class_names,
        cases=sections,
        quality=quality,
        scores=scores,
        curves=_curves(work),
        plan=plan,
        command=command,
        settings=config.read_text(encoding="utf-8") if config.is_file() else "",
        versions=versions(),
        notes=notes,
        next_step=step,
    )
    write_report(results.folder / "report.html", content)
    return step


def estimate_of(
    results: Results, report: DataReport, held: Mapping[str, Held], expected: Mapping[str, Expected]
) -> Estimate:
    """Return the quality estimate from held-out voxels.

    Args:
        results: the results of the cases.
        report: report on the data set.
        held: held-out voxels of each case of which there are some.
        expected: expected quality of each case.
    """
    class_names = results.data_set.class_names
    annotations = (results.annotation(case.files[0]) for case in results.cases if case.name in held)
    shown = slices_showing(((a.numbers, a.annotated) for a in annotations), len(class_names))
    judged = [case for of, case in zip(results.cases, report.cases) if of.name in held]
    total = sum(sum(map(len, case.slices.values())) for case in judged if case.slices)
    counts = np.sum([entry.counts for entry in expected.values()], axis=0)
    folds = max(len(voxels.slices) for voxels in held.values())
    return estimate({name: expected[name] for name in held}, counts, shown, total, folds, class_names)


def _curves(work: Mapping[str, Path]) -> dict[str, Any]:
    titles = {part: "final" if part == FINAL else f"held out {int(part.removeprefix('fold_')) + 1}" for part in work}
    return {titles[part]: read_log(folder / "training.csv") for part, folder in work.items()}


def _section(
    results: Results,
    case: ImageCase,
    count: int,
    templates: dict[str, str],
    scores: ReferenceScores,
    pictures: bool,
) -> CaseSection:
    """Return the section of the report on a case; write its template, and add its scores, if it has a dense label."""
    files, image = results.files(case), read_image(case.files[0])
    annotation = results.annotation(case.files[0])
    found = read_segmentation(files["segmentation"], image, results.output.labels)
    confidence = np.asarray(read_image(files["confidence"]).data, np.uint8)
    numbers = class_numbers(found, results.data_set.class_values)
    reference = results.reference(case)
    if reference is not None:
        scores.add(case.name, numbers, annotation.annotated, reference, image.spacing)
    suggested: list[Suggestion] = suggest_slices(confidence, numbers, annotation.annotated, image.affine, count)
    if suggested:
        files["template"] = results.write_template(case, annotation, found, suggested, templates)
    record = CaseRecord(results.folder, case, {}).read()
    names = results.data_set.class_names
    view = view_of(case.name, image, annotation, numbers, confidence, names) if pictures else None
    return CaseSection(
        name=case.name,
        ml={name: record["ml"][name] for name in names[1:]},
        mean_confidence=record.get("mean_confidence"),
        suggestions=suggested,
        files={kind: path.name for kind, path in files.items()},
        view=view,
    )


def read_prob(folder: Path, number: int, shape: Sequence[int]) -> np.ndarray:
    """Return the kept probabilities (K, X, Y, Z) of a run's case, float32.

    Args:
        folder: the run's folder.
        number: number of the case.
        shape: shape of its scan.
    """
    with np.load(_prob_file(folder, number)) as content:
        x, y, z = (slice(int(start), int(stop)) for start, stop in content["box"])
        return Propagated(content["prob"].astype(np.float32), (x, y, z), None, "").whole(shape)


def _prob_file(folder: Path, number: int) -> Path:
    return folder / "work" / "probabilities" / f"{number}.npz"


def _files(case: Case) -> tuple[str, ...]:
    return tuple(case[IMAGE]) if isinstance(case[IMAGE], list) else (case[IMAGE],)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
