"""The command sparse3dunet, in a process of its own, as a user runs it."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

import sparse3dunet
from sparse3dunet.cli.main import app
from sparse3dunet.cli.simulate import next_step
from sparse3dunet.data.slices import find_slices
from tests.conftest import ROOT, make_dataset, run_sparse3dunet

HIPPOCAMPUS = ROOT.parent / "shared" / "hippocampus"


def test_check_of_good_data(dataset):
    result = run_sparse3dunet("check", dataset)
    assert result.returncode == 0, result.stderr
    for words in ("case_2", "24x20x18", "2x2x2", "1/1/1", "f4/u1", "shell", "unlabeled: 3"):
        assert words in result.stdout, result.stdout
    assert "warning" not in result.stdout


def test_check_as_json(dataset):
    result = run_sparse3dunet("check", dataset, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"]
    assert report["errors"] == report["warnings"] == []
    (case, *_) = report["cases"]
    label = np.asarray(nib.load(dataset / "labelsTr/case_0.nii.gz").dataobj)
    assert case["slices"] == {"sagittal": [12], "coronal": [10], "axial": [9]}
    assert case["class_counts"] == [int((label == c).sum()) for c in range(3)]
    assert case["values"] == {str(v): int((label == v).sum()) for v in range(4)}
    totals = [sum(c["class_counts"][k] for c in report["cases"]) for k in range(3)]
    assert [c["voxels"] for c in report["classes"]] == totals


def test_check_of_bad_data(dataset):
    """All of it at once, on standard output; exit status 1, in JSON too."""
    path = dataset / "labelsTr/case_1.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, 9, np.uint8), image.affine), path)
    (dataset / "imagesTr/case_2.nii.gz").write_bytes(b"")
    for options in ((), ("--json",)):
        result = run_sparse3dunet("check", dataset, *options)
        assert result.returncode == 1
        assert "label value 9" in result.stdout
        assert "case_2.nii.gz: cannot be read" in result.stdout
    assert len(json.loads(result.stdout)["errors"]) == 2
    result = run_sparse3dunet("check", dataset / "nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_warns(dataset):
    """A class that nobody annotated, a case without background, intensities and spacings on different scales."""
    for number, path in enumerate(sorted((dataset / "labelsTr").iterdir())):
        image = nib.load(path)
        label = np.asarray(image.dataobj).copy()
        label[label == 2] = 1
        affine = image.affine.copy()
        if number == 1:
            label[label == 0] = 3
            scan = nib.load(dataset / "imagesTr" / path.name)
            nib.save(nib.Nifti1Image(np.asarray(scan.dataobj) * 1000, affine), dataset / "imagesTr" / path.name)
        if number == 2:
            affine = np.diag([1.0, 2.0, 5.0, 1.0])
            for folder in ("imagesTr", "labelsDense"):
                scan = nib.load(dataset / folder / path.name)
                nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), affine), dataset / folder / path.name)
        nib.save(nib.Nifti1Image(label, affine), path)
    result = run_sparse3dunet("check", dataset, "--json")
    assert result.returncode == 0, result.stdout
    warnings = json.loads(result.stdout)["warnings"]
    for words in (
        "no voxel is annotated as core",
        "case_1.nii.gz: no voxel is labelled background",
        "orders of magnitude",
        "voxel sizes differ, along the axes from 1x2x2 to 2x2x5 mm",
    ):
        assert any(words in warning for warning in warnings), (words, warnings)
    assert len(warnings) == 4


def test_simulate(dataset, tmp_path):
    """Sparse copies whose kept voxels are the dense label's, the same for the same seed, and that train as they are."""
    dense = dataset / "labelsDense"
    for out in ("a", "b", "c"):
        seed = 0 if out < "c" else 1
        options = ("--slices", "2,0,1", "--placement", "foreground", "--seed", seed)
        result = run_sparse3dunet("simulate", dense, "-o", dataset / out, *options, real=out == "b")
        assert result.returncode == 0, result.stderr
        assert "the others are 3 (unlabeled)" in result.stdout
    drawn = {}
    for out in ("a", "b", "c"):
        for path in sorted((dataset / out).glob("[!.]*")):
            sparse, full = (np.asarray(nib.load(p).dataobj) for p in (path, dense / path.name))
            assert np.array_equal(sparse[sparse < 3], full[sparse < 3])
            drawn.setdefault(out, []).append(find_slices(sparse < 3))
            assert [len(s) for s in drawn[out][-1]] == [2, 0, 1]
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert drawn["a"][0] != drawn["a"][1]
    assert run_sparse3dunet("check", dataset, "--label-dir", "a").returncode == 0
    places = f"--dataset_dir {dataset} --label_dir c --reference_dir labelsDense"
    assert f"Next: sparse3dunet run training {places}\n" in result.stdout
    result = run_sparse3dunet(
        "simulate", dense / "case_0.nii.gz", "-o", tmp_path / "one", "--scribbles", 6, "--ignore-index", 255
    )
    assert result.returncode == 0, result.stderr
    assert set(np.unique(np.asarray(nib.load(tmp_path / "one/case_0.nii.gz").dataobj))) == {0, 1, 2, 255}


