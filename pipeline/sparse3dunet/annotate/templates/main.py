"""MONAI Label app: segment whole scans of which some slices are annotated.

Written by `sparse3dunet label-app`. It runs sparse3dunet in a process of its own, by the interpreter in settings.json,
so that the environments of the two can differ. docs/annotate.md of sparse3dunet describes it.
"""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

logger = logging.getLogger("sparse3dunet")
NAME = "sparse3dunet"
FINAL = "final"  # the tag of labels that a user submitted
GOOD = 0.95  # expected Dice from which on the next scan is one without annotation
RESULT = "*_seg.nii.gz"
PREVIEW_SECONDS = 500  # the plugins wait no longer for an answer


class Job:
    """Process of sparse3dunet, whose output goes to the log."""

    def __init__(self, settings, *arguments):
        environment = {**os.environ, "PYTHONPATH": settings["path"], "PYTHONUNBUFFERED": "1"}
        self.started = time.time()
        self.lines = []
        self.process = subprocess.Popen(
            [settings["python"], "-W", "ignore", "-m", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.stopped = False

    def _read(self):
        for line in self.process.stdout or ():
            if line.strip():
                self.lines.append(line.rstrip())
                logger.info(line.rstrip())

    @property
    def is_running(self):
        return self.process.poll() is None

    def finish(self):
        """Wait for the end; an error of sparse3dunet becomes one of the request."""
        code = self.process.wait()
        self.reader.join(5)
        if self.stopped:
            raise HTTPException(409, "Another request began meanwhile, and this one was ended. Run it again.")
        if code:
            errors = [line for line in self.lines if line.startswith("error: ")]
            raise HTTPException(500, (errors or self.lines or [f"sparse3dunet ended with status {code}"])[-1])

    def stop(self):
        if self.is_running:
            self.stopped = True
            self.process.kill()  # the same job, begun again, goes on from what is on disk
            self.process.wait()


class Scans:
    """Folder of the app with a folder for each scan."""

    def __init__(self, app_dir, settings):
        self.folder, self.settings = Path(app_dir), settings
        self.model = self.folder / "model"

    def of(self, image_id):
        return self.folder / "scans" / quote(image_id, safe="")

    def read(self, image_id, name):
        """Content of a JSON file of a scan's densification; None if there is none."""
        return _read(self.of(image_id) / "densified" / name)

    def slices(self, image_id):
        """The slices that are worth annotating next, the best first."""
        found = self.read(image_id, "suggestions.json") or {}
        return next(iter(found.values()), [])

    def expected_dice(self, image_id):
        return (self.read(image_id, "quality.json") or {}).get("mean_dice")

    def job(self, **content):
        text = json.dumps({**content, "names": self.settings["class_names"]})
        return Job(self.settings, "sparse3dunet.annotate.label_jobs", text)


class Densify(InferTask):
    """Segment the opened scan from its submitted label: the preview as soon as it is there, then the result."""

    def __init__(self, scans, datastore):
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: number for number, name in enumerate(scans.settings["class_names"], 1)},
            dimension=3,
            description="Segments a scan from some annotated slices; submit the label first",
            config={"minutes": 2.0, "wait": False},
        )
        self.scans, self.datastore = scans, datastore
        self.lock = threading.Lock()  # the server answers several requests at a time
        self.job, self.job_of = None, None  # the only one that may run

    def is_valid(self):
        return True

    def __call__(self, request):
        image_id, scan = request["image_id"], request["image"]
        label = request.get("label") or self.datastore.get_label_uri(image_id, FINAL)
        if not label or not os.path.isfile(label):
            return self._predicted(image_id, scan)
        place = self.scans.of(image_id) / "densified"
        wanted = [os.stat(label).st_mtime_ns, os.path.realpath(label), float(request.get("minutes", 2))]
        with self.lock:
            job = self._start(image_id, scan, label, wanted)
        if job is not None:
            self._wait(job, place, bool(request.get("wait")))
        with self.lock:
            refined = job is None or not job.is_running
            if refined and job is not None:
                if self.job is job:
                    self.job = None  # one that failed may be begun again
                job.finish()
                part = place.parent / "done.part"  # the server may be killed, or the disk be full
                part.write_text(json.dumps(wanted), encoding="utf-8")
                os.replace(part, place.parent / "done.json")
            return self._delivered(image_id, place, refined)

    def _start(self, image_id, scan, label, wanted):
        """Return the running densification of this label, begun now if need be; None if it is done."""
        if self.job is not None and self.job_of == (image_id, wanted):
            return self.job
        if self.job is not None:
            self.job.stop()
            self.job = None
        folder = self.scans.of(image_id)
        if _read(folder / "done.json") == wanted and _newest(folder / "densified", RESULT):
            return None
        folder.mkdir(parents=True, exist_ok=True)
        self.job = self.scans.job(job="densify", scan=scan, label=label, folder=str(folder), minutes=wanted[-1])
        self.job_of = (image_id, wanted)
        return self.job

    def _wait(self, job, place, whole):
        """Wait for the preview of the running job or, with `whole`, for its end."""
        while job.is_running:
            preview = _newest(place, "*_preview.nii.gz", job.started)
            late = time.time() - job.started > PREVIEW_SECONDS
            if (preview and not whole) or (whole and late and preview):
                return
            time.sleep(0.3)

    def _delivered(self, image_id, place, refined):
        file = _newest(place, RESULT if refined else "*_preview.nii.gz")
        if file is None:
            raise HTTPException(500, f"{place}: no segmentation was written; see the server's log.")
        answer = self._kept(image_id, file)
        message = "result" if refined else "preview; run again in a while for the result"
        slices = self.scans.slices(image_id)[:3] if refined else []
        logger.info(f"{image_id}: {message}" + (f"; annotate next: {_text(slices[0])}" if slices else ""))
        found = {"stage": "refined" if refined else "preview", "message": message, "next_slices": slices}
        if refined:
            found["expected_dice"] = self.scans.expected_dice(image_id)
        return answer, {"label_names": self.labels, **found}

    def _kept(self, image_id, file):
        """Keep what is delivered, which corrections are compared with; return a copy of just these bytes."""
        kept = self.scans.of(image_id) / "delivered.nii.gz"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept.with_name("delivered.part"))
        os.replace(kept.with_name("delivered.part"), kept)
        return _copy(kept)

    def _predicted(self, image_id, scan):
        """Segment a scan without annotation by the trained model."""
        if not (self.scans.model / "model.pt").is_file():
            raise HTTPException(
                400,
                "This scan has no submitted label, and no model was trained yet. Paint the structures on some slices, "
                "whole slices, and submit the label; then run this again. Or train on other scans first.",
            )
        with tempfile.TemporaryDirectory() as folder:
            options = ("-o", folder, "--format", "nii.gz")
            Job(self.scans.settings, "sparse3dunet", "predict", str(self.scans.model), scan, *options).finish()
            with self.lock:
                file = self._kept(image_id, _newest(Path(folder), "*_seg.nii.gz"))
        return file, {"label_names": self.labels, "stage": "model", "message": "by the trained model"}


