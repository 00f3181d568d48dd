"""The wheel carries the package whole, and the project says one thing in all places."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import pytest
import yaml

import sparse3dunet
from tests.conftest import ROOT

BUNDLE = "sparse3dunet/bundle/files/"
PEERS = {"batchgeneratorsv2", "itk-morphologicalcontourinterpolation", "tifffile", "torchio"}
"""Which benchmarks alone need, to compare with, or to read data that are not everywhere."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy without what builds and runs left behind, but with what must not be packaged."""
    copy = tmp_path_factory.mktemp("project") / "source"
    left_out = (".git", ".venv", "*.egg-info", "build", ".*_cache", "__pycache__")
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=lambda folder, names: {
            *shutil.ignore_patterns(*left_out)(folder, names),
            *(names if folder == str(ROOT / "data") else ()),
        },
    )
    for left in ("bundle/models/model.pt", "bundle/eval/scores.csv"):
        (copy / left).parent.mkdir(exist_ok=True)
        (copy / left).write_text("")
    return copy


def test_wheel(tmp_path, source):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(source),
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
    assert {"sparse3dunet/py.typed", "sparse3dunet/report/templates/densify.html.j2"} <= names
    assert {name for name in names if name.endswith(".py")} == sources  # and nothing of a former build
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)
    assert {name.removeprefix(BUNDLE) for name in names if name.startswith(BUNDLE)} == bundle_files()
    assert f"Version: {sparse3dunet.__version__}" in metadata


def bundle_files():
    """What an installed package has of the bundle: no models, no results."""
    configs = {f"configs/{path.name}" for path in (ROOT / "bundle/configs").iterdir()}
    return configs | {"LICENSE", "docs/README.md"}


def test_sdist(tmp_path, source):
    """Has the bundle's files, too, and no links: not every file system has them."""
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    inside = {name.removeprefix("bundle/"): member for name, member in members.items() if name.startswith("bundle/")}
    assert {name for name, member in inside.items() if member.isreg()} == bundle_files()
    assert not any(member.issym() for member in members.values())


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


def test_the_changelog_and_citation_have_the_version():
    metadata = json.loads((ROOT / "bundle/configs/metadata.json").read_text())
    told = re.findall(r"^## (\S+) - (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert [version for version, _ in told] == list(metadata["changelog"])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == told[0]


def test_every_dependency_is_pinned():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"] + "".join(setup["options.extras_require"].values())
    names = {re.split(r"[<>=]", line)[0].lower() for line in wanted.split() if line}
    names -= PEERS
    files = (ROOT / "requirements.txt", ROOT / "docs/requirements.txt")
    lines = [line for file in files for line in file.read_text().splitlines() if "==" in line]
    pinned = {line.split("==")[0].lower() for line in lines}
    assert names <= pinned, names - pinned
