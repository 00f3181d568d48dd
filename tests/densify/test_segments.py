"""Annotation as segments with names, and files that densify cannot use."""

import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.densify.inputs import prepare, prepare_pair
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.volumes import read_volume
from sparse3dunet.keys import ANNOTATED_SLICES
from tests.conftest import write_nifti
from tests.densify.test_inputs import (
    ANNOTATED,
    DENSE,
    IMAGE_DATA,
    NAMES,
    OBLIQUE,
    ON_SLICES,
    SPARSE,
    assert_as_annotated,
    read,
    write_layers,
    write_segments,
)
from tests.io.test_formats import write_input
from tests.io.test_formats_dicom import ct, series, series_affine  # noqa: F401


def prepared(tmp_path, labels, names, **options):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    return prepare_pair(scan, write_segments(tmp_path / "label.seg.nrrd", labels, names), tmp_path / "out", **options)


def test_segments_on_slices(tmp_path, capsys):
    datalist = prepared(tmp_path, ON_SLICES, {0: "x", 1: "Rinde", 2: "Flüssigkeit"})
    assert capsys.readouterr().out.count("\n") == 1
    content = json.loads(datalist.read_text(encoding="utf-8"))
    assert content["labels"] == {"0": "background", "1": "Rinde", "2": "Flüssigkeit"}
    assert content[ANNOTATED_SLICES] == "all"
    assert_as_annotated(datalist)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("word", ["ignore", "Unlabeled"])
def test_a_segment_for_what_is_left_out(tmp_path, word):
    """Of an unfinished slice alone, or of all that is not annotated."""
    unfinished = ON_SLICES.copy()
    unfinished[12, :, 12:] = 5
    _, _, numbers, annotated = read(prepared(tmp_path, unfinished, {**NAMES, 5: word}))
    expected = ANNOTATED.copy()
    expected[12, :, 12:] = False
    np.testing.assert_array_equal(annotated, expected)
    np.testing.assert_array_equal(numbers, DENSE * expected)
    data_set = assert_as_annotated(prepared(tmp_path, np.where(ANNOTATED, DENSE, 3), {**NAMES, 3: word}))
    assert data_set.class_names == list(NAMES.values())
    assert 3 in data_set.ignore_index


def test_a_segment_for_the_background(tmp_path, capsys):
    """Scribbles: what is in no segment is unlabeled."""
    names = {0: "x", 1: "shell", 2: "core", 3: "Background"}
    labels = np.choose(DENSE, [3, 1, 2]) * ANNOTATED
    labels[4:, :, 9] = 0
    datalist = prepared(tmp_path, labels.astype(np.uint8), names)
    data_set, _, numbers, annotated = read(datalist)
    assert (data_set.class_names, data_set.class_values) == (["background", "shell", "core"], [3, 1, 2])
    np.testing.assert_array_equal(annotated, labels > 0)
    np.testing.assert_array_equal(numbers, DENSE * (labels > 0))
    assert capsys.readouterr().out == ""


def test_segments_that_do_not_tell(tmp_path):
    with pytest.raises(DataError, match=r"label.seg.nrrd: cannot infer.*--ignore-index.*segment .* background"):
        prepared(tmp_path, DENSE, NAMES)


def test_options_say_what_is_unlabeled(tmp_path):
    """Then nothing is inferred, and they go with what is declared."""
    scribbled = (np.choose(DENSE, [3, 1, 2]) * ANNOTATED).astype(np.uint8)
    scribbled[4:, :, 9] = 0
    names = {0: "x", 1: "shell", 2: "core", 3: "outside"}
    data_set, _, _, annotated = read(prepared(tmp_path, scribbled, names, ignore_index=0), ignore_index=0)
    assert data_set.class_names == ["shell", "core", "outside"]
    np.testing.assert_array_equal(annotated, scribbled > 0)
    datalist = prepared(tmp_path, ON_SLICES, NAMES, annotated_slices={"axial": [9]})
    assert ANNOTATED_SLICES not in json.loads(datalist.read_text())
    assert read(datalist, annotated_slices={"2": [9]})[3].sum() == DENSE[:, :, 9].size


