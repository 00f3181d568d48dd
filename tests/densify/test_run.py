"""The command that densifies: what it writes, going on, being killed, and what it refuses."""

import csv
import html
import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.slices import slices_mask
from sparse3dunet.densify.state import Learned, StateFile
from sparse3dunet.io import read_image, write_map, write_segmentation
from sparse3dunet.io.volumes import Volume
from sparse3dunet.metrics import surface_distances
from sparse3dunet.models.description import read_description
from tests.conftest import (
    ROOT,
    make_dataset,
    make_volume,
    run_bundle,
    run_sparse3dunet,
    write_nifti,
)

SMALL = ("--network_def#channels", "[4,8,8]", "--largest_patch_size", "[16,16,16]", "--epoch_length", "10")
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]])
INDICES = ([5, 14], [6, 12], [5, 11])


def densify(*arguments, cwd=ROOT):
    return run_sparse3dunet("densify", *arguments, cwd=cwd)


def write_scan(folder, seed=0, indices=INDICES, unlabeled=255):
    """A scan and its annotation on some slices of each axis; returns them, and the dense label."""
    image, dense, _ = make_volume(seed)
    sparse = np.where(slices_mask(dense.shape, list(indices)), dense, unlabeled).astype(np.uint8)
    scan = write_nifti(folder / "scan.nii.gz", image, AFFINE)
    return scan, write_nifti(folder / "annotation.nii.gz", sparse, AFFINE), dense


