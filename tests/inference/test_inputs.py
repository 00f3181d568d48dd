"""Which images are predicted, and under which names."""

import csv
import itertools
import json
from pathlib import Path

import pytest

from sparse3dunet.data.names import case_name
from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Output, predict_batch
from sparse3dunet.inference.inputs import ImageCase, find_images, list_images
from sparse3dunet.inference.records import CaseRecord, results_in
from tests.conftest import make_volume, write_nifti
from tests.inference.test_large import NAMES, VALUES, predictor, random_network


def test_images_to_predict(dataset):
    folder = dataset / "imagesTr"
    names = [f"case_{i}.nii.gz" for i in range(3)]
    assert [Path(c["image"]).name for c in list_images(folder)] == names
    assert [Path(c["image"]).name for c in list_images(folder / names[1])] == names[1:2]
    for content in (names, {"testing": [{"image": name} for name in names]}):
        (folder / "list.json").write_text(json.dumps(content))
        assert [Path(c["image"]).name for c in list_images(folder / "list.json")] == names


def test_no_images_to_predict(tmp_path, dataset):
    with pytest.raises(DataError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="contains no image"):
        list_images(tmp_path)
    (tmp_path / "list.json").write_text('["a.nii.gz"]')
    with pytest.raises(DataError, match="entry 0"):
        list_images(tmp_path / "list.json")
    (dataset / "imagesTr" / "case_0.nii").write_bytes(b"")
    with pytest.raises(DataError, match="images to predict: several cases have the same name, case_0"):
        list_images(dataset / "imagesTr")
    (dataset / "imagesTr" / "case_0.nii").unlink()
    link = dataset / "imagesTr" / "linked.nii.gz"
    link.symlink_to("gone.nii.gz")
    for source in (link.parent, link.parent / "*.nii.gz", link):
        with pytest.raises(DataError, match=r"linked.nii.gz is a link to gone.nii.gz, which does not exist"):
            list_images(source)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="none is an image"):
        find_images([tmp_path / "*.txt"])


def test_channels_to_predict(tmp_path):
    """Numbered files are channels of one image for a model of several channels, images of their own for one of one."""
    image = make_volume(0)[0]
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "c", "d_2024"):
        write_nifti(tmp_path / f"{name}.nii.gz", image)
    grouped = list_images(tmp_path, 2)
    assert [case_name(c) for c in grouped] == ["a", "b", "c", "d_2024"]
    assert [len(c["image"]) if isinstance(c["image"], list) else 1 for c in grouped] == [2, 2, 1, 1]
    assert len(list_images(tmp_path, 1)) == 6
    (tmp_path / "list.json").write_text('{"testing": [{"image": ["b_0000.nii.gz", "b_0001.nii.gz"]}]}')
    ((only,),) = [[c["image"] for c in list_images(tmp_path / "list.json", 2)]]
    assert [Path(p).name for p in only] == ["b_0000.nii.gz", "b_0001.nii.gz"]


