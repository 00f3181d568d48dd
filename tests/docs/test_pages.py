"""Pages of the documentation: their code is marked, their tables and examples are true, and the site builds."""

import doctest
import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.docs.commands import blocks, fences, shortened

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")), *(ROOT / "docs").rglob("*.md")]
ROOMS = [page.stem for page in sorted((ROOT / "docs/api").glob("*.md")) if page.stem not in ("index", "densify")]
EXAMPLES = sorted(
    ".".join(file.relative_to(ROOT / "pipeline").with_suffix("").parts)
    for file in (ROOT / "pipeline/sparse3dunet").rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs/tables.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_has_a_language(page):
    """So that commands are recognized, and run."""
    text = page.read_text(encoding="utf-8")
    assert [fence["code"] for fence in fences(page) if not fence["kind"]] == []
    assert text.count("\n```") == 2 * len(fences(page)), "each block that begins ends"
    assert text.count("\n```bash") == len([fence for fence in fences(page) if fence["kind"] == "bash"])


def test_marks_are_understood():
    """A mark that stands apart from its block, or is misspelled, would have no effect."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marked = [fence for fence in fences(page) if fence["mark"]]
        assert len(re.findall(r"^<!-- (?!table: |end of table)", text, re.M)) == len(marked), page
    reasons = {block.reason for page in PAGES for block in blocks(page) if block.reason}
    assert any("Slurm" in reason for reason in reasons)


def test_commands_are_shortened():
    """What takes minutes on a page takes seconds, and nothing else changes."""
    code = "pip install '.[dicom]'\nsparse3dunet densify a b \\\n  -o out --minutes 30   # why\nsparse3dunet check a\n"
    lines = shortened(code, fresh=False).splitlines()
    assert lines == ["sparse3dunet densify a b    -o out --minutes 0.5   # why", "sparse3dunet check a"]
    assert shortened(code, fresh=True).startswith("pip install '.[dicom]'\n")
    assert "--max_epochs 1" in shortened("python -m monai.bundle run training --dataset_dir A\n", fresh=False)


def test_tables_are_those_of_the_result_files(tables):
    found = 0
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        found += len(tables.REGION.findall(text))
        assert tables.filled(text, page.name) == text, f"{page.name}: run python docs/tables.py"
    assert found >= 4
    page = (ROOT / "docs/densify.md").read_text(encoding="utf-8")
    changed = page.replace(
        "| abdominal CT, every fifth axial | 20.0% | 0.9", "| abdominal CT, every fifth axial | 20.0% | 0.8"
    )
    assert changed != page
    assert tables.filled(changed, "densify.md") == page
    with pytest.raises(SystemExit, match="no table 'unknown'"):
        tables.filled("<!-- table: unknown -->\n\n<!-- end of table -->", "page.md")


@pytest.mark.parametrize("room", ROOMS)
def test_reference_is_complete(room):
    """What a room offers has an entry on its page."""
    page = (ROOT / f"docs/api/{room}.md").read_text(encoding="utf-8")
    offered = getattr(importlib.import_module(f"sparse3dunet.{room}"), "__all__", [])
    missing = [name for name in offered if not re.search(rf":: sparse3dunet\.{room}\.{name}$", page, re.M)]
    assert [name for name in missing if not name.isupper()] == []


def test_propagation_names_the_method_that_is_used_differently():
    """What the page says of each method holds of all that it does not except."""
    page = (ROOT / "docs/api/propagation.md").read_text(encoding="utf-8")
    excepted = re.findall(r"except `(\w+)`", page)
    room = importlib.import_module("sparse3dunet.propagation")
    for name in room.__all__:
        assert hasattr(getattr(room, name), "predict_proba") == (name not in excepted), name


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.slow
def test_site_is_built_without_a_warning(tmp_path):
    """All links and anchors between pages lead somewhere, and each docstring can be read."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", tmp_path / "doctrees", "-c", ROOT / "docs"]
    command = [sys.executable, "-W", "ignore", "-m", "sphinx", *options, ROOT, tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8", timeout=560)
    assert done.returncode == 0, done.stderr
    assert "url=docs/index.html" in (tmp_path / "site/index.html").read_text(encoding="utf-8")
    reference = (tmp_path / "site/docs/api/losses.html").read_text(encoding="utf-8")
    assert "(B, K, X, Y, Z) logits of the classes" in reference
    external = (tmp_path / "site/external_links.txt").read_text(encoding="utf-8").splitlines()
    assert "https://arxiv.org/abs/1606.06650" in external
