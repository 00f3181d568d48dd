"""How commands end: by signals, by disks that are full or read-only, without a reader, and beside other runs."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from sparse3dunet.errors import DataError, readable
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.records import CaseRecord
from sparse3dunet.io import check_output_dir, folders, hold_folder
from sparse3dunet.io.writing import replacing, write_text
from tests.conftest import ROOT, bundle_environment, make_volume, run_bundle, run_training, write_nifti

HOLD = (
    "import sys, time; from sparse3dunet.io import hold_folder; hold_folder(sys.argv[1]); print('held', flush=True); "
)


def python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=bundle_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_folder_belongs_to_one_run(tmp_path):
    other = python(HOLD + "time.sleep(60)", tmp_path / "out")
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match=rf"out is in use by another run \(process {other.pid} on .*Wait until"):
            hold_folder(tmp_path / "out")
    finally:
        other.kill()
        other.communicate()
    hold_folder(tmp_path / "out")  # of a process that was killed
    hold_folder(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    hold_folder(tmp_path / "link")


def test_a_discarded_folder_is_held_until_its_lock_is_gone(tmp_path, monkeypatch):
    """A run that waits for the lock would otherwise hold a file that is not there, and a third one a new file."""
    folder = tmp_path / "out"
    hold_folder(folder)
    (folder / "work/inputs").mkdir(parents=True)
    (folder / "work/inputs/scan.nii").touch()
    there = []
    release = folders.release_folder
    monkeypatch.setattr(folders, "release_folder", lambda path: [there.append(os.path.exists(path)), release(path)])
    folders.discard_folder(folder, folder / "work/inputs")
    assert there == [False]
    assert not folder.exists()
    hold_folder(folder)
    assert (folder / folders.LOCK).exists()
    (folder / "result.nii").touch()
    folders.discard_folder(folder, folder / "work/inputs")
    assert (folder / "result.nii").exists()


def test_a_training_and_an_evaluation_hold_their_output_folder(trained, tmp_path):
    """Also beside a training with another folder for its model: both would write into the same logs."""
    other = python(HOLD + "time.sleep(60)", tmp_path / "out/eval")
    try:
        assert other.stdout.readline() == b"held\n"
        training = run_training(trained / "dataset", tmp_path / "out")
        config = [str(ROOT / f"bundle/configs/{name}.yaml") for name in ("train", "evaluate")]
        places = ("--output_dir", tmp_path / "out/eval", "--ckpt_dir", trained / "models")
        options = ("--config_file", config, "--dataset_dir", trained / "dataset")
        evaluation = run_bundle("run", "evaluating", *options, *places)
    finally:
        other.kill()
        other.communicate()
    for run in (training, evaluation):
        assert run.returncode == 1
        assert "out/eval is in use by another run" in run.stderr + run.stdout


def test_a_case_belongs_to_one_process(tmp_path):
    """Two commands share a batch: the second leaves the case that the first one works on for later."""
    image = write_nifti(tmp_path / "a.nii.gz", make_volume(0)[0])
    first, second = (CaseRecord(tmp_path / "out", ImageCase("a", (str(image),)), {}) for _ in range(2))
    assert first.hold()
    assert not second.hold()
    first.release()
    assert second.hold()
    second.release()


def test_drafts_have_names_of_their_own(tmp_path):
    """Of a process that was killed, the draft is removed; of one that still writes, it is not touched."""
    code = "import sys, time; from sparse3dunet.io.writing import replacing\n"
    code += (
        "with replacing(sys.argv[1]) as draft:\n    draft.write_text('x'); print('held', flush=True); time.sleep(60)"
    )
    other = python(code, tmp_path / "a.txt")
    try:
        assert other.stdout.readline() == b"held\n"
        write_text(tmp_path / "a.txt", "mine")
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        other.kill()
        other.communicate()
    write_text(tmp_path / "a.txt", "mine again")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine again"]


def test_folders_for_results_are_tested(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for name in ("file", "file/out", "one", "one/out", "a" * 300):
        with pytest.raises(
            DataError, match=r"file, the folder|cannot write results to .*/(file/out|one|one/out|a{300}) \("
        ):
            check_output_dir(tmp_path / name)
    for name in ("new/out", "new/../out"):
        check_output_dir(f"{tmp_path}/{name}")
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="~ is not expanded"):
        check_output_dir("~/out")


def test_full_disks_and_little_memory_are_one_line():
    full = OSError(errno.ENOSPC, "No space left on device", "/out/a")
    assert readable(full).startswith("/out/a: No space left on device. Make room")
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = full
    assert "No space left" in readable(wrapped)
    assert "Unable to allocate 3 TiB" in readable(MemoryError("Unable to allocate 3 TiB"))
    assert "--roi-size" in readable(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    in_the_way = FileExistsError(errno.EEXIST, "File exists", "/out")  # a file where a folder is to be made
    assert readable(in_the_way).startswith("/out: File exists.")
    assert readable(ValueError("a bug")) is None
    assert readable(OSError(errno.ENOENT, "a bug", "x")) is None


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="a full disk is /dev/full on Linux")
def test_no_draft_is_left_on_a_full_disk(tmp_path):
    def write():
        with replacing(tmp_path / "a.txt") as draft, open("/dev/full", "w") as file:
            draft.write_text("half")
            file.write("x" * 99999)

    with pytest.raises(OSError, match=r"No space left.*a\.txt"):
        write()
    assert not list(tmp_path.iterdir())


def test_terminated_as_by_ctrl_c(tmp_path):
    code = "import time\nfrom sparse3dunet.errors import end_in_order\nfrom sparse3dunet.io.writing import replacing\n"
    code += "import sys\nend_in_order()\nwith replacing(sys.argv[1]) as draft:\n    draft.write_text('x')\n"
    code += "    print('there', flush=True)\n    time.sleep(60)"
    process = python(code, tmp_path / "a.txt")
    assert process.stdout.readline() == b"there\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_of_the_bundle_is_ended_in_one_line(number):
    """As before a training begins, and in other runs that do not go on from a state."""
    code = "import signal, sys\nfrom sparse3dunet.errors import show_readable_errors\nshow_readable_errors()\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(int(sys.argv[1]))"
    process = python(code, int(number))
    _, error = process.communicate(timeout=60)
    assert error == b"Stopped.\n"
    assert process.returncode != 0


def test_without_a_reader_the_work_goes_on(tmp_path):
    code = "import sys\nfrom sparse3dunet.errors import end_in_order\nend_in_order()\n"
    code += "for i in range(100000): print('line', i)\nopen(sys.argv[1], 'w').write('done')"
    process = python(code, tmp_path / "a.txt")
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(30) == 0, error
    assert error == b""
    assert (tmp_path / "a.txt").read_text() == "done"


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="a full disk is /dev/full on Linux")
def test_where_what_is_printed_has_no_room_the_work_goes_on(tmp_path):
    """Of a batch, a log on a full disk is the least; it is told where it can be."""
    code = "import sys\nfrom sparse3dunet.errors import end_in_order\nend_in_order()\n"
    code += "for i in range(100000): print('line', i)\nopen(sys.argv[1], 'w').write('done')"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "a.txt")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, env=bundle_environment(), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: No space left on device: what is printed is left out from now on.\n"
    assert (tmp_path / "a.txt").read_text() == "done"


PROGRAM = "import importlib.abc, os, signal, sys\nfrom sparse3dunet.__main__ import run\n"


@pytest.mark.parametrize("module", ["typer", "sparse3dunet.errors", "torch"])
def test_ctrl_c_is_not_lost_while_modules_are_imported(tmp_path, module):
    """Some of which catch all errors of what they import, and go on; before the command begins, and within it."""
    code = f"{PROGRAM}class Finder(importlib.abc.MetaPathFinder):\n    def find_spec(self, name, *rest):\n"
    code += f"        if name == {module!r}:\n            try: signal.raise_signal(signal.SIGINT)\n"
    code += "            except BaseException: pass\nsys.meta_path.insert(0, Finder())\n"
    process = python(
        f"{code}signal.signal(signal.SIGINT, signal.default_int_handler)\nrun()", "package", tmp_path, "-o", tmp_path
    )
    assert process.communicate(timeout=120) == (b"", b"Stopped.\n")
    assert process.returncode == 130


def test_ctrl_c_that_is_ignored_stays_so():
    """As of a process that a shell has put into the background."""
    code = f"{PROGRAM}signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom sparse3dunet.interrupts import ended_at_once\n"
    process = python(f"{code}with ended_at_once(): signal.raise_signal(signal.SIGINT)\nprint('on')")
    assert process.communicate(timeout=60) == (b"on\n", b"")


def test_a_current_folder_that_was_removed(tmp_path):
    process = python(
        f"{PROGRAM}os.mkdir(sys.argv[-1])\nos.chdir(sys.argv[-1])\nos.rmdir(sys.argv[-1])\nrun()", tmp_path / "a"
    )
    out, error = process.communicate(timeout=120)
    assert (out, process.returncode) == (b"", 1)
    assert error.startswith(b"error: the current folder was removed.")
    assert len(error.splitlines()) == 1


BUSY = (
    "import threading, time, torch\nfrom sparse3dunet.errors import DataError, show_readable_errors\n"
    "show_readable_errors()\ndef work():\n    x = torch.rand(1, 4, 24, 24, 24)\n    w = torch.rand(4, 4, 3, 3, 3)\n"
    "    while True: torch.nn.functional.conv3d(x, w).to(torch.bfloat16)\n"
    "for _ in range(4): threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.5)\n"
)


@pytest.mark.parametrize(
    ("error", "line", "status"), [("DataError('no')", "error: no\n", 1), ("KeyboardInterrupt", "Stopped.\n", 130)]
)
def test_threads_at_work_do_not_abort_the_process(error, line, status):
    """As those that fill a cache: the interpreter would end them within C++."""
    process = python(f"{BUSY}raise {error}")
    assert process.communicate(timeout=120)[1].decode() == line
    assert process.returncode == status


def test_an_unexpected_error_keeps_its_traceback():
    """And does not abort the process, as its threads would."""
    code = f"{BUSY}import sparse3dunet.__main__ as program, sparse3dunet.cli.main as cli\n"
    process = python(f"{code}def main(): raise ZeroDivisionError\ncli.main = main\nprogram.run()")
    assert process.communicate(timeout=120)[1].decode().endswith("ZeroDivisionError\n")
    assert process.returncode == 1


def test_an_interactive_session_goes_on():
    code = "from sparse3dunet.errors import DataError, show_readable_errors\nshow_readable_errors()\n"
    command = [sys.executable, "-i", "-c", code]
    done = subprocess.run(
        command, input="raise DataError('no')\nprint('on')\n", env=bundle_environment(), capture_output=True, text=True
    )
    assert done.stdout == "on\n"
    assert "error: no" in done.stderr


def test_ctrl_c_within_a_destructor(tmp_path):
    """Which Python drops, and shows as an error."""
    code = "import signal, sys, time\nfrom sparse3dunet.errors import end_in_order\nend_in_order()\n"
    code += "class Closed:\n    def __del__(self): signal.raise_signal(int(sys.argv[1]))\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "try:\n    Closed()\n    time.sleep(60)\nexcept KeyboardInterrupt: print('ended')"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = python(code, int(number))
        assert process.communicate(timeout=30) == (b"ended\n", b"")


def test_ctrl_c_before_the_first_epoch(dataset, tmp_path):
    """While the program reads the volumes."""
    arguments = ("--dataset_dir", dataset, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    command = [sys.executable, "-W", "ignore", "-u", "-m", "sparse3dunet", "run", "training", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=bundle_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any(line.startswith("deformation") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("Stopped.") or "Ctrl-C" in error, error
