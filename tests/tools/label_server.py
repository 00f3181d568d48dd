"""A real MONAI Label server in an environment of its own, and a client that talks to it as 3D Slicer's plugin does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

VERSION = "0.8.5"
PACKAGES = (
    *("torch==2.13.0", "monai==1.6.1", "numpy<2.5", "scipy", "scikit-image", "scikit-learn", "nibabel", "itk"),
    *("pytorch-ignite==0.5.5", "fire", "pyyaml", "filelock", "tensorboard", "matplotlib", "jinja2", "simpleitk"),
    *("pydicom<3", "dicomweb-client==0.59.3", "pynetdicom==2.1.1", "pynrrd", "fastapi", "uvicorn", "pydantic"),
    *("pydantic-settings", "python-dotenv", "python-multipart", "httpx", "schedule", "timeloop", "expiringdict"),
    *("expiring_dict", "cachetools", "watchdog", "einops", "passlib", "pyjwt", "bcrypt", "requests", "shapely"),
    *("requests-toolbelt", "psutil", "tqdm", "google-auth", "pillow", "girder-client", "jsonschema"),
)
"""What the server imports. MONAI Label's own list also has packages of a CUDA build and of other tasks."""
STAND_INS = {
    "torchvision/__init__.py": "",
    "torchvision/utils.py": "def make_grid(*a, **k): raise NotImplementedError\nsave_image = make_grid\n",
    "numpymaxflow.py": "def maxflow(*a, **k): raise NotImplementedError\n",
}
"""Modules that it imports for other tasks: torchvision's wheel would bring another torch, the other builds nowhere."""


def make_environment(folder: Path) -> Path:
    """Make the environment, unless it is there, and return its interpreter.

    Raises:
        OSError, subprocess.SubprocessError: when the packages cannot be had.
    """
    python = folder / "bin/python"
    done = folder / "complete"
    if done.is_file():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *PACKAGES], check=True, timeout=3000, capture_output=True)
    subprocess.run([*pip, "--no-deps", f"monailabel=={VERSION}", "pydicom-seg==0.4.1"], check=True, timeout=600)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, text in STAND_INS.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    done.touch()
    return python


class Server:
    """The server, with the calls of the plugin.

    Args:
        python: interpreter of its environment.
        app: folder of the app.
        studies: folder of the images.
        conf: entries of ``--conf``.
        log: file for what it prints.
    """

    def __init__(self, python: Path, app: Path, studies: Path, log: Path, conf: dict[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        pairs = [word for pair in (conf or {}).items() for word in ("--conf", *pair)]
        command = [python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *pairs]
        # No sparse3dunet but the bundle's own, and what a user of MONAI Label has
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "SPARSE3DUNET"))}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*map(str, command)], cwd=log.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Server:
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.info()
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        raise AssertionError(self.log.read_text()[-4000:])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _call(self, method: str, path: str, **arguments: object):
        import requests

        url = f"http://127.0.0.1:{self.port}{path}"
        return requests.request(method, url, timeout=590, **arguments)  # type: ignore[arg-type]

    def _json(self, method: str, path: str, **arguments: object):
        response = self._call(method, path, **arguments)
        assert response.status_code == 200, f"{response.status_code}: {response.text}\n{self.log.read_text()[-3000:]}"
        return response.json()

    def info(self):
        return self._json("GET", "/info/")

    def next_sample(self, strategy: str):
        return self._json("POST", f"/activelearning/{strategy}", json={"client_id": "test"})

    def score(self, method: str):
        """Run a scoring method on the images without a label, and return what is known of each image."""
        self._json("POST", f"/scoring/{method}?run_sync=true", json={"simulation_size": 2})
        objects = self._json("GET", "/datastore/?output=all")["objects"]
        return {name: entry["image"]["info"] for name, entry in objects.items()}

    def save_label(self, image: str, label: Path, names: list[str]):
        info = {"label_info": [{"name": name, "idx": number} for number, name in enumerate(names, 1)]}
        with label.open("rb") as file:
            files = {"label": (label.name, file)}
            data = {"params": json.dumps({**info, "client_id": "test"})}
            return self._json("PUT", f"/datastore/label?image={image}", files=files, data=data)

    def infer(self, model: str, image: str, target: Path, **params: object):
        """Save the segmentation to `target` and return the parameters that came with it; a text for an error."""
        config = self.info()["models"][model]["config"]
        # The plugin sends the options of its table, of a list the first
        sent = {name: value[0] if isinstance(value, list) else value for name, value in config.items()}
        data = {"params": json.dumps({**sent, **params, "client_id": "test"})}
        response = self._call("POST", f"/infer/{model}?image={image}", data=data)
        if response.status_code != 200:
            return response.text
        found = {}
        boundary = response.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        for part in response.content.split(b"--" + boundary)[1:-1]:
            headers, _, content = part.partition(b"\r\n\r\n")
            if b'name="image"' in headers:
                target.write_bytes(content.removesuffix(b"\r\n"))
            else:
                found = json.loads(content)
        return found

    def train(self, model: str, **params: object):
        """Train with the options of the plugin's table, and return the task when it has ended."""
        config = self.info()["trainers"][model]["config"]
        sent = {name: value[0] if isinstance(value, list) and value else value for name, value in config.items()}
        self._json("POST", f"/train/{model}", json={**sent, **params, "client_id": "test"})
        end = time.monotonic() + 580
        while time.monotonic() < end:
            time.sleep(2)
            task = self._json("GET", "/train/")
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
        raise AssertionError("the training did not end")
