"""Names of 3D Slicer's segments in data sets, whose classes are told by value."""

import json

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.cli.simulate import next_step
from sparse3dunet.data.checks import complete, inspect
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.simulation import simulate
from sparse3dunet.densify.inputs import prepare_pair
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.defaults import SEGMENTS
from sparse3dunet.io.formats import read_named_label
from sparse3dunet.transforms import KeepSlices

LABEL = np.zeros((6, 5, 4), np.uint8)
LABEL[2:4, :, :], LABEL[4:, :2, :] = 1, 2


@pytest.fixture(autouse=True)
def options(monkeypatch):
    monkeypatch.setenv(SEGMENTS, "")


def data_set(folder, *segments, **declared):
    """A data set with a case for each dictionary of names by value."""
    cases = []
    for number, names in enumerate(segments):
        scan = folder / f"scan{number}.nii"
        nib.save(nib.Nifti1Image(LABEL.astype(np.int16) * 50, np.eye(4)), scan)
        write_segmentation(folder / f"label{number}.seg.nrrd", LABEL, read_image(scan), {0: "x", **names})
        cases.append({"image": scan.name, "label": f"label{number}.seg.nrrd"})
    (folder / "data.json").write_text(json.dumps({"training": cases, **declared}))
    return read_data_set(folder / "data.json")


NAMES = {1: "Liver", 2: "tumor"}
DECLARED = {"labels": {"0": "background", "1": "liver", "2": "tumor"}}


@pytest.mark.parametrize(
    ("names", "declared", "words"),
    [
        ({1: "tumor", 2: "liver"}, {}, r"label1\.seg\.nrrd: the value 1 is the segment tumor, but Liver in .*label0"),
        ({1: "background", 2: "tumor"}, {}, r"label1\.seg\.nrrd: the value 1 is the segment background, but Liver in"),
        ({1: "Segment_1", 3: "tumor"}, {}, r"label1\.seg\.nrrd: the segment tumor has the value 3, but 2 in .*label0"),
        ({1: "tumor", 2: "liver"}, DECLARED, r"1 is the segment tumor, but liver in .*data\.json \(labels\)"),
        ({1: "liver", 2: "tumor", 3: "body"}, DECLARED, r"3 is the segment body, but ignore in .*data\.json"),
        ({1: "liver", 2: "unlabeled"}, {}, r"2 is the segment unlabeled, but tumor in"),
    ],
)
def test_names_that_contradict_each_other_are_refused(tmp_path, names, declared, words):
    """They were mixed up without a word."""
    with pytest.raises(DataError, match=words):
        data_set(tmp_path, NAMES, names, **declared)


@pytest.mark.parametrize(
    "names",
    [
        {1: "Segment_1", 2: "Segment_2"},
        {1: " LIVER", 2: "Tumor "},
        {1: "liver", 2: "tumor", 3: "unlabeled"},
        {1: "class 1", 2: "Segment_1_1"},
    ],
)
@pytest.mark.parametrize("declared", [{}, DECLARED])
def test_other_names_are_taken(tmp_path, names, declared):
    """Those that say nothing, and those that are the same but for letters' cases."""
    assert inspect(complete(data_set(tmp_path, NAMES, names, **declared))).all_errors == []


@pytest.mark.parametrize(
    ("names", "declared", "words"),
    [
        ({1: "spleen"}, {}, "label1.seg.nrrd: the value 1 is the segment spleen, but Liver in"),
        ({2: "P002_tumor"}, {}, "label1.seg.nrrd: the value 2 is the segment P002_tumor, but tumor in"),
        ({2: "Tumour"}, DECLARED, "2 is the segment Tumour, but tumor in {} (labels). Did you mean tumor (2)? Classes"),
        ({1: "Tumour"}, DECLARED, "1 is the segment Tumour, but liver in {} (labels). Did you mean tumor (2)? Classes"),
        ({1: "Hepar"}, DECLARED, "1 is the segment Hepar, but liver in {} (labels). Classes are told by value"),
    ],
)
def test_names_that_merely_differ_are_told(tmp_path, names, declared, words):
    """They may be synonyms, or those of patients: data sets that trained were refused."""
    report = inspect(complete(data_set(tmp_path, NAMES, names, names, **declared)))
    assert report.all_errors == []
    (line,) = [line for line in report.warning_lines() if "is the segment" in line]
    assert words.format(tmp_path / "data.json") in line
    assert line.endswith("The same in 1 more case(s).")