def test_a_link_that_leads_nowhere_does_not_stop_a_batch(tmp_path):
    """As git-annex leaves it where the file is not there; a link to itself is told as that."""
    write_nifti(tmp_path / "images/a.nii.gz", make_volume(0)[0])
    (tmp_path / "images/b.nii.gz").symlink_to("gone.nii.gz")
    (tmp_path / "images/c.nii.gz").symlink_to("c.nii.gz")
    output = Output(tmp_path / "out", list(NAMES.values()), VALUES, pictures=False)
    for done in (1, 0):
        outcome = predict_batch(find_images([tmp_path / "images"]), predictor(random_network()), output, {})
        assert (outcome.done, len(outcome.failed)) == (done, 2)
    with (tmp_path / "out/summary.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert [rows[name]["status"] for name in "abc"] == ["done", "failed", "failed"]
    assert "b.nii.gz is a link to gone.nii.gz, which does not exist; expected an image" in rows["b"]["error"]
    assert "c.nii.gz is a link to c.nii.gz, which leads back to itself; expected" in rows["c"]["error"]
    with pytest.raises(DataError, match="leads back to itself"):
        find_images([tmp_path / "images/c.nii.gz"])
    (tmp_path / "images/b.nii.gz").unlink()
    write_nifti(tmp_path / "images/b.nii.gz", make_volume(1)[0])
    assert predict_batch(find_images([tmp_path / "images"]), predictor(random_network()), output, {}).done == 1


def test_a_channel_that_is_missing_is_the_fault_of_its_case(tmp_path):
    for name in ("a_0000", "a_0002", "b_0000", "b_0001"):
        write_nifti(tmp_path / f"{name}.nii.gz", make_volume(0)[0])
    a, b = find_images([tmp_path], 2)
    assert (b.name, b.fault) == ("b", "")
    assert a.name == "a"
    assert "the channels of a are a_0000.nii.gz, a_0002.nii.gz; expected" in a.fault
    assert "(a_0001 is missing)" in a.fault


def test_several_sources(tmp_path):
    """Files, folders and patterns together; what is named twice is predicted once."""
    image = make_volume(0)[0]
    for name in ("one/a", "one/b", "two/c", "two/sub/d"):
        write_nifti(tmp_path / f"{name}.nii.gz", image)
    (tmp_path / "two" / ".hidden.nii.gz").write_bytes(b"")
    found = find_images([tmp_path / "one/a.nii.gz", tmp_path / "one", tmp_path / "tw*/*.nii.gz"])
    assert [case.name for case in found] == ["a", "b", "c"]
    assert [case.name for case in find_images([tmp_path / "**/*.nii.gz"])] == ["a", "b", "c", "d"]
    assert found[0].size == (tmp_path / "one/a.nii.gz").stat().st_size


def test_one_name_in_several_folders(tmp_path):
    """As after ``scans/*/t1.nii.gz``: the first folder that differs tells them apart."""
    for folder in ("sub-01/anat", "sub-02/anat"):
        write_nifti(tmp_path / folder / "t1.nii.gz", make_volume(0)[0])
    found = find_images([tmp_path / "sub-*/anat/t1.nii.gz"])
    assert [case.name for case in found] == ["sub-01_t1", "sub-02_t1"]
    assert [case.name for case in find_images([tmp_path / "sub-01/anat"])] == ["t1"]


def test_dots_get_into_no_name(tmp_path, monkeypatch):
    """Results are named after images, and must not leave their folder."""
    for name in ("b/t1", "w/x/c/t1"):
        write_nifti(tmp_path / f"{name}.nii.gz", make_volume(0)[0])
    monkeypatch.chdir(tmp_path / "w/x")
    found = find_images(["../../b/t1.nii.gz", "c/t1.nii.gz"])
    assert sorted(case.name for case in found) == ["b_t1", "w_t1"]
    (tmp_path / "w/list.json").write_text(json.dumps(["../b/t1.nii.gz", "x/c/t1.nii.gz"]))
    assert sorted(case.name for case in find_images(["../list.json"])) == ["b_t1", "w_t1"]


def test_former_results_are_no_images(tmp_path):
    """Also if one of the two folders is named by a link, as home folders often are."""
    image, folder = make_volume(0)[0], tmp_path / "folder"
    record = CaseRecord(folder, ImageCase("a", (str(write_nifti(folder / "a.nii.gz", image)),)), {})
    write_nifti(record.start(["a_seg.nii.gz"]) / "a_seg.nii.gz", image)
    record.finish(["a_seg.nii.gz"])
    (tmp_path / "link").symlink_to(folder)
    for images, out in itertools.product((folder, tmp_path / "link"), repeat=2):
        assert [case.name for case in find_images([images], leave_out=results_in(out))] == ["a"]
    with pytest.raises(DataError, match="results of earlier runs"):
        find_images([folder / "a_s*.nii.gz"], leave_out=results_in(folder))
