"""The tables of a cross-validation, from what its folds wrote."""

import csv
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics import measure
from sparse3dunet.report.scores import read_scores, write_scores
from sparse3dunet.training.crossval import HELD_OUT_FILE, check_folds, run_folds, show_table
from sparse3dunet.training.resume import LAST_FILE
from sparse3dunet.transforms import HoldOutSlicesd
from tests.conftest import make_volume

NAMES = ("background", "shell", "core")


def fold_scores(seed, index, has_core=True):
    """Scores of a prediction on one held-out axial slice."""
    dense = torch.from_numpy(make_volume(seed)[1].astype(np.int64))[None]
    pred = torch.roll(dense, 1, 1)
    label = dense if has_core else torch.where(dense == 2, 1, dense)
    weight = torch.zeros(dense.shape)
    weight[..., index] = 1
    return measure(pred, pack_target(label[None], weight[None])[0], 3, (2.0, 1.5, 2.5), tolerances=[1.5, 1.5, 2.0])


@pytest.fixture
def folds(tmp_path):
    """Output folders of two folds; in the second, the held-out slice of one case does not show the core."""
    first = {"a": fold_scores(0, 9), "b, c": fold_scores(1, 8)}
    scores = [first, {"a": fold_scores(0, 7), "b, c": fold_scores(1, 9, has_core=False)}]
    outputs = []
    for number, cases in enumerate(scores):
        outputs.append(tmp_path / f"fold_{number}")
        write_scores(outputs[-1], {"annotated": cases, "unlabeled": {}, "all": {}}, NAMES)
        (outputs[-1] / HELD_OUT_FILE).write_text(json.dumps({"slices": 2, "volumes": 2}))
    return outputs, scores


def test_scores_are_read_as_they_were_written(folds):
    outputs, scores = folds
    for output, cases in zip(outputs, scores):
        found = read_scores(output)["annotated"]
        assert list(found) == list(cases)
        for case, measures in cases.items():
            for one, other in zip(found[case], measures):
                assert (one.voxels, one.surfaces, one.note) == (other.voxels, other.surfaces, other.note)
                assert (one.hd95_mm is None) == (other.hd95_mm is None)
                assert one.dice is None or one.dice == pytest.approx(other.dice, rel=1e-5)


def test_all_scores_by_fold_and_over_folds(folds, tmp_path, capsys):
    outputs, scores = folds
    show_table(outputs, NAMES, tmp_path)
    with (tmp_path / "crossval_scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["fold"], row["class"], row["score"]): row for row in csv.DictReader(file)}
    values = [measures[2].assd_mm for cases in scores for measures in cases.values() if measures[2].voxels]
    assert len(values) == 3
    row = rows["all", "core", "assd_mm"]
    assert (row["cases"], row["spurious"], row["n"]) == ("3", "1", "3")
    assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(row["median"]) == pytest.approx(np.median(values), rel=1e-4)
    assert float(rows["2", "core", "dice"]["mean"]) == pytest.approx(scores[1]["a"][2].dice, rel=1e-4)
    printed = " ".join(capsys.readouterr().out.split())
    assert "IoU on held-out slices" in printed
    assert "1 predicted, but not shown" in printed
    assert "7 with distances within slices" in printed


def test_each_fold_holds_out_something(tmp_path):
    """Before the first of them trains: three slices of each of two volumes are not enough for 50."""
    weight = torch.zeros(1, 8, 8, 9)
    weight[..., [1, 4, 7]] = 1
    hold_out = partial(HoldOutSlicesd, folds=50)
    with pytest.raises(DataError, match=r"folds is 50, .*: [3-6] fold\(s\) would have some"):
        check_folds([{"weight": weight}, {"weight": weight}], [], hold_out, 50)
    check_folds([{"weight": weight}, {"weight": weight}], [], partial(HoldOutSlicesd, folds=3), 3)


def test_only_resumed_folds_begin_from_a_state(tmp_path, monkeypatch):
    """A run that stops in its first fold leaves nothing of an earlier one that --resume would take for its own."""
    states = [tmp_path / f"models/fold_{fold}" / LAST_FILE for fold in (0, 1)]
    scores = [tmp_path / f"scores/fold_{fold}/scores.csv" for fold in (0, 1)]
    for file in (*states, *scores):
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setattr(sys, "argv", ["", "run", "cross_validating", "--config_file", "x.yaml"])
    results = iter([0, 0, 1, 0])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], next(results)))
    assert len(run_folds(2, tmp_path / "scores", tmp_path / "models", resume=True)) == 2
    assert all(file.exists() for file in (*states, *scores))
    with pytest.raises(DataError, match="fold 1 of 2 failed"):
        run_folds(2, tmp_path / "scores", tmp_path / "models")
    assert not any(file.exists() for file in (*states, *scores))
    with pytest.raises(DataError, match=r"fold_0.scores\.csv: missing, although fold 1 .* --output_dir"):
        run_folds(2, tmp_path / "scores", tmp_path / "models", resume=True)


def test_class_names_are_no_markup(folds, tmp_path, capsys, monkeypatch):
    """They are printed as they are, and a fault of the printing does not lose the files."""
    outputs, _ = folds
    names = ("=background", "edema [/old]", "[bold]x")
    monkeypatch.setenv("COLUMNS", "200")
    show_table(outputs, names, tmp_path)
    printed = capsys.readouterr().out
    table, caption = printed.split("Scores on held-out slices", 1)
    assert all(name in text for name in names for text in (table, caption))
    assert "edema [/old]" in caption.split("NSD: within", 1)[1]
    assert (tmp_path / "crossval.csv").read_text().startswith("fold,slices,'=background,'=background n,edema")
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    monkeypatch.setattr("sparse3dunet.training.crossval.Console.print", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        show_table(outputs, names, tmp_path)
    assert {file.name for file in tmp_path.glob("*.csv")} == {"crossval.csv", "crossval_scores.csv"}
