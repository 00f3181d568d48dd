"""HTML pages from templates, each one file that needs no internet connection and no scripts."""

from __future__ import annotations

import base64
import os
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparse3dunet.colors import class_color


def render(template: str, **values: Any) -> str:
    """Render one of the templates in ``templates/``; all text is escaped.

    Templates have these filters: ``data_uri`` of a PNG's bytes, ``relative_link`` to a file by its relative path, and
    ``class_color`` of a class number.

    Args:
        template: file name of the template.
        values: values by the names used in the template; a missing one is an error.
    """
    pages = Environment(
        loader=PackageLoader("sparse3dunet.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(data_uri=_data_uri, relative_link=_relative_link, class_color=class_color)
    return pages.get_template(template).render(values)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _relative_link(path: str) -> str:
    """Return the quoted bytes of a path in the file system; never an address with a scheme."""
    return quote(os.fsencode(path))