def test_segments_that_a_data_set_cannot_leave_out(tmp_path, monkeypatch):
    """The option was ignored: what it leaves out stayed a class."""
    data_set(tmp_path, NAMES)
    monkeypatch.setenv(SEGMENTS, "liver")
    with pytest.raises(DataError, match=r"label0\.seg\.nrrd: --segments leaves out tumor, which data sets can with"):
        read_data_set(tmp_path / "data.json")
    monkeypatch.setenv(SEGMENTS, "liver,tumour,tumor")
    with pytest.raises(DataError, match=r"no segment is named tumour \(--segments\); found Liver, tumor"):
        read_data_set(tmp_path / "data.json")
    monkeypatch.setenv(SEGMENTS, "tumor,liver")
    assert len(read_data_set(tmp_path / "data.json").cases) == 1


def test_sparse_copies_keep_the_names_of_segments(tmp_path):
    """Else the classes of what is made of them would be numbers."""
    data_set(tmp_path, NAMES)
    (copy,) = simulate(tmp_path / "label0.seg.nrrd", tmp_path / "out", KeepSlices([0, 0, 2])).files
    assert copy.name == "label0.seg.nrrd"
    label, names = read_named_label(copy)
    assert names == {1: "Liver", 2: "tumor", 3: "ignore"}
    kept = label.data != 3
    assert kept.sum() == 2 * 30
    np.testing.assert_array_equal(label.data[kept], LABEL[kept])
    pair = read_data_set(prepare_pair(tmp_path / "scan0.nii", copy, tmp_path / "pair"))
    assert (pair.class_names, pair.class_values, pair.ignore_index) == (
        ["background", "Liver", "tumor"],
        [0, 1, 2],
        (3,),
    )
    with pytest.raises(DataError, match=r"ignore_index -1 cannot be the value of a segment.*expected 1 to 32767"):
        simulate(tmp_path / "label0.seg.nrrd", tmp_path / "other", KeepSlices(1), ignore_index=-1)


def test_sparse_copies_of_chosen_segments(tmp_path, monkeypatch):
    data_set(tmp_path, NAMES)
    monkeypatch.setenv(SEGMENTS, "tumor")
    (copy,) = simulate(tmp_path / "label0.seg.nrrd", tmp_path / "out", KeepSlices([0, 0, 2])).files
    label, names = read_named_label(copy)
    assert names == {2: "tumor", 3: "ignore"}
    assert set(np.unique(label.data)) == {0, 2, 3}
    nib.save(nib.Nifti1Image(LABEL, np.eye(4)), tmp_path / "dense.nii.gz")
    with pytest.raises(DataError, match=r"dense\.nii\.gz: --segments names tumor, but the file names no segments"):
        simulate(tmp_path / "dense.nii.gz", tmp_path / "other", KeepSlices(1))


@pytest.mark.parametrize("declared", [{}, {"ignore_index": 7}])
def test_unlabeled_voxels_never_have_the_value_of_a_segment_left_out(tmp_path, monkeypatch, declared):
    """They had that of the tumor, and counted as it where the copy was read with the data set's classes."""
    data_set(tmp_path, NAMES, **DECLARED)
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "label0.seg.nrrd").rename(tmp_path / "labelsTr/a.seg.nrrd")
    case = {"image": "scan0.nii", "label": "labelsTr/a.seg.nrrd"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [case], **DECLARED, **declared}))
    monkeypatch.setenv(SEGMENTS, "liver")
    expected = declared.get("ignore_index", 3)
    done = simulate(tmp_path / "labelsTr", tmp_path / "out", KeepSlices([0, 0, 2]))
    assert done.ignore_index == expected
    label, names = read_named_label(done.files[0])
    assert names == {1: "Liver", expected: "ignore"}
    assert set(np.unique(label.data)) == {0, 1, expected}
    (tmp_path / "dataset.json").unlink()
    assert simulate(tmp_path / "labelsTr", tmp_path / "out", KeepSlices([0, 0, 2])).ignore_index == 3


