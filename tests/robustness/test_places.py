"""Folders for results that cannot be used: one line names the place and the cause, in every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, make_dataset, write_nifti
from tests.densify.test_run import write_scan


def commands(trained: Path, root: Path) -> dict[str, tuple[object, ...]]:
    """Arguments of each command that writes, without its folder for results."""
    scan, annotation, dense = write_scan(root)
    write_nifti(root / "dense/a.nii.gz", dense)
    data = make_dataset(root / "data", 2)
    return {
        "densify": ("densify", scan, annotation, "-o"),
        "predict": ("predict", trained / "models", scan, "-o"),
        "simulate": ("simulate", root / "dense", "--slices", 1, "-o"),
        "package": ("package", trained / "models", "-o"),
        "annotate": ("annotate", scan, "--no-open", "-o"),
        "label-app": ("label-app", "--class-names", "liver", "-o"),
        "plan": ("plan", data, "-o"),
    }


def loop(folder: Path) -> Path:
    (folder / "one").symlink_to(folder / "two")
    (folder / "two").symlink_to(folder / "one")
    return folder / "one"


def file(folder: Path) -> Path:
    (folder / "file").write_text("precious")
    return folder / "file"


PLACES = {
    "a file": file,
    "below a file": lambda folder: file(folder) / "out",
    "a loop of links": loop,
    "below a loop": lambda folder: loop(folder) / "out",
    "too long a name": lambda folder: folder / ("a" * 300),
    "a place of the system": lambda folder: Path("/proc/out"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["densify", "predict", "simulate", "package", "annotate", "label-app", "plan"])
def test_places_that_cannot_be_written_to(trained, tmp_path, error_of, monkeypatch, name, place):
    if name == "plan" and place in ("a file", "a loop of links"):
        pytest.skip("a plan is a file, which replaces what is there")
    monkeypatch.chdir(ROOT)
    out = PLACES[place](tmp_path)
    message = error_of(*commands(trained, tmp_path)[name], out)
    assert len(message.splitlines()) == 1
    assert str(out.name) in message or str(out.parent) in message
    if (tmp_path / "file").exists():
        assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["densify", "predict", "simulate", "package"])
def test_the_home_folder_is_expanded(trained, tmp_path, error_of, monkeypatch, name):
    """The shell does not expand --output-dir=~/out, and so the program does: here to a place that is a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    file(tmp_path)
    arguments = commands(trained, tmp_path)[name]
    message = error_of(*arguments[:-1], "--output-dir=~/file")
    assert str(tmp_path / "file") in message