def array(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a scan, its annotation, and what the command made of them in "out"."""
    root = tmp_path_factory.mktemp("densify")
    dense = write_nifti(root / "dense.nii.gz", write_scan(root)[2], AFFINE)
    files = (root / "scan.nii.gz", root / "annotation.nii.gz", "--reference", dense)
    result = densify(*files, "-o", root / "out", "--minutes", 0.2, *SMALL)
    assert result.returncode == 0, result.stderr
    (root / "printed.txt").write_text(result.stdout)
    return root


def test_results(done):
    """On the scan's grid, in the annotation's values, which are kept; a model that predicts; nothing unfinished."""
    out = done / "out"
    sparse, found, confidence = (
        array(path) for path in (done / "annotation.nii.gz", out / "scan_seg.nii.gz", out / "scan_confidence.nii.gz")
    )
    assert np.allclose(nib.load(out / "scan_seg.nii.gz").affine, AFFINE)
    annotated = sparse != 255
    assert np.array_equal(found[annotated], sparse[annotated])
    assert set(np.unique(found)) <= {0, 1, 2}
    assert (confidence[annotated] == 255).all()
    assert confidence[~annotated].mean() > 128
    preview = array(out / "scan_preview.nii.gz")
    assert np.array_equal(preview[annotated], sparse[annotated])
    assert preview.dtype == found.dtype == np.uint8
    assert set(np.unique(preview)) <= {0, 1, 2}
    assert read_description(out / "model/model.pt").class_values == (0, 1, 2)
    assert not list(out.rglob("*.part*"))
    printed = (done / "printed.txt").read_text()
    assert "report.html" in printed
    assert re.search(r"^methods: auto-context, .*network", printed, re.MULTILINE)  # whose Dice is printed, too
    assert " - INFO - " not in printed
    assert run_sparse3dunet("predict", out / "model", done / "scan.nii.gz", "-o", done / "new").returncode == 0
    assert array(done / "new/scan_seg.nii.gz").shape == found.shape


def test_it_says_what_to_do_next(done):
    """In the terminal and in the report; a network of few iterations is told once, and as what it is."""
    printed, out = (done / "printed.txt").read_text(), done / "out"
    files = f"densify {done / 'scan.nii.gz'} {out / 'scan_next.nii.gz'}"
    pattern = rf"^Next: correct {out}/scan_next.nii.gz \(erase its .*\), then: .*{files} .* -o {out} "
    assert re.search(pattern, printed[printed.index("Done in") :], re.MULTILINE)
    report = html.unescape((out / "report.html").read_text())
    assert re.search(pattern.replace("^", "<p>"), report)
    assert "erase those that you did not check" in report
    warned = re.findall(r"^warning: the network has had only \d+ iterations.*", printed, re.MULTILINE)
    assert len(warned) <= 1
    assert all(text in report for text in warned)


def test_quality_is_of_annotation_that_was_held_out(done):
    """In whole slices and blocks; what it expects is near what the dense label, which it never saw, gives."""
    quality = json.loads((done / "out/quality.json").read_text())
    assert quality["slices"] == sum(map(len, INDICES))
    assert quality["folds"] == len(StateFile(done / "out").read().held_out) == 3
    assert [entry["name"] for entry in quality["classes"]] == ["background", "class 1", "class 2"]
    low, high = quality["mean_dice_interval"]
    assert low <= quality["mean_dice"] <= high
    _, dense, _ = make_volume(0)
    found, unknown = array(done / "out/scan_seg.nii.gz"), array(done / "annotation.nii.gz") == 255
    true = []
    for number in (1, 2):
        a, b = (found == number) & unknown, (dense == number) & unknown
        true.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert abs(np.mean(true) - quality["mean_dice"]) < 0.1
    assert min(true) > 0.6
    printed = (done / "printed.txt").read_text()
    assert "90 % interval" in printed
    assert re.search(r"Preview after \d+ s: .*scan_preview.nii.gz", printed)


def test_scores_by_the_dense_label(done):
    """Beside the estimate, in all files, the same as of the files that were written."""
    found, unknown = array(done / "out/scan_seg.nii.gz"), array(done / "annotation.nii.gz") == 255
    dense, spacing = make_volume(0)[1], (2.0, 1.5, 2.5)
    true = surface_distances(found == 2, dense == 2, spacing, unknown)
    reference = json.loads((done / "out/quality.json").read_text())["reference"]
    case = reference["cases"]["unlabeled"]["scan"]["class 2"]
    assert case["hd95_mm"] == pytest.approx(true.hd95)
    assert case["nsd"] == pytest.approx(true.surface_dice(3.0)), "twice the finest edge"
    a, b = (found == 2) & unknown, (dense == 2) & unknown
    assert case["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    with (done / "out/summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["class 2 ASSD mm (unlabeled)"]) == pytest.approx(true.average, rel=1e-4)
    printed = (done / "printed.txt").read_text()
    assert "Scores by the dense labels of 1 volume(s)" in printed
    assert "NSD: within 3 mm" in " ".join(printed.split())


def test_suggested_slices_and_their_template(done):
    out = done / "out"
    rows = json.loads((out / "suggestions.json").read_text())["scan"]
    assert rows
    sparse, template, found = (
        array(path) for path in (done / "annotation.nii.gz", out / "scan_next.nii.gz", out / "scan_seg.nii.gz")
    )
    annotated = sparse != 255
    assert np.array_equal(template[annotated], sparse[annotated])
    slices = [[row["index"] for row in rows if row["axis"] == axis] for axis in range(3)]
    assert not {(axis, i) for axis in range(3) for i in slices[axis]} & {
        (axis, i) for axis, indices in enumerate(INDICES) for i in indices
    }
    suggested = slices_mask(found.shape, slices)
    assert np.array_equal(template[suggested & ~annotated], found[suggested & ~annotated])
    assert (template[~suggested & ~annotated] == 255).all()


def test_with_too_little_time_the_preview_is_the_result_and_it_says_so(tmp_path):
    """Of a scan that is too large to be worked on in any case."""
    image, dense, _ = make_volume(0)
    image, dense = (np.kron(a, np.ones((4, 4, 4), a.dtype)) for a in (image, dense))
    indices = [list(range(8, n, 16)) if axis == 2 else [] for axis, n in enumerate(dense.shape)]
    sparse = np.where(slices_mask(dense.shape, indices), dense, 255).astype(np.uint8)
    scan = write_nifti(tmp_path / "scan.nii.gz", image)
    annotation = write_nifti(tmp_path / "annotation.nii.gz", sparse)
    out = tmp_path / "out"
    result = densify(scan, annotation, "-o", out, "--minutes", 0.02, *SMALL)
    assert result.returncode == 0, result.stderr
    printed = " ".join(result.stdout.split())
    assert re.search(r"there is only time for a preview, which is the result, .* use --minutes [\d.]+\.", printed)
    assert "not evaluable" in printed
    np.testing.assert_array_equal(array(out / "scan_seg.nii.gz"), array(out / "scan_preview.nii.gz"))
    quality = json.loads((out / "quality.json").read_text())
    assert quality["mean_dice"] is None
    assert "only time for a preview" in quality["reason"]
    assert "there is only time for a preview" in (out / "report.html").read_text()


def test_report_is_one_file_with_everything(done):
    text = (done / "out/report.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert all(
        word in text for word in ("data:image/png;base64,", "class 2", "minutes", "torch", "sparse3dunet densify")
    )


def test_again_with_more_slices(done, tmp_path):
    """It begins with the last model, holds out what it held out before, and leaves a changed template alone."""
    out = done / "out"
    before = StateFile(out).read()
    image = nib.load(out / "scan_next.nii.gz")
    changed = np.asarray(image.dataobj).copy()
    changed[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(changed, image.affine), out / "scan_next.nii.gz")
    written = (out / "scan_next.nii.gz").read_bytes()
    result = densify(done / "scan.nii.gz", out / "scan_next.nii.gz", "-o", out, "--minutes", 0.2, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "Training the former run's model in" in result.stdout
    state = StateFile(out).read()
    assert state.goes_on
    assert any(before.held_out[0]["scan"])
    for held, former in zip(state.held_out[0]["scan"], before.held_out[0]["scan"], strict=True):
        assert set(former) <= set(held)
        assert all(
            {i - 1, i, i + 1} & set(former) for i in held
        )  # what is next to a held-out slice is held out with it
    assert (out / "scan_next.nii.gz").read_bytes() == written
    assert (out / "scan_next2.nii.gz").is_file()
    assert "was edited" not in result.stdout  # it was passed
    assert "scan_next.nii.gz" not in state.templates  # nor is it told of, or replaced, from now on
    assert list(Learned(out).folder.glob("*.npz"))
    assert not Learned(out).pending.exists()


def test_a_template_that_nobody_changed_is_told_of_and_kept(done, tmp_path):
    out = shutil.copytree(done / "out", tmp_path / "out")
    template = out / list(StateFile(out).read().templates)[-1]
    written = template.read_bytes()
    result = densify(done / "scan.nii.gz", template, "-o", out, "--minutes", 0.1, "--folds", 0, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "although nobody corrected it" in result.stdout
    assert "although nobody corrected it" in (out / "report.html").read_text()
    assert template.read_bytes() == written


def test_what_changed_since_the_former_run_is_told_of(done, tmp_path):
    """A template that is not passed, and annotation that was corrected; copied results are as they were written."""
    out = shutil.copytree(done / "out", tmp_path / "out")
    for path in out.glob("scan_*"):
        os.utime(path, (1, 1))
    _, annotation, dense = write_scan(tmp_path)
    template = out / list(StateFile(out).read().templates)[-1]
    write_nifti(template, np.zeros(dense.shape, np.uint8), AFFINE)
    corrected = np.where(array(annotation) == 255, 255, 2 - dense).astype(np.uint8)
    write_nifti(annotation, corrected, AFFINE)
    result = densify(done / "scan.nii.gz", annotation, "-o", out, "--minutes", 0.1, "--folds", 2, *SMALL)
    assert result.returncode == 0, result.stderr
    assert f"{template} was edited, but is not an annotation of this run" in result.stdout
    found = re.search(
        r"scan: (\d+) voxels that the former run's model was trained on have another label", result.stdout
    )
    assert found
    assert int(found[1]) >= ((corrected != 255) & (corrected != dense)).sum()
    assert "the first is the one that the former run's model was not trained on" in result.stdout
    assert "unlabeled: the value 255" in result.stdout
    assert "the value 255" in (out / "report.html").read_text()


def test_changed_results_are_not_overwritten(done, tmp_path):
    scan, annotation, _ = write_scan(tmp_path)
    write_nifti(tmp_path / "out/scan_seg.nii.gz", np.zeros((3, 3, 3), np.uint8))
    before = (tmp_path / "out/scan_seg.nii.gz").read_bytes()
    result = densify(scan, annotation, "-o", tmp_path / "out", "--minutes", 0.1, *SMALL)
    assert result.returncode == 1
    assert "scan_seg.nii.gz exists and is not what this command wrote" in result.stderr
    assert "Move it, or write into another folder." in result.stderr  # densify has no option to overwrite
    assert "--overwrite" not in result.stderr
    assert (tmp_path / "out/scan_seg.nii.gz").read_bytes() == before
    assert "held out" not in result.stdout  # it was told before anything was computed
    assert not (tmp_path / "out/scan_preview.nii.gz").exists()


def test_from_nrrd_to_3d_slicer_on_coarser_voxels_in_three_folds(tmp_path):
    """In the scan's own place and format; a second scan is not mixed with the first."""
    image, dense, _ = make_volume(0)
    scan = Volume("", image, AFFINE)
    write_map(tmp_path / "scan.nrrd", image, scan)
    sparse = np.where(slices_mask(dense.shape, list(INDICES)), dense + 1, 0).astype(np.uint8)
    write_segmentation(tmp_path / "a.nrrd", sparse, scan, {0: "unlabeled", 1: "background", 2: "shell", 3: "core"})
    options = ("--minutes", 0.2, "--folds", 3, "--spacing", "3,3,3", "--format", "seg.nrrd", "--as-predicted")
    names = ("--class-names", "background,shell,core")
    result = densify(tmp_path / "scan.nrrd", tmp_path / "a.nrrd", "-o", tmp_path / "out", *options, *names, *SMALL)
    assert result.returncode == 0, result.stderr
    found = read_image(tmp_path / "out/scan.seg.nrrd")
    assert np.allclose(found.affine, AFFINE)
    assert found.data.shape == image.shape
    assert set(np.unique(found.data)) <= {1, 2, 3}
    assert (tmp_path / "out/scan_confidence.nrrd").is_file()
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert quality["folds"] == 3
    assert [entry["name"] for entry in quality["classes"]] == ["background", "shell", "core"]
    assert "voxel size: 3x3x3 mm (as requested)" in result.stdout
    assert "3 part(s) of the slices held out (as requested)" in result.stdout
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "scan.nrrd", tmp_path / "other/scan.nrrd")
    result = densify(tmp_path / "other/scan.nrrd", tmp_path / "a.nrrd", "-o", tmp_path / "out", *options)
    assert result.returncode == 1
    assert "Pass another folder (-o)" in result.stderr


