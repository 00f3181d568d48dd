"""The wheel carries the package whole, and the project says one thing in all places."""

import json
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser

import sparse3dunet
from tests.conftest import ROOT


def test_wheel(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith("/METADATA"))
    sources = {str(p.relative_to(ROOT / "pipeline")) for p in (ROOT / "pipeline/sparse3dunet").rglob("*.py")}
    assert sources | {"sparse3dunet/py.typed"} <= names
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)
    assert f"Version: {sparse3dunet.__version__}" in metadata


def test_versions_agree():
    metadata = json.loads((ROOT / "bundle/configs/metadata.json").read_text())
    assert metadata["version"] == sparse3dunet.__version__
    pinned = dict(
        re.findall(r"^([\w.-]+)==([\w.]+)(?:$|; python_version >=)", (ROOT / "requirements.txt").read_text(), re.M)
    )
    assert metadata["monai_version"] == pinned["monai"]
    assert metadata["pytorch_version"] == pinned["torch"]
    assert metadata["numpy_version"] == pinned["numpy"]
    for package, version in metadata["required_packages_version"].items():
        assert pinned[package] == version, package


def test_every_dependency_is_pinned():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    names = {re.split(r"[<>=]", line)[0].lower() for line in wanted.split() if line}
    names -= {"batchgeneratorsv2", "torchio"}  # which benchmarks/augmentation.py compares with: nothing else needs them
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line
    }
    assert names <= pinned, names - pinned
