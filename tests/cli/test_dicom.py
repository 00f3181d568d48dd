"""The commands on DICOM: series and annotation in, results with references out, and the patient named nowhere else."""

import gzip
import json

import highdicom
import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag

from sparse3dunet.inference import run
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import read_image
from sparse3dunet.io.dicom_results import IDENTITY
from sparse3dunet.io.formats import read_segmentation
from sparse3dunet.models.loading import load_model
from tests.conftest import ROOT, make_volume, run_bundle, run_sparse3dunet, run_training
from tests.densify.test_run import SMALL
from tests.io.dicom_files import LPS, file_with, series_affine, sources, write_rtstruct, write_seg, write_series

MARK = "SURNAME"
TEXTS = (
    *("PatientName", "PatientID", "ReferringPhysicianName", "AccessionNumber", "StudyID", "IssuerOfPatientID"),
    *("OtherPatientIDs", "PatientComments", "PatientAddress", "StudyDescription", "SeriesDescription", "ImageComments"),
    *("ProtocolName", "InstitutionName", "OperatorsName", "PerformingPhysicianName", "StationName", "BodyPartExamined"),
    *("AdditionalPatientHistory", "RequestedProcedureDescription", "DerivationDescription", "Manufacturer"),
    *("PerformedProcedureStepDescription", "PatientTelephoneNumbers", "Occupation", "Allergies", "DeviceSerialNumber"),
)
"""Elements for text or names, with the mark in each."""
OF_THE_PATIENT = {
    "PatientName",
    "PatientID",
    "ReferringPhysicianName",
    "AccessionNumber",
    "StudyID",
    "IssuerOfPatientID",
}
"""Those of them that results in DICOM have, as docs/security.md says."""


def study(folder, seed=0, plane="axial, feet first"):
    """A study in nested folders, marked: a localizer, the series 4, and a report; and the dense label of the series."""
    image, dense, _ = make_volume(seed)
    marks = dict.fromkeys(TEXTS, MARK)
    series = write_series(folder / "PAT0/SE4", (5 * image).astype(np.int16), plane, **marks)
    flat = {"SeriesInstanceUID": "1.2.3.5", "SeriesNumber": 1, **marks}
    write_series(folder / "PAT0/SE1", image[:, :, :2].astype(np.int16), "coronal", **flat)
    file_with(folder / "PAT0/SR/report", "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR", SeriesInstanceUID="1.2.3.6")
    return folder, series, dense


def annotated(dense, number, slices=(4, 9, 13)):
    mask = np.zeros(dense.shape, bool)
    for k in slices:
        mask[:, :, k] = dense[:, :, k] == number
    return mask


def write_annotation(path, series, dense):
    return write_seg(path, series, {"core": annotated(dense, 2), "shell": annotated(dense, 1)})


def marked_keywords(path):
    """The keywords of the elements of a file that have the mark."""
    return {element.keyword for element in dcmread(path).iterall() if MARK in str(element.value) and element.VR != "SQ"}


def assert_unmarked(folder, *printed):
    for path in folder.rglob("*"):
        assert MARK not in path.name
        if path.is_file() and path.suffix != ".dcm":
            content = path.read_bytes()
            content += gzip.decompress(content) if path.suffix == ".gz" else b""
            assert MARK.encode() not in content, path
    assert not [text for text in printed if MARK in text]


def test_marks_are_texts():
    assert {dictionary_VR(keyword) for keyword in TEXTS} <= {"PN", "LO", "SH", "LT", "ST", "CS", "UT"}
    assert set(IDENTITY) >= OF_THE_PATIENT
    assert keyword_for_tag(0x00100010) == "PatientName"


