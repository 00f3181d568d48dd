"""Colours of an annotation's segments are those of its classes in results, in each format that has colours."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from sparse3dunet.annotate.browser.classes import labels, make_classes
from sparse3dunet.colors import Labels, class_color, colors_of
from sparse3dunet.data import set_conventions
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify.inputs import prepare_pair
from sparse3dunet.densify.results import Results
from sparse3dunet.errors import DataError
from sparse3dunet.inference import run
from sparse3dunet.inference.batch import summarise
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.dicom_annotation import segment_colors
from sparse3dunet.io.formats import read_named_label
from sparse3dunet.io.itk_snap import read_label_descriptions
from sparse3dunet.io.slicer import _color
from sparse3dunet.models.loading import load_model
from tests.densify.test_inputs import IMAGE_DATA, OBLIQUE, ON_SLICES, write_segments
from tests.io.dicom_files import write_series
from tests.io.test_formats import write_input

OWN = {1: "#123456", 2: "#80ae80"}
NAMED = Labels({0: "background", 1: "shell", 2: "core"}, OWN)


def data_set_of(tmp_path, annotation):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    return read_data_set(prepare_pair(scan, annotation, tmp_path / "work"))


def test_segments_of_slicer(tmp_path):
    path = write_segments(tmp_path / "a.seg.nrrd", ON_SLICES, NAMED)
    assert read_named_label(path)[1].colors == OWN
    data_set = data_set_of(tmp_path, path)
    assert data_set.colors == OWN
    results = Results(tmp_path / "out", data_set, "seg.nrrd", keep_annotation=True)
    image = read_image(tmp_path / "scan.nii.gz")
    write_segmentation(tmp_path / "out.seg.nrrd", ON_SLICES, image, results.output.labels)
    assert read_named_label(tmp_path / "out.seg.nrrd")[1].colors == OWN
    summarise(results.output)
    assert read_label_descriptions(tmp_path / "out/labels.txt").colors == {0: "#000000", **OWN}


@pytest.mark.parametrize(
    "text", ["", "1 0", "red", "1 0 nan", "2 0 0", "1e9 0 0", "0.5 0.5 0.5 0.5", "inf 0 0", "-0.1 0 0"]
)
def test_a_segment_of_slicer_without_a_colour(tmp_path, text):
    path = write_segments(tmp_path / "a.seg.nrrd", ON_SLICES, NAMED)
    image = sitk.ReadImage(str(path))
    image.SetMetaData("Segment0_Color", text)
    sitk.WriteImage(image, str(path))
    assert read_named_label(path)[1].colors == {2: OWN[2]}


@pytest.mark.parametrize(
    ("text", "color"),
    [("1e-05 0 1", "#0000ff"), ("1. 0 0", "#ff0000"), (f"0.{'3' * 30} 1.0 1E0", "#55ffff"), ("+1 -0 .5", "#ff0080")],
)
def test_numbers_of_a_colour_of_slicer(text, color):
    assert _color(text) == color


def test_label_descriptions_of_itk_snap(tmp_path):
    data_set = data_set_of(tmp_path, write_segments(tmp_path / "a.seg.nrrd", ON_SLICES, NAMED))
    (tmp_path / "labels.txt").write_text('1 255 0 7 1 1 1 "rind"\n2 300 0 0 1 1 1 "middle"\n')
    found = set_conventions.complete(data_set, str(tmp_path / "labels.txt"))
    assert found.class_names[1:] == ["rind", "middle"]
    assert found.colors == {1: "#ff0007", 2: "#ff0000"}


@pytest.mark.parametrize("suffix", [".seg.dcm", ".rtstruct.dcm"])
def test_dicom(tmp_path, suffix):
    series = write_series(tmp_path / "ct", (IMAGE_DATA * 10).astype(np.int16))
    write_segmentation(tmp_path / f"a{suffix}", np.maximum(ON_SLICES, 0), read_image(series), NAMED)
    assert segment_colors(tmp_path / f"a{suffix}") == {"shell": OWN[1], "core": OWN[2]}
    datalist = prepare_pair(series, tmp_path / f"a{suffix}", tmp_path / "work", keep_dicom=True)
    assert read_data_set(datalist).colors == OWN


@pytest.mark.parametrize("color", [[1, 2], ["a", "b", "c"], None])
def test_dicom_without_a_colour(tmp_path, color):
    series = write_series(tmp_path / "ct", (IMAGE_DATA * 10).astype(np.int16))
    write_segmentation(tmp_path / "a.rtstruct.dcm", np.maximum(ON_SLICES, 0), read_image(series), NAMED)
    elements = dcmread(tmp_path / "a.rtstruct.dcm")
    if color is None:
        del elements.ROIContourSequence[0].ROIDisplayColor
    else:
        elements.ROIContourSequence[0]["ROIDisplayColor"]._value = color
    assert segment_colors(tmp_path / "a.rtstruct.dcm")["core"] == OWN[2]
    if color is None:
        elements.save_as(tmp_path / "a.rtstruct.dcm")
        assert segment_colors(tmp_path / "a.rtstruct.dcm") == {"core": OWN[2]}


def test_a_model_predicts_with_them(trained, tmp_path):
    shutil.copytree(trained / "models", tmp_path / "models")
    path = tmp_path / "models/model.json"
    content = json.loads(path.read_text())
    assert content["class_colors"] == []
    path.write_text(json.dumps({**content, "class_colors": ["", OWN[1], ""]}))
    model = load_model(tmp_path / "models")
    images = [trained / "dataset/imagesTr/case_0.nii.gz"]
    run.predict(model, images, tmp_path / "out", SlabInferer(model.patch_size), format="seg.nrrd", pictures=False)
    found = read_named_label(tmp_path / "out/case_0.seg.nrrd")[1]
    assert found.colors == {1: OWN[1], 2: class_color(2)}
    for wrong in (["", "red", ""], ["#123456"], "#123456"):
        path.write_text(json.dumps({**content, "class_colors": wrong}))
        with pytest.raises(DataError, match="class_colors"):
            load_model(tmp_path / "models")


def test_classes_of_the_page(tmp_path):
    classes = make_classes(["background", "shell", "core"], [0, 1, 2], {1: OWN[1]})
    assert [one.color for one in classes[1:]] == [OWN[1], class_color(2)]
    assert colors_of(labels(classes))[1] == (0x12, 0x34, 0x56)
