"""The example scripts for clusters, run as Slurm would run them: with its variables, and without its commands."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, bundle_environment, make_volume, write_nifti

SCRIPTS = sorted((ROOT / "examples/slurm").glob("*.sh"))
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def commands(tmp_path):
    """A folder for PATH with `sparse3dunet` of this checkout."""
    folder = tmp_path / "bin"
    write_script(folder / "sparse3dunet", f'exec {sys.executable} -W ignore -m sparse3dunet "$@"')
    return folder


def write_script(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run(script, *arguments, path, **variables):
    variables |= {"PATH": os.pathsep.join([str(path), os.environ["PATH"]])}
    environment = {name: text for name, text in bundle_environment().items() if not name.startswith("SLURM_")}
    command = ["bash", str(ROOT / "examples/slurm" / script), *map(str, arguments)]
    return subprocess.run(
        command, env=environment | variables, cwd=path.parent, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bash(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


@pytest.mark.slow
def test_jobs_of_an_array_share_the_images(trained, commands, tmp_path):
    for number in range(3):
        write_nifti(tmp_path / f"images/case_{number}.nii.gz", make_volume(number)[0])
    arguments = (2, trained / "models", "images", "out", "--no-pictures")
    first = run("predict_array.sh", *arguments, path=commands, SLURM_ARRAY_TASK_ID="1")
    assert "Segmented 2 volume(s): out" in first.stdout, first.stderr
    second = run("predict_array.sh", *arguments, path=commands, SLURM_ARRAY_TASK_ID="2")
    assert "Segmented 1 volume(s): out" in second.stdout, second.stderr
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 3
    assert len((tmp_path / "out/summary.csv").read_text().splitlines()) == 4


def test_an_array_densifies_a_line_each(commands, tmp_path):
    write_script(commands / "sparse3dunet", 'printf "%s\\n" "$@"')
    (tmp_path / "list").write_text("a 1.nii.gz\ta label.nii.gz\nb.nrrd\tc.nrrd\n")
    arguments = ("list", "out", "--minutes", "3")
    result = run("densify_array.sh", *arguments, path=commands, SLURM_ARRAY_TASK_ID="1")
    assert result.stdout.splitlines() == [
        *("densify", "a 1.nii.gz", "a label.nii.gz", "-o", "out/1-a 1", "--minutes", "3")
    ]
    beyond = run("densify_array.sh", *arguments, path=commands, SLURM_ARRAY_TASK_ID="3")
    assert beyond.returncode == 1
    assert "line 3 of list has no scan and annotation" in beyond.stderr


def test_an_array_needs_its_number(commands):
    result = run("predict_array.sh", 2, "models", "images", "out", path=commands)
    assert result.returncode != 0
    assert "pass --array" in result.stderr


def test_training_is_told_of_the_nodes(commands, tmp_path):
    # As slow as real ones: a reader that leaves early would end them by SIGPIPE
    slow_help = 'if [[ $1 == --help ]]; then printf -- "--shutdown_timeout\\n"; sleep 0.2; fi'
    write_script(commands / "torchrun", slow_help + '\nprintf "%s\\n" "$@"')
    write_script(commands / "srun", 'exec "$@"')
    write_script(commands / "scontrol", "printf 'node7\\n'; sleep 0.2; printf 'node8\\n'")
    variables = {"SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    variables |= {"SLURM_GPUS_ON_NODE": "4"}
    result = run("train.sh", "data", "out", "--max_epochs", "3", path=commands, **variables)
    told = result.stdout.splitlines()
    values = {"--nnodes": "2", "--nproc_per_node": "4", "--rdzv_endpoint": "node7:29500", "--shutdown_timeout": "110"}
    for option, value in values.items():
        assert told[told.index(option) + 1] == value
    assert told[-3:] == ["--resume", "--max_epochs", "3"]


@pytest.mark.slow
def test_a_dask_cluster_in_one_job(trained, commands, tmp_path):
    pytest.importorskip("distributed", reason="needs the extra dask")
    write_script(commands / "dask", f'exec {sys.executable} -W ignore -m dask "$@"')
    write_nifti(tmp_path / "images/a.nii.gz", make_volume(1)[0])
    arguments = (trained / "models", "images", "out", "--no-pictures")
    result = run("predict_dask.sh", *arguments, path=commands, PORT="18786")
    assert result.returncode == 0, result.stderr
    assert "Segmented 1 volume(s): out" in result.stdout


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "-1/2"])
def test_parts_that_there_are_not(trained, error_of, tmp_path, part):
    error = error_of("predict", trained / "models", tmp_path, "-o", tmp_path / "out", f"--part={part}")
    assert error == f"error: --part is {part!r}; expected a number of all, from 1, such as 3/16."
