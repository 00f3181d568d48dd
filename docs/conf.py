"""Sphinx's settings for the documentation: `make docs` builds it into build/docs.

The source folder is the repository, so that a link between Markdown files is the same here and on a code host. Links to
other files become downloads; those to a room of the package lead to its page in the API reference.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import inspect

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "pipeline"))

from sparse3dunet import __version__  # noqa: E402

project = "sparse3dunet"
author = "sparse3dunet developers"
copyright = "sparse3dunet developers, Apache 2.0"
version = release = __version__

root_doc = "docs/index"
include_patterns = ["docs/**", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md"]
exclude_patterns = [".*", "benchmarks", "build", "bundle", "data/*/**", "dist", "examples", "pipeline", "tests"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

myst_heading_anchors = 4
"""Depth of headings that a link may name, by the same rule as on code hosts."""
myst_enable_extensions = ["dollarmath"]

default_role = "literal"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shapes", "params_style")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"sparse3dunet {__version__}"
html_copy_source = False
html_show_sourcelink = False
html_static_path: list[str] = []
html_theme_options = {"navigation_with_keys": True}

ROOM = re.compile(r"\]\((?:\.\./)*pipeline/sparse3dunet/(\w+)/?\)")
OPTIONAL = ("cluster",)
REDIRECT = (
    '<!DOCTYPE html><meta charset="utf-8"><title>{0}</title>'
    '<meta http-equiv="refresh" content="0; url={1}"><a href="{1}">{0}</a>\n'
)


def link_rooms(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn links to a folder of the package into links to its page in the API reference."""
    up = "../" * page.count("/")
    source[0] = ROOM.sub(lambda found: f"]({up}docs/api/{found[1]}.md)", source[0])


def leave_out_missing(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave optional pages that are not there out of the navigation."""
    for name in OPTIONAL:
        if page == root_doc and not (ROOT / "docs" / f"{name}.md").exists():
            source[0] = source[0].replace(f"\n{name}\n", "\n")


def own_signature(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str) -> Any:
    """Show the arguments of `__init__` where a base class, as MONAI's MapTransform, has a `__new__` that hides them."""
    if what == "class" and signature == "(*args, **kwargs)":
        found = inspect.signature(obj.__init__, bound_method=True)
        return inspect.stringify_signature(found, unqualified_typehints=True, show_return_annotation=False), returned
    return None


def external_links(app: Sphinx) -> list[str]:
    """Return the links of all pages that leave the site; they are listed, not followed."""
    trees = (app.env.get_doctree(page) for page in app.env.found_docs)
    links = (node.get("refuri", "") for tree in trees for node in tree.findall(nodes.reference))
    return sorted({link for link in links if "://" in link})


def write_entry(app: Sphinx, error: Exception | None) -> None:
    """Write the page that leads from the folder of the site to its first page, and the links that leave the site."""
    if error is None and app.builder.format == "html":
        Path(app.outdir, "index.html").write_text(REDIRECT.format(project, "docs/index.html"), encoding="utf-8")
        Path(app.outdir, "external_links.txt").write_text("\n".join(external_links(app)) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the functions above with the build."""
    app.connect("source-read", link_rooms)
    app.connect("source-read", leave_out_missing)
    app.connect("autodoc-process-signature", own_signature)
    app.connect("build-finished", write_entry)