@pytest.mark.slow
def test_a_study_is_densified_into_a_segmentation(tmp_path):
    """The series is that of the annotation; its slices keep their labels; the patient is in the DICOM file alone."""
    folder, series, dense = study(tmp_path / "study")
    annotation = write_annotation(tmp_path / "annotation.dcm", series, dense)
    out = tmp_path / "out"
    result = run_sparse3dunet(
        "densify", folder, annotation, "-o", out, "--minutes", 0.02, "--format", "dicom-seg", *SMALL
    )
    assert result.returncode == 0, result.stderr
    assert "of 2 series, that of the annotation is read: 1.2.3.4 (number 4, CT, 18 slice(s))" in result.stdout
    assert "annotated are 3 of 18 slices" in result.stdout
    assert MARK not in result.stdout + result.stderr
    assert_unmarked(out)
    names = {path.name for path in out.iterdir()}
    assert {"study.seg.dcm", "study_preview.seg.dcm", "study_confidence.nii.gz", "study_next.nii.gz"} <= names
    assert marked_keywords(out / "study.seg.dcm") == OF_THE_PATIENT
    seg = highdicom.seg.segread(out / "study.seg.dcm")
    assert [segment.segment_label for segment in seg.SegmentSequence] == ["core", "shell"]
    assert {segment.SegmentAlgorithmType for segment in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    uids = [str(elements.SOPInstanceUID) for elements in sources(series)]
    found = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    for k in (4, 9, 13):
        np.testing.assert_array_equal(found[k].T, np.array([0, 2, 1])[dense[:, :, k]])
    overlap = 2 * ((found.T > 0) & (dense > 0)).sum() / ((found > 0).sum() + (dense > 0).sum())
    assert overlap > 0.8


def test_predictions_are_the_same_in_every_format(trained, tmp_path, monkeypatch):
    """Also of a series that is chosen by its number."""
    monkeypatch.setenv("SPARSE3DUNET_SERIES", "4")
    folder, series, _ = study(tmp_path / "study", 3, "oblique")
    model = load_model(trained / "models")
    found = {}
    for suffix in ("nii.gz", "dicom-seg", "rtstruct"):
        out = tmp_path / suffix
        outcome = run.predict(model, [folder], out, SlabInferer(model.patch_size, 0.5), device="cpu", format=suffix)
        assert (outcome.done, outcome.failed) == (1, [])
        (path,) = (p for p in out.iterdir() if p.name.startswith("study"))
        found[suffix] = read_segmentation(path, read_image(series), dict(zip(model.class_values, model.class_names)))
        assert_unmarked(out)
        if path.suffix == ".dcm":
            assert marked_keywords(path) == OF_THE_PATIENT
            assert "'AUTOMATIC'" in str(dcmread(path))
    assert found["nii.gz"].any()
    np.testing.assert_array_equal(found["dicom-seg"], found["nii.gz"])
    np.testing.assert_array_equal(found["rtstruct"], found["nii.gz"])


@pytest.fixture
def data_set(tmp_path):
    """Two cases whose segments have other numbers and cases of letters, one with contours; and a dense reference."""
    cases = []
    for number in range(2):
        _, series, dense = study(tmp_path / f"study{number}", number)
        label = tmp_path / f"label{number}.dcm"
        if number:
            write_seg(label, series, {"SHELL": annotated(dense, 1), "core": annotated(dense, 2)})
        else:
            write_annotation(label, series, dense)
        cases.append({"image": str(series), "label": label.name})
        series.rename(series.with_name(f"case.{number}"))
        cases[-1]["image"] = f"study{number}/PAT0/case.{number}"
    write_seg(tmp_path / "dense.dcm", tmp_path / cases[0]["image"], {"core": dense == 2, "shell": dense == 1})
    cases[0]["reference"] = "dense.dcm"
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"training": cases}))
    return path


def test_data_sets_match_segments_by_name(data_set):
    result = run_sparse3dunet("check", data_set, "--json")
    report = json.loads(result.stdout)
    assert report["ok"], report["errors"]
    assert [(one["name"], one["value"]) for one in report["classes"]] == [("background", 0), ("core", 1), ("shell", 2)]
    for number, case in enumerate(report["cases"]):
        dense = make_volume(number)[1][:, :, [4, 9, 13]]
        assert case["name"] == f"case.{number}"
        assert case["slices"]["axial"] == [4, 9, 13]
        assert case["class_counts"] == [int((dense == value).sum()) for value in (0, 2, 1)]
    assert any("annotated are 3 of 18 slices" in text for text in report["warnings"])
    assert report["ignore_index"] == [-1]


def test_training_on_dicom(data_set, tmp_path):
    declared = {"0": "background", "4": "core"}
    data_set.write_text(json.dumps({**json.loads(data_set.read_text()), "labels": declared}))
    result = run_training(data_set, tmp_path)
    assert result.returncode == 0, result.stderr
    model = json.loads((tmp_path / "models/model.json").read_text())
    assert (model["class_names"], model["class_values"]) == (["background", "core"], [0, 4])


def test_errors_name_series_but_no_patient(tmp_path):
    folder, series, dense = study(tmp_path / "study")
    label = nib.save(nib.Nifti1Image(dense, read_image(series).affine), tmp_path / "label.nii.gz")
    assert label is None
    for more, words in (
        ((), ["found 2 DICOM series: 1.2.3.5 (number 1, CT, 2 slice(s)); 1.2.3.4 (number 4", "--series 1"]),
        (("--series", "7"), ["none of them has the UID or number 7 (--series)"]),
        (("--series", "4", "--format", "dicom"), ["format is 'dicom'; expected", "dicom-seg or rtstruct"]),
    ):
        result = run_sparse3dunet("densify", folder, tmp_path / "label.nii.gz", "-o", tmp_path / "out", *more)
        assert result.returncode == 1
        for word in words:
            assert word in result.stderr
        assert "Traceback" not in result.stderr
        assert MARK not in result.stdout + result.stderr
    outline = np.array([[10.0, -20, 5], [14, -20, 5], [14, -25, 5]])
    write_rtstruct(tmp_path / "rt.dcm", {MARK: [outline]}, series="1.2.3.5", frame_of_reference="1.2.99")
    result = run_sparse3dunet("densify", series, tmp_path / "rt.dcm", "-o", tmp_path / "out")
    assert "frame of reference is 1.2.99, that of the image 1.2.3.9" in result.stderr


