"""Numbers that mean nothing, as values of options: each is one line that names the option or the value, at once."""

from __future__ import annotations

import sys

import pytest

from sparse3dunet.cli.main import main
from tests.conftest import ROOT, write_nifti
from tests.densify.test_run import SMALL, write_scan

HUGE = str(2**70)
OPTIONS = {
    "densify": {
        "--suggestions": ("-1", "1.5"),
        "--seed": ("x",),
        "--ignore-index": ("1e3", "--"),
        "--background": ("x",),
        "--spacing": ("1,1",),
        "--folds": ("-1", "1.5", "9" * 5000),
        "--device": ("cuda:99", "gpu", "cpu:x"),
        "--volume-memory": ("-1", "nan", "1e400GiB"),
        "--format": ("exe", "../x"),
    },
    "predict": {
        "--overlap": ("nan", "-1", "1", "x"),
        "--roi-size": ("0", "-1", HUGE, "1,2", "nan"),
        "--min-ml": ("nan", "-1", "inf", "liver=1"),
        "--mirror": ("x", "lr,lr,x"),
        "--largest": ("nothing", "99", "-1"),
        "--precision": ("float8",),
        "--part": ("0/2", "3/2", "1/" + "1" * 5000),
        "--device": ("cuda:99",),
    },
    "simulate": {
        "--slices": ("-1", "0", "nan", "1,2", "1,2,3,4"),
        "--fraction": ("nan", "-1", "2", "0", "inf"),
        "--scribbles": ("-1", "0", "x"),
        "--seed": ("x",),
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, trained):
    root = tmp_path_factory.mktemp("numbers")
    scan, annotation, dense = write_scan(root)
    dense = write_nifti(root / "dense/a.nii.gz", dense)
    return {
        "densify": ("densify", scan, annotation, *SMALL, "--minutes", 0.02),
        "predict": ("predict", trained / "models", scan),
        "simulate": ("simulate", dense),
    }


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command, all_ in OPTIONS.items()
        for option, values in all_.items()
        for value in values
    ],
)
def test_a_number_that_means_nothing_is_one_line(inputs, tmp_path, monkeypatch, capsys, command, option, value):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        sys, "argv", [*map(str, ["sparse3dunet", *inputs[command], "-o", tmp_path / "out", option, value])]
    )
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    text = f"{said.out}{said.err}\n{end.value.code}"
    assert end.value.code not in (0, None), text
    assert "Traceback" not in text
    assert option.strip("-").split("-")[0].split("_")[0] in text.lower() or value.split("=")[0] in text, text
    assert not list(tmp_path.glob("out/*_seg*"))
