"""What was drawn is kept: nothing is lost, and nothing is mixed with what it does not belong to."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.testclient import TestClient

from sparse3dunet.annotate.browser.server import make_app
from sparse3dunet.errors import DataError
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.records import CaseRecord
from sparse3dunet.io import folders as io_folders
from tests.annotate.client import AFFINE, TOKEN, Client, opened, random_slice
from tests.conftest import write_nifti


def test_a_crash_loses_nothing(client, scan, tmp_path, monkeypatch):
    """Every change is on disk when the answer comes; written as a whole now and then, in between as single changes."""
    monkeypatch.setattr("sparse3dunet.annotate.browser.store.MOST_CHANGES", 4)
    for number in range(11):
        axis = number % 3
        client.paint(axis, number % 5, random_slice(axis, number))
        if number in (3, 7):
            client.post("api/finished", axis=axis, index=number % 5, finished="true", after=client.state()["sequence"])
        if number in (2, 9):
            client.post("api/undo", after=client.state()["sequence"])
        again = opened(scan, tmp_path / "out")  # nothing was closed
        assert np.array_equal(again.drawing.painted, client.painted())
        state = client.state()
        assert [sorted(indices) for indices in again.drawing.finished] == state["finished"]
        assert again.drawing.sequence == state["sequence"]
    assert len(list((tmp_path / "out/work/annotate").glob("painted_*"))) == 1


def test_a_full_disk_changes_nothing(client, scan, tmp_path, monkeypatch, capsys):
    """The change is refused as if it had not been, and can be sent again; the page alone tells it."""
    client.paint(2, 1, random_slice(2))
    before = client.state()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sparse3dunet.annotate.browser.store.write_text", full)
        answer = client.paint(2, 1, random_slice(2, 1), after=1)
        assert (answer.status_code, "No space left" in answer.json()["error"]) == (500, True)
        server = TestClient(make_app(client.session, TOKEN), base_url="http://127.0.0.1")  # raises what would be logged
        assert server.post(f"/{TOKEN}/api/undo", params={"after": 1}).status_code == 500
        names = [{"name": name} for name in ("ground", "leber", "tumor")]
        assert client.http.post(f"/{TOKEN}/api/classes", params={"after": 1}, json=names).status_code == 500
        assert client.state() == before
        assert np.array_equal(client.painted()[:, :, 1], random_slice(2))
    assert capsys.readouterr().err == ""
    assert client.paint(2, 1, random_slice(2, 1), after=1).status_code == 200
    monkeypatch.setattr("sparse3dunet.annotate.browser.store.MOST_CHANGES", 1)
    monkeypatch.setattr("sparse3dunet.annotate.browser.store.write_map", full)
    assert client.paint(2, 2, random_slice(2), after=2).status_code == 200, "the change itself is on disk"
    again = opened(scan, tmp_path / "out")
    assert np.array_equal(again.drawing.painted, client.painted())
    assert again.drawing.sequence == 3


def test_changes_after_a_gap_are_left_out(client, scan, tmp_path, capsys):
    for number in range(4):
        client.paint(2, number, random_slice(2, number))
    journal = tmp_path / "out/work/annotate/journal"
    (journal / "000000002.json").unlink()
    for _ in range(2):
        again = opened(scan, tmp_path / "out")
        assert again.drawing.sequence == 1
        assert np.array_equal(again.drawing.painted[:, :, 0], random_slice(2, 0))
        assert not again.drawing.painted[:, :, 1:].any()
    told = capsys.readouterr().out
    assert told.count("note:") == 1
    assert "change 2 of the annotation is missing; the 2 after it are left out" in told


def test_an_annotation_is_not_taken_over_by_another_scan(client, scan, tmp_path):
    """Though the former file is gone, and the new one has its shape."""
    moved = scan.rename(tmp_path / "moved.nii.gz")
    assert opened(moved, tmp_path / "out").scan.path == moved
    voxels = np.asarray(nib.load(moved).dataobj).copy()
    write_nifti(scan, voxels + 1, AFFINE)
    moved.unlink()
    with pytest.raises(DataError, match="other voxels"):
        opened(scan, tmp_path / "out")
    session = tmp_path / "out/work/annotate/session.json"
    content = json.loads(session.read_text())
    del content["digest"]  # as version 0.13.0 wrote it
    session.write_text(json.dumps(content))
    opened(scan, tmp_path / "out")
    write_nifti(scan, voxels, AFFINE + 20 * np.eye(4, k=3))
    with pytest.raises(DataError, match="position in space differs"):
        opened(scan, tmp_path / "out")


def test_damaged_or_foreign_sessions_are_refused(client, scan, tmp_path):
    client.paint(2, 1, random_slice(2))
    out = tmp_path / "out"
    other = write_nifti(tmp_path / "other.nii.gz", np.zeros((5, 7, 6), np.float32), AFFINE)
    with pytest.raises(DataError, match=r"not of .*other"):
        opened(other, out)
    (change,) = (out / "work/annotate/journal").glob("*.json")
    kept = change.read_text()
    for text in ("{", '{"axis": 2}', json.dumps({**json.loads(kept), "voxels": "AAAA"})):
        change.write_text(text)
        with pytest.raises(DataError, match=r"journal/000000001.json"):
            opened(scan, out)
    change.write_text(kept)
    session = out / "work/annotate/session.json"
    content = json.loads(session.read_text())
    for bad in (
        {**content, "version": 2},
        {**content, "finished": [[1]]},
        {**content, "finished": [[], [6], []]},
        {**content, "classes": [{}]},
        {**content, "classes": [{**entry, "value": 0} for entry in content["classes"]]},
        {**content, "classes": [{**entry, "value": entry["value"] + 0.5} for entry in content["classes"]]},
        {**content, "sequence": -1},
        *({**content, name: text} for name in ("export", "painted") for text in ("", "..", "../scan.nii.gz", "\0")),
        [],
    ):
        session.write_text(json.dumps(bad))
        with pytest.raises(DataError, match=r"session\.json"):
            opened(scan, out)


def test_what_is_left_of_a_session_is_not_mixed_with_a_new_one(client, scan, tmp_path, capsys):
    """Its session.json was removed, to start over or by accident: the rest is kept aside, however often."""
    folder = tmp_path / "out/work/annotate"
    for aside in ("left_out", "left_out2"):
        for number in range(5):
            client.paint(2, number, random_slice(2, number))
        (folder / "session.json").unlink()
        client = Client(opened(scan, tmp_path / "out", class_names=["background", "liver", "tumor"]))
        assert f"kept in {folder / aside}" in capsys.readouterr().out
        assert len(list((folder / aside).glob("*.json"))) == 5
        assert len(list((folder / aside).glob("painted_*"))) == 1
    client.paint(0, 3, random_slice(0))
    client.session.save()
    assert np.array_equal(opened(scan, tmp_path / "out").drawing.painted, client.painted())


@pytest.mark.parametrize("gone", ["out", "out/work/annotate/session.json", "out/work/annotate/painted_*"])
def test_a_drawing_is_written_anew_where_its_files_are_gone(client, scan, tmp_path, capsys, gone):
    """The folder was removed, or its disk is not there any more: a change alone would be lost or mixed up."""
    names = [{"name": name} for name in ("ground", "liver", "tumor")]
    changes = (
        lambda: client.paint(2, 3, random_slice(2)),
        lambda: client.http.post(f"/{TOKEN}/api/classes", params={"after": client.state()["sequence"]}, json=names),
    )
    client.paint(2, 1, random_slice(2))
    for change in changes:
        for path in list(tmp_path.glob(gone)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert change().status_code == 200
        assert "is written anew" in capsys.readouterr().out
        again = opened(scan, tmp_path / "out")  # the program was killed
        assert np.array_equal(again.drawing.painted, client.painted())
        assert [entry.name for entry in again.classes] == [entry.name for entry in client.session.classes]


def result_of(scan: Path, out: Path, affine: np.ndarray) -> None:
    """Results of densify or predict in a folder, with their record."""
    record = CaseRecord(out, ImageCase("scan", (str(scan),)), {})
    names = ["scan_seg.nii.gz", "scan_confidence.nii.gz"]
    drafts = record.start(names, overwrite=True)
    for name in names:
        write_nifti(drafts / name, np.ones((5, 7, 6), np.uint8), affine)
    record.finish(names)


def test_results_of_another_scan_are_not_shown(scan, tmp_path):
    """As densify, which refuses the folder; a result at another place in space belongs to another scan, too."""
    out = tmp_path / "out"
    result_of(scan, out, AFFINE)
    assert opened(scan, out).results.found.kind == "result"
    result_of(scan, out, AFFINE + 20 * np.eye(4, k=3))
    assert opened(scan, out).results.found is None
    other = write_nifti(tmp_path / "other/scan.nii.gz", np.zeros((5, 7, 6), np.float32), AFFINE)
    result_of(other, out, AFFINE)
    with pytest.raises(DataError, match=rf"the results named scan in .*out are those of {other}"):
        opened(scan, out)
    made = write_nifti(out / "work/inputs/scan.nii", np.zeros((5, 7, 6), np.float32), AFFINE)
    result_of(made, out, AFFINE)  # as of a scan in another format
    assert opened(scan, out).results.found.kind == "result"
    listed = out / "work/inputs/datalist.json"
    listed.write_text(json.dumps({"training": [], "made_from": {}, "scan": str(other)}))
    with pytest.raises(DataError, match=rf"are those of {other}"):
        opened(scan, out)


def test_one_program_in_a_folder(error_of, scan, tmp_path, monkeypatch):
    """A second one is refused while the first one has the folder."""
    opened(scan, tmp_path / "out")
    monkeypatch.setattr(io_folders, "_HELD", {})  # as in another process
    assert "in use by another run" in error_of("annotate", scan, "-o", tmp_path / "out", "--no-open")
