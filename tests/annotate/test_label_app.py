"""The app's program, without MONAI Label: what it delivers, and what two requests at a time do."""

import importlib.util
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from sparse3dunet.annotate.label_app import TEMPLATE
from sparse3dunet.annotate.submitted import DELIVERED


class Refused(Exception):
    """FastAPI's HTTPException."""

    def __init__(self, status_code, detail):
        super().__init__(detail)
        self.detail = detail


class Base:
    """What a task of MONAI Label inherits."""

    def __init__(self, *arguments, labels=None, **settings):
        self.labels = labels


@pytest.fixture
def program(monkeypatch):
    """The app's main.py, with stand-ins for what it imports from the server."""
    names = {
        "fastapi": ["HTTPException"],
        "monailabel.interfaces.app": ["MONAILabelApp"],
        "monailabel.interfaces.tasks.infer_v2": ["InferTask", "InferType"],
        "monailabel.interfaces.tasks.strategy": ["Strategy"],
        "monailabel.interfaces.tasks.train": ["TrainTask"],
        "monailabel.tasks.activelearning.first": ["First"],
        "monailabel.tasks.activelearning.random": ["Random"],
    }
    parts = {name.rsplit(".", n)[0] for name in names for n in range(name.count(".") + 1)}
    for name in {*names, *parts}:
        module = ModuleType(name)
        for content in names.get(name, ()):
            setattr(module, content, Refused if content == "HTTPException" else type(content, (Base,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["monailabel.interfaces.tasks.infer_v2"].InferType.SEGMENTATION = "segmentation"
    spec = importlib.util.spec_from_file_location("app_program", TEMPLATE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def densify(program, tmp_path, monkeypatch):
    """The task, with a short Python program in place of sparse3dunet: PROGRAM, with the job's folder as FOLDER."""
    settings = {"python": sys.executable, "path": "", "class_names": ["shell"]}
    scans = program.Scans(tmp_path / "app", settings)
    task = program.Densify(scans, SimpleNamespace(get_label_uri=lambda image_id, tag: None))
    real = program.subprocess.Popen

    def start(command, **options):
        folder = command[command.index("-o") + 1] if "-o" in command else program.json.loads(command[-1])["folder"]
        text = f"from pathlib import Path; import time; folder = Path({folder!r}); {task.program}"
        return real([sys.executable, "-c", text], **options)

    monkeypatch.setattr(program.subprocess, "Popen", start)
    return task


def content(file):
    with open(file, "rb") as opened:
        return opened.read()


def test_a_prediction_is_kept_as_delivered(densify):
    densify.scans.model.mkdir(parents=True)
    (densify.scans.model / "model.pt").touch()
    densify.program = "(folder / 'a_seg.nii.gz').write_text('predicted')"
    file, told = densify({"image_id": "a", "image": "a.nii.gz"})
    assert told["stage"] == "model"
    assert content(file) == content(densify.scans.of("a") / DELIVERED) == b"predicted"


def test_a_scan_is_never_blocked(densify, tmp_path):
    """By a file that a full disk or a killed server has left, nor by a result that was removed; else it is kept."""
    (tmp_path / "label.nii.gz").touch()
    request = {"image_id": "a", "image": "a.nii.gz", "label": str(tmp_path / "label.nii.gz"), "wait": True}
    densify.program = "place = folder / 'densified'; place.mkdir(exist_ok=True); "
    densify.program += "(place / 'a_seg.nii.gz').write_text(str(time.time()))"
    folder = densify.scans.of("a")
    folder.mkdir(parents=True)
    for damage in (
        lambda: (folder / "done.json").write_text('[17, "a'),
        lambda: (folder / "done.json").write_bytes(b"\xff"),
        lambda: (folder / "densified/a_seg.nii.gz").unlink(),
    ):
        before = content(densify(request)[0]) if (folder / "done.json").exists() else b""
        damage()
        again = content(densify(request)[0])
        assert again != before
        assert content(densify(request)[0]) == again
    assert not (folder / "done.part").exists()


def test_two_requests_at_a_time(densify, tmp_path):
    """Both wait for the same run; one for another scan ends it, and says so to those that wait."""
    (tmp_path / "label.nii.gz").touch()
    request = {"image": "a.nii.gz", "label": str(tmp_path / "label.nii.gz"), "wait": True}
    densify.program = "place = folder / 'densified'; place.mkdir(); time.sleep(1); (place / 'a_seg.nii.gz').touch()"
    found = {}

    def ask(name, image_id):
        try:
            found[name] = densify({**request, "image_id": image_id})[1]["stage"]
        except Refused as error:
            found[name] = error.detail

    def run(*asked):
        threads = [threading.Thread(target=ask, args=each) for each in asked]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join()

    run(("first", "a"), ("second", "a"))
    assert found == {"first": "refined", "second": "refined"}
    run(("third", "b"), ("fourth", "c"))
    assert "Run it again" in found["third"]
    assert found["fourth"] == "refined"
