"""Other projects' tools take the packaged bundle as it is, where the checkout is out of reach.

The interpreter's option -S hides editable installs; each program tells whose `sparse3dunet` it used.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser

from sparse3dunet.models.loading import load_model
from tests.conftest import ROOT

TOOLS = ROOT / "tests/tools"
SCHEMA = ROOT / "tests/metadata_schema.json"
EXPORT = ("--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json")
EXPORT += ("--config_file", "configs/inference.json")


@pytest.fixture
def bundle(packaged, tmp_path):
    """A copy, into which tools may write, in a folder where nothing else is."""
    return Path(shutil.copytree(packaged, tmp_path / "models" / packaged.name))


def away(*arguments, cwd, paths=()):
    """Run Python with what pip installed and `paths` alone; its output."""
    installed = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    assert str(Path(monai.__file__).parents[1]) in installed
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPARSE3DUNET"))}
    environment |= {"PYTHONPATH": os.pathsep.join([*map(str, paths), *installed]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-W", "ignore", *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def used(output):
    """Where the program says that it got sparse3dunet from."""
    (line,) = [line for line in output.splitlines() if line.startswith("used: ")]
    return line.removeprefix("used: ")


def segmentation(path):
    return np.asarray(nib.load(path).dataobj)


def dice(first, second):
    """Of each class that either has, the smallest."""
    classes = np.union1d(first, second)
    return min(2 * ((first == c) & (second == c)).sum() / ((first == c).sum() + (second == c).sum()) for c in classes)


@pytest.fixture(scope="session")
def predicted(trained, tmp_path_factory):
    """What `sparse3dunet predict` makes of the first image, in 32-bit."""
    from sparse3dunet.inference.run import predict
    from sparse3dunet.inference.slabs import SlabInferer

    model = load_model(trained / "models")
    out = tmp_path_factory.mktemp("predicted")
    image = trained / "dataset/imagesTr/case_0.nii.gz"
    predict(model, [image], out, SlabInferer(model.patch_size, 0.5, bfloat16=False), device="cpu", quiet=True)
    result = segmentation(out / "case_0_seg.nii.gz")
    assert len(np.unique(result)) > 1, "or agreement says little"
    return result


def test_standalone_config_resamples_as_the_other(trained):
    """Both configs' transforms, there and back, for a model with a spacing."""
    image, results = trained / "dataset/imagesTr/case_0.nii.gz", []
    for name in ("inference", "standalone"):
        parser = ConfigParser()
        parser.read_config(ROOT / f"bundle/configs/{name}.yaml")
        parser["spacing"] = [1.5, 2.5, 2.1]
        parser["class_values"] = [0, 1, 2]
        data = parser.get_parsed_content("preprocessing")({"image": image})
        data["pred"] = torch.cat([data["image"] < 0, data["image"] > 0]).float()
        before, *after = parser.get_parsed_content("postprocessing").transforms[:2]
        back = after[0](before(data))["pred"]
        assert back.shape[1:] == (24, 20, 18)
        results.append((data["image"], back))
    (first, first_back), (second, second_back) = results
    assert first.shape == second.shape == (1, 32, 16, 17)
    assert torch.allclose(first.as_tensor(), second.as_tensor(), atol=1e-5)
    assert np.allclose(first.affine, second.affine)
    assert torch.equal(first_back.as_tensor(), second_back.as_tensor())


def batches():
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(shape, generator=generator) for shape in ((1, 1, 16, 16, 16), (3, 1, 24, 8, 32))]


def test_model_zoo(bundle):
    """The zoo's folders, models/NAME; what it exports as TorchScript gives the same, and so does the bundle's own."""
    place = f"models/{bundle.name}"
    output = away(TOOLS / "zoo.py", place, SCHEMA, cwd=bundle.parents[1], paths=[bundle])
    assert used(output) == str(bundle / "sparse3dunet/__init__.py")

    network = load_model(bundle).network
    with torch.no_grad():
        for script in ("models/verify_model.ts", "models/model.ts"):
            exported = torch.jit.load(bundle / script)
            for batch in batches():
                assert (exported(batch) - network(batch)).abs().max() < 1e-4