@pytest.mark.slow
def test_several_volumes_by_monais_command(tmp_path):
    """A folder as it is declared, without an estimate, in another format."""
    data = make_dataset(tmp_path / "data", 2)
    config = f"['{ROOT}/bundle/configs/train.yaml','{ROOT}/bundle/configs/densify.yaml']"
    places = ("--dataset_dir", data, "--output_dir", tmp_path / "out")
    options = ("--minutes", 0.1, "--folds", 0, "--format", "nrrd", "--suggestions", 0, "--keep_annotation", "False")
    result = run_bundle("run", "densify", "--config_file", config, *places, *options, *SMALL)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nrrd")) == [
        f"case_{i}_{kind}.nrrd" for i in range(2) for kind in ("confidence", "preview", "seg")
    ]
    assert "not evaluable" in result.stdout
    assert "shell" in (tmp_path / "out/summary.csv").read_text()
    assert json.loads((tmp_path / "out/suggestions.json").read_text()) == {"case_0": [], "case_1": []}


OTHER = """\
network_def:
  _target_: monai.networks.nets.UNet
  spatial_dims: 3
  in_channels: "@num_channels"
  out_channels: "@num_classes"
  channels: [4, 8]
  strides: [2]
normalize:
- {_target_: ScaleIntensityRanged, keys: image, a_min: 0, a_max: 250, b_min: 0, b_max: 1}
"""


