"""Plans: made from data, written, read, refused, and taken by trainings."""

import dataclasses
import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference

from sparse3dunet.errors import DataError
from sparse3dunet.models.description import describe_model, read_description
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D
from sparse3dunet.planning import chosen, make_plan, read_plan, write_plan
from sparse3dunet.planning.plan import planned_spacing
from tests.conftest import run_sparse3dunet, run_training
from tests.planning.test_fingerprint import a_ct, an_image, two_blobs, write


@pytest.fixture
def ct(tmp_path):
    """A CT of thick slices with a left and a right structure."""
    return write(tmp_path / "ct", [a_ct(), a_ct(1)], [two_blobs(), two_blobs()], np.diag([1.0, 1, 4, 1]))


def test_a_plan_for_ct_of_thick_slices(ct):
    plan = make_plan(ct, None)
    assert plan.intensity == plan.fingerprint["intensity"]
    assert plan.flip_prob == (0, 0, 0)
    assert plan.slice_axis == 2
    assert plan.strides[0] == (2, 2, 1)
    assert plan.kernel_sizes[0] == (3, 3, 1)
    assert plan.spacing is None
    told = {name: f"{value} ({reason})" for name, value, reason in plan.lines()}
    assert told["flips"] == "none (class 1, class 2 differ by side)"
    assert told["deformation"] == "within slices only (slices are much thicker than their voxels)"
    assert "absolute scale" in told["intensities"]


def test_a_plan_for_cubes(tmp_path):
    report = write(tmp_path, [an_image()], [two_blobs(first=(15, 5, 8), second=(15, 14, 8))])
    plan = make_plan(report, None)
    assert plan.intensity is None
    assert plan.flip_prob == (0.5, 0, 0)
    assert plan.slice_axis is None
    assert set(plan.kernel_sizes) == {(3, 3, 3)}
    assert plan.patch_size == (32, 20, 16)  # pooled 3, 2 and 2 times, to 4 voxels or more; two of 32 are padding


def test_planned_spacing(tmp_path):
    labels = [two_blobs()] * 2
    alike = write(tmp_path / "a", [an_image()] * 2, labels)
    assert planned_spacing(alike, "auto") is None
    assert planned_spacing(alike, "median") == "median"
    differing = dataclasses.replace(
        alike, cases=[alike.cases[0], dataclasses.replace(alike.cases[1], spacing=(1, 1, 3))]
    )
    assert planned_spacing(differing, "auto") == [1, 1, 2]
    plan = make_plan(differing, planned_spacing(differing, "auto"))
    assert plan.patch_size[2] == 20  # of 90 % of the way from 16 to 48 mm, in voxels of 2 mm: 22.4
    assert "differ" in plan.reasons["voxel size"]


def test_few_minutes_are_for_coarser_voxels(tmp_path):
    """So coarse that a patch covers a quarter of a volume; thick slices stay as they are."""
    label = np.pad(two_blobs((30, 20, 10)), ((0, 50), (0, 60), (0, 0)))
    report = write(tmp_path, [an_image((80, 80, 10))], [label], np.diag([1.0, 1, 4, 1]))
    voxels = 80 * 80 * 10 / 16
    fine, coarse = (planned_spacing(report, "auto", None, minutes, voxels) for minutes in (None, 3))
    assert fine is planned_spacing(report, "auto", None, 30, voxels) is planned_spacing(report, "auto", None, 3) is None
    assert coarse == pytest.approx([2, 2, 4], rel=1e-3)
    plan = make_plan(report, coarse, patch_voxels=voxels)
    seen = np.prod(np.multiply(report.cases[0].shape, report.cases[0].spacing) / coarse)
    assert seen * 0.25 == pytest.approx(voxels, rel=0.01)
    assert "coarser" in plan.reasons["voxel size"]
    assert make_plan(report, coarse, requested_spacing=coarse).reasons["voxel size"] == "as requested"


def test_large_patches_come_in_smaller_batches(ct):
    sizes = [make_plan(ct, None, batch_size=4, batch_voxels=voxels).batch_size for voxels in (1, 2e4, 1e9, None)]
    assert sizes[0] == 1
    assert sizes[2:] == [4, 4]
    plan = make_plan(ct, None, batch_size=4, batch_voxels=2e4)
    assert plan.batch_size * np.prod(plan.patch_size) <= 2e4 < 4 * np.prod(plan.patch_size)