def test_simulate_takes_segmentations(tmp_path):
    _, series, dense = study(tmp_path / "study")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels/a.dcm", series, {"core": dense == 2, "shell": dense == 1}, omit_empty_frames=False)
    result = run_sparse3dunet("simulate", tmp_path / "labels", "-o", tmp_path / "sparse", "--slices", "0,0,3")
    assert result.returncode == 0, result.stderr
    copy = nib.load(tmp_path / "sparse/a.nii.gz")
    kept = np.asarray(copy.dataobj)
    assert copy.shape == dense.shape
    whole = [k for k in range(18) if (kept[:, :, k] != 3).all()]
    assert len(whole) == 3
    np.testing.assert_array_equal(kept[:, :, whole], np.array([0, 2, 1])[dense[:, :, whole]])


def test_sparse_copies_of_structures(tmp_path, error_of):
    """A structure set has no grid of its own: it is read on its image's."""
    write_series(tmp_path / "ct", np.zeros((12, 10, 6), np.int16))
    square = np.array([[2.5, 1.5], [8.5, 1.5], [8.5, 6.5], [2.5, 6.5]])
    to_world = LPS @ series_affine()
    contours = [(np.column_stack([square, np.full(4, z), np.ones(4)]) @ to_world.T)[:, :3] for z in range(6)]
    file = write_rtstruct(tmp_path / "rt.dcm", {"liver": contours})
    command = ("simulate", file, "-o", tmp_path / "out", "--slices", "0,0,2")
    message = error_of(*command)
    assert "rt.dcm: contours (RTSTRUCT) have no grid of their own" in message
    assert "simulate --image" in message
    result = run_sparse3dunet(*command, "--image", tmp_path / "ct")
    assert result.returncode == 0, result.stderr
    dense = np.zeros((12, 10, 6), np.uint8)
    dense[3:9, 2:7] = 1
    (path,) = (tmp_path / "out").glob("[!.]*")
    found = read_image(path)
    np.testing.assert_allclose(found.affine, series_affine(), atol=1e-4)
    kept = np.flatnonzero((found.data != 2).any((0, 1)))
    assert len(kept) == 2
    np.testing.assert_array_equal(found.data[:, :, kept], dense[:, :, kept])
    write_series(tmp_path / "part", np.zeros((12, 10, 4), np.int16))
    result = run_sparse3dunet(*command, "--image", tmp_path / "part", "--overwrite")
    assert "rt.dcm: 2 of its slices or contours are outside of the image" in result.stdout
    assert "no DICOM annotation, and has a grid of its own" in error_of(
        "simulate", path, "-o", tmp_path / "other", "--slices", "1", "--image", tmp_path / "ct"
    )


def test_patients_whose_series_have_one_name(tmp_path):
    """As hospitals export them, `P001/CT` and `P002/CT`: all that is written has the folders' names, no patient's."""
    entries = []
    for number, patient in enumerate(("P001", "P002")):
        image, dense, _ = make_volume(number)
        uid = {"SeriesInstanceUID": f"1.2.3.{number}", **dict.fromkeys(TEXTS, MARK)}
        series = write_series(tmp_path / patient / "CT", (5 * image).astype(np.int16), "axial", **uid)
        write_annotation(tmp_path / patient / "seg.dcm", series, dense)
        entries += [{"image": f"{patient}/CT", "label": f"{patient}/seg.dcm"}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries}))
    result = run_training(path, tmp_path)
    assert result.returncode == 0, result.stderr
    description = json.loads((tmp_path / "models/model.json").read_text())
    (validated,) = description["validation"]
    assert sorted([*description["training"], validated]) == ["P001_CT", "P002_CT"]
    configs = [ROOT / f"bundle/configs/{name}.yaml" for name in ("train", "evaluate")]
    places = ("--dataset_dir", path, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    scored = run_bundle("run", "evaluating", "--config_file", f"{list(map(str, configs))}", *places)
    assert scored.returncode == 0, scored.stderr
    scores = (tmp_path / "eval/scores.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in scores[1:]} == {validated}
    assert (tmp_path / f"eval/pictures/{validated}.png").is_file()
    model = load_model(tmp_path / "models")
    run.predict(model, [tmp_path / "P*/CT"], tmp_path / "out", SlabInferer(model.patch_size), pictures=False)
    assert {path.name for path in (tmp_path / "out").glob("*_seg*")} == {"P001_CT_seg.nii.gz", "P002_CT_seg.nii.gz"}
    assert_unmarked(tmp_path / "out", result.stdout, result.stderr, scored.stdout, scored.stderr)
    assert_unmarked(tmp_path / "eval")
