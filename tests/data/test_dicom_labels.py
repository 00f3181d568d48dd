"""Labels of data sets in DICOM: which segments count, and which values mean unlabeled."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.checks import complete, inspect
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.defaults import SEGMENTS, set_defaults
from tests.conftest import run_sparse3dunet
from tests.io.dicom_files import write_seg, write_series

SHAPE = (6, 5, 4)
LIVER, TUMOR = (slice(0, 4), slice(0, 4), 1), (slice(2, 5), slice(2, 5), 1)
"""They overlap."""


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv(SEGMENTS, "")


def box(place):
    mask = np.zeros(SHAPE, bool)
    mask[place] = True
    return mask


def data_set(folder, *segments, **declared):
    """A data set with a case for each dictionary of masks, as a SEG; of an array, as NIfTI."""
    cases = []
    for number, masks in enumerate(segments):
        series = write_series(folder / f"ct{number}", np.zeros(SHAPE, np.int16), SeriesInstanceUID=f"1.2.3.{number}")
        label = folder / f"label{number}.{'dcm' if isinstance(masks, dict) else 'nii'}"
        if isinstance(masks, dict):
            write_seg(label, series, masks)
        else:
            nib.save(nib.Nifti1Image(masks, read_image(series).affine), label)
        cases.append({"image": str(series), "label": str(label)})
    reference = declared.pop("reference", None)
    if reference is not None:
        nib.save(nib.Nifti1Image(reference, read_image(series).affine), folder / "reference.nii")
        cases[-1]["reference"] = str(folder / "reference.nii")
    (folder / "data.json").write_text(json.dumps({"training": cases, **declared}))
    return read_data_set(folder / "data.json")


def label_of(data, number=0):
    return read_image(data.cases[number]["label"])


DECLARED = {"labels": {"0": "background", "1": "liver", "2": "tumor"}}


@pytest.mark.parametrize("declared", [{}, DECLARED])
def test_segments_are_selected_in_their_order(tmp_path, declared):
    masks = {"Liver": box(LIVER), "Tumor": box(TUMOR), "Body": np.ones(SHAPE, bool)}
    set_defaults(segments="tumor,liver")
    data = data_set(tmp_path, masks, **declared)
    by_name = {name.lower(): value for name, value in zip(data.class_names, data.class_values)}
    expected = np.full(SHAPE, -1)
    expected[:, :, 1] = 0
    expected[TUMOR], expected[LIVER] = by_name["tumor"], by_name["liver"]
    np.testing.assert_array_equal(label_of(data).data, expected)
    set_defaults(segments="liver")
    expected[TUMOR], expected[LIVER] = 0, 1
    (tmp_path / "liver").mkdir()
    np.testing.assert_array_equal(label_of(data_set(tmp_path / "liver", masks, **declared)).data, expected)


@pytest.mark.parametrize("declared", [{}, DECLARED])
@pytest.mark.parametrize("word", ["background", "ignore"])
def test_background_and_ignore_are_never_left_out(tmp_path, declared, word):
    masks = {"liver": box((slice(0, 2), 0, 1)), "tumor": box((4, 4, 1)), word: box((slice(0, 4), slice(0, 3), 1))}
    set_defaults(segments="liver,tumor")
    expected = np.full(SHAPE, -1)
    if word == "background":
        expected[masks[word]] = 0
    else:
        expected[:, :, 1] = np.where(masks[word][:, :, 1], -1, 0)
    expected[masks["liver"]], expected[masks["tumor"]] = 1, 2
    np.testing.assert_array_equal(label_of(data_set(tmp_path, masks, **declared)).data, expected)


@pytest.mark.parametrize("declared", [{}, DECLARED])
def test_chosen_segments_must_be_in_some_case(tmp_path, declared):
    """And a case without one of them says so."""
    masks = {"liver": box(LIVER)}, {"liver": box(LIVER), "tumor": box((4, 4, 1))}
    set_defaults(segments="liver,tumor")
    data = data_set(tmp_path, *masks, **declared)
    assert any("no segment is named tumor (--segments)" in note for note in label_of(data).notes)
    assert not any("no segment is named" in note for note in label_of(data, 1).notes)
    set_defaults(segments="liver,tumour")
    with pytest.raises(DataError, match=r"no segment is named tumour \(--segments\); found liver, tumor"):
        read_data_set(tmp_path / "data.json")


def test_what_is_told_of_one_case_is_not_taken_for_what_is_told_of_another(tmp_path):
    """Notes that differ in files and figures alone are told once, all others each."""
    two_slices, gone = box(LIVER) | box((0, 0, 3)), {"liver": box(LIVER), "lesion 1": box((4, 4, 1))}
    masks = {**gone, "liver": two_slices, "lesion 2": box((4, 4, 2))}
    set_defaults(segments="liver,lesion 1,lesion 2")
    lines = inspect(complete(data_set(tmp_path, masks, gone, {"liver": box(LIVER)}))).warning_lines()
    (slices,) = [line for line in lines if "those on which" in line]
    assert "label0.dcm: annotated are 3 of 4 slices" in slices
    assert slices.endswith("The same in 2 more case(s).")
    lacking = [line.split("label")[1] for line in lines if "no segment is named" in line]
    assert lacking == [
        "1.dcm: no segment is named lesion 2 (--segments).",
        "2.dcm: no segment is named lesion 1, lesion 2 (--segments).",
    ]


def test_slices_outside_of_the_image_are_told(tmp_path):
    """Also of a reference."""
    masks = {"liver": box(LIVER) | box((0, 0, 3))}
    data_set(tmp_path, masks)
    image = write_series(tmp_path / "part", np.zeros((6, 5, 3), np.int16), SeriesInstanceUID="1.2.3.0")
    for number in range(2):
        shutil.copy(tmp_path / "label0.dcm", tmp_path / f"copy{number}.dcm")
    case = {"image": str(image), "label": str(tmp_path / "copy0.dcm"), "reference": str(tmp_path / "copy1.dcm")}
    (tmp_path / "data.json").write_text(json.dumps({"training": [case], **DECLARED}))
    lines = inspect(complete(read_data_set(tmp_path / "data.json"))).warning_lines()
    told = [line for line in lines if "1 of its slices or contours are outside" in line]
    assert len(told) == 2
    assert "copy0.dcm" in told[0]
    assert "copy1.dcm" in told[1]


def test_a_segment_that_no_label_names_is_told(tmp_path):
    """Its voxels count as background: of one case in two, a tumor would be learned as such without a word."""
    others = {"Liver": box(LIVER), "Tumour": box((4, 4, 1)), "Body": box((5, 0, 1))}
    data = data_set(tmp_path, {"liver": box(LIVER), "tumor": box((4, 4, 1))}, others, **DECLARED)
    lines = [line for line in inspect(complete(data)).warning_lines() if "left out" in line]
    assert len(lines) == 1
    told = "no class has this name: Tumour (did you mean tumor?), and 1 other structure(s);"
    assert f"label1.dcm: left out, since {told}" in lines[0]
    assert "The classes are liver, tumor. Correct the name" in lines[0]
    set_defaults(segments="liver")
    data = read_data_set(tmp_path / "data.json")
    assert not any("left out" in line for line in inspect(complete(data)).warning_lines())


def test_structures_that_no_label_names_are_counted(tmp_path):
    """Structure sets have many; a line of names for each case hid all else. A class that is there is not misspelled."""
    masks = {"liver": box(LIVER), "tumor": box((4, 4, 1)), "Body": box((5, 0, 1)), "Liver 2": box((5, 1, 1))}
    data = data_set(tmp_path, masks, {**masks, "Couch": box((5, 2, 1))}, **DECLARED)
    (line,) = [line for line in inspect(complete(data)).warning_lines() if "left out" in line]
    assert "label0.dcm: 2 structure(s) that no declared class names are left out; the voxels count as in no" in line
    assert line.endswith("The classes are liver, tumor. The same in 1 more case(s).")


def test_a_segment_of_a_reference_that_no_label_names_is_told(tmp_path):
    data_set(tmp_path, {"liver": box(LIVER)}, {"liver": box(LIVER), "tumour": box((4, 4, 1))}, **DECLARED)
    content = json.loads((tmp_path / "data.json").read_text())
    (one, other) = content["training"]
    content["training"] = [{**one, "reference": other["label"]}]
    (tmp_path / "data.json").write_text(json.dumps(content))
    (line,) = [t for t in inspect(read_data_set(tmp_path / "data.json")).warning_lines() if "left out" in t]
    assert "label1.dcm" in line


def test_segments_that_no_annotation_names(tmp_path):
    """The option would do nothing; one annotation with names is enough."""
    mask = box(LIVER).astype(np.uint8)
    set_defaults(segments="liver")
    with pytest.raises(DataError, match=r"label0\.nii and 1 other .*--segments names liver, but no annotation names"):
        data_set(tmp_path, mask, mask, **DECLARED)
    (tmp_path / "mixed").mkdir()
    assert len(data_set(tmp_path / "mixed", {"liver": box(LIVER)}, mask, **DECLARED).cases) == 2
    like = read_image(tmp_path / "ct1")
    write_segmentation(tmp_path / "label1.seg.nrrd", mask, like, {0: "background", 1: "liver"})
    cases = [{"image": "ct0", "label": "label0.nii"}, {"image": "ct1", "label": "label1.seg.nrrd"}]
    (tmp_path / "data.json").write_text(json.dumps({"training": cases, **DECLARED}))
    assert len(read_data_set(tmp_path / "data.json").cases) == 2
    (tmp_path / "data.json").write_text(json.dumps({"training": cases[:1], **DECLARED}))
    result = run_sparse3dunet("check", tmp_path / "data.json", "--segments", "liver")
    assert result.returncode == 1
    assert "label0.nii: --segments names liver" in result.stderr + result.stdout


def test_declared_classes_and_segments_must_agree(tmp_path):
    masks = {"liver": box(LIVER), "Body": box((4, 4, 1))}
    set_defaults(segments="body,liver")
    with pytest.raises(DataError, match="--segments names body, but labels declares no such class"):
        data_set(tmp_path, masks, **DECLARED)
    set_defaults(segments="liver")
    labels = {"labels": {"0": "background", "1": "Liver", "2": "liver"}}
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="differ in more than upper and lower case"):
        data_set(tmp_path / "b", masks, **labels)


def test_slices_stay_unlabeled_beside_nifti(tmp_path):
    """A reference in NIfTI changes nothing; labels in NIfTI keep their default value of unlabeled voxels."""
    masks = {"liver": box(LIVER), "tumor": box((4, 4, 1))}
    data = data_set(tmp_path, masks, reference=np.zeros(SHAPE, np.uint8))
    assert data.ignore_index == (-1,)
    assert label_of(data).data.min() == -1
    (tmp_path / "b").mkdir()
    data = data_set(tmp_path / "b", masks, np.full(SHAPE, 3, np.uint8), **DECLARED)
    assert data.ignore_index == (-1, 3)
    assert label_of(data).data.min() == -1


@pytest.mark.parametrize("unlabeled", [65535, -32768, 2**31])
def test_any_value_may_mean_unlabeled(tmp_path, unlabeled):
    data = data_set(tmp_path, {"liver": box(LIVER)}, ignore_index=unlabeled)
    assert set(np.unique(label_of(data).data)) == {unlabeled, 0, 1}
