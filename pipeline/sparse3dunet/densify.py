"""Densify: learn from the annotated slices of some volumes, tell how well, and segment all of them.

The run consists of parts: folds, each of which holds annotated slices out, for an estimate of the quality, and the
final training on all slices. Each is what ``run training`` does, with the same config. The first fold's model is what
the final training begins with, so that its time is not lost.
"""

from __future__ import annotations

import copy
import gc
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import set_determinism

from sparse3dunet import configs
from sparse3dunet.checkpoints import file_digest, save_file
from sparse3dunet.checks import DataReport
from sparse3dunet.datalist import DataSet, case_name
from sparse3dunet.densify_inputs import annotation_of
from sparse3dunet.densify_options import Options
from sparse3dunet.densify_plan import (
    AUTO,
    FINAL,
    Schedule,
    annotated_text,
    channels,
    choices,
    deal_slices,
    number_of_folds,
    unlabeled_text,
)
from sparse3dunet.densify_results import Results, write_results
from sparse3dunet.densify_scores import Scorer
from sparse3dunet.densify_state import (
    Learned,
    State,
    StateFile,
    differences,
    digest,
    keep_aside,
    read_description,
)
from sparse3dunet.estimates import Estimate, FinalCounts, FoldCounts, estimate, show, temperature
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT
from sparse3dunet.slices import Slices

STOPPED = 128 + signal.SIGINT
MODEL = "model/model.pt"


def densify(config: Mapping[str, Any], data_set: DataSet, report: DataReport, spacing: Any, **options: Any) -> None:
    """Run a densification, and write its results to the config's ``output_dir``.

    Ctrl-C while it trains ends the training, and what was learned by then makes the results. A run that is killed goes
    on where it was when it is run again; one that is complete learns further, with the annotation as it is by then.

    Args:
        config: ``train.yaml`` with ``densify.yaml`` over it, and what the command line set.
        data_set: what the config's ``data_set`` is.
        report: of it.
        spacing: in mm, to resample to; None for volumes as they are.
        options: see :class:`Options`.

    Raises:
        DataError: when a setting is wrong, or a result would replace a file that is not a former run's.
    """
    try:
        _Run(config, data_set, report, spacing, Options(**options)).run()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on where it was.", flush=True)
        raise SystemExit(STOPPED) from None


@dataclass
class _Trained:
    """A part's network, and what is known of it."""

    network: torch.nn.Module
    description: dict[str, Any]
    stopped: bool
    scored: dict[str, Any] = field(default_factory=dict)  # FoldCounts, or FinalCounts, in plain values
    seconds: float = 0.0  # to predict all volumes that were scored


