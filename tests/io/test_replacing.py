"""Results that replace others: a process that ends at any moment leaves a whole one, the former or the new."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.io import writing
from sparse3dunet.io.writing import move, replacing, write_text
from tests.conftest import ROOT, bundle_environment

KILLED = """
import os, sys
from pathlib import Path
from sparse3dunet.io import writing
if sys.argv[2] == "without":
    writing._exchange = lambda path, target: False
calls, real = 0, os.replace
def replace(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os._exit(9)
    real(*arguments)
os.replace = replace
writing.remove = lambda path, real=writing.remove: os._exit(9) if "former" in path.name else real(path)
with writing.replacing(sys.argv[1], ".ome.zarr") as draft:
    draft.mkdir()
    (draft / "voxels").write_text("new")
"""


def folder(path, text):
    path.mkdir()
    (path / "voxels").write_text(text)
    return path


@pytest.mark.parametrize("exchange", ["with", "without"])
@pytest.mark.parametrize("call", [1, 2, 9])
def test_a_kill_between_two_renames_loses_nothing(tmp_path, exchange, call):
    target = folder(tmp_path / "a.ome.zarr", "old")
    command = [sys.executable, "-c", KILLED, str(target), exchange, str(call)]
    done = subprocess.run(command, cwd=ROOT, env=bundle_environment(), capture_output=True, text=True)
    assert done.returncode in (0, 9), done.stderr
    if done.returncode == 0:
        assert (exchange, (target / "voxels").read_text()) == ("with", "new")
    wanted = "old" if call < 3 else "new"
    if exchange == "without":
        with pytest.raises(InterruptedError), replacing(target, ".ome.zarr"):
            raise InterruptedError  # the same command, which ends before it has written anything
        assert (target / "voxels").read_text() == wanted
    assert os.listdir(tmp_path) == ["a.ome.zarr"]


def test_what_cannot_be_moved_leaves_what_was_there(tmp_path, monkeypatch):
    target, draft = folder(tmp_path / "a", "old"), folder(tmp_path / "b", "new")
    real = os.replace

    def replace(source, place):
        if source == draft:
            raise OSError("no")
        real(source, place)

    monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no"):
        move(draft, target)
    assert (target / "voxels").read_text() == "old"


@pytest.mark.parametrize("exchange", [True, False])
def test_folders_and_files_replace_each_other(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(writing, "_exchange", lambda *_: False)
    target = folder(tmp_path / "a", "old")
    move(folder(tmp_path / "b", "new"), target)
    assert (target / "voxels").read_text() == "new"
    (tmp_path / "c").write_text("file")
    move(tmp_path / "c", target)
    assert target.read_text() == "file"
    move(folder(tmp_path / "d", "again"), target)
    assert (target / "voxels").read_text() == "again"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_is_written_replaces_no_folder(tmp_path):
    target = folder(tmp_path / "a.txt", "precious")
    with pytest.raises(DataError, match=r"a.txt is a folder"):
        write_text(target, "text")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (target / "voxels").read_text() == "precious"


@pytest.mark.parametrize(
    ("raised", "named"),
    [(OSError(errno.ENOSPC, "No space left"), "a.txt"), (OSError(errno.EACCES, "Denied", "other"), "other")],
)
def test_errors_of_the_system_name_a_file(tmp_path, raised, named):
    """The result, where the system names none, as when a disk is full; the former one stays."""
    (tmp_path / "a.txt").write_text("former")
    with pytest.raises(OSError, match=raised.strerror) as error, replacing(tmp_path / "a.txt"):
        raise raised
    assert Path(error.value.filename).name == named
    with pytest.raises(OSError, match="of a library") as error, replacing(tmp_path / "a.txt"):
        raise OSError("of a library")
    assert error.value.filename is None
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "former"


def test_files_are_on_the_disk_before_they_replace_others(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.fstat(number).st_ino))
    with replacing(tmp_path / "a.ome.zarr") as draft:
        folder(draft, "new")
        (draft / "empty").mkdir()
        assert not flushed
    assert flushed == [(tmp_path / "a.ome.zarr/voxels").stat().st_ino]
