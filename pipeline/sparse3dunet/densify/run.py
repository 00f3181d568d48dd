"""Densify: segment whole volumes of which a part is annotated, and estimate the quality of the result.

Methods without a network come first: a preview in seconds, then, if there is time, a better result that they learn from
held-out slices and blocks (:mod:`~sparse3dunet.propagation`). The remaining minutes go to the network, trained as in
``run training`` with the same config: first without the first part of the slices, on which it is compared with these
methods, then on all slices. It gets a share in the result unless it does harm on the held-out slices.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils import set_determinism

from sparse3dunet.bundle import configs
from sparse3dunet.data.datalist import DataSet
from sparse3dunet.data.memory import freed_memory_kept
from sparse3dunet.data.reports import DataReport
from sparse3dunet.data.slices import Slices
from sparse3dunet.densify import summary
from sparse3dunet.densify.estimate import Estimate, Expected, show
from sparse3dunet.densify.former import check_annotation, command_line, keep_annotation
from sparse3dunet.densify.former_models import FormerModels, differences, former_names, held_out_before, keep_aside
from sparse3dunet.densify.inputs import annotation_of
from sparse3dunet.densify.network import Trained, choose_share, network_on_held_out, trained_model
from sparse3dunet.densify.options import Options
from sparse3dunet.densify.propagated import Outlook, Propagation, own_calibration
from sparse3dunet.densify.pseudo_labels import PseudoLabels
from sparse3dunet.densify.results import Results, estimate_of, write_results
from sparse3dunet.densify.schedule import FINAL, Schedule, are_within, channels, deal_slices, items_of, number_of_folds
from sparse3dunet.densify.state import PROPAGATED, Learned, State, StateFile, digest
from sparse3dunet.interrupts import STOPPED
from sparse3dunet.io import hold_folder
from sparse3dunet.keys import LABEL
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.models.normalization import normalizer
from sparse3dunet.progress import run_progress
from sparse3dunet.propagation.ensemble import Held
from sparse3dunet.training.resume import StateError
from sparse3dunet.training.settings import surface_tolerances

MODEL = "model/model.pt"


def densify(data_set: DataSet, report: DataReport, spacing: Any, **options: Any) -> None:
    """Run a densification within a run of the bundle, and write its results to the config's ``output_dir``.

    The config is that of the run: ``train.yaml``, ``densify.yaml`` over it, and the settings of the command line.

    Ctrl-C during training ends the training; the results are then made with what was learned so far. A run that was
    killed continues when it is started again; a complete one trains further, with the current annotation.

    Args:
        data_set: the config's ``data_set``.
        report: report on the data set.
        spacing: voxel size in mm to resample to; None: no resampling.
        options: see :class:`Options`.

    Raises:
        DataError: when a setting is wrong, or a result would replace a file that no former run wrote.
    """
    hold_folder(options["output_dir"])
    try:
        with freed_memory_kept():
            _Run(configs.current(), data_set, report, spacing, Options(**options)).run()
    except KeyboardInterrupt:
        print("Stopped; run the same command again to continue.", flush=True)
        raise SystemExit(STOPPED) from None


class _Run:
    def __init__(
        self, config: Mapping[str, Any], data_set: DataSet, report: DataReport, spacing: Any, options: Options
    ) -> None:
        self.started = time.perf_counter()
        self.data_set, self.report, self.options = data_set, report, options
        self.output_dir = Path(options.output_dir)
        self.file = StateFile(self.output_dir)
        self.learned = Learned(self.output_dir)
        self.before = self.file.read()
        # A restarted run that was killed continues with the same command, and still ignores what was there before it.
        restart = options.restart or (self.before is not None and self.before.anew and not self.before.complete)
        self.former = FormerModels(self.output_dir / MODEL, self._fold_model(), is_used=not restart)
        like = self.former.description
        self.given_spacing = spacing
        self.spacing = like.spacing if like and options.own_spacing else spacing
        self.config = {**config, "data_set": data_set, "report": report, "target_spacing": self.spacing}
        self.config |= {} if like is None else {"like": like}
        self.digest = digest(data_set, config, [self.spacing, channels(options.device)])
        self.notes = [self.file.fault] if self.file.fault else []
        self.total = 0.0  # seconds of this process, up to `started`
        self.results = Results(self.output_dir, self.data_set, options.format, options.keep_annotation)
        count, seconds = len(data_set.class_names), 60 * options.minutes
        self.tolerances = surface_tolerances(options.surface_tolerance, data_set.class_names, report, None)
        folder = self.output_dir / "work" / PROPAGATED
        self.propagation = Propagation(
            folder, self.results.annotation, count, seconds, len(data_set.cases), options.seed
        )

    def run(self) -> None:
        hopeless = summary.hopeless(self.report)
        for text in [*self.notes, *(f"This result is likely to be useless: {text}" for text in hopeless)]:
            print(text, flush=True)
        self.results.check(self.before)
        state = self.state = self._begin(self._parser({}).get_parsed_content("description"))
        description, chosen = map(self._parser({}).get_parsed_content, ("description", "chosen"))
        self.file.clear(state)
        configs.record(self.output_dir)
        plan = summary.at_start(self.report, state, self.options, chosen)
        print(*map(summary.text, plan), sep="\n", flush=True)
        if not state.trained:
            self._propagate()
            self._train()
        parser = self._parser({})
        model = trained_model(self.output_dir / MODEL, description, lambda: parser.get_parsed_content("network"))
        normalize = normalizer(parser.get_parsed_content("normalize"))
        expected = self.results.predict(
            model, self._outlook, self.options.device, normalize, self.options.probabilities
        )
        previews = self._previews_alone()
        quality = self._quality(expected, "there was only time for a preview" if previews else state.reason)
        quality = replace(quality, warnings=[*hopeless, *quality.warnings])
        methods = summary.methods_entry(self.propagation, self.results.cases, state.share, not previews)
        print(summary.text(methods), flush=True)
        few = summary.few_iterations(self.output_dir, state, self.output_dir / MODEL)
        stopped = ["The run was stopped early, by Ctrl-C."] if state.stopped_early else []
        for text in few:
            print(text, flush=True)
        show(quality)
        step = write_results(
            self.results,
            quality,
            tolerances=self.tolerances,
            suggestions=self.options.suggestions,
            plan=[*plan, methods],
            notes=[*self.notes, *previews, *few, *stopped],
            command=command_line(),
            work={part: self.output_dir / "work" / part for part in state.seconds},
            templates=state.templates,
            keep=lambda: self.file.write(state),
        )
        state.complete = True
        self.file.write(state)
        seconds = self.total + time.perf_counter() - self.started
        for text in quality.warnings[:1]:
            print(f"This result is likely to be useless: {text}", flush=True)
        print(f"Done in {seconds / 60:.1f} minutes. See {self.output_dir / 'report.html'}", flush=True)
        if step:
            print(step, flush=True)

    # ------------------------------------------------------------ without a network

    def _propagate(self) -> None:
        """Write a preview of each volume, then refine it without a network; finished volumes are kept on disk."""
        cases, keep = self.results.cases, lambda: self.file.write(self.state)
        try:
            for case in cases:
                preview = self.propagation.preview(case, self._slices_of(case.name))
                path = self.results.write_preview(case, preview, self.state.previews, keep)
                seconds = self.total + time.perf_counter() - self.started
                print(f"Preview after {seconds:.0f} s: {path}", flush=True)
            with run_progress(len(cases)) as advance:
                for case in cases:
                    self.propagation.refine(case, self._slices_of(case.name), advance)
        except KeyboardInterrupt:
            if self.propagation.best(cases[-1]) is None:
                raise  # nothing was found yet for some volumes
            self.state.stopped_early = True
            self._note("Ctrl-C: writing the results with what was found so far; press it again to end at once.")
        for text in self._previews_alone():
            print(text, flush=True)
        self._keep_time()

    def _previews_alone(self) -> list[str]:
        return [] if self.state.stopped_early else summary.preview_notes(self.propagation, self.results.cases)

    def _slices_of(self, name: str) -> list[Slices]:
        """Return the slices that each part holds out, on the volume's own grid; none if it is resampled."""
        if self.spacing is not None:
            return []
        return [fold.get(name, [[], [], []]) for fold in self.state.held_out]

    def _held(self) -> dict[str, Held]:
        by_case = {case.name: self.propagation.held(case) for case in self.results.cases}
        return {name: held for name, held in by_case.items() if held is not None}

    def _outlook(self, name: str) -> Outlook:
        """Return the outlook of a case; one at a time, to save memory."""
        case = next(case for case in self.results.cases if case.name == name)
        propagated = self.propagation.best(case) or self.propagation.refine(case, self._slices_of(name))
        return Outlook(propagated, own_calibration(propagated.held), self.state.share or 0.0)

    # ------------------------------------------------------------ start

    def _begin(self, description: ModelDescription) -> State:
        """Return the state to continue with, or a new one."""
        before = self.before
        # A damaged state has no digest; it was told of
        if before is not None and before.digest and not before.complete and (before.anew or not self.options.restart):
            if not (reason := self._change(before)):
                self.notes = before.notes
                if before.stopped_early and not before.trained:
                    before.stopped_early = False
                    before.seconds.pop(FINAL, None)
                self._note(f"Continuing the unfinished run in {self.output_dir}.")
                return before
            print(f"The unfinished run in {self.output_dir} begins anew: {reason}.", flush=True)
        return self._new_state(description)

    def _change(self, before: State) -> str:
        """Return why an unfinished run cannot be continued; empty if it can."""
        if fault := self.former.missing_for(before):
            return fault
        if before.digest != self.digest:
            return "the annotation, the images, a setting or the version changed"
        if before.held_out and before.share is None and not are_within(before.held_out, self._items()):
            return f"{self.file.path} lists slices to hold out that the volumes do not have"
        return ""

    def _new_state(self, description: ModelDescription) -> State:
        before, former = self.before, self.former
        images = {case.name: case.files[0] for case in self.results.cases}
        state = State(self.digest, anew=self.options.restart, images=images, notes=self.notes)
        names = former_names({} if before is None else before.images, images)
        if before is not None:
            state.templates, state.previews = before.templates, before.previews
        former_slices, learned = None, list[str]()
        if former.description is not None:
            changed = differences(former.description, description)
            state.goes_on = not changed
            state.learned = 0 if changed else summary.learned(self.output_dir, before)
            if changed:
                self._keep_aside(", ".join(changed))
            elif before is not None and before.cleared and former.fold_fits(description):
                former_slices, learned = held_out_before(before, names, former.description.training)
        elif former.fault:
            self._keep_aside(former.fault)
        if state.goes_on:
            self._note(f"Training the former run's model in {self.output_dir} further; --restart starts from scratch.")
        state.held_out, state.reason = deal_slices(
            self._items(), number_of_folds(self.options.folds), self.options.seed, former_slices, learned
        )
        state.keeps_fold = former_slices is not None
        if state.reason and self.options.folds:
            self._note(f"No whole slices are held out: {state.reason}.")
        files = [*(case[LABEL] for case in self.data_set.cases), annotation_of(self.data_set.source)]
        for text in check_annotation(self.results, state.templates, [file for file in files if file]):
            self._note(text)
        for text in keep_annotation(self.learned, self.results, state.goes_on, names):
            self._note(text)
        self.file.write(state)
        return state

    def _keep_aside(self, reason: str) -> None:
        """Leave a former run's model that cannot be trained further, and what was planned after it."""
        kept = keep_aside(self.output_dir / MODEL)
        self._note(f"The former run's model cannot be trained further, kept as {kept}: {reason}.")
        self.former.description, self.spacing = None, self.given_spacing
        self.config |= {"like": None, "target_spacing": self.spacing}

    def _items(self) -> dict[str, dict[str, Any]]:
        return items_of(self.data_set.cases, Compose(self._parser({}).get_parsed_content("load")))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        print(text, flush=True)

    # ------------------------------------------------------------ the parts

    def _train(self) -> None:
        """Train the network that is evaluated on held-out slices, and the final one, in the remaining time."""
        state, schedule = self.state, Schedule(60 * self.options.minutes, self._is_judged(), self.state.keeps_fold)
        if state.stopped_early:  # during propagation
            schedule = Schedule(0.0, False)
        judged = 0.0
        if schedule.judged and state.share is None:
            initial = self._fold_model() if state.goes_on else None
            trained = self._part(
                "fold_0", "training, slices held out", state.held_out[0], schedule.fold(self._spent()), initial
            )
            if trained.stopped and state.goes_on:
                self._finish(None)  # the former run's model is better than this part's
                return
            save_file(self._fold_model(), trained.network.state_dict(), trained.description)
            began, held = time.perf_counter(), self._held()
            predicted = network_on_held_out(
                trained.network, self.data_set.cases, held, self.options.device, trained.load, trained.inferer
            )
            state.share = choose_share(held, predicted, len(self.data_set.class_names))
            judged = time.perf_counter() - began
            self._keep_time()
            if trained.stopped:
                self._finish(trained)
                return
        initial = self.output_dir / MODEL if state.goes_on else self._fold_model()
        seconds = schedule.final(self._spent(), 2 * judged if state.share else 0.0)
        self._finish(self._part(FINAL, "training", None, seconds, initial))

    def _is_judged(self) -> bool:
        """Return whether there are held-out slices to evaluate the network on, on the grid that it sees."""
        return self.spacing is None and bool(self.state.held_out) and any(h.judged >= 0 for h in self._held().values())

    def _spent(self) -> float:
        return self.state.spent + time.perf_counter() - self.started

    def _finish(self, trained: Trained | None) -> None:
        """Make a part's network the final model; None: keep the former run's."""
        if trained is not None:
            save_file(self.output_dir / MODEL, trained.network.state_dict(), trained.description)
            self.learned.finish()
        self.state.trained = True
        self.state.stopped_early |= trained is None or trained.stopped
        self._keep_time()

    def _keep_time(self) -> None:
        """Write the state, with the time spent so far."""
        now = time.perf_counter()
        self.state.spent += now - self.started
        self.total += now - self.started
        self.started = now
        self.file.write(self.state)

    def _part(self, part: str, *arguments: Any) -> Trained:
        """Train a part, or resume its training; it begins again if that is not possible."""
        try:
            return self._train_part(part, *arguments)
        except StateError as error:
            (self.output_dir / "work" / part / "last.pt").unlink()
            self._note(f"{str(error).split('. ')[0].rstrip('.')}; this part of it begins again.")
        return self._train_part(part, *arguments)  # out of the handler, which would keep the volumes in memory

    def _train_part(
        self, part: str, title: str, held_out: dict[str, Slices] | None, seconds: float, initial: Path | None
    ) -> Trained:
        started, seconds = time.perf_counter(), max(seconds, 1.0)  # none are left if a run was stopped before it
        resume = (self.output_dir / "work" / part / "last.pt").is_file()
        pairs = held_out and tuple(held_out.items())  # no dict: names of cases are no config
        found = PseudoLabels(self.propagation, self.results.cases, held_out or {}, seconds / 2)
        changes = {"part": part, "title": title, "held_out": pairs, "minutes": seconds / 60, "resume": resume}
        parser = self._parser({**changes, "pseudo_labels": None if self.state.stopped_early else found})
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
            self._note("Ctrl-C: writing the results with what was learned so far; press it again to end at once.")
        load, inferer = Compose(parser.get_parsed_content("load")), parser.get_parsed_content("validate#inferer")
        del parser, resumable
        gc.collect()  # free the volumes
        return Trained(network, description, stopped, load, inferer)

    def _quality(self, expected: Mapping[str, Expected], reason: str) -> Estimate:
        """Estimate the quality from held-out voxels, or return the reason why there are none."""
        if self.options.folds == 0:
            return Estimate(reason=self.state.reason)
        held = self._held()
        if not held:
            reason = "the run was stopped before anything was held out" if self.state.stopped_early else reason
            return Estimate(reason=reason or "nothing can be held out without losing a class")
        return estimate_of(self.results, self.report, held, expected)

    def _fold_model(self) -> Path:
        return self.output_dir / "work" / "fold_0" / "model.pt"

    def _parser(self, changes: Mapping[str, Any]) -> ConfigParser:
        """Return a parser of the config with some values changed."""
        config = copy.deepcopy({**self.config, "report": None})
        return ConfigParser({**config, "report": self.report, **changes})
