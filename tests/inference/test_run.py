"""The command ``sparse3dunet predict`` and the bundle's inference, on real files, as users run them."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.densify.large import DIGEST
from sparse3dunet.densify.state import StateFile
from sparse3dunet.errors import DataError
from sparse3dunet.inference.run import check_not_densified, predict_and_report
from sparse3dunet.inference.slabs import SlabInferer
from tests.conftest import (
    ROOT,
    bundle_environment,
    make_dataset,
    make_volume,
    run_bundle,
    run_sparse3dunet,
    run_training,
    write_nifti,
)

SEED_OF_KILLS = 0


def predict(*arguments, launcher=()):
    if not launcher:
        return run_sparse3dunet("predict", *arguments)
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "sparse3dunet", "predict", *map(str, arguments)]
    return subprocess.run(
        command, env=bundle_environment(), cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300
    )


def files_of(folder, *without):
    """Every file's bytes, but those of records and summaries, which tell seconds."""
    left_out = ("records", "summary.csv", *without)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith(left_out)}


def table(folder):
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight small volumes of different shapes."""
    root = tmp_path_factory.mktemp("images")
    for number in range(8):
        write_nifti(root / f"case_{number}.nii.gz", make_volume(number, (20 + number, 22, 18))[0])
    return root


@pytest.fixture(scope="module")
def predicted(trained, images, tmp_path_factory):
    """What one undisturbed run made of these."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    result = predict(trained / "models", images, "-o", out, "--confidence")
    assert result.returncode == 0, result.stderr
    assert "Segmented 8 volume(s)" in result.stdout
    return out


def test_files_and_summary(predicted, images):
    names = {f"case_{i}{kind}.nii.gz" for i in range(8) for kind in ("_seg", "_confidence")}
    assert set(files_of(predicted)) == {*names, "labels.txt", *(f"pictures/case_{i}.png" for i in range(8))}
    rows = table(predicted)
    assert [row["case"] for row in rows] == [f"case_{i}" for i in range(8)]
    assert list(rows[0]) == [
        *("case", "status", "seconds", "shell ml", "core ml", "mean confidence", "segmentation", "error", "notes")
    ]
    for row in rows:
        segmentation = np.asarray(nib.load(predicted / row["segmentation"]).dataobj)
        assert row["status"] == "done"
        assert float(row["shell ml"]) == pytest.approx((segmentation == 1).sum() * 0.008, abs=1e-4)
        assert float(row["core ml"]) == pytest.approx((segmentation == 2).sum() * 0.008, abs=1e-4)
        assert float(row["seconds"]) > 0
        confidence = np.asarray(nib.load(predicted / f"{row['case']}_confidence.nii.gz").dataobj)
        if (segmentation > 0).any():
            assert float(row["mean confidence"]) == pytest.approx(confidence[segmentation > 0].mean() / 255, abs=0.003)


def test_the_bundle_gives_the_same(trained, images, predicted, tmp_path):
    """As does MONAI's own chain of transforms, sliding windows and inversion, run by the config's evaluator."""
    config = ("--config_file", ROOT / "bundle/configs/inference.yaml", "--model_file", trained / "models/model.pt")
    for name, more in {"ours": (), "monai": ("--inference", '["$@evaluator.run()"]')}.items():
        out = tmp_path / name
        result = run_bundle("run", "inference", *config, "--dataset_dir", images, "--output_dir", out, *more)
        assert result.returncode == 0, result.stderr
        for number in range(8):
            ours, theirs = (nib.load(folder / f"case_{number}_seg.nii.gz") for folder in (predicted, out))
            assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
            assert np.allclose(ours.affine, theirs.affine, atol=1e-6)


def test_the_bundles_chain_in_monais_terms_names_cases_alike(trained, tmp_path):
    """Images of one name in several folders overwrote each other's results."""
    for number in (1, 2):
        write_nifti(tmp_path / f"P00{number}/scan/t1.nii.gz", make_volume(number)[0])
    config = ("--config_file", ROOT / "bundle/configs/inference.yaml", "--model_file", trained / "models/model.pt")
    places = ("--dataset_dir", tmp_path / "P*/scan/t1.nii.gz", "--output_dir", tmp_path / "out")
    result = run_bundle("run", "inference", *config, *places, "--inference", '["$@evaluator.run()"]')
    assert result.returncode == 0, result.stderr
    names = {"P001_t1_seg.nii.gz", "P002_t1_seg.nii.gz", "pictures/P001_t1.png", "pictures/P002_t1.png"}
    assert {name for name in files_of(tmp_path / "out") if "t1" in name} == names


