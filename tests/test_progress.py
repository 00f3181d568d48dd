"""Bars are for terminals alone: a log has the lines, and no run leaves a terminal other than it was."""

import os
import re
import subprocess
import sys

import pytest

from sparse3dunet.progress import minutes_text
from tests.conftest import ROOT, bundle_environment

pty = pytest.importorskip("pty")

STEPS = """
from sparse3dunet.progress import StepProgress
bar = StepProgress("at [work]", 3, " volumes", shown={shown})
for done in range(1, 4):
    bar.drawn = 0
    bar.update(done, f"loss {{done}}")
    print("line", done, "x" * 200)
    {end}
bar.close()
print("end")
"""
LINES = "".join(f"line {done} {'x' * 200}\n" for done in (1, 2, 3))
TRAINING = """
import sys
from pathlib import Path
import torch
from ignite.engine import Engine
from tests.training.test_engines import SlowLoader, make_trainer
from sparse3dunet.training.log import EvaluationProgress
evaluator = Engine(lambda engine, batch: print("batch", batch))
EvaluationProgress().attach(evaluator)
evaluator.run([5, 6, 7])
print("evaluated")
trainer = make_trainer(Path(sys.argv[1]))
trainer.run()
trainer.network.weight.data[:] = float("nan")
trainer.run()
"""


def run(code, *arguments):
    """Run Python code with its output piped."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**bundle_environment(), "PYTHONPATH": f"{ROOT / 'pipeline'}{os.pathsep}{ROOT}"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")


def run_in_terminal(code, *arguments):
    """Run Python code in a terminal of 80 columns; all that it shows, but for colours, and what goes to errors."""
    master, slave = pty.openpty()
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**bundle_environment(), "PYTHONPATH": f"{ROOT / 'pipeline'}{os.pathsep}{ROOT}"}
    environment |= {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(command, env=environment, stdout=slave, stderr=subprocess.PIPE, encoding="utf-8") as process:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 2**16):
                shown += part
        except OSError:  # the other end was closed
            pass
        os.close(master)
        errors = process.stderr.read()
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode()), errors


def is_restored(shown):
    """Whether the cursor is to be seen in the end."""
    return "\x1b[?25l" in shown and shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_bar_in_a_terminal():
    shown, errors = run_in_terminal(STEPS.format(shown=True, end="pass"))
    assert not errors
    assert re.findall(r"at \[work\] \S+ (\d)/3 volumes loss (\d)", shown)[0] == ("1", "1")
    for line in LINES.splitlines():
        assert f"{line}\r\n" in shown, "lines are whole, above the bar"
    assert shown.rstrip().endswith("end")
    assert is_restored(shown)


def test_lines_alone_without_a_terminal_or_in_other_processes():
    assert run(STEPS.format(shown=True, end="pass")).stdout == LINES + "end\n"
    shown, _ = run_in_terminal(STEPS.format(shown=False, end="pass"))
    assert shown.replace("\r\n", "\n") == LINES + "end\n"


def test_terminal_is_restored_after_an_error():
    shown, errors = run_in_terminal(STEPS.format(shown=True, end="1 / 0"))
    assert "ZeroDivisionError" in errors, "standard error stays where it was led to"
    assert "line 1" in shown
    assert is_restored(shown)


@pytest.mark.slow
def test_training_and_evaluation(tmp_path):
    shown, errors = run_in_terminal(TRAINING, tmp_path)
    assert re.search(r"evaluating \S+ \d/3 volumes", shown)
    assert re.search(r"training \S+ \d/8 loss \d\.\d{3}  0:00:0\d left", shown)
    for line in (r"batch 7", r"evaluated", r"epoch 1/2  0:00:0\d left  loss [\d.]+  waiting for data \d+ %"):
        assert re.search(rf"{line}\r\n", shown)
    assert "Trained 8 iterations" in shown
    assert "DataError: the loss became nan" in errors
    assert is_restored(shown)
    piped = run(TRAINING, tmp_path).stdout
    assert "\x1b" not in piped
    assert piped.startswith("batch 5\nbatch 6\nbatch 7\nevaluated\nepoch 1/2  0:00:0")


def test_minutes_in_words():
    assert [minutes_text(minutes) for minutes in (1, 1.0, 0.5, 2)] == [
        "1 minute",
        "1 minute",
        "0.5 minutes",
        "2 minutes",
    ]
