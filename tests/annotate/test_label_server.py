"""The real MONAI Label server, over HTTP as 3D Slicer's plugin does: the plain bundle, and our app.

The server gets an environment of its own, which takes some minutes to make and 3 GB; with SPARSE3DUNET_MLABEL=FOLDER it
is made there and kept. The scan is the built-in one, at 4 mm.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse3dunet.annotate.label_app import write_app
from sparse3dunet.bundle.package import package
from sparse3dunet.datasets.mni152 import load_template, prepare
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from tests.conftest import run_training, write_nifti
from tests.tools.label_server import Server, make_environment

pytestmark = pytest.mark.slow
NAMES = ["gray matter", "white matter"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    kept = os.environ.get("SPARSE3DUNET_MLABEL")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("mlabel") / "env"
    try:
        return make_environment(folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"MONAI Label cannot be installed here: {error}")


@pytest.fixture(scope="module")
def brain():
    try:
        image, dense = load_template(4)
    except DataError as error:
        pytest.skip(str(error))
    return image.get_fdata().astype(np.float32), dense, image.affine


@pytest.fixture
def studies(tmp_path, brain):
    """A scan, and another one as NRRD: turned, brighter and with noise."""
    image, _, affine = brain
    write_nifti(tmp_path / "studies/one.nii.gz", image, affine)
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    other = write_nifti(tmp_path / "two.nii.gz", (100 * image[::-1] + noise).astype(np.float32), affine)
    import SimpleITK as sitk

    sitk.WriteImage(sitk.ReadImage(str(other)), str(tmp_path / "studies/two.nrrd"))
    return tmp_path / "studies"


def submitted(path, dense, affine, slices):
    """A label map as Slicer submits it: the dense label on some slices, 0 elsewhere."""
    label = np.zeros_like(dense)
    for axis, indices in enumerate(slices):
        plane = (slice(None),) * axis + (indices,)
        label[plane] = dense[plane]
    return write_nifti(path, label, affine)


def scores(path, dense):
    """Dice of the classes; the segmentation is on the scan's grid."""
    found = np.asarray(read_image(path).data)
    assert found.shape == dense.shape
    return [2 * ((found == c) & (dense == c)).sum() / ((found == c).sum() + (dense == c).sum()) for c in (1, 2)]


def thirds(dense):
    return [[n // 4, n // 2, 3 * n // 4] for n in dense.shape]


def test_plain_bundle(python, brain, studies, tmp_path):
    _, dense, affine = brain
    data = prepare(tmp_path / "data", spacing=4)
    quick = ("--network_def#channels", "[8,16,32]", "--largest_patch_size", "[32,32,32]", "--epoch_length", "10")
    result = run_training(data, tmp_path / "model", *quick, real=True)
    assert result.returncode == 0, result.stderr
    (source,) = python.parents[1].glob("monailabel/sample-apps/monaibundle")
    app = Path(shutil.copytree(source, tmp_path / "app"))
    bundle = package(tmp_path / "model/models", app / "model", "brain_segmentation").folder
    conf = {"models": bundle.name, "zoo_source": "local", "sam2": "false", "epistemic_model": bundle.name}
    with Server(python, app, studies, tmp_path / "log.txt", conf) as server:
        info = server.info()
        assert info["models"][bundle.name]["labels"] == {"gray matter": 1, "white matter": 2}
        assert info["models"][bundle.name]["config"]["model_filename"] == ["model.pt"]
        scored = server.score(bundle.name)
        assert scored.keys() == {"one", "two"}
        assert all(np.isfinite(info["epistemic_entropy"]) for info in scored.values()), scored
        found = []
        for number, (image, whole) in enumerate([("one", dense), ("two", dense[::-1])]):
            server.infer(bundle.name, "one", tmp_path / f"before{number}.nii.gz")
            server.save_label(image, submitted(tmp_path / "label.nii.gz", whole, affine, thirds(dense)), NAMES)
            task = server.train(bundle.name, max_epochs=2)  # the options of the plugin, run_id "" among them
            lines = "\n".join(task["details"])
            assert task["status"] == "DONE", lines
            assert lines.count("epoch 1/2") == 1, "it trains once"
            assert "is kept in" in lines
            server.infer(bundle.name, "one", tmp_path / f"after{number}.nii.gz")
            found += [scores(tmp_path / f"{when}{number}.nii.gz", dense) for when in ("before", "after")]
            assert server.info()["trainers"][bundle.name]["config"]["model_filename"] == ["model.pt"]
        means = [float(np.mean(pair)) for pair in found]
        assert means[1] > means[0] + 0.1, found
        assert means[3] > means[2] - 0.02, found
        log = (tmp_path / "log.txt").read_text()
        assert "0 is background on the finished slices" in log


def test_our_app(python, brain, studies, tmp_path):
    _, dense, affine = brain
    app = write_app(tmp_path / "app", NAMES)
    with Server(python, app, studies, tmp_path / "log.txt") as server:
        info = server.info()
        assert info["labels"] == NAMES
        error = server.infer("sparse3dunet", "one", tmp_path / "none.nii.gz")
        assert "no submitted label, and no model" in error
        assert server.next_sample("next_slice")["id"] == "one"

        third = dense.shape[2] // 3
        first = submitted(tmp_path / "label.nii.gz", dense, affine, [[], [], [third, 2 * third]])
        server.save_label("one", first, NAMES)
        options = {"minutes": 0.5}
        told = server.infer("sparse3dunet", "one", tmp_path / "preview.nii.gz", **options)
        assert told["stage"] == "preview", told
        told = server.infer("sparse3dunet", "one", tmp_path / "refined.nii.gz", wait=True, **options)
        assert told["stage"] == "refined"
        assert 0 < told["expected_dice"] <= 1
        again = server.infer("sparse3dunet", "one", tmp_path / "again.nii.gz", **options)
        assert again["stage"] == "refined", "the same label is not computed again"

        sample = server.next_sample("next_slice")
        assert sample["id"] == "one"
        plane = (slice(None),) * sample["next_slice"]["axis"] + (sample["next_slice"]["index"],)
        refined = read_image(tmp_path / "refined.nii.gz")
        corrected = np.asarray(refined.data).astype(np.uint8)
        corrected[plane] = dense[plane]
        write_segmentation(tmp_path / "corrected.nii.gz", corrected, refined, dict(enumerate(["background", *NAMES])))
        server.save_label("one", tmp_path / "corrected.nii.gz", NAMES)
        told = server.infer("sparse3dunet", "one", tmp_path / "second.nii.gz", wait=True, **options)
        assert told["stage"] == "refined", told
        annotation = np.asarray(read_image(app / "scans/one/annotation.nii.gz").data)
        assert np.array_equal(annotation[plane], dense[plane])
        assert 0.03 < (annotation != 255).mean() < 0.1, "the prediction is no annotation"
        steps = [float(np.mean(scores(tmp_path / f"{n}.nii.gz", dense))) for n in ("preview", "refined", "second")]
        assert steps[0] > 0.85, steps
        assert steps[2] > steps[1], steps

        task = server.train("sparse3dunet", minutes=2)
        assert task["status"] == "DONE", task["details"]
        told = server.infer("sparse3dunet", "two", tmp_path / "two.nii.gz")
        assert told["stage"] == "model", told
        # How good it is depends on how many iterations the machine does in the minutes
        assert scores(tmp_path / "two.nii.gz", dense[::-1])[0] > 0.2
        assert "Preview after" in (tmp_path / "log.txt").read_text(), "the progress is in the server's log"


if __name__ == "__main__":
    print(make_environment(Path(sys.argv[1])))
