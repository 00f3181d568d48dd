"""Densify: segment all of some volumes of which a part is annotated, and tell how well.

First come methods without a network, which begin where a user's own tools end: a preview in seconds, then, where the
minutes suffice, what they reach when they learn from held-out slices and blocks (:mod:`~sparse3dunet.propagation`). The
minutes that are left go to the network, as in ``run training``, with the same config: without the first part of the
slices, on which it is judged beside these methods, then with all. It has a share in the result where it makes that
better on those slices.
"""

from __future__ import annotations

import copy
import gc
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import set_determinism

from sparse3dunet.bundle import configs
from sparse3dunet.data.checks import DataReport
from sparse3dunet.data.datalist import DataSet, case_name, without_references
from sparse3dunet.data.slices import Slices
from sparse3dunet.densify import told
from sparse3dunet.densify.estimate import Estimate, Expected, estimate, show
from sparse3dunet.densify.former import look_at_templates, typed
from sparse3dunet.densify.inputs import annotation_of
from sparse3dunet.densify.network import calibrations, choose_share, network_on_held_out, trained_model
from sparse3dunet.densify.options import Options
from sparse3dunet.densify.propagated import Outlook, Propagation
from sparse3dunet.densify.results import Results, write_results
from sparse3dunet.densify.schedule import FINAL, Schedule, channels, deal_slices, number_of_folds, slices_showing
from sparse3dunet.densify.state import Learned, State, StateFile, differences, digest, former_description, keep_aside
from sparse3dunet.keys import IMAGE, LABEL, WEIGHT
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.normalization import normalizer
from sparse3dunet.progress import run_progress
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import Held

STOPPED = 128 + signal.SIGINT
MODEL = "model/model.pt"


def densify(data_set: DataSet, report: DataReport, spacing: Any, **options: Any) -> None:
    """Run a densification within a run of the bundle, and write its results to the config's ``output_dir``.

    The config is that run's: ``train.yaml`` with ``densify.yaml`` over it, and what the command line set.

    Ctrl-C while it trains ends the training, and what was learned by then makes the results. A run that is killed goes
    on where it was when it is run again; one that is complete learns further, with the annotation as it is by then.

    Args:
        data_set: what the config's ``data_set`` is.
        report: of it.
        spacing: in mm, to resample to; None for volumes as they are.
        options: see :class:`Options`.

    Raises:
        DataError: when a setting is wrong, or a result would replace a file that is not a former run's.
    """
    try:
        _Run(configs.current(), data_set, report, spacing, Options(**options)).run()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on where it was.", flush=True)
        raise SystemExit(STOPPED) from None