def test_what_is_done_is_skipped(trained, images, predicted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(predicted, out)
    model = tmp_path / "models"
    shutil.copytree(trained / "models", model)
    write_nifti(tmp_path / "more/new.nii.gz", make_volume(9)[0])
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.nii.gz")}
    result = predict(model, images, tmp_path / "more", "-o", out, "--confidence")
    assert "Segmented 1 volume(s), 8 already done" in result.stdout, result.stderr
    assert before == {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in before}
    assert len(table(out)) == 9
    # Other settings, or another model: done anew.
    result = predict(model, images / "case_0.nii.gz", "-o", out, "--confidence", "--overlap", "0.25")
    assert "Segmented 1 volume(s): " in result.stdout, result.stderr
    description = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps({**description, "class_values": [0, 7, 9]}))
    result = predict(model, images / "case_0.nii.gz", "-o", out, "--confidence", "--overlap", "0.25")
    assert "Segmented 1 volume(s): " in result.stdout, result.stderr
    assert set(np.unique(nib.load(out / "case_0_seg.nii.gz").dataobj)) <= {0, 7, 9}


def test_a_bad_case_does_not_stop_the_batch(trained, images, tmp_path):
    batch = tmp_path / "batch"
    batch.mkdir()
    shutil.copy(images / "case_0.nii.gz", batch)
    whole = (images / "case_1.nii.gz").read_bytes()
    (batch / "case_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    nan = make_volume(2)[0]
    nan[3, 3, 3] = np.nan
    write_nifti(batch / "case_2.nii.gz", nan)
    write_nifti(batch / "case_3.nii.gz", np.stack([make_volume(3)[0]] * 2, -1))
    result = predict(trained / "models/model.pt", batch, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    assert result.stderr.startswith("error: 3 of 4 volume(s) failed")
    rows = {row["case"]: row for row in table(tmp_path / "out")}
    assert [rows[f"case_{i}"]["status"] for i in range(4)] == ["done", "failed", "failed", "failed"]
    words = {1: "case_1.nii.gz: cannot be read", 2: "NaN or infinite", 3: "expected a 3D image with 1 channel(s)"}
    assert all(text in rows[f"case_{i}"]["error"] for i, text in words.items()), rows
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"case_0_seg.nii.gz"}
    # Mended, only what failed is done.
    for number in (1, 2, 3):
        shutil.copy(images / f"case_{number}.nii.gz", batch)
    result = predict(trained / "models/model.pt", batch, "-o", tmp_path / "out")
    assert result.returncode == 0
    assert "Segmented 3 volume(s), 1 already done" in result.stdout
    assert {row["status"] for row in table(tmp_path / "out")} == {"done"}


@pytest.mark.slow
def test_killed_at_random(trained, images, predicted, tmp_path):
    """Three kills here; tests/robustness/test_kills.py does more."""
    out, random = tmp_path / "out", np.random.default_rng(SEED_OF_KILLS)
    arguments = ("predict", trained / "models", images, "-o", out, "--confidence")
    command = [sys.executable, "-W", "ignore", "-m", "sparse3dunet", *map(str, arguments)]
    done = {}
    for _ in range(3):
        started = time.time()
        process = subprocess.Popen(command, env=bundle_environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not any(
            record.stat().st_mtime > started for record in list((out / "records").glob("case_*.json"))
        ):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, made in done.items():
            assert (name.stat().st_ino, name.stat().st_mtime_ns) == made
        for record in (out / "records").glob("*.json"):
            content = json.loads(record.read_text())
            files = [out / name for name in content["results"]]
            if content["status"] == "done" and all(map(Path.is_file, files)):
                done |= {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    result = predict(*arguments[1:])
    assert result.returncode == 0, result.stderr
    assert files_of(out) == files_of(predicted)
    assert not (out / ".drafts").exists()


@pytest.mark.slow
def test_two_processes_give_the_same_files(trained, images, predicted, tmp_path):
    out = tmp_path / "out"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = predict(trained / "models", images, "-o", out, "--confidence", launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Segmented 8 volume(s)") == 1
    assert files_of(out) == files_of(predicted)
    assert len(table(out)) == 8


def test_formats(trained, tmp_path):
    """Results come in the image's format, on its grid; or in the one that is asked for."""
    data = np.transpose(make_volume(0)[0]).astype(np.float32)
    angle = 0.3
    (tmp_path / "images").mkdir()
    for name in ("a.nrrd", "b.mha"):
        image = sitk.GetImageFromArray(data)
        image.SetSpacing((0.7, 1.3, 4.0))
        image.SetOrigin((-12.25, 40.5, 7.125))
        # Left-handed, and oblique.
        image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, -1))
        sitk.WriteImage(image, tmp_path / "images" / name)
    result = predict(trained / "models", tmp_path / "images", "-o", tmp_path / "own")
    assert result.returncode == 0, result.stderr
    result = predict(trained / "models", tmp_path / "images", "-o", tmp_path / "slicer", "--format", "seg.nrrd")
    assert result.returncode == 0, result.stderr
    paths = [tmp_path / "own" / name for name in ("a_seg.nrrd", "b_seg.mha")]
    paths += [tmp_path / "slicer" / name for name in ("a.seg.nrrd", "b.seg.nrrd")]
    arrays = []
    for path in paths:
        found = sitk.ReadImage(path)
        for get in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
            assert np.allclose(get(found), get(image), atol=1e-6)
        arrays.append(sitk.GetArrayFromImage(found))
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert found.GetMetaData("Segment0_Name") == "shell"


def test_components_and_probabilities(trained, images, tmp_path):
    """On request: the largest component alone, and what each class's probability is."""
    options = ("--largest", "shell", "--min-ml", "core=0.02", "--probabilities", "--mirror", "lr", "--no-pictures")
    result = predict(trained / "models", images / "case_0.nii.gz", "-o", tmp_path, *options)
    assert result.returncode == 0, result.stderr
    probabilities = nib.load(tmp_path / "case_0_prob.nii.gz")
    assert probabilities.shape == (20, 22, 18, 3)
    assert np.allclose(np.asarray(probabilities.dataobj).sum(-1), 1, atol=1e-4)
    assert not (tmp_path / "pictures").exists()


def test_valid_convolutions(tmp_path):
    """The paper's kind of network learns through the bundle, and its tiles' size does not change what it predicts."""
    dataset = make_dataset(tmp_path / "dataset", 2)
    options = ("--network_def#padding", "valid", "--network_def#channels", "[4,8]", "--network_def#norm", "batch")
    result = run_training(dataset, tmp_path, *options, "--patch_size", "[28,28,28]")
    assert result.returncode == 0, result.stderr
    segmentations = []
    for size in (20, 28, 36):
        out = tmp_path / str(size)
        result = predict(
            *(tmp_path / "models", dataset / "imagesTr/case_0.nii.gz", "-o", out, "--probabilities"),
            *("--roi-size", size, "--precision", "float32", "--no-pictures"),
        )
        assert result.returncode == 0, result.stderr
        segmentations.append(np.asarray(nib.load(out / "case_0_prob.nii.gz").dataobj))
    assert segmentations[0].shape == (24, 20, 18, 3)
    assert np.ptp(segmentations[0]) > 0.1
    assert all(np.abs(other - segmentations[0]).max() < 1e-5 for other in segmentations)


@pytest.mark.parametrize(
    ("state", "result"), [("work/state.json", "quality.json"), (f"work/{DIGEST}", "model/model.json")]
)
def test_the_results_of_densify_are_not_replaced(trained, images, tmp_path, error_of, state, result):
    """They keep the annotation, and a report tells of them. Another program may have a file of such a name."""
    assert StateFile(tmp_path).path == tmp_path / "work/state.json"
    for name in (state, result):
        check_not_densified(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    before, model = set(tmp_path.rglob("*")), trained / "models"
    assert "has the results of densify" in error_of("predict", model, images, "-o", tmp_path, "--overwrite")
    with pytest.raises(DataError, match="Pass another folder"):
        predict_and_report(model, str(images), str(tmp_path), SlabInferer((8, 8, 8)))
    assert set(tmp_path.rglob("*")) == before


def test_a_summary_of_the_user_is_not_replaced(trained, images, tmp_path, error_of):
    """Told before hours of prediction, not after them."""
    (tmp_path / "summary.csv").write_text("my own")
    assert "summary.csv exists and is not what" in error_of("predict", trained / "models", images, "-o", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["my own"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--largest", "liver"], ["'liver'", "shell, core"]),
        (["--min-ml", "core=big"], ["--min-ml", "liver=5,tumor=0.1"]),
        (["--min-ml", "shell=1,shell=2"], ["--min-ml", "each once"]),
        (["--min-ml", "-1"], ["expected a volume in ml, 0 or more"]),
        (["--roi-size", "30"], ["30", "nearest sizes that fit are 28 and 32", "roi_size"]),
        (["--roi-size", "a"], ["--roi-size", "'a'"]),
        (["--mirror", "up"], ["--mirror", "lr, ap, si"]),
        (["--format", "dcm"], [".dcm", ".seg.nrrd"]),
        (["--device", "tpu9"], ["--device", "tpu9", "cpu"]),
        (["--device", "meta"], ["--device", "meta", "cannot be used", "Pass cpu"]),
        (["--precision", "half"], ["--precision", "bfloat16"]),
    ],
)
def test_bad_options(trained, images, tmp_path, error_of, options, words):
    error = error_of("predict", trained / "models", images, "-o", tmp_path / "out", *options)
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


def test_a_normalisation_of_its_own(dataset, tmp_path):
    """Predicting otherwise than was trained would be silently wrong; the bundle's config tells how."""
    scale = (
        """[{"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 250, "b_min": 0, "b_max": 1}]"""
    )
    result = run_training(dataset, tmp_path, "--normalize", scale)
    assert result.returncode == 0, result.stderr
    images = dataset / "imagesTr"
    result = predict(tmp_path / "models", images, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert "was trained with another normalisation (ScaleIntensityRanged" in result.stderr
    config = ("--config_file", ROOT / "bundle/configs/inference.yaml", "--model_file", tmp_path / "models/model.pt")
    found = []
    for name, more in {"ours": (), "monai": ("--inference", '["$@evaluator.run()"]')}.items():
        places = ("--dataset_dir", images, "--output_dir", tmp_path / name)
        result = run_bundle("run", "inference", *config, *places, "--normalize", scale, *more)
        assert result.returncode == 0, result.stderr
        found.append(np.asarray(nib.load(tmp_path / name / "case_0_seg.nii.gz").dataobj))
    assert np.array_equal(*found)
