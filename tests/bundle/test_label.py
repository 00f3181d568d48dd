"""What MONAI Label and MONAI Deploy do with a bundle's configs, step by step."""

import os
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser

from sparse3dunet.bundle import contents
from sparse3dunet.plain_console import Console, Table, escape
from tests.conftest import ROOT


def test_dropout_can_be_added_to_the_network(packaged):
    """MONAI Label's scoring by uncertainty sets an item of network_def."""
    parser = ConfigParser()
    parser.read_config(packaged / "configs/inference.json")
    parser.config.update({"bundle_root": str(packaged)})
    parser["network_def"]["dropout"] = 0.25
    assert parser.get_parsed_content("network_def").drop.p == 0.25


@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "densify", "crossval", "plan", "standalone"])
def test_what_runs_is_not_in_a_config_twice(name):
    """A tool that evaluates all of a config would run it twice; a reference is evaluated once."""
    run = ConfigParser.load_config_file(ROOT / f"bundle/configs/{name}.yaml")["run"]
    assert run.startswith("@")


def test_the_root_of_a_bundle_elsewhere_is_that_of_its_code(packaged, tmp_path):
    """MONAI Deploy reads the configs of a bundle's folder from any working directory."""
    program = (
        "from monai.bundle import ConfigParser; parser = ConfigParser(); "
        f"parser.read_config({str(packaged / 'configs/inference.json')!r}); "
        "print(parser.get_parsed_content('bundle_root')); print(len(parser.get_parsed_content('class_values')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(packaged)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert result.stdout.split() == [str(packaged), "3"], result.stderr


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/metadata.json").touch()
    assert contents.bundle_root() == "."
    monkeypatch.chdir(ROOT)
    assert contents.bundle_root() == "bundle"


def assert_prints(program, expected, folder):
    """Fail unless a program in a process of its own prints this."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline")}
    command = [sys.executable, "-W", "ignore", "-c", program]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert result.stdout == expected, result.stderr


def test_trainings_need_no_rich(tmp_path):
    """MONAI Label's environment does not have it."""
    program = (
        "import sys; sys.modules['rich'] = None; from sparse3dunet.data import check_report; "
        "from sparse3dunet.training import engines, log; "
        "bar = log.StepProgress('a', 2, ''); bar.update(1); bar.close(); "
        "from sparse3dunet.progress import BatchProgress\n"
        "with BatchProgress(1) as bars: bars.start('[b]'); bars.failed('[b]', 'why')"
    )
    assert_prints(program, "1/1 [b]: failed: why\n", tmp_path)


def test_a_bundle_needs_no_new_pydicom(tmp_path):
    """MONAI Label's environment has the one before 3, without these names."""
    program = (
        "import pydicom.pixels; del pydicom.pixels.iter_pixels, pydicom.FileMetaDataset; "
        "from sparse3dunet.models import description, loading; from sparse3dunet.bundle import running; "
        "print('imported')"
    )
    assert_prints(program, "imported\n", tmp_path)


def test_plain_tables(capsys):
    table = Table(title="Scores")
    table.add_column("class")
    table.add_column("n", justify="right")
    table.add_row(escape("[liver]"), "10")
    table.add_row("a", "3", style="red")
    table.caption = escape("[liver]: 2")
    Console().print(table)
    Console().print(f"[yellow]warning:[/] {escape('[x] is odd')}")
    assert capsys.readouterr().out == "Scores\nclass     n\n[liver]  10\na         3\n[liver]: 2\nwarning: [x] is odd\n"