def test_a_network_and_a_normalisation_of_ones_own(tmp_path):
    (tmp_path / "other.yaml").write_text(OTHER)
    files = [ROOT / "bundle/configs/train.yaml", ROOT / "bundle/configs/densify.yaml", tmp_path / "other.yaml"]
    places = ("--dataset_dir", make_dataset(tmp_path / "data", 1), "--output_dir", tmp_path / "out")
    options = ("--minutes", 0.1, "--largest_patch_size", "[16,16,16]", "--epoch_length", "10")
    result = run_bundle("run", "densify", "--config_file", repr(list(map(str, files))), *places, *options)
    assert result.returncode == 0, result.stderr
    assert "network: not a UNet3D" in result.stdout
    assert (array(tmp_path / "out/case_0_seg.nii.gz") > 0).any()
    description = json.loads((tmp_path / "out/model/model.json").read_text())
    assert description["network"] is None
    assert "ScaleIntensityRanged" in description["normalize"][0]


def test_damage_costs_no_result(tmp_path):
    """Of what a former run left: what cannot be used is told at once, a model is kept, and the run begins anew."""
    scan, annotation, _ = write_scan(tmp_path)
    out = tmp_path / "out"
    command = (scan, annotation, "-o", out, "--minutes", 0.05, "--folds", 2, *SMALL)
    result = densify(*command)
    assert result.returncode == 0, result.stderr
    before = (out / "model/model.pt").read_bytes()
    (out / "model/model.json").write_bytes(b"\xff\xfe{}")
    (out / "suggestions.json").write_text('{"scan": [{"axis": 1, "index": 1e999}]}')
    os.mkfifo(out / "records/pipe.json")
    for name in ("final/training.csv", "fold_0/model.pt"):
        (out / "work" / name).write_bytes(b"epoch,iteration\n3")
    state = StateFile(out).read()
    state.complete, state.digest = False, "of another version"
    StateFile(out).write(state)
    result = densify(*command)
    assert result.returncode == 0, result.stderr
    assert f"The unfinished run in {out} begins anew: {out / 'model/model.json'}: not a model" in result.stdout
    assert f"cannot be trained further, kept as {out / 'model/model_before.pt'}: {out / 'model/model.json'}: not a" in (
        html.unescape((out / "report.html").read_text())
    )
    assert (out / "model/model_before.pt").read_bytes() == before
    assert read_description(out / "model/model.pt").class_values == (0, 1, 2)

    state = StateFile(out).read()
    state.complete = state.trained = False
    StateFile(out).write(state)
    (out / "work/final/last.pt").write_bytes(b"no tensors")
    result = densify(*command)
    assert result.returncode == 0, result.stderr
    assert "Continuing the unfinished run" in result.stdout
    assert re.search(r"last.pt is not the state of a training .*; this part of it begins again", result.stdout)
    assert "--resume" not in result.stdout