def test_a_chosen_segment_need_not_be_in_all_files_of_a_folder(tmp_path, monkeypatch):
    """As in data sets; a case without tumor was refused."""
    data_set(tmp_path, {1: "liver", 2: "tumor"}, {1: "liver", 2: "vessel"})
    (tmp_path / "dense").mkdir()
    for file in tmp_path.glob("*.seg.nrrd"):
        file.rename(tmp_path / "dense" / file.name)
    monkeypatch.setenv(SEGMENTS, "liver,tumor")
    done = simulate(tmp_path / "dense", tmp_path / "out", KeepSlices([0, 0, 2]))
    assert [read_named_label(file)[1] for file in done.files] == [
        {1: "liver", 2: "tumor", 3: "ignore"},
        {1: "liver", 3: "ignore"},
    ]
    monkeypatch.setenv(SEGMENTS, "liver,tumour")
    with pytest.raises(DataError, match=r"label0.* and 1 other annotation.* no segment is named tumour \(--segments\)"):
        simulate(tmp_path / "dense", tmp_path / "out", KeepSlices([0, 0, 2]))


def test_the_command_after_simulate_takes_the_same_segments(tmp_path, monkeypatch):
    """The dense label has others, which densify refused as a reference without the option."""
    data_set(tmp_path, NAMES)
    dense = tmp_path / "label0.seg.nrrd"
    monkeypatch.setenv(SEGMENTS, "tumor")
    done = simulate(dense, tmp_path / "out", KeepSlices([0, 0, 2]))
    assert done.leaves_out
    step = next_step(dense, done.files, done.ignore_index, True, "tumor", done.leaves_out)
    assert step == f"sparse3dunet densify SCAN {done.files[0]} -o OUT --segments tumor --reference {dense}"
    pair = prepare_pair(tmp_path / "scan0.nii", done.files[0], tmp_path / "pair", reference=dense)
    report = inspect(complete(read_data_set(pair)))
    assert report.all_errors == []
    assert (report.data_set.class_names, report.data_set.class_values) == (["background", "tumor"], [0, 2])
    copies = [tmp_path / "few/a.seg.nrrd", tmp_path / "few/b.seg.nrrd"]
    assert "--reference_dir" not in next_step(tmp_path / "dense", copies, 3, True, "tumor", True)
    assert "--reference_dir dense" in next_step(tmp_path / "dense", copies, 3, True, "tumor,liver", False)


def test_a_former_copy_by_another_name_is_removed(tmp_path):
    """0.17 wrote a.nrrd: a folder of labels had two of the same case after the command was run again."""
    data_set(tmp_path, NAMES)
    (copy,) = simulate(tmp_path / "label0.seg.nrrd", tmp_path / "out", KeepSlices(1)).files
    record = tmp_path / "out/.simulated.json"
    for is_changed in (False, True):
        former = copy.with_name("label0.nrrd")
        copy.rename(former)
        record.write_text(record.read_text().replace(copy.name, former.name))
        if is_changed:
            former.write_bytes(b"painted")
            with pytest.raises(DataError, match=r"label0\.nrrd exists and is not what this command wrote there"):
                simulate(tmp_path / "label0.seg.nrrd", tmp_path / "out", KeepSlices(1))
            assert not copy.exists()
        simulate(tmp_path / "label0.seg.nrrd", tmp_path / "out", KeepSlices(1), overwrite=is_changed)
        assert list((tmp_path / "out").glob("[!.]*")) == [copy]
        assert list(json.loads(record.read_text())) == [copy.name]