def test_segmentations_that_cannot_be_used(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    alone = write_segments(tmp_path / "alone.seg.nrrd", (ON_SLICES > 0).astype(np.uint8), {0: "x", 1: "background"})
    with pytest.raises(DataError, match=r"the segments are background, which gives .*; expected at least two"):
        prepare_pair(scan, alone, tmp_path / "out")
    image = sitk.ReadImage(str(alone))
    image.SetMetaData("Segment0_LabelValue", "one")
    sitk.WriteImage(image, str(alone))
    with pytest.raises(DataError, match="has the value text of 3 char"):
        prepare_pair(scan, alone, tmp_path / "out")
    image.SetMetaData("Segment0_LabelValue", "9" * 5000)
    sitk.WriteImage(image, str(alone))
    with pytest.raises(DataError, match=r"has the value '9{60}'; expected a whole number from 1 to 32767"):
        prepare_pair(scan, alone, tmp_path / "out")
    image.SetMetaData(f"Segment{'9' * 5000}_Name", "x")
    sitk.WriteImage(image, str(alone))
    with pytest.raises(DataError, match=r"has the number '9{60}'; expected a whole number from 0"):
        prepare_pair(scan, alone, tmp_path / "out")


def layered(tmp_path, masks, names=("shell", "core"), values=()):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    return scan, write_layers(tmp_path / "layers.seg.nrrd", masks, names, values)


@pytest.mark.parametrize("values", [(), (2, 5)])
def test_segments_in_layers(tmp_path, values):
    """As 3D Slicer saves segments that may overlap: equal values in several layers become different ones."""
    scan, layers = layered(tmp_path, [ON_SLICES == 1, ON_SLICES == 2], values=values)
    datalist = prepare_pair(scan, layers, tmp_path / "out")
    found = values or (1, 2)
    labels = json.loads(datalist.read_text(encoding="utf-8"))["labels"]
    assert labels == {"0": "background", str(found[0]): "shell", str(found[1]): "core"}
    data_set = assert_as_annotated(datalist)
    assert data_set.class_values == [0, *found]


def test_segments_that_overlap(tmp_path, monkeypatch, capsys):
    """Refused, unless their order is given: then later ones count."""
    scan, layers = layered(tmp_path, [ON_SLICES > 0, ON_SLICES == 2])
    count = int((ON_SLICES == 2).sum())
    with pytest.raises(DataError, match=rf"overlap: shell and core in {count} voxels.*--segments 'shell,core'"):
        prepare_pair(scan, layers, tmp_path / "out")
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "Shell,core")
    assert_as_annotated(prepare_pair(scan, layers, tmp_path / "out"))
    assert f"{count} voxels are in shell and in core, and count as core (--segments)" in capsys.readouterr().out
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "core,shell")
    _, _, numbers, _ = read(prepare_pair(scan, layers, tmp_path / "out"))
    np.testing.assert_array_equal(numbers > 0, ON_SLICES > 0)
    assert len(np.unique(numbers)) == 2
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "core,liver")
    with pytest.raises(DataError, match=r"no segment is named liver \(--segments\); found shell, core"):
        prepare_pair(scan, layers, tmp_path / "out")


def test_chosen_segments_of_one_layer(tmp_path, monkeypatch):
    """The others are left out: background on annotated slices. Nothing else becomes background."""
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "core")
    data_set, _, numbers, _ = read(prepared(tmp_path, ON_SLICES, NAMES))
    assert data_set.class_names == ["background", "core"]
    np.testing.assert_array_equal(numbers > 0, ON_SLICES == 2)
    unknown = np.where(ANNOTATED, ON_SLICES, 7).astype(np.uint8)
    _, _, numbers, annotated = read(prepared(tmp_path, unknown, NAMES, ignore_index=7), ignore_index=7)
    np.testing.assert_array_equal(annotated, ANNOTATED)
    np.testing.assert_array_equal(numbers > 0, ON_SLICES == 2)
    unknown[0, 0, 0] = 9
    with pytest.raises(DataError, match=r"have a value that no segment has \(9\)"):
        prepared(tmp_path, unknown, NAMES, ignore_index=7)
    with pytest.raises(DataError, match=r"no segment is named core \(--segments\); found shell, other"):
        prepared(tmp_path, ON_SLICES, {**NAMES, 2: "other"})


