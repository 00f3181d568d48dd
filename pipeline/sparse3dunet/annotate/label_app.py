"""The folder of an app for MONAI Label, whose server needs nothing of this package in its own environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse3dunet import __version__
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output_dir
from sparse3dunet.io.json_files import load_json, misfit
from sparse3dunet.io.segments import BACKGROUND, check_structures
from sparse3dunet.io.writing import write_text

TEMPLATE = Path(__file__).parent / "templates" / "main.py"
SETTINGS = "settings.json"
"""File of the app that says which interpreter runs the package, and names the classes."""
_FIELDS: dict[str, Any] = {"version": str, "python": str, "class_names": list[str]}
"""Fields of that file in each version, by which it differs from other programs' files of this common name."""
DATA = ("scans", "model")
"""Folders of the app with annotation and models, in which classes are numbers."""


def write_app(folder: str | Path, class_names: Sequence[str], overwrite: bool = False) -> Path:
    """Write the app, and return its folder. Models and annotation that are in it stay.

    Args:
        folder: folder of the app.
        class_names: names of the classes of values 1, 2, ..., without the background.
        overwrite: whether to replace the program of an app that is there.

    Raises:
        DataError: when the names are wrong, or the folder is not empty and no app, or one that is not to be replaced,
            or whose data have other classes.
    """
    names = [name.strip() for name in class_names]
    if names and names[0].lower() == BACKGROUND:
        names = names[1:]
    if not names or not all(names) or len(set(names)) < len(names):
        raise DataError(
            f"--class-names is {', '.join(class_names) or 'empty'}; expected a different name for each structure, such "
            'as --class-names "gray matter,white matter". They are the segments in 3D Slicer, in this order.'
        )
    check_structures(names, "--class-names")
    target = Path(folder).expanduser().absolute()
    check_output_dir(target)
    if target.is_dir() and any(target.iterdir()):
        former = _former_names(target)
        if not overwrite:
            raise DataError(f"{target} has an app already. Pass --overwrite to replace its program; its data stay.")
        _check_classes(target, former, names)
    settings = {
        "version": __version__,
        "python": sys.executable,
        "path": _source_tree(),
        "class_names": names,
    }
    write_text(target / "main.py", TEMPLATE.read_text(encoding="utf-8"))
    write_text(target / SETTINGS, json.dumps(settings, indent=1) + "\n")  # ASCII: paths may be no UTF-8
    return target


def _former_names(target: Path) -> list[str]:
    """Return the class names of the app in a folder; raise DataError if there is none."""
    try:
        content = load_json(target / SETTINGS, "settings")
    except (OSError, DataError):
        content = None
    if misfit(content, _FIELDS) or not all(name in content for name in _FIELDS):
        raise DataError(f"{target} is not empty, and no app of this command. Pass another folder (-o).")
    return list(content["class_names"])


def _check_classes(target: Path, former: Sequence[str], names: Sequence[str]) -> None:
    """Raise DataError if an app has data in which a number would mean another class than before."""
    has_data = any((target / part).is_dir() and any((target / part).iterdir()) for part in DATA)
    if has_data and any(before != now for before, now in zip(former, names)):
        raise DataError(
            f"{target} has annotation or a model of the classes {', '.join(former)}, by number; --class-names is "
            f"{', '.join(names)}; expected these classes in this order, and new ones after them. Pass another folder "
            f"(-o) for other classes; if they only have other names, change these in {target / SETTINGS}."
        )


def _source_tree() -> str:
    """Return the folder to import the package from if it runs from its source tree, else an empty string.

    The folder of installed packages has others, too, which another interpreter could not use.
    """
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root.parent / "pyproject.toml").is_file() else ""