class Train(TrainTask):
    """Train a model on all submitted labels, for scans without annotation."""

    def __init__(self, scans):
        super().__init__("Trains on the annotated slices of all scans, further from the present model")
        self.scans = scans

    def config(self):
        return {"minutes": 5.0}

    def __call__(self, request, datastore):
        cases = []
        for image_id in datastore.get_labeled_images(FINAL):
            folder = self.scans.of(image_id)
            folder.mkdir(parents=True, exist_ok=True)
            cases.append([datastore.get_image_uri(image_id), datastore.get_label_uri(image_id, FINAL), str(folder)])
        if not cases:
            raise RuntimeError("No label was submitted yet. Paint the structures on some slices, and submit the label.")
        self.scans.model.mkdir(exist_ok=True)
        minutes = float(request.get("minutes", 5))
        job = self.scans.job(job="train", cases=sorted(cases), folder=str(self.scans.model), minutes=minutes)
        try:
            job.finish()
        except HTTPException as error:
            raise RuntimeError(error.detail) from None
        return {}


class NextSlice(Strategy):
    """The scan and the slice whose annotation would help most."""

    def __init__(self, scans):
        super().__init__("The scan with the lowest expected quality, and its most useful slice (see the log)")
        self.scans = scans

    def __call__(self, request, datastore):
        labelled = datastore.get_labeled_images(FINAL)
        others = sorted({*datastore.list_images()} - {*labelled})
        known = {image: dice for image in labelled if (dice := self.scans.expected_dice(image)) is not None}
        waiting = sorted({*labelled} - {*known})
        worst = min(known, key=known.__getitem__, default=None)
        if worst is not None and (known[worst] < GOOD or not (others or waiting)):
            image, reason = worst, f"the lowest expected Dice, {known[worst]:.3f}"
        elif waiting:
            image, reason = waiting[0], "it has a label, but was not segmented yet"
        elif others:
            image, reason = others[0], "it has no label yet"
        else:
            return {}
        slices = self.scans.slices(image)
        where = _text(slices[0]) if slices else "slices through the middle of the structures"
        logger.info(f"Next: {image} ({reason}); annotate {where}")
        return {"id": image, "reason": reason, "next_slice": slices[0] if slices else None, "next_slices": slices}


class App(MONAILabelApp):
    """The app."""

    def __init__(self, app_dir, studies, conf):
        settings = json.loads((Path(app_dir) / "settings.json").read_text(encoding="utf-8"))
        settings["python"] = conf.get("python", settings["python"])
        self.scans = Scans(app_dir, settings)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=f"sparse3dunet {settings['version']}",
            description="Whole segmentations from some annotated slices",
            version=settings["version"],
            labels=settings["class_names"],
        )

    def init_infers(self):
        return {NAME: Densify(self.scans, self.datastore())}

    def init_trainers(self):
        return {NAME: Train(self.scans)}

    def init_strategies(self):
        return {"next_slice": NextSlice(self.scans), "first": First(), "random": Random()}

    def infer(self, request, datastore=None):
        return super().infer({**request, "image_id": request.get("image")}, datastore)


def _read(path):
    """Content of a JSON file; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _newest(folder, pattern, since=0.0):
    """The newest file in a folder, written after a time; None if there is none."""
    files = [file for file in folder.glob(pattern) if file.stat().st_mtime >= since]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def _copy(file):
    """A copy that the server removes when it has sent it."""
    handle, name = tempfile.mkstemp(suffix=".nii.gz")
    os.close(handle)
    shutil.copyfile(file, name)
    return name


def _text(entry):
    return f"{entry['plane']} slice {entry['index']} (from 0), at {entry['position_mm']:g} mm"