def test_a_background_segment_is_never_left_out(tmp_path, monkeypatch):
    """Else what is in no segment would be background."""
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "core")
    labels = (np.choose(DENSE, [3, 1, 2]) * ANNOTATED).astype(np.uint8)
    data_set, _, numbers, annotated = read(prepared(tmp_path, labels, {0: "x", 1: "shell", 2: "core", 3: "Background"}))
    assert (data_set.class_names, data_set.class_values) == (["background", "core"], [3, 2])
    np.testing.assert_array_equal(annotated, ANNOTATED & (DENSE != 1))
    np.testing.assert_array_equal(numbers > 0, ANNOTATED & (DENSE == 2))


def test_own_results_have_all_of_their_segments(tmp_path, monkeypatch):
    """They are no annotation, whose segments the option is for."""
    monkeypatch.setenv("SPARSE3DUNET_SEGMENTS", "background,core")
    path = write_segments(tmp_path / "result.seg.nrrd", DENSE, NAMES)
    np.testing.assert_array_equal(read_image(path).data, DENSE)


def test_values_of_layers_mean_nothing_in_a_data_set(tmp_path):
    """There, classes are told by value: the same in each case."""
    masks = [ON_SLICES == 1, ON_SLICES == 2]
    _, layers = layered(tmp_path, masks)
    with pytest.raises(DataError, match=r"layers.seg.nrrd: segments in different layers have the same value.*densify"):
        read_image(layers)
    _, layers = layered(tmp_path, masks, values=(1, 2))
    np.testing.assert_array_equal(read_image(layers).data, ON_SLICES)


def test_layers_that_do_not_tell(tmp_path):
    scan, layers = layered(tmp_path, [ON_SLICES == 1, ON_SLICES == 2])
    whole = layers.read_bytes()
    for old, new, message in (
        (b"Segment1_Layer:=1", b"Segment1_Layer:=0", "two segments have the same value in the same layer"),
        (b"Segment1_Layer:=1", b"Segment1_Layer:=2", "'core' has the layer '2'; expected a whole number from 0 to 1"),
    ):
        assert old in whole
        layers.write_bytes(whole.replace(old, new))
        with pytest.raises(DataError, match=message):
            prepare_pair(scan, layers, tmp_path / "out")
    layers.write_bytes(whole[:-1] + b"\x07")
    with pytest.raises(DataError, match="1 voxels have a value that no segment of their layer has"):
        prepare_pair(scan, layers, tmp_path / "out")
    layers.write_bytes(re.sub(rb"Segment\d_(Layer|LabelValue):=\d\n", b"", whole))  # as older versions did
    assert_as_annotated(prepare_pair(scan, layers, tmp_path / "out"))


def test_values_of_no_segment_are_told(tmp_path):
    """They would be taken for nothing, or for another class."""
    stray = ON_SLICES.copy()
    stray[12, 3, :4] = 7
    with pytest.raises(DataError, match=r"label\.seg\.nrrd: 4 voxels have a value that no segment has \(7\)"):
        prepared(tmp_path, stray, NAMES)
    prepared(tmp_path, stray, NAMES, ignore_index=7)
    with pytest.raises(DataError, match=r"label\.seg\.nrrd: the segment 'a' has the value '40000'; expected"):
        prepared(tmp_path, ON_SLICES, {**NAMES, 40000: "a"})


def test_segments_without_names_and_values(tmp_path):
    """As older versions wrote them."""
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    path = write_segments(tmp_path / "label.seg.nrrd", (ON_SLICES > 0).astype(np.uint8), {0: "x", 1: "y"})
    image = sitk.ReadImage(str(path))
    for key in ("LabelValue", "Name"):
        image.EraseMetaData(f"Segment0_{key}")
    sitk.WriteImage(image, str(path))
    assert read(prepare_pair(scan, path, tmp_path / "out"))[0].class_names == ["background", "segment 1"]


# Refusals