def test_a_plan_is_a_file(ct, tmp_path):
    path = tmp_path / "plan.json"
    plan = make_plan(ct, (1, 1, 4))
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert make_plan(ct, (1, 1, 4), plan_file=path) == plan
    content = json.loads(path.read_text())
    assert content["reasons"]["flips"] == "class 1, class 2 differ by side"
    path.write_text(json.dumps({**content, "batch_size": 1}))
    assert read_plan(path).batch_size == 1
    path.write_text(json.dumps({**content, "patch_size": [16, 16, 4], "batch_size": 3}))
    changed = make_plan(ct, planned_spacing(ct, "auto", path), plan_file=path)
    assert (changed.patch_size, changed.batch_size, changed.spacing) == ((16, 16, 4), 3, (1, 1, 4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99, "sparse3dunet_version": "7.1"}, "7.1"),
        ({"schema_version": None}, "schema_version"),
        ({"schema_version": True}, "schema_version"),
        ({"channels": [True, True]}, "channels"),
        ({"slice_axis": 1.0}, "slice_axis"),
        ({"strides": [[1_000_000_000, 1, 1]]}, "strides"),
        ({"batch_size": 1_000_000_000}, "batch_size: 1000000000; expected a whole number from 1 to 1024"),
        ({"batch_size": True}, "batch_size"),
        ({"patch_size": [100_000, 1, 1]}, "patch_size"),
        ({"patch_size": [512, 512, 512], "batch_size": 16}, "16 patches .* voxels in an iteration"),
        ({"patch_size": [16, 16]}, "patch_size"),
        ({"patch_size": [16, 16, 0]}, "patch_size"),
        ({"spacing": "median"}, "spacing"),
        ({"strides": []}, "strides"),
        ({"kernel_sizes": [[3, 3, 2], [3, 3, 3]]}, "kernel_sizes"),
        ({"intensity": {"lower": 5, "upper": 1, "mean": 0, "std": 1}}, "intensity"),
        ({"intensity": {"mean": 0, "std": 1}}, "intensity"),
        ({"class_balance": 1.5}, "class_balance"),
        ({"class_balance": float("nan")}, "class_balance"),
        ({"flip_prob": 0.5}, "flip_prob"),
        ({"slice_axis": 3}, "slice_axis"),
        ({"slice_axis": True}, "slice_axis"),
        ({"batch_size": 0}, "batch_size"),
        ({"channels": [8]}, "channels"),
        ({"channels": [8, 0]}, "channels"),
        ({"spacing": [1, 0, 1]}, "spacing"),
        ({"spacing": [1, 1]}, "spacing"),
        ({"spacing": [1, -1, 1]}, "spacing"),
        ({"patch_size": [16, 16, 8.5]}, "patch_size"),
        ({"strides": [[2, 2, 0]]}, "strides"),
        ({"kernel_sizes": [[3, 3, 3]]}, "kernel_sizes"),
        ({"class_balance": -0.1}, "class_balance"),
        ({"flip_prob": [0.5, 0.5, 1.5]}, "flip_prob"),
        ({"flip_prob": [0.5, -0.5, 0.5]}, "flip_prob"),
        ({"slice_axis": -1}, "slice_axis"),
        ({"reasons": []}, "reasons"),
        ({"fingerprint": None}, "fingerprint"),
        ({"fingerprint": {"class_names": [0, 1]}}, "class_names"),
        ({"fingerprint": {"class_names": 3}}, "class_names"),
    ],
)
def test_bad_plans(ct, tmp_path, change, words):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(make_plan(ct, None).to_json()), **change}))
    with pytest.raises(DataError, match=rf"plan\.json.*{words}") as error:
        read_plan(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', "{", "[" * 100_000], ids=range(6))
def test_files_that_are_no_plans(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"plan\.json.*sparse3dunet plan DATA"):
        read_plan(path)
    with pytest.raises(DataError, match=r"none\.json"):
        read_plan(tmp_path / "none.json")


def test_only_plans_are_replaced(dataset, tmp_path, error_of):
    for file in (dataset / "dataset.json", dataset / "imagesTr/case_0.nii.gz"):
        before = file.read_bytes()
        assert f"{file} exists and is no plan" in error_of("plan", dataset, "-o", file)
        assert file.read_bytes() == before


def test_a_pipe_is_no_plan(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a named pipe"):
        read_plan(tmp_path / "pipe")


def test_a_plan_for_other_classes(ct, tmp_path):
    write_plan(make_plan(ct, None), tmp_path / "plan.json")
    other = write(tmp_path / "b", [an_image()], [two_blobs()], labels={"0": "background", "1": "liver", "2": "spleen"})
    with pytest.raises(DataError, match=r"class 1, class 2.*liver, spleen"):
        make_plan(other, None, plan_file=tmp_path / "plan.json")


def test_a_model_that_is_trained_further_determines_its_network(ct):
    data_set = ct.data_set
    network = UNet3D(1, 3, [4, 8], strides=[[2, 1, 1]], padding="same", kernel_sizes=[[3, 1, 3], 3])
    model = describe_model(network, data_set, [8, 8, 8], intensity={"lower": 0, "upper": 9, "mean": 1, "std": 2})
    plan = make_plan(ct, None, like=model, channels=(4, 8))
    assert plan.strides_for([4, 8]) == [[2, 1, 1]]
    assert plan.kernel_sizes_for([4, 8]) == [[3, 1, 3], [3, 3, 3]]
    assert plan.intensity == model.intensity
    assert plan.strides_for([4, 8, 8]) == [[2, 1, 1], [1, 1, 1]]


def test_a_scale_that_does_not_fit_is_told(ct):
    """A lung's scale for soft tissue, for example."""
    network = UNet3D(1, 3, [4, 8], padding="same")
    lung = describe_model(
        network, ct.data_set, [8, 8, 8], intensity={"lower": -950, "upper": -600, "mean": -800, "std": 50}
    )
    plan = make_plan(ct, None, like=lung, channels=(4, 8))
    assert "% of the annotated foreground are outside of its scale: train a new model" in plan.reasons["intensities"]


def test_a_plan_of_ct_for_other_images(ct, tmp_path):
    write_plan(make_plan(ct, None), tmp_path / "plan.json")
    other = write(tmp_path / "b", [an_image()], [two_blobs()])
    with pytest.raises(
        DataError, match=r"plan\.json: it normalises on the absolute scale of CT, but these images are no CT"
    ):
        make_plan(other, None, plan_file=tmp_path / "plan.json")


def test_a_model_that_is_trained_further_comes_before_a_plan(ct, tmp_path):
    write_plan(make_plan(ct, None), tmp_path / "plan.json")
    model = describe_model(UNet3D(1, 3, [4, 8], padding="same"), ct.data_set, [8, 8, 8])
    plan = make_plan(ct, None, plan_file=tmp_path / "plan.json", like=model)
    assert plan.intensity is None
    assert plan.kernel_sizes_for([4, 8]) == [[3, 3, 3]] * 2


@pytest.mark.parametrize("bound", [(60, 60, 60), (20, 14, 20), (100, 100, 5), (3, 3, 3)])
def test_no_patch_exceeds_its_bound(ct, bound):
    plan = make_plan(ct, (0.2, 0.2, 0.2), largest_patch_size=bound)
    multiples = np.prod(plan.strides[:3], axis=0)
    assert all(n <= max(most, m) for n, most, m in zip(plan.patch_size, bound, multiples))


def test_a_network_of_another_kind(ct):
    plan = chosen(make_plan(ct, None), torch.nn.Conv3d(1, 3, 1), flip_prob=0)
    assert plan.flip_prob == (0, 0, 0)
    assert ("network", "not a UNet3D", "as requested") in plan.lines()


def test_settings_come_before_the_plan(ct):
    plan = make_plan(ct, None)
    network = UNet3D(
        1, 3, [4, 8, 8], plan.strides_for([4, 8, 8]), padding="same", kernel_sizes=plan.kernel_sizes_for([4, 8, 8])
    )
    actual = chosen(plan, network, patch_size=[16, 16, 8], flip_prob=[0.5, 0, 0], class_balance=plan.class_balance)
    assert (actual.patch_size, actual.flip_prob, actual.channels) == ((16, 16, 8), (0.5, 0, 0), (4, 8, 8))
    assert actual.reasons["flips"] == actual.reasons["patches"] == actual.reasons["network"] == "as requested"
    assert actual.reasons["class balance"] == plan.reasons["class balance"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_balance": 2}, "class_balance is 2; expected a number from 0 to 1"),
        ({"class_balance": float("nan")}, "class_balance is nan; expected a number from 0 to 1"),
        ({"flip_prob": 2}, "flip_prob is [2, 2, 2]; expected three numbers from 0 to 1"),
        ({"slice_axis": 7}, "slice_axis is 7; expected 0, 1, 2 or null"),
        ({"patch_size": [16, 0, 8]}, "patch_size is [16, 0, 8]; expected three whole numbers above 0"),
        ({"batch_size": 10**9}, "batch_size is 1000000000; expected a whole number from 1 to 1024"),
    ],
)
def test_settings_that_no_plan_may_have(ct, settings, words):
    """Their plan could not be read again, and would be kept as a file of the user's."""
    with pytest.raises(DataError) as error:
        chosen(make_plan(ct, None), torch.nn.Identity(), **settings)
    assert words in str(error.value)


def test_the_command(dataset, tmp_path):
    out = tmp_path / "plan.json"
    run = run_sparse3dunet("plan", dataset, "-o", out, "--spacing", "[2,2,4]", "--network_def#channels", "[4,8]")
    assert run.returncode == 0, run.stderr
    for name in ("voxel size: 2x2x4 mm", "patches: 2 of", "4-8 channels", "flips: left-right", "iterations take about"):
        assert name in run.stdout
    plan = read_plan(out)
    assert plan.spacing == (2, 2, 4)
    assert plan.kernel_sizes[0] == (3, 3, 1)

    out.write_text(json.dumps(json.loads(out.read_text()) | {"patch_size": [8, 12, 4], "class_balance": 0.35}))
    run = run_training(dataset, tmp_path / "out", "--plan", out)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "patches: 2 of 8x12x4 voxels" in run.stdout
    model = read_description(tmp_path / "out" / "models" / "model.pt")
    assert model.patch_size == (8, 12, 4)
    assert model.spacing == (2, 2, 4)
    assert read_plan(tmp_path / "out" / "models" / "plan.json").class_balance == 0.35


def test_ct_is_trained_on_and_predicted_on_its_own_scale(tmp_path, ct):
    """The scale reaches the model's description; evaluating and predicting by it give the same segmentation."""
    folder = tmp_path / "ct"
    run = run_training(folder, tmp_path / "out", "--val_fraction", 0)
    assert run.returncode == 0, run.stderr + run.stdout
    model_file = tmp_path / "out" / "models" / "model.pt"
    model = load_model(model_file)
    assert model.description.intensity == make_plan(ct, None).intensity
    image = folder / "image_0.nii.gz"
    bundle = ("--model_file", model_file, "--dataset_dir", image)
    commands = [
        ("predict", model_file, image, "-o", tmp_path / "a"),
        ("run", "inference", *bundle, "--output_dir", tmp_path / "b"),
    ]
    for command in commands:
        run = run_sparse3dunet(*command)
        assert run.returncode == 0, run.stderr + run.stdout
    voxels = [np.asarray(nib.load(tmp_path / name / "image_0_seg.nii.gz").dataobj) for name in "ab"]
    np.testing.assert_array_equal(*voxels)
    dense = sliding_window_inference(  # MONAI's own parts, on the image normalised by the description's numbers
        normalized(image, model.description.intensity), model.patch_size, 4, model.network, 0.5, mode="gaussian"
    )
    agree = (np.asarray(dense.argmax(1)[0]) == voxels[0]).mean()
    assert agree > 0.995


def normalized(path, scale):
    values = np.clip(np.asarray(nib.load(path).dataobj, np.float32), scale["lower"], scale["upper"])
    return torch.from_numpy((values - scale["mean"]) / scale["std"])[None, None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--minutes", "-1"), "minutes must be a number above 0"),
        (("--minutes", "nan"), "minutes must be a number above 0"),
        (("--largest_patch_size", "16"), "largest_patch_size is 16; expected three whole numbers"),
        (("--largest_patch_size", "[16,16,0]"), "largest_patch_size is [16, 16, 0]; expected three whole numbers"),
        (("--patch_voxels", "-1"), "patch_voxels must be a number of at least 1"),
        (("--network_def#channels", "8"), "channels is 8; expected a whole number above 0 for each"),
        (("--spacing", "[1e-6,1,1]"), "--spacing 1e-06,1,1: case_0 would have"),
    ],
)
def test_settings_of_no_plan(dataset, options, words):
    run = run_sparse3dunet("plan", dataset, *options)
    assert run.returncode == 1
    assert words in run.stderr, run.stderr
    assert "Traceback" not in run.stderr


def test_the_reasons_are_those_of_the_data(ct, tmp_path):
    """They do not make a plan another one."""
    plan = make_plan(ct, None)
    assert dataclasses.replace(plan, reasons={}) == plan
    assert plan.reasons["intensities"].startswith("CT has an absolute scale")
    assert plan.reasons["network"].startswith("an axis is pooled once")
    for size, words in ((0.5, "voxels are nearly cubes"), (3.0, "voxels are nearly cubes")):
        cubes = make_plan(write(tmp_path / f"{size}", [an_image()], [two_blobs()], np.diag([size] * 3 + [1])), None)
        assert cubes.reasons["network"] == cubes.reasons["kernels"] == words
        assert cubes.reasons["intensities"].startswith("intensities of this kind of image have no absolute scale")


def test_patches_for_a_network_that_does_not_say_what_it_can_process(ct):
    plan = dataclasses.replace(make_plan(ct, None), patch_size=(8, 9, 16))
    assert plan.patch_size_for(torch.nn.Identity()) == [8, 16, 16]
