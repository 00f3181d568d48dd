"""``sparse3dunet predict --dask``: the results, records and exit status of a plain run, whatever happens to workers."""

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, bundle_environment, make_volume, run_sparse3dunet, write_nifti

distributed = pytest.importorskip("distributed", reason="needs the extra dask")

PATIENCE = 1000
"""Seconds; workers take long to start on a busy machine."""


def files_of(folder):
    """Every file's bytes, but those of records and summaries, which tell seconds."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(("records", "summary.csv"))}


def rows_of(folder):
    """The summary's rows by case, without what differs from run to run."""
    with (folder / "summary.csv").open() as file:
        rows = {row.pop("case"): row for row in csv.DictReader(file)}
    return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in rows.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six small volumes, and one with a voxel that is not a number."""
    root = tmp_path_factory.mktemp("images")
    for number in range(6):
        write_nifti(root / f"case_{number}.nii.gz", make_volume(number, (20 + number, 22, 18))[0])
    bad = make_volume(6)[0]
    bad[3, 3, 3] = np.nan
    write_nifti(root / "case_bad.nii.gz", bad)
    return root


@pytest.fixture(scope="module")
def plain(trained, images, tmp_path_factory):
    """What a run without Dask makes of them."""
    out = tmp_path_factory.mktemp("plain") / "out"
    result = run_sparse3dunet("predict", trained / "models", images, "-o", out, "--confidence")
    assert result.returncode == 1
    return out, result


@contextlib.contextmanager
def cluster_of(workers=2, processes=False, **settings):
    import dask

    quiet = {"distributed.admin.system-monitor.gil.enabled": False, **settings}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            protocol="tcp://",
            dashboard_address=":0",
            memory_limit=0,
            silence_logs=50,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    """Two workers in threads of this process, since processes take ten seconds to start.

    On one core each, as the commands of tests: in bfloat16, sums depend on how many share the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with cluster_of() as cluster:
            yield cluster
    finally:
        torch.set_num_threads(threads)


def predict(cluster, *arguments):
    address = cluster if isinstance(cluster, str) else cluster.scheduler_address.removeprefix("tcp://")
    return run_sparse3dunet("predict", *arguments, "--dask", address)


def test_results_are_those_of_a_plain_run(trained, images, plain, cluster, tmp_path):
    out, (before, told) = tmp_path / "out", plain
    result = predict(cluster, trained / "models", images, "-o", out, "--confidence")
    assert files_of(out) == files_of(before)
    assert rows_of(out) == rows_of(before)
    assert result.returncode == 1
    assert result.stderr.replace(str(out), str(before)) == told.stderr
    assert "Segmented 6 volume(s): " in result.stdout
    assert sum("case_" in line for line in result.stdout.splitlines()) == 7, "a line for each case"
    # Again: what is done is skipped, what failed is tried; without Dask as well
    again = predict(cluster, trained / "models", images, "-o", out, "--confidence")
    assert "Segmented 0 volume(s), 6 already done" in again.stdout
    assert again.returncode == 1
    back = run_sparse3dunet("predict", trained / "models", images / "case_1.nii.gz", "-o", out, "--confidence")
    assert "Segmented 0 volume(s), 1 already done" in back.stdout, "records are the same"


def test_options_reach_the_workers(trained, images, cluster, tmp_path):
    """Also those that are kept in the environment, and relative paths."""
    from sparse3dunet.io import read_image

    image, _, _ = make_volume(0)
    np.save(tmp_path / "x.npy", image)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["raw"] = image.transpose(2, 1, 0)
    shutil.copytree(trained / "models", tmp_path / "models")
    arguments = ("predict", "models", "scan.h5", "--voxel-size", "1,2,3mm", "--format", "nii.gz", "--largest", "core")
    address = cluster.scheduler_address.removeprefix("tcp://")
    for more in (("-o", "with", "--dask", address), ("-o", "without")):
        result = run_sparse3dunet(*arguments, *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert files_of(tmp_path / "with") == files_of(tmp_path / "without")
    assert read_image(str(tmp_path / "with/scan_seg.nii.gz")).spacing == pytest.approx((1, 2, 3))
    assert "SPARSE3DUNET_VOXEL_SIZE" not in os.environ, "workers are left as they were"


def test_changed_results_are_kept_unless_overwritten(trained, images, cluster, tmp_path):
    out, one = tmp_path / "out", images / "case_0.nii.gz"
    assert predict(cluster, trained / "models", one, "-o", out).returncode == 0
    own = (out / "case_0_seg.nii.gz").read_bytes()
    write_nifti(out / "case_0_seg.nii.gz", np.zeros((20, 22, 18), np.uint8))
    changed = predict(cluster, trained / "models", one, "-o", out, "--overlap", "0.25")
    assert changed.returncode == 1
    assert "it was changed" in changed.stderr
    assert predict(cluster, trained / "models", one, "-o", out, "--overwrite").returncode == 0
    assert (out / "case_0_seg.nii.gz").read_bytes() == own


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "no Dask scheduler answers there"), ("nowhere", "no Dask scheduler answers there")],
)
def test_no_scheduler(trained, images, error_of, monkeypatch, tmp_path, address, words):
    monkeypatch.setattr("sparse3dunet.inference.cluster.CONNECTING", 1)
    error = error_of("predict", trained / "models", images, "-o", tmp_path / "out", "--dask", address)
    assert f"--dask {address}: {words}" in error