def test_mixed_up_files(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label = write_input(tmp_path / "label.nii.gz", SPARSE, OBLIQUE)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    with pytest.raises(DataError, match="given as both the scan and its annotation"):
        prepare_pair(scan, tmp_path / "link.nii.gz", tmp_path / "out")
    with pytest.raises(DataError, match=r"scan.nii.gz: \d+ different values of float32.*are the two swapped"):
        prepare_pair(label, scan, tmp_path / "out")
    shutil.copy(scan, tmp_path / "copy.nii.gz")
    with pytest.raises(DataError, match=r"copy.nii.gz: \d+ different values.*mix-up of files"):
        prepare_pair(scan, tmp_path / "copy.nii.gz", tmp_path / "out")
    eight_bits = write_input(tmp_path / "8.nii.gz", np.clip(IMAGE_DATA / 2, 0, 200).astype(np.uint8), OBLIQUE)
    with pytest.raises(DataError, match=r"8.nii.gz: \d+ different values.*are the two swapped"):
        prepare_pair(label, eight_bits, tmp_path / "out")
    channels = write_input(tmp_path / "two.nii.gz", np.stack([SPARSE, SPARSE], -1), OBLIQUE)
    with pytest.raises(DataError, match=r"two.nii.gz: found 2 channels"):
        prepare_pair(scan, channels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_classes_are_no_scan(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    regions = np.where(ANNOTATED, np.arange(DENSE.size).reshape(DENSE.shape) % 100, 255).astype(np.uint8)
    label = write_input(tmp_path / "label.nii.gz", regions, OBLIQUE)
    assert len(read(prepare_pair(scan, label, tmp_path / "out"))[0].class_values) == 100


def test_files_that_are_not_there(tmp_path, series):  # noqa: F811
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    with pytest.raises(DataError, match=r"missing.nrrd does not exist; expected the annotation.*SCAN ANNOTATION"):
        prepare([scan, tmp_path / "missing.nrrd"], tmp_path / "out")
    with pytest.raises(DataError, match=r"missing.nii.gz does not exist; expected the scan"):
        prepare([tmp_path / "missing.nii.gz", scan], tmp_path / "out")
    with pytest.raises(DataError, match=r"series is a folder without a DICOM annotation; expected the annotation"):
        prepare([scan, series], tmp_path / "out")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list.json is a JSON file.*as the only input"):
        prepare([tmp_path / "list.json", scan], tmp_path / "out")
    for bad in ("x.nii.gz", "x.nrrd", "x.seg.nrrd", "x.mha", "x.png"):
        (tmp_path / bad).write_bytes(b"nothing")
        for pair in ([scan, tmp_path / bad], [tmp_path / bad, scan]):
            with pytest.raises(DataError, match=bad):
                prepare(pair, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        prepare([tmp_path / "empty", scan], tmp_path / "out")


def test_what_is_made_replaces_no_input(tmp_path):
    out = tmp_path / "out"
    scan = write_input(tmp_path / "scan.nrrd", IMAGE_DATA, OBLIQUE)
    label = write_nifti(out / "scan.nii", SPARSE, OBLIQUE)
    with pytest.raises(DataError, match=r"scan.nii would be replaced"):
        prepare_pair(scan, label, out)
    np.testing.assert_array_equal(read_volume(label).data, SPARSE)


def test_one_source(tmp_path, series):  # noqa: F811
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    datalist = prepare_pair(scan, write_input(tmp_path / "label.nii.gz", SPARSE, OBLIQUE), tmp_path / "out")
    assert prepare([datalist], tmp_path / "other") == str(datalist)
    assert prepare([str(tmp_path)], tmp_path / "other") == str(tmp_path)
    assert not (tmp_path / "other").exists()
    with pytest.raises(DataError, match=r"scan.nii.gz: found one file, but no annotation; expected a scan and"):
        prepare([scan], tmp_path / "out")
    with pytest.raises(DataError, match=r"series: found one DICOM series, but no annotation"):
        prepare([series], tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere does not exist; expected a scan and its annotation"):
        prepare([tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize("number", [0, 3])
def test_another_number_of_sources(tmp_path, number):
    with pytest.raises(DataError, match=rf"found {number} inputs .*expected a scan and its annotation.*or a data set"):
        prepare([f"{i}.nii.gz" for i in range(number)], tmp_path)