class _Run:
    def __init__(
        self, config: Mapping[str, Any], data_set: DataSet, report: DataReport, spacing: Any, options: Options
    ) -> None:
        self.started = time.perf_counter()
        self.data_set, self.report, self.options = data_set, report, options
        self.names = [case_name(case[IMAGE]) for case in data_set.cases]
        self.output_dir = Path(options.output_dir)
        self.file = StateFile(self.output_dir)
        self.learned = Learned(self.output_dir)
        self.before = self.file.read()
        # Of a run anew that was killed, the same command goes on, and still leaves aside what was there before it.
        anew = options.anew or (self.before is not None and self.before.anew and not self.before.complete)
        self.former = None if anew else read_description(self.output_dir / MODEL)
        self.spacing = self.former.get("spacing") if self.former and options.own_spacing else spacing
        self.config = {**config, "data_set": data_set, "report": report, "target_spacing": self.spacing}
        self.schedule = Schedule(60 * options.minutes, number_of_folds(options.folds, options.minutes))
        self.digest = digest(data_set, config, [self.spacing, channels(options.device)])
        self.notes: list[str] = []
        self.total = 0.0  # seconds of this process, up to `started`

    def run(self) -> None:
        results = Results(self.output_dir, self.data_set, self.options.format, self.options.keep_annotation)
        results.check(is_former=self.before is not None)
        description = self._parser({}).get_parsed_content("description")
        state = self.state = self._begin(description, results)
        self._clear()
        configs.record(self.output_dir)
        told = self._told(description)
        for name, value, why in told:
            print(f"{name}: {value} ({why})", flush=True)
        if not state.trained:
            self._train()
        quality = self._quality()
        show(quality)
        write_results(
            results,
            self.output_dir / MODEL,
            quality,
            device=self.options.device,
            suggestions=self.options.suggestions,
            choices=told,
            notes=[*self.notes, *(["The training was ended early, by Ctrl-C."] if state.stopped_early else [])],
            command=_typed(),
            work={part: self.output_dir / "work" / part for part in state.seconds},
            templates=state.templates,
            keep=lambda: self.file.write(state),
        )
        state.complete = True
        self.file.write(state)
        seconds = self.total + time.perf_counter() - self.started
        print(f"Done in {seconds / 60:.1f} minutes. Look at {self.output_dir / 'report.html'}", flush=True)

    def _told(self, description: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        told = [
            ("annotation", annotated_text(self.report.cases), "as found in the files"),
            ("unlabeled", unlabeled_text(self.report), "--ignore-index or --annotated-slices say otherwise"),
        ]
        count = len(self.state.held_out)
        trainings = f"{count} training without some slices" if count == 1 else f"{count} trainings without some slices"
        if count:
            reason = f"{self.options.minutes:g} minutes allow it" if self.options.folds == AUTO else "as asked for"
            reason = "those that the former run's model has not learned" if self.state.keeps_fold else reason
            told.append(("estimate of the quality", trainings, reason))
        if self.state.goes_on:
            told.append(("begin", "the former run's model", "it has learned from this annotation, or a part of it"))
        minutes, device = self.options.minutes, self.options.device
        return [*told, *choices(self.report, description, device, minutes, self.options.own_spacing)]

    # ------------------------------------------------------------ where to begin

    def _begin(self, description: Mapping[str, Any], results: Results) -> State:
        """The state to go on with, or a new one."""
        before = self.before
        same = before is not None and before.digest == self.digest and not before.complete
        if before is not None and same and (before.anew or not self.options.anew):
            self.notes = before.notes
            self._say(f"Going on with the run that was not completed in {self.output_dir}.")
            return before
        state = State(self.digest, templates=before.templates if before else {}, anew=self.options.anew)
        state.notes = self.notes
        former_slices = None
        if self.former is not None:
            changed = differences(self.former, description)
            state.goes_on = not changed
            if changed:
                kept = keep_aside(self.output_dir / MODEL)
                self._say(f"The former run's model is left aside, as {kept}: {', '.join(changed)}.")
            elif before is not None and before.held_out and self._fold_model(0).is_file():
                former_slices = before.held_out[0]
        if state.goes_on:
            self._say(f"Learning further from the former run's model in {self.output_dir}; --anew begins anew.")
        learned = (self.former or {}).get("training", [])
        state.held_out, state.reason = deal_slices(
            self._items(), self.schedule.folds, self.options.seed, former_slices, learned
        )
        state.keeps_fold = former_slices is not None
        if state.reason and self.schedule.folds:
            self._say(f"No estimate of the quality: {state.reason}.")
        self._look_at_templates(state)
        self._look_at_annotation(results, state.goes_on)
        self.file.write(state)
        return state

    def _clear(self) -> None:
        """Remove what a former run left, and would be taken for this one's."""
        if self.state.cleared:
            return
        for last in (self.output_dir / "work").glob("*/last.pt"):
            last.unlink()
        if not self.state.keeps_fold:
            for model in (self.output_dir / "work").glob("fold_*/model.*"):
                model.unlink()
        self.state.cleared = True
        self.file.write(self.state)

    def _look_at_templates(self, state: State) -> None:
        """Tell of those that were passed unchanged, or changed but not passed; one that was passed is the user's."""
        files = [*(case[LABEL] for case in self.data_set.cases), annotation_of(self.data_set.source)]
        passed = {file_digest(file) for file in files if file is not None}
        for name, written in list(state.templates.items()):
            path = self.output_dir / name
            now = file_digest(path) if path.is_file() else written
            if written in passed:
                self._say(
                    f"{path} is passed as it was written: what was predicted on the suggested slices now counts as "
                    "annotated, although nobody has changed it."
                )
            elif now != written and now not in passed:
                self._say(
                    f"{path} was changed since it was written, but is no annotation of this run; pass it, to learn "
                    "from it."
                )
            if passed & {written, now}:
                del state.templates[name]

    def _look_at_annotation(self, results: Results, goes_on: bool) -> None:
        """Keep what is going to be learned, and tell what of it the former model learned otherwise."""
        self.learned.start(goes_on)
        for name, case in zip(self.names, results.cases):
            annotation = results.annotation(case.files[0])
            changed = self.learned.changed(name, annotation.numbers, annotation.annotated)
            self.learned.add(name, annotation.numbers, annotation.annotated)
            if changed:
                self._say(
                    f"{name}: {changed} voxels that the former run's model learned are annotated otherwise now, or no "
                    "more; what it learned of them may stay. --anew begins from nothing."
                )

    def _items(self) -> dict[str, dict[str, Any]]:
        """Label and weight of each case, as the network sees them."""
        load = Compose(self._parser({}).get_parsed_content("load"))
        items = {}
        for name, case in zip(self.names, self.data_set.cases):
            item = load({key: case[key] for key in case if key != "reference"})
            items[name] = {key: item[key] for key in (LABEL, WEIGHT)}
        return items

    def _say(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    # ------------------------------------------------------------ the parts

    def _train(self) -> None:
        """All parts that are not done yet, and the final model."""
        trained = None
        schedule = Schedule(self.schedule.seconds, len(self.state.held_out), self.state.keeps_fold)
        for fold, held_out in enumerate(self.state.held_out):
            part = f"fold_{fold}"
            if part in self.state.folds:
                continue
            initial = self._fold_model(0) if self.state.goes_on and fold == 0 else None
            title = f"held out {fold + 1}/{len(self.state.held_out)}"
            trained = self._part(part, title, held_out, schedule.fold, initial)
            if trained.stopped and (fold or self.state.goes_on):
                self._finish(None)  # there is a better model than this part's
                return
            save_file(self._fold_model(fold), trained.network.state_dict(), trained.description)
            self.state.folds[part] = trained.scored
            self._keep_time()
            if trained.stopped:
                self._finish(trained)
                return
        spent = self.state.spent + time.perf_counter() - self.started
        passes = 4 * trained.seconds if trained else 0.0  # twice; once with windows that overlap more
        initial = self.output_dir / MODEL if self.state.goes_on else self._fold_model(0)
        trained = self._part(FINAL, "training", None, schedule.final(spent, passes), initial)
        self.state.final = trained.scored
        self._finish(trained)

    def _finish(self, trained: _Trained | None) -> None:
        """Make a part's network the final model; None: the former run's, or the first fold's."""
        if trained is not None:
            save_file(self.output_dir / MODEL, trained.network.state_dict(), trained.description)
        elif not self.state.goes_on:
            weights = torch.load(self._fold_model(0), map_location="cpu", weights_only=True)
            save_file(self.output_dir / MODEL, weights, read_description(self._fold_model(0)))
            self.state.folds = {"fold_0": self.state.folds["fold_0"]}  # of the model that is kept
        else:  # of which no fold's model tells
            self.state.folds, self.state.reason = {}, "the training was ended before it could be told"
        if trained is not None or not self.state.goes_on:
            self.learned.finish()
        self.state.trained, self.state.stopped_early = True, trained is None or trained.stopped
        self._keep_time()

    def _keep_time(self) -> None:
        """Write the state, with the time that has been spent."""
        now = time.perf_counter()
        self.state.spent += now - self.started
        self.total += now - self.started
        self.started = now
        self.file.write(self.state)

    def _part(
        self, part: str, title: str, held_out: dict[str, Slices] | None, seconds: float, initial: Path | None
    ) -> _Trained:
        """Train a part, or go on with it, and score it where it holds slices out."""
        started = time.perf_counter()
        resume = (self.output_dir / "work" / part / "last.pt").is_file()
        changes = {"part": part, "title": title, "held_out": held_out, "minutes": seconds / 60, "resume": resume}
        parser = self._parser(changes)
        set_determinism(seed=self.options.seed)
        network, description, resumable, budget = map(
            parser.get_parsed_content, ("network", "description", "resumable", "budget")
        )
        if initial is not None and initial.is_file():
            network.load_state_dict(torch.load(initial, map_location="cpu", weights_only=True))
        if part not in self.state.seconds:
            self.state.seconds[part] = max(seconds - (time.perf_counter() - started), 0.3 * seconds)
            self.file.write(self.state)
        budget.set(self.state.seconds[part] / 60)
        stopped = False
        try:
            resumable.run(resume)
        except SystemExit as end:
            if end.code != STOPPED:
                raise
            stopped = True
            self._say("Ctrl-C: the results are made of what was learned so far; once more ends at once.")
        result = _Trained(network, description, stopped)
        began = time.perf_counter()
        load, inferer = Compose(parser.get_parsed_content("load")), parser.get_parsed_content("validate#inferer")
        scorer = Scorer(self.data_set.cases, len(self.data_set.class_names), self.options.device, load, inferer)
        if held_out:
            result.scored = scorer.fold(network, held_out).as_json()
        elif self.state.folds:
            result.scored = scorer.final(network, temperature(self._folds())).as_json()
        result.seconds = time.perf_counter() - began
        del parser, resumable
        gc.collect()  # the volumes
        return result

    def _folds(self) -> list[FoldCounts]:
        """Of the folds that are done."""
        return [FoldCounts.from_json(content) for content in self.state.folds.values()]

    def _quality(self) -> Estimate:
        done = self._folds()
        if not done:
            return Estimate(reason=self.state.reason or "no slices were held out")
        slices = sum(len(i) for fold in self.state.held_out[: len(done)] for axes in fold.values() for i in axes)
        final = FinalCounts.from_json(self.state.final) if self.state.final else None
        return estimate(done, final, slices, self.data_set.class_names)

    def _fold_model(self, fold: int) -> Path:
        return self.output_dir / "work" / f"fold_{fold}" / "model.pt"

    def _parser(self, changes: Mapping[str, Any]) -> ConfigParser:
        """Of the config with some values changed."""
        return ConfigParser(
            {
                **copy.deepcopy({k: v for k, v in self.config.items() if k != "report"}),
                **{"report": self.report, **changes},
            }
        )


def _typed() -> str:
    """The command line, as it can be typed again."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else ""
    start = ["python", "-m", "monai.bundle" if module == "bundle" else module] if module else [program.name]
    return shlex.join([*start, *sys.argv[1:]])