def test_load_and_properties(bundle, trained):
    output = away(TOOLS / "properties.py", bundle, trained / "dataset", cwd=bundle, paths=[bundle])
    assert used(output) == str(bundle / "sparse3dunet/__init__.py")
    assert not list(bundle.glob("data*")), "the built-in data are not the bundle's"


def test_monai_label_infers(bundle, trained, predicted, tmp_path):
    image, out = trained / "dataset/imagesTr/case_0.nii.gz", tmp_path / "out.nii.gz"
    output = away(TOOLS / "label_infer.py", bundle, image, out, cwd=tmp_path)
    assert used(output) == str(bundle / "sparse3dunet/__init__.py")
    assert dice(segmentation(out), predicted) >= 0.98  # the bundle's inferer is bfloat16 where that is fast


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_monai_label_trains(bundle, trained, tmp_path, count):
    """From {image, label} alone, once, for its own number of epochs, going on from the model that the bundle brought.

    Of one case, none is left for validation.
    """
    cases = [
        {"image": str(path), "label": str(path).replace("imagesTr", "labelsTr")}
        for path in sorted((trained / "dataset/imagesTr").iterdir())[:count]
    ]
    (tmp_path / "list.json").write_text(json.dumps(cases))
    before = load_model(bundle)
    output = away(TOOLS / "label_train.py", bundle, tmp_path / "list.json", cwd=tmp_path)
    assert used(output) == str(bundle / "sparse3dunet/__init__.py")
    lines = [line for line in output.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    assert all(" Dice 0." in line for line in lines)
    after = load_model(bundle)
    assert after.digest != before.digest
    assert after.description.network == before.description.network
    assert after.class_names == before.class_names
    assert len({*after.description.training, *after.description.validation}) == count
    assert load_model(bundle / "models/former").digest == before.digest
    assert [path.name for path in (bundle / "models").glob("*.pt")] == ["model.pt"], "tools take any for the model"
    old, new = (torch.nn.utils.parameters_to_vector(m.network.parameters()).detach() for m in (before, after))
    moved = float((new - old).abs().max())
    assert 0 < moved < 0.05, "6 small steps from the former weights, not from others drawn at random"


def test_monai_deploy(bundle, trained, predicted, tmp_path):
    """From model.ts alone, with no sparse3dunet."""
    alone = tmp_path / "app"
    alone.mkdir()
    script = Path(shutil.copy(bundle / "models/model.ts", alone))
    image, out = trained / "dataset/imagesTr/case_0.nii.gz", tmp_path / "out.nii.gz"
    output = away(TOOLS / "deploy.py", script, image, out, cwd=alone)
    assert used(output) == "[]"
    assert dice(segmentation(out), predicted) >= 0.99


def test_standalone_config(bundle, trained, predicted, tmp_path):
    """MONAI's own command with MONAI alone, from file to file."""
    shutil.rmtree(bundle / "sparse3dunet")
    images = trained / "dataset/imagesTr"
    without = "import runpy, sys; sys.modules['sparse3dunet'] = None; "
    program = without + "runpy.run_module('monai.bundle', run_name='__main__')"
    options = ("--config_file", "configs/standalone.json", "--dataset_dir", images, "--output_dir", tmp_path / "out")
    away("-c", program, "run", "inference", *options, cwd=bundle)
    written = nib.load(tmp_path / "out/case_0_seg.nii.gz")
    assert dice(np.asarray(written.dataobj), predicted) >= 0.99
    assert np.allclose(written.affine, nib.load(images / "case_0.nii.gz").affine)
    assert len(list((tmp_path / "out").iterdir())) == len(list(images.iterdir()))


@pytest.mark.slow
def test_onnx_export(bundle):
    """One file for any batch and size."""
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    names = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    options = ("--input_shape", "[2,1,16,24,32]", "--converter_kwargs", names)
    command = ("-m", "monai.bundle", "onnx_export", "network_def", "--filepath", "models/model.onnx", *EXPORT, *options)
    away(*command, cwd=bundle)
    session = onnxruntime.InferenceSession(bundle / "models/model.onnx", providers=["CPUExecutionProvider"])
    network = load_model(bundle).network
    with torch.no_grad():
        for batch in batches():
            (output,) = session.run(None, {"image": batch.numpy()})
            assert np.abs(output - network(batch).numpy()).max() < 1e-4
