"""The server of the page: who may ask, what is refused, and that nothing drawn is lost."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.annotate.browser import runs, serving
from sparse3dunet.annotate.browser.results import Found
from sparse3dunet.annotate.browser.server import STATIC
from sparse3dunet.io import read_image, write_map
from sparse3dunet.io.microscopy import SIGNS
from tests.annotate.client import AFFINE, SHAPE, TOKEN, Client, Command, opened, random_slice, shown_by
from tests.conftest import write_nifti

# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    "path", ["/", "/api/state", "/static/app.js", "/other/api/state", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/"]
)
def test_nothing_without_the_token(client, path):
    answer = client.http.get(path)
    assert answer.status_code == 403
    assert "token" in answer.json()["error"]


def test_the_address_without_its_last_slash_leads_to_the_page(client):
    answer = client.http.get(f"/{TOKEN}")
    assert answer.url.path == f"/{TOKEN}/"
    assert answer.content == (STATIC / "index.html").read_bytes()


def test_no_other_host(client):
    """A domain that resolves to this machine must not be served (DNS rebinding)."""
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000"):
        assert client.http.get(f"/{TOKEN}/api/state", headers={"Host": host}).status_code == 400
    assert client.http.get(f"/{TOKEN}/api/state", headers={"Host": "localhost:8000"}).status_code == 200


def test_page_may_connect_to_this_server_alone(client):
    for path in ("", "static/app.js", "api/state", "api/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        sources = set(re.sub(r"[\w-]+-(src|uri|action|ancestors)", "", policy).replace(";", " ").split())
        assert sources <= {"'none'", "'self'", "data:", "blob:", "'unsafe-inline'", "'wasm-unsafe-eval'"}
        assert client.get(path).headers["referrer-policy"] == "no-referrer"


def test_all_files_of_the_page_are_served(client):
    page = client.get("").text
    names = {*re.findall(r'static/([\w.]+)"', page)}
    for script in STATIC.glob("*.js"):
        if script.name != "niivue.js":
            names |= {script.name, *re.findall(r'from "\./([\w.]+)"', script.read_text())}
    assert "niivue.js" in names
    for name in names:
        answer = client.get(f"static/{name}")
        assert answer.content == (STATIC / name).read_bytes()
        assert re.match("text/(css|javascript)", answer.headers["content-type"]), name
    for name in ("..%2Fserver.py", "nothing.js", "index.html"):
        assert client.get(f"static/{name}").status_code == 404


def wait_until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("not within 10 s")


@pytest.mark.skipif(os.name != "posix", reason="there are no modes of files")
def test_other_users_do_not_see_the_token(client, monkeypatch):
    """Neither in the command line of the browser that is started, nor in the file that leads it to the page."""
    opened_with, modes, told = [], [], []

    def start(address):
        path = Path(address.removeprefix("file://"))
        opened_with.append((address, path.read_text()))
        modes.extend(stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path))

    monkeypatch.setattr("webbrowser.open", start)
    monkeypatch.setattr(runs.Runs, "prepare", lambda self: None)
    monkeypatch.setattr(serving, "import_later", lambda: None)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: wait_until(lambda: len(modes) == 2))
    serving.serve(client.session, on_start=told.append)
    ((address, content),) = opened_with
    token = told[0].split("/")[-2]
    assert token not in address
    assert f"url={told[0]}" in content
    assert modes == [0o700, 0o600]
    assert not list(client.session.store.folder.rglob("*.html")), "it is removed at the end"


# ---------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "api/nothing", 404, "no such page"),
        ("GET", "api/undo", 405, "GET is not possible"),
        ("PUT", "api/slice?axis=0", 400, "index is ''"),
        ("PUT", "api/slice?axis=x&index=0", 400, "axis is 'x'"),
        ("PUT", "api/slice?axis=3&index=0&after=0", 400, "no slice 0 of axis 3"),
        ("PUT", "api/slice?axis=0&index=7&after=0", 400, "no slice 7"),
        ("GET", "api/scan.nii?channel=1", 400, "no channel 1"),
        ("GET", "api/prediction.nii?version=1", 400, "press Densify"),
        ("GET", "report", 404, "no report yet"),
        ("POST", "api/finished?axis=0&index=0&after=0", 400, "finished is ''"),
        ("POST", "api/accept?axis=0&index=0&after=0&finished=true&version=1", 400, "press Densify"),
        ("POST", "api/undo?after=0", 400, "nothing to undo"),
        ("POST", "api/densify?minutes=x", 400, "minutes is 'x'"),
        ("POST", "api/densify?minutes=nan", 400, "minutes must be"),
        ("POST", "api/densify?minutes=1", 400, "no voxel is background"),
        ("POST", "api/classes?after=0", 400, "not valid JSON"),
    ],
)
def test_bad_requests(client, method, path, status, words):
    answer = client.http.request(method, f"/{TOKEN}/{path}")
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error
    assert "\n" not in error


def test_bad_slices(client):
    before = client.painted()
    assert "found 3 voxels; expected 30" in client.paint(0, 0, np.zeros(3)).json()["error"]
    assert "found 31 voxels" in client.paint(0, 0, np.zeros(10**6)).json()["error"]  # no more is decompressed
    assert "sagittal 6: found class 3" in client.paint(0, 0, np.full((6, 5), 4)).json()["error"]
    url = f"/{TOKEN}/api/slice?axis=0&index=0&after=0"
    answer = client.http.put(url, content=b"nonsense", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "damaged" in answer.json()["error"]) == (400, True)
    answer = client.http.put(url, content=bytes(2**26 + 1))
    assert answer.status_code == 413
    assert np.array_equal(client.painted(), before)
    assert client.state()["sequence"] == 0


def test_two_windows_do_not_mix(client):
    assert client.paint(2, 1, random_slice(2), after=0).status_code == 200
    answer = client.paint(2, 1, random_slice(2, 1), after=0)
    assert answer.status_code == 409
    assert "another window" in answer.json()["error"]
    assert np.array_equal(client.painted()[:, :, 1], random_slice(2))


# ---------------------------------------------------------------- drawing


def test_scan_is_shown_voxel_by_voxel(client, scan):
    shown = nib.Nifti1Image.from_bytes(client.get("api/scan.nii").content)
    assert np.array_equal(np.asarray(shown.dataobj), np.asarray(nib.as_closest_canonical(nib.load(scan)).dataobj))
    assert client.state()["scan"]["shape"] == list(SHAPE)
    assert np.allclose(shown.header.get_zooms(), (2, 3, 1.5))


def test_strokes_and_undo(client):
    states = [client.painted()]
    for axis, index in ((0, 3), (1, 2), (2, 4), (0, 3)):
        voxels = random_slice(axis, len(states))
        assert client.paint(axis, index, voxels).status_code == 200
        assert np.array_equal(client.painted().take(index, axis), voxels)
        states.append(client.painted())
    assert client.paint(0, 3, voxels).json()["undoable"] == 4, "a stroke that changes nothing is none"
    for before in states[-2::-1]:
        answer = client.post("api/undo", after=client.state()["sequence"]).json()
        assert np.array_equal(client.painted(), before)
        assert shown_by(answer).tobytes() == before.take(answer["index"], answer["axis"]).tobytes(order="F")


def test_finished_slices_and_what_counts(client):
    """Finished: unpainted is background. Touched: painted voxels alone count. All else is unlabeled."""
    voxels = np.zeros((7, 6))
    voxels[2:4, 2:4] = 2
    client.paint(2, 1, voxels)
    client.paint(2, 3, voxels)
    client.post("api/finished", axis=2, index=1, finished="true", after=2)
    exported = client.post("api/export").json()
    assert exported["values"] == {"0": "background", "1": "liver", "2": "tumor", "255": "unlabeled"}
    data = np.asarray(nib.as_closest_canonical(nib.load(exported["path"])).dataobj)
    assert np.array_equal(data[:, :, 1], voxels // 2)
    assert np.array_equal(data[:, :, 3], np.where(voxels > 0, 1, 255))
    assert (np.delete(data, [1, 3], axis=2) == 255).all()
    assert client.session.drawing.touched()[2] == [3]
    client.post("api/undo", after=3)
    assert client.state()["finished"] == [[], [], []]


def test_taking_over_the_segmentation(client):
    """What was painted stays, and so does background on finished slices."""
    found = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    client.session.results._show(Found("preview", found, np.full(SHAPE, 200, np.uint8)))
    stroke = np.zeros((6, 5))
    stroke[1] = 3
    client.paint(0, 2, stroke)
    client.post("api/finished", axis=1, index=4, finished="true", after=1)
    answer = client.post("api/accept", axis=0, index=2, finished="true", after=2, version=1).json()
    assert answer["finished"] == [[2], [4], []]
    expected = np.where(found[2] > 0, found[2] + 1, 0)
    expected[4] = 0
    expected[1] = 3
    assert np.array_equal(client.painted()[2], expected)
    assert np.array_equal(shown_by(answer), expected.ravel(order="F"))
    client.post("api/undo", after=3)
    assert np.array_equal(client.painted()[2], stroke)


def test_what_is_shown_is_what_is_accepted(client):
    """A run that goes on may have found another segmentation since the page showed one."""
    for number in (1, 2):
        client.session.results._show(Found("preview", np.full(SHAPE, number, np.uint8), np.zeros(SHAPE, np.uint8)))
    accept = {"axis": 0, "index": 2, "finished": "true", "after": 0}
    for answer in (client.get("api/prediction.nii", version=1), client.post("api/accept", **accept, version=1)):
        assert (answer.status_code, "newer segmentation" in answer.json()["error"]) == (412, True)
    assert not client.painted().any()
    assert client.get("api/prediction.nii", version=client.state()["found"]["version"]).status_code == 200
    assert client.post("api/accept", **accept, version=2).status_code == 200
    assert (client.painted()[2] == 3).all()


def test_classes(client, scan, tmp_path):
    def send(entries, after=None):
        after = client.state()["sequence"] if after is None else after
        return client.http.post(f"/{TOKEN}/api/classes", params={"after": after}, json=entries)

    names = [{"name": "ground"}, {"name": "leber", "color": "#123456"}, {"name": "tumor"}, {"name": "cyst"}]
    rows = send(names, after=0).json()["classes"]
    assert send(names, after=0).status_code == 409, "another window has changed them"
    assert client.paint(0, 0, np.full((6, 5), 4), after=0).status_code == 409
    assert [(row["value"], row["name"]) for row in rows] == [(0, "ground"), (1, "leber"), (2, "tumor"), (3, "cyst")]
    assert rows[1]["color"] == "#123456"
    assert client.paint(0, 0, np.full((6, 5), 4)).status_code == 200
    for bad, words in (
        (names[:2], "none is ever removed"),
        ([*names, {"name": "cyst"}], "two classes have one name"),
        ([*names, *({"name": str(number)} for number in range(70_000))], "found 70004 classes; expected 2 to 254"),
        ([*names, {"name": 'a"b'}], "cannot be used"),
        ([*names, {"name": ""}], "cannot be used"),
        ([*names, {"name": "Ignore"}], "means unlabeled"),
        ([*names, {"name": "background"}], "means background"),
        ([*names, {"name": "a", "color": "red"}], "expected #rrggbb"),
        ({"name": "a"}, "expected a list"),
        ([*names, {"name": None}], "expected a list"),
        ([*names, {"name": ["x"]}], "expected a list"),
        ([*names, {"name": "x", "color": 5}], "expected a list"),
    ):
        answer = send(bad)
        assert answer.status_code == 400
        assert words in answer.json()["error"]
    again = opened(scan, tmp_path / "out")
    assert [entry.name for entry in again.classes] == ["ground", "leber", "tumor", "cyst"]


# ---------------------------------------------------------------- export


def test_exports_replace_no_file_of_the_user(scan, tmp_path):
    own = tmp_path / "out" / "scan_annotation.nii.gz"
    label = np.full((5, 7, 6), 255, np.uint8)
    label[2], label[2, 2:4, 2:4] = 0, 100
    write_nifti(own, label, AFFINE)
    before = own.read_bytes()
    client = Client(opened(scan, tmp_path / "out", own))
    path = Path(client.post("api/export").json()["path"])
    assert path.name == "scan_annotation2.nii.gz"
    assert own.read_bytes() == before
    assert np.array_equal(np.asarray(nib.load(path).dataobj), label), "values and unlabeled voxels stay"
    assert client.state()["finished"] == [[], [], [2]]
    assert set(np.unique(client.painted())) == {0, 2}


def test_an_export_replaces_nothing_but_the_last_one(client, scan, tmp_path):
    """Neither a file that was put there since the start, nor an export that was corrected in another program."""
    first, second, third = (tmp_path / "out" / f"scan_annotation{number}.nii.gz" for number in ("", 2, 3))
    first.write_bytes(b"drawn elsewhere")
    for number in range(2):
        client.paint(2, number, random_slice(2, number))
        assert client.post("api/export").json()["path"] == str(second)
    write_nifti(second, np.full((5, 7, 6), 7, np.uint8), AFFINE)
    corrected = second.read_bytes()
    client.post("api/export")
    client = Client(opened(scan, tmp_path / "out"))
    client.paint(2, 3, random_slice(2))
    before = third.read_bytes()
    assert client.post("api/export").json()["path"] == str(third), "another program has made it"
    assert third.read_bytes() != before
    assert (first.read_bytes(), second.read_bytes()) == (b"drawn elsewhere", corrected)
    assert not list((tmp_path / "out").glob("scan_annotation4*"))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".tif", ".nii"])
def test_export_in_the_format_of_the_scan(scan, tmp_path, suffix):
    volume = read_image(scan)
    if suffix == ".tif":  # it has no orientation
        volume = replace(volume, affine=np.diag([*np.multiply(SIGNS, (2.0, 3.0, 1.5)), 1.0]))
    other = tmp_path / f"copy{suffix}"
    write_map(other, np.rint(100 * np.abs(volume.data)).astype(np.uint16), volume)
    client = Client(opened(other, tmp_path / "out"))
    shape = client.state()["scan"]["shape"]
    voxels = np.zeros((shape[0], shape[1]), np.uint8)
    voxels[1:3, 2] = 2
    client.paint(2, 3, voxels)
    path = Path(client.post("api/export").json()["path"])
    assert path.name == f"copy_annotation{suffix}"
    written, source = read_image(path), read_image(other)
    assert written.data.shape == source.data.shape
    in_ras = nib.orientations.apply_orientation(written.data, nib.io_orientation(source.affine))
    assert np.array_equal(in_ras[:, :, 3], np.where(voxels > 0, 1, 255))


# ---------------------------------------------------------------- the command


def test_densify_as_soon_as_the_page_is_there(scan, tmp_path):
    """While what is needed later is still imported in the background."""
    command = Command(scan, tmp_path / "out", "--class-names", "background,x")
    try:
        voxels = gzip.compress((random_slice(2) % 2 + 1).tobytes(order="F"))
        request = urllib.request.Request(f"{command.url}api/slice?axis=2&index=1&after=0", voxels, method="PUT")
        request.add_header("Content-Encoding", "gzip")
        urllib.request.urlopen(request, timeout=60).close()
        address = f"{command.url}api/densify?minutes=0.1"
        with urllib.request.urlopen(urllib.request.Request(address, method="POST"), timeout=60) as answer:
            assert json.load(answer)["unfinished"] == ["axial 3"]
    finally:
        command.end()


def test_missing_package_is_named(error_of, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sparse3dunet.annotate.browser.serving.find_spec", lambda name: None if name == "uvicorn" else 1
    )
    error = error_of("annotate", scan, "-o", tmp_path / "out")
    assert "uvicorn" in error
    assert "pip install 'sparse3dunet[annotate]'" in error


def test_a_packaged_bundle_has_no_page(error_of, scan, tmp_path, monkeypatch):
    monkeypatch.setattr("sparse3dunet.cli.annotate.find_spec", lambda name: None)
    assert "pip install 'sparse3dunet[annotate]'" in error_of("annotate", scan, "-o", tmp_path / "out")


@pytest.mark.parametrize("names", ["background,ignore", "ground,Background", "unlabeled,x"])
def test_names_that_would_mean_something_else_in_the_exports(error_of, scan, tmp_path, names):
    assert "Rename it" in error_of("annotate", scan, "-o", tmp_path / "out", "--no-open", "--class-names", names)