def test_no_worker(trained, images, error_of, monkeypatch, tmp_path):
    monkeypatch.setattr("sparse3dunet.inference.cluster.FIRST_WORKER", 0.1)
    with cluster_of(0) as empty:
        error = error_of(
            "predict", trained / "models", images, "-o", tmp_path / "out", "--dask", empty.scheduler_address
        )
    assert "the scheduler has no worker. Start some: dask worker" in error


def test_a_worker_that_cannot_do_the_work_is_named(trained, images, cluster, error_of, tmp_path):
    options = ("-o", tmp_path / "out", "--dask", cluster.scheduler_address)
    error = error_of("predict", trained / "models", images, *options, "--device", "cuda:99")
    assert "worker tcp://" in error
    assert "--device cuda:99 cannot be used" in error


def test_a_model_that_differs_on_workers(trained, images, cluster, tmp_path):
    """As where a path is another file on each machine."""
    from dataclasses import replace

    from sparse3dunet.errors import DataError
    from sparse3dunet.inference import cluster as module
    from sparse3dunet.inference.slabs import SlabInferer
    from sparse3dunet.models.loading import load_model

    model = replace(load_model(trained / "models"), digest="other")
    settings = module.Settings(SlabInferer((16, 16, 16)))
    output = module.Output(tmp_path / "out", model.class_names, model.class_values)
    with pytest.raises(DataError, match="another model than where the command runs"):
        module.predict_on_cluster(cluster.scheduler_address, [], model, settings, output)


def processes_of(cluster):
    return [worker.process.process.pid for worker in cluster.workers.values()]


@contextlib.contextmanager
def start(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", "predict", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=bundle_environment(), cwd=ROOT, **pipes) as run:
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(trained, images, plain, tmp_path):
    """Of two workers, one is killed while it segments."""
    out = tmp_path / "out"
    with cluster_of(processes=True) as cluster:
        pids = processes_of(cluster)
        arguments = (trained / "models", images, "-o", out, "--confidence", "--dask", cluster.scheduler_address)
        with start(*arguments) as run:
            deadline = time.monotonic() + PATIENCE
            while not list(out.glob("*_seg.nii.gz")) and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert 0 < len(list(out.glob("*_seg.nii.gz"))) < 6, "killed on the way"
            os.kill(pids[0], signal.SIGKILL)
            _, stderr = run.communicate(timeout=PATIENCE)
        assert pids[0] not in processes_of(cluster)
    assert run.returncode == 1, stderr
    assert "1 of 7 volume(s) failed" in stderr, "that with NaN"
    assert files_of(out) == files_of(plain[0])
    assert rows_of(out) == rows_of(plain[0])


@pytest.mark.slow
def test_a_case_that_kills_its_workers_fails_alone(trained, images, plain, tmp_path):
    """As one that needs more memory than there is. It is the largest, so the first one to be predicted."""
    batch, out = tmp_path / "batch", tmp_path / "out"
    shutil.copytree(images, batch)
    write_nifti(batch / "killer.nii.gz", make_volume(7, (24, 26, 40))[0])
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os, signal, sys\n"
        "def hook(event, arguments):\n"
        "    worker = 'multiprocessing.spawn' in sys.modules\n"
        "    if worker and event == 'open' and str(arguments[0]).endswith('killer.nii.gz'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
    )
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT / "pipeline"), before]))
    try:
        with cluster_of(processes=True, **{"distributed.scheduler.allowed-failures": 1}) as cluster:
            arguments = (trained / "models", batch, "-o", out, "--confidence", "--dask", cluster.scheduler_address)
            with start(*arguments) as run:
                stdout, stderr = run.communicate(timeout=PATIENCE)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert run.returncode == 1
    assert "2 of 8 volume(s) failed" in stderr, stdout + stderr
    assert "killer: failed: the workers that had it died, 2 of them" in stdout
    rows = rows_of(out)
    killer = rows.pop("killer")
    assert (killer["status"], killer["error"].split(",")[0]) == ("failed", "the workers that had it died")
    expected = rows_of(plain[0])
    for row in (rows["case_bad"], expected["case_bad"]):
        assert "NaN" in row.pop("error")  # the rest of it is the path
    assert rows == expected
    assert files_of(out) == files_of(plain[0])
