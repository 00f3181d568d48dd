"""What a run says of templates, of its network, and of what to do next."""

import json
import os
import shlex
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.cli.arguments import class_names
from sparse3dunet.data import set_conventions
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.slices import slices_mask
from sparse3dunet.densify.former import check_annotation, next_step
from sparse3dunet.densify.inputs import prepare_pair
from sparse3dunet.densify.results import Results
from sparse3dunet.densify.state import State
from sparse3dunet.densify.summary import few_iterations, learned
from sparse3dunet.io.itk_snap import label_descriptions
from sparse3dunet.io.written import file_digest
from sparse3dunet.training.log import COLUMNS
from tests.conftest import make_dataset, make_volume, write_nifti


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A scan and its annotation in the working folder."""
    monkeypatch.chdir(tmp_path)
    image, _, sparse = make_volume(0)
    write_nifti(tmp_path / "a scan.nii.gz", image)
    write_nifti(tmp_path / "annotation.nii.gz", sparse)
    return tmp_path


def told(monkeypatch, words, data_set, templates):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sparse3dunet", *shlex.split(words)])
    return next_step(templates, data_set)


def test_the_command_that_continues_with_the_template(pair, monkeypatch):
    data_set = read_data_set(prepare_pair("a scan.nii.gz", "annotation.nii.gz", pair / "out/work/inputs"))
    template = [pair.relative_to(pair) / "out/a scan_next.nii.gz"]
    words = "densify 'a scan.nii.gz' annotation.nii.gz -o out --restart --ignore-index 3"
    expected = (
        "Next: correct 'out/a scan_next.nii.gz' (erase its slices that you did not check), then: "
        "sparse3dunet densify 'a scan.nii.gz' 'out/a scan_next.nii.gz' -o out --ignore-index 3"
    )
    assert told(monkeypatch, words, data_set, template) == expected
    words = "densify --reference annotation.nii.gz 'a scan.nii.gz' ./annotation.nii.gz -o out"
    step = told(monkeypatch, words, data_set, template)
    assert step.endswith("--reference annotation.nii.gz 'a scan.nii.gz' 'out/a scan_next.nii.gz' -o out")
    assert told(monkeypatch, words, data_set, []) == ""
    assert told(monkeypatch, "worker", data_set, template) == "", "nobody typed it"
    listed = told(monkeypatch, "densify out/work/inputs/datalist.json -o out", data_set, template)
    assert listed.endswith(
        shlex.join(["sparse3dunet", "densify", str(pair / "a scan.nii.gz"), str(template[0]), "-o", "out"])
    )


@pytest.mark.parametrize(
    ("words", "found", "after"),
    [
        ("'a scan.nii.gz' lab.ome.zarr", "lab.ome.zarr/labels/cells", "'a scan.nii.gz' next.nrrd"),
        ("'a scan.nii.gz' ./lab.ome.zarr/", "lab.ome.zarr/labels/cells", "'a scan.nii.gz' next.nrrd"),
        ("'a scan.nii.gz' lab.ome.zarr/labels/cells", "lab.ome.zarr/labels/cells", "'a scan.nii.gz' next.nrrd"),
        ("'a scan.nii.gz' both.h5", "both.h5:/label", "'a scan.nii.gz' next.nrrd"),
        ("both.h5 both.h5", "both.h5:/label", "both.h5 next.nrrd"),
        ("both.h5 both.h5:/label", "both.h5:/label", "both.h5 next.nrrd"),
        ("'a scan.nii.gz' segmentations", "segmentations", "'a scan.nii.gz' next.nrrd"),
    ],
)
def test_options_are_kept_where_the_annotation_was_found_in_a_file_or_folder(pair, monkeypatch, words, found, after):
    path = prepare_pair("a scan.nii.gz", "annotation.nii.gz", pair / "out/work/inputs")
    for folder in ("lab.ome.zarr/labels/cells", "two.ome.zarr/labels/a", "two.ome.zarr/labels/b", "segmentations"):
        (pair / folder).mkdir(parents=True)
    with h5py.File(pair / "both.h5", "w") as file:
        file["raw"] = file["label"] = np.zeros((2, 2, 2), np.uint8)
    scan = pair / shlex.split(words)[0]
    pair_of = {"scan": str(scan), "annotation": str(pair / found)}
    path.write_text(json.dumps({**json.loads(path.read_text()), **pair_of}))
    data_set, options = (
        read_data_set(path),
        "-o out --ignore-index 7 --background 3 --minutes 2 --reference two.ome.zarr",
    )
    step = told(monkeypatch, f"densify {words} {options}", data_set, [Path("next.nrrd")])
    assert step.endswith(f"then: sparse3dunet densify {after} {options}")


def test_names_of_segments_are_said_by_options_when_the_template_has_none(pair, monkeypatch):
    path = prepare_pair("a scan.nii.gz", "annotation.nii.gz", pair / "out/work/inputs")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labels": {"0": "liver", "1": "Background", "2": "big tumor"}}))
    data_set = read_data_set(path)
    words = "densify 'a scan.nii.gz' annotation.nii.gz -o out --segments liver,tumor"
    step = told(monkeypatch, words, data_set, [pair / "next.nrrd"])
    assert step.endswith(f"{pair}/next.nrrd -o out --class-names 'Background,liver,big tumor' --background 1")
    assert "--segments" not in step
    for reference, stays in (("dense.seg.nrrd", False), ("dense.nii.gz", True)):
        step = told(monkeypatch, f"{words} --reference {reference}", data_set, [pair / "next.nrrd"])
        assert ("--reference" in step) == stays
        assert (reference in step) == stays


def test_names_with_a_comma_are_those_in_the_label_descriptions(pair, monkeypatch):
    path = prepare_pair("a scan.nii.gz", "annotation.nii.gz", pair / "out/work/inputs")
    names = {0: "Background", 1: "liver", 2: "a, b"}
    plain = read_data_set(path, ignore_index=3)
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": {str(v): n for v, n in names.items()}}))
    words = """densify 'a scan.nii.gz' annotation.nii.gz -o out --segments 'liver,"a, b"'"""
    descriptions = Path("out/labels.txt")
    descriptions.write_text(label_descriptions(names))
    step = told(monkeypatch, words, read_data_set(path), [Path("out/next.nrrd")])
    assert step.endswith("'a scan.nii.gz' out/next.nrrd -o out --class-names out/labels.txt")
    given = class_names(str(descriptions))
    assert set_conventions.complete(plain, given).class_names == list(names.values()), "they are taken"
    descriptions.write_text("the user's own")
    assert "--class-names" not in told(monkeypatch, words, read_data_set(path), [Path("out/next.nrrd")])


def test_several_volumes_have_labels_of_their_own(tmp_path, monkeypatch):
    data_set = read_data_set(make_dataset(tmp_path / "data", 2), annotated_slices={"axial": [9]})
    templates = [tmp_path / f"out/case_{number}_next.nii.gz" for number in range(5)]
    step = told(monkeypatch, "densify data -o out", data_set, templates)
    assert "case_2_next.nii.gz and 2 more (erase their slices that you did not check; list the others as" in step
    assert step.endswith("put them in place of the labels, then: sparse3dunet densify data -o out")


def test_slices_that_are_left_as_predicted_are_told(tmp_path):
    """Where other suggested slices cross, a correction of those changes them too."""
    data_set = read_data_set(make_dataset(tmp_path / "data", 1))
    results = Results(tmp_path / "out", data_set, None, keep_annotation=True)
    (case,) = results.cases
    _, dense, sparse = make_volume(0)
    suggested = [[5], [], [4, 7]]
    template = np.where(slices_mask(dense.shape, suggested), dense, sparse).astype(np.uint8)
    rows = [{"axis": axis, "index": i} for axis, indices in enumerate(suggested) for i in indices]
    label = data_set.cases[0]["label"]

    def notes(array):
        affine = nib.load(label).affine
        write_nifti(tmp_path / "data/labelsTr/case_0.nii.gz", array, affine)
        return check_annotation(results, templates, [label])

    templates: dict[str, str] = {}
    assert notes(template) == [], "there was no former run"
    write_nifti(results.files(case)["segmentation"], dense)
    (tmp_path / "out/suggestions.json").write_text(json.dumps({"case_0": rows}))
    assert notes(sparse) == [], "none of them is annotated"
    corrected = template.copy()
    corrected[:, :, 4] = 2 - dense[:, :, 4]
    (note,) = notes(corrected)
    assert note.startswith("case_0: 2 of the 3 slices suggested last time equal the prediction exactly")
    corrected[:, :, 7] = np.where(dense[:, :, 7] == 1, 2, dense[:, :, 7])
    corrected[5] = sparse[5]
    assert notes(corrected) == [], "the last one is erased"
    for text in ('{"case_0": [{"axis": 1, "index": 1e999}]}', "[" * 99999, '{"case_0": [{"axis": 7, "index": 1}]}', ""):
        (tmp_path / "out/suggestions.json").write_text(text)
        assert notes(template) == [], "it is damaged"
    (tmp_path / "out/suggestions.json").unlink()
    os.mkfifo(tmp_path / "out/suggestions.json")
    assert notes(template) == [], "reading it would never end"
    templates = {"case_0_next.nii.gz": file_digest(write_nifti(tmp_path / "data/labelsTr/case_0.nii.gz", template))}
    (note,) = notes(template)
    assert "was passed unchanged" in note


def log(folder, part, *iterations):
    path = folder / "work" / part / "training.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(COLUMNS), *(f"{n},{count},1" for n, count in enumerate(iterations))]))


def test_a_network_that_hardly_learned_is_told(tmp_path):
    state = State("", seconds={"fold_0": 1.0, "final": 1.0})
    log(tmp_path, "fold_0", 10, 30)
    log(tmp_path, "final", 10, 20, 25)
    (text,) = few_iterations(tmp_path, state, tmp_path / "model/model.pt")
    assert "only 55 iterations and took no part in the result" in text
    assert f"{tmp_path}/model is not fit for other scans" in text
    state.share = 0.5
    assert "took no part" not in few_iterations(tmp_path, state, tmp_path / "model/model.pt")[0]
    after = State("", seconds={"fold_0": 1.0, "final": 1.0}, goes_on=True, learned=learned(tmp_path, state))
    assert "only 80 iterations" in few_iterations(tmp_path, after, tmp_path / "model/model.pt")[0]
    log(tmp_path, "final", 100, 200)
    assert few_iterations(tmp_path, after, tmp_path / "model/model.pt") == []
    assert learned(tmp_path, State("")) == learned(tmp_path, None) == 200, "not known, and nothing is claimed"


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ("", ""),
        ("--annotated-slices all --minutes 2", "--minutes 2 --ignore-index 255"),
        ("--annotated-slices=axial", "--ignore-index 255"),
    ],
)
def test_unlabeled_voxels_of_a_template_have_a_value_of_their_own(pair, monkeypatch, options, after):
    data_set = read_data_set(prepare_pair("a scan.nii.gz", "annotation.nii.gz", pair / "out/work/inputs"))
    monkeypatch.setattr(sys, "argv", shlex.split(f"sparse3dunet densify 'a scan.nii.gz' annotation.nii.gz {options}"))
    step = next_step([Path("next.nii.gz")], data_set, 255)
    assert step.endswith(f"densify 'a scan.nii.gz' next.nii.gz {after}".rstrip())
