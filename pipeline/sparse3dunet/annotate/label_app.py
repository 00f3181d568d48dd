"""The folder of an app for MONAI Label, whose server needs nothing of this package in its own environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse3dunet import __version__
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output_dir
from sparse3dunet.io.segments import BACKGROUND, check_structures
from sparse3dunet.io.writing import write_text

TEMPLATE = Path(__file__).parent / "templates" / "main.py"
SETTINGS = "settings.json"
"""File of the app that says which interpreter runs the package, and names the classes."""


def write_app(folder: str | Path, class_names: Sequence[str], overwrite: bool = False) -> Path:
    """Write the app, and return its folder. Models and annotation that are in it stay.

    Args:
        folder: folder of the app.
        class_names: names of the classes of values 1, 2, ..., without the background.
        overwrite: whether to replace the program of an app that is there.

    Raises:
        DataError: when the names are wrong, or the folder is not empty and no app, or one that is not to be replaced.
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
        if not (target / SETTINGS).is_file():
            raise DataError(f"{target} is not empty, and no app of this command. Pass another folder (-o).")
        if not overwrite:
            raise DataError(f"{target} has an app already. Pass --overwrite to replace its program; its data stay.")
    settings = {
        "version": __version__,
        "python": sys.executable,
        "path": _source_tree(),
        "class_names": names,
    }
    write_text(target / "main.py", TEMPLATE.read_text(encoding="utf-8"))
    write_text(target / SETTINGS, json.dumps(settings, indent=1) + "\n")  # ASCII: paths may be no UTF-8
    return target


def _source_tree() -> str:
    """Return the folder to import the package from if it runs from its source tree, else an empty string.

    The folder of installed packages has others, too, which another interpreter could not use.
    """
    root = Path(__file__).resolve().parents[2]
    return str(root) if (root.parent / "pyproject.toml").is_file() else ""