@pytest.mark.parametrize(
    ("copies", "value", "in_slices", "told"),
    [
        (["out/a.nii"], 3, True, "sparse3dunet densify SCAN out/a.nii -o OUT --reference data/dense/a.nii"),
        (["out/a.nii"], 3, False, "densify SCAN out/a.nii -o OUT --ignore-index 3 --reference"),
        (["data/few/a.nii", "data/few/b.nii"], 3, False, "--label_dir few --reference_dir dense --ignore_index 3"),
        (["data/few/a.nii", "data/few/b.nii"], 255, False, "--label_dir few --reference_dir dense"),
        (["my out/a.nii", "my out/b.nii"], 3, True, "put 'my out' beside the folder of the images, then: sparse3dunet"),
    ],
)
def test_what_to_do_with_simulated_labels(tmp_path, monkeypatch, copies, value, in_slices, told):
    """The value of unlabeled voxels is passed where it would not be inferred."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/dense").mkdir(parents=True)
    (tmp_path / "data/dense/a.nii").touch()
    labels = Path("data/dense/a.nii") if len(copies) == 1 else Path("data/dense")
    step = next_step(labels, [Path(copy) for copy in copies], value, in_slices)
    assert step.startswith(told) or step.endswith(told) or told in step
    assert ("ignore" in step) == ("ignore" in told)


def test_slices_that_mark_what_is_labeled_are_told(dataset):
    for options, words in (
        (("--annotated-slices", "all", "--ignore-index", "3"), "unlabeled: 3 and outside of the annotated slices"),
        (("--weight-dir", "labelsDense"), "unlabeled: 3 and where the weight is 0"),
    ):
        printed = run_sparse3dunet("check", dataset, *options).stdout
        assert words in " ".join(printed.split())


def test_simulate_leaves_the_values_of_declared_classes(dataset):
    """A class that no dense label shows is not taken for unlabeled."""
    for path in (dataset / "labelsDense").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.minimum(np.asarray(image.dataobj), 1), image.affine), path)
    result = run_sparse3dunet("simulate", dataset / "labelsDense", "-o", dataset / "a", "--slices", 1)
    assert "the others are 3 (unlabeled)" in result.stdout


def test_a_seed_draws_a_file_alike_whatever_lies_beside_it(tmp_path):
    make_dataset(tmp_path / "many", 3)
    dense = tmp_path / "many/labelsDense"
    assert run_sparse3dunet("simulate", dense, "-o", tmp_path / "a", "--fraction", 0.1).returncode == 0
    assert (
        run_sparse3dunet("simulate", dense / "case_2.nii.gz", "-o", tmp_path / "b", "--fraction", 0.1).returncode == 0
    )
    first, second = (np.asarray(nib.load(tmp_path / out / "case_2.nii.gz").dataobj) for out in "ab")
    assert np.array_equal(first, second)
    assert (first < 3).sum() == round(0.1 * first.size)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="../shared/hippocampus is not on this machine")
def test_the_hippocampus_passes():
    result = run_sparse3dunet("check", HIPPOCAMPUS, "--label-dir", "labelsTr_sparse", "--reference-dir", "labelsTr")
    assert result.returncode == 0, result.stdout
    assert "200 case(s)" in result.stdout
    assert result.stdout.count("warning:") == 1, "intensities differ by orders of magnitude"


@pytest.mark.parametrize(("option", "expected"), [([], False), (["--restart"], True), (["--anew"], True)])
def test_restart_and_its_old_name(tmp_path, monkeypatch, capsys, option, expected):
    given = {}
    monkeypatch.setattr("sparse3dunet.bundle.running.run_quietly", lambda run, settings: given.update(settings))
    monkeypatch.setattr("sparse3dunet.densify.inputs.prepare", lambda *args, **named: tmp_path)
    sources = [str(tmp_path / name) for name in ("scan.nii.gz", "annotation.nii.gz")]
    for source in sources:
        Path(source).touch()
    app(["densify", *sources, "-o", str(tmp_path / "out"), *option], standalone_mode=False)
    assert given["restart"] is expected
    assert ("--restart" in capsys.readouterr().err) == (option == ["--anew"])


@pytest.mark.parametrize("changes", [{}, {"restart": True}, {"anew": True}])
def test_restart_by_monais_command(changes):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundle/configs" / f"{name}.yaml") for name in ("train", "densify")])
    parser.update(changes)
    (told,) = re.findall(r"restart=(.*?),", parser["densify"][-1])
    assert parser.get_parsed_content("restart") is changes.get("restart", False)
    assert ConfigParser({**{k: parser[k] for k in ("restart", "anew")}, "x": f"${told}"}).get_parsed_content(
        "x"
    ) is bool(changes)


def test_version():
    result = run_sparse3dunet("--version")
    assert (result.returncode, result.stdout) == (0, f"sparse3dunet {sparse3dunet.__version__}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--learning_rate", -1), "learning_rate must be a number of at least 0, such as 0.001; got -1"),
        (("--network_def#channels", "[8]"), "channels is [8]; expected a whole number above 0 for each of two or more"),
        (("--minutes", "nan"), "minutes must be a number above 0"),
        (("--class_balance", 2), "class_balance is 2; expected a number from 0 to 1"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_a_training_in_one_line(dataset, tmp_path, options, words):
    """And leaves no plan, which the next training in the folder would refuse."""
    places = ("--dataset_dir", dataset, "--ckpt_dir", tmp_path / "models", "--output_dir", tmp_path / "eval")
    result = run_sparse3dunet("run", "training", *places, *options)
    assert result.returncode == 1
    assert f"error: {words}" in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    if options[0] != "--learning_rate":  # the plan of which is right
        assert not (tmp_path / "models" / "plan.json").exists()