@dataclass
class _Trained:
    """A part's network, and how it predicts."""

    network: torch.nn.Module
    description: ModelDescription
    stopped: bool
    load: Compose
    inferer: Any


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
        anew = options.restart or (self.before is not None and self.before.anew and not self.before.complete)
        self.former = None if anew else former_description(self.output_dir / MODEL)
        self.spacing = self.former.spacing if self.former and options.own_spacing else spacing
        self.config = {**config, "data_set": data_set, "report": report, "target_spacing": self.spacing}
        self.digest = digest(data_set, config, [self.spacing, channels(options.device)])
        self.notes: list[str] = []
        self.total = 0.0  # seconds of this process, up to `started`
        self.results = Results(self.output_dir, self.data_set, options.format, options.keep_annotation)
        count, seconds = len(data_set.class_names), 60 * options.minutes
        self.propagation = Propagation(
            self.output_dir / "work" / "propagation",
            self.results.annotation,
            count,
            seconds,
            len(data_set.cases),
            options.seed,
        )

    def run(self) -> None:
        self.results.check(self.before)
        description = self._parser({}).get_parsed_content("description")
        state = self.state = self._begin(description)
        self._clear()
        configs.record(self.output_dir)
        found = told.at_start(self.report, state, self.options, description)
        for choice in found:
            print(told.text(choice), flush=True)
        if not state.trained:
            self._propagate()
            self._train()
        parser = self._parser({})
        model = trained_model(self.output_dir / MODEL, description, lambda: parser.get_parsed_content("network"))
        normalize = normalizer(parser.get_parsed_content("normalize"))
        expected = self.results.predict(model, self._outlook, self.options.device, normalize)
        previews = self._previews_alone()
        quality = self._quality(expected, "in this time there is a preview alone" if previews else state.reason)
        methods = told.of_methods(self.propagation, self.results.cases, state.share, not previews)
        print(told.text(methods), flush=True)
        show(quality)
        write_results(
            self.results,
            quality,
            suggestions=self.options.suggestions,
            choices=[*found, methods],
            notes=[
                *self.notes,
                *previews,
                *(["The run was ended early, by Ctrl-C."] if state.stopped_early else []),
            ],
            command=typed(),
            work={part: self.output_dir / "work" / part for part in state.seconds},
            templates=state.templates,
            keep=lambda: self.file.write(state),
        )
        state.complete = True
        self.file.write(state)
        seconds = self.total + time.perf_counter() - self.started
        if not quality.usable:
            print(f"This result is likely to be useless: {quality.warnings[0]}", flush=True)
        print(f"Done in {seconds / 60:.1f} minutes. Look at {self.output_dir / 'report.html'}", flush=True)

    # ------------------------------------------------------------ without a network

    def _propagate(self) -> None:
        """A preview of each volume, then all that can be told of it without a network; what is done is on disk."""
        for case in self.results.cases:
            found = self.propagation.preview(case, self._slices_of(case.name))
            path = self.results.write_preview(case, found, self.state.previews)
            self.file.write(self.state)
            seconds = self.total + time.perf_counter() - self.started
            print(f"Preview after {seconds:.0f} s: {path}", flush=True)
        try:
            with run_progress(len(self.results.cases)) as advance:
                for case in self.results.cases:
                    self.propagation.refine(case, self._slices_of(case.name), advance)
        except KeyboardInterrupt:
            self.state.stopped_early = True
            self._say("Ctrl-C: the results are made of what was found so far; once more ends at once.")
        for text in self._previews_alone():
            print(text, flush=True)
        self._keep_time()

    def _previews_alone(self) -> list[str]:
        return [] if self.state.stopped_early else told.of_previews(self.propagation, self.results.cases)

    def _slices_of(self, name: str) -> list[Slices]:
        """Those that parts hold out, on the volume's own grid; none where the network sees another one."""
        if self.spacing is not None:
            return []
        return [fold.get(name, [[], [], []]) for fold in self.state.held_out]

    def _held(self) -> dict[str, Held]:
        found = {case.name: self.propagation.held(case) for case in self.results.cases}
        return {name: held for name, held in found.items() if held is not None}

    def _outlook(self, name: str) -> Outlook:
        """Of a case; one at a time, for memory."""
        case = next(case for case in self.results.cases if case.name == name)
        found = self.propagation.best(case) or self.propagation.refine(case, self._slices_of(name))
        held = found.held
        own = Calibration()
        if held is not None:
            own = Calibration.fit(held.prob, held.label, held.distance, held.weight)
        both = self.state.calibrations.get(name)  # none where the network was not judged: it has no share there
        share = (self.state.share or 0.0) if both else 0.0
        return Outlook(found, own, Calibration(*both) if both else own, share)

    # ------------------------------------------------------------ where to begin

    def _begin(self, description: ModelDescription) -> State:
        """The state to go on with, or a new one."""
        before = self.before
        same = before is not None and before.digest == self.digest and not before.complete
        if before is not None and same and (before.anew or not self.options.restart):
            self.notes = before.notes
            if before.stopped_early and not before.trained:
                before.stopped_early = False
                before.seconds.pop(FINAL, None)
            self._say(f"Going on with the run that was not completed in {self.output_dir}.")
            return before
        state = State(self.digest, anew=self.options.restart)
        if before is not None:
            state.templates, state.previews = before.templates, before.previews
        state.notes = self.notes
        former_slices = None
        if self.former is not None:
            changed = differences(self.former, description)
            state.goes_on = not changed
            if changed:
                kept = keep_aside(self.output_dir / MODEL)
                self._say(f"The former run's model is left aside, as {kept}: {', '.join(changed)}.")
            elif before is not None and before.held_out and self._fold_model().is_file():
                former_slices = before.held_out[0]
        if state.goes_on:
            self._say(f"Learning further from the former run's model in {self.output_dir}; --restart forgets it.")
        learned = self.former.training if self.former else ()
        state.held_out, state.reason = deal_slices(
            self._items(), number_of_folds(self.options.folds), self.options.seed, former_slices, learned
        )
        state.keeps_fold = former_slices is not None
        if state.reason and self.options.folds:
            self._say(f"No whole slices are held out: {state.reason}.")
        files = [*(case[LABEL] for case in self.data_set.cases), annotation_of(self.data_set.source)]
        for text in look_at_templates(self.output_dir, state.templates, [file for file in files if file]):
            self._say(text)
        self._look_at_annotation(state.goes_on)
        self.file.write(state)
        return state

    def _clear(self) -> None:
        """Remove what a former run left, and would be taken for this one's."""
        if self.state.cleared:
            return
        for last in (self.output_dir / "work").glob("*/last.pt"):
            last.unlink()
        shutil.rmtree(self.propagation.folder, ignore_errors=True)
        if not self.state.keeps_fold:
            for model in (self.output_dir / "work").glob("fold_*/model.*"):
                model.unlink()
        self.state.cleared = True
        self.file.write(self.state)

    def _look_at_annotation(self, goes_on: bool) -> None:
        """Keep what is going to be learned, and tell what of it the former model learned otherwise."""
        self.learned.start(goes_on)
        for name, case in zip(self.names, self.results.cases):
            annotation = self.results.annotation(case.files[0])
            changed = self.learned.changed(name, annotation.numbers, annotation.annotated)
            self.learned.add(name, annotation.numbers, annotation.annotated)
            if changed:
                self._say(
                    f"{name}: {changed} voxels that the former run's model learned are annotated otherwise now, or no "
                    "more; what it learned of them may stay. --restart begins from nothing."
                )

    def _items(self) -> dict[str, dict[str, Any]]:
        """Label and weight of each case, as the network sees them."""
        load = Compose(self._parser({}).get_parsed_content("load"))
        items = {}
        for name, case in zip(self.names, without_references(self.data_set.cases)):
            item = load(case)
            items[name] = {key: item[key] for key in (LABEL, WEIGHT)}
        return items

    def _say(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    # ------------------------------------------------------------ the parts

    def _train(self) -> None:
        """The network that is judged, and the final one, in the time that is left."""
        state, schedule = self.state, Schedule(60 * self.options.minutes, self._is_judged(), self.state.keeps_fold)
        if state.stopped_early:  # while methods without a network were at work
            schedule = Schedule(0.0, False)
        judged = 0.0
        if schedule.judged and state.share is None:
            initial = self._fold_model() if state.goes_on else None
            trained = self._part("fold_0", "held out", state.held_out[0], schedule.fold(self._spent()), initial)
            if trained.stopped and state.goes_on:
                self._finish(None)  # there is a better model than this part's
                return
            save_file(self._fold_model(), trained.network.state_dict(), trained.description)
            began, held = time.perf_counter(), self._held()
            found = network_on_held_out(
                trained.network, self.data_set.cases, held, self.options.device, trained.load, trained.inferer
            )
            state.share = choose_share(held, found, len(self.data_set.class_names))
            state.calibrations = calibrations(held, found, state.share)
            judged = time.perf_counter() - began
            self._keep_time()
            if trained.stopped:
                self._finish(trained)
                return
        initial = self.output_dir / MODEL if state.goes_on else self._fold_model()
        seconds = schedule.final(self._spent(), 2 * judged if state.share else 0.0)
        self._finish(self._part(FINAL, "training", None, seconds, initial))

    def _is_judged(self) -> bool:
        """Whether there are slices to judge the network by, on the grid that it sees."""
        return self.spacing is None and bool(self.state.held_out) and any(h.judged >= 0 for h in self._held().values())

    def _spent(self) -> float:
        return self.state.spent + time.perf_counter() - self.started

    def _finish(self, trained: _Trained | None) -> None:
        """Make a part's network the final model; None: the former run's."""
        if trained is not None:
            save_file(self.output_dir / MODEL, trained.network.state_dict(), trained.description)
            self.learned.finish()
        self.state.trained = True
        self.state.stopped_early |= trained is None or trained.stopped
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
        """Train a part, or go on with it."""
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
        budget.set(max(self.state.seconds[part], 1.0) / 60)
        stopped = False
        try:
            resumable.run(resume)
        except SystemExit as end:
            if end.code != STOPPED:
                raise
            stopped = True
            self._say("Ctrl-C: the results are made of what was learned so far; once more ends at once.")
        load, inferer = Compose(parser.get_parsed_content("load")), parser.get_parsed_content("validate#inferer")
        del parser, resumable
        gc.collect()  # the volumes
        return _Trained(network, description, stopped, load, inferer)

    def _quality(self, expected: Mapping[str, Expected], reason: str) -> Estimate:
        """By what was held out of the volumes; or why nothing was."""
        if self.options.folds == 0:
            return Estimate(reason=self.state.reason)
        held = self._held()
        if not held:
            reason = "the run was ended before it could be told" if self.state.stopped_early else reason
            return Estimate(reason=reason or "nothing can be held out without losing a class")
        annotations = (self.results.annotation(case.files[0]) for case in self.results.cases if case.name in held)
        shown = slices_showing(((a.numbers, a.annotated) for a in annotations), len(self.data_set.class_names))
        judged = [case for name, case in zip(self.names, self.report.cases) if name in held]
        total = sum(sum(map(len, case.slices.values())) for case in judged if case.slices)
        found = {name: expected[name] for name in held}
        counts = np.sum([entry.counts for entry in expected.values()], axis=0)
        folds = max(len(of.slices) for of in held.values())
        return estimate(found, counts, shown, total, folds, self.data_set.class_names)

    def _fold_model(self) -> Path:
        return self.output_dir / "work" / "fold_0" / "model.pt"

    def _parser(self, changes: Mapping[str, Any]) -> ConfigParser:
        """Of the config with some values changed."""
        config = copy.deepcopy({key: value for key, value in self.config.items() if key != "report"})
        return ConfigParser({**config, "report": self.report, **changes})
