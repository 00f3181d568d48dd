"""Names of 3D Slicer's segments in data sets, whose classes are told by value."""

import json

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.checks import complete, inspect
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.defaults import SEGMENTS

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
        ({1: "spleen", 2: "tumor"}, {}, r"label1\.seg\.nrrd: the value 1 is the segment spleen, but Liver in"),
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
