"""ITK-SNAP's label descriptions: the names and colours of the values of a label map, in a text file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sparse3dunet.colors import Labels, color_text, colors_of
from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_no_pipe

OURS = "# Written by sparse3dunet"
"""First line of the files that are written, and may be replaced."""
HEADER = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""
UNNAMED = "Clear Label"
"""ITK-SNAP's name of the value 0, which is no name of a class."""
EXAMPLE = '1 255 0 0 1 1 1 "liver"'
LARGEST = 2**16 - 1


def read_label_descriptions(path: str | Path) -> Labels:
    """Return the names and colours of values; 0 only if it has a name of its own.

    Raises:
        DataError: when the file cannot be read, or is not of this form.
    """
    check_no_pipe(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected a label description file of ITK-SNAP. Save it again there "
            "(Segmentation > Export Label Descriptions)."
        ) from error
    names: dict[int, str] = {}
    colors: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r'\s*(\d+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(?:\S+\s+){3}"(.*)"\s*', line)
        if not found or int(found[1]) in names:
            raise DataError(
                f"{path}: line {number} is no label, or one with the value of another; expected a value, its colour "
                f"and its name, such as {EXAMPLE}, and each value once. Save the label descriptions again in ITK-SNAP."
            )
        names[int(found[1])] = found[5].strip()
        if all(re.fullmatch(r"\d{1,3}", part) for part in found.groups()[1:4]):
            colors[int(found[1])] = color_text([int(part) for part in found.groups()[1:4]])
    if names.get(0) == UNNAMED:
        del names[0]
    if not any(names.values()):
        raise DataError(f"{path}: found no names of labels; expected lines such as {EXAMPLE}.")
    return Labels({value: name for value, name in names.items() if name}, colors)


def label_descriptions(class_names: Mapping[int, str]) -> str:
    """Return the text of a label description file, with their colours; the first class is not shown."""
    lines = []
    for number, ((value, name), rgb) in enumerate(zip(class_names.items(), colors_of(class_names))):
        if not 0 <= value <= LARGEST:  # ITK-SNAP has none of these
            continue
        shown = int(number > 0)
        color = "".join(f"{part:5d}" for part in rgb)
        text = " ".join(name.replace('"', "'").split())
        lines.append(f'{value:5d} {color} {shown:8d} {shown:2d} {shown:2d}    "{text}"')
    return f"{OURS}\n{HEADER}" + "\n".join(lines) + "\n"


def may_be_replaced(path: Path) -> bool:
    """Return whether a file of label descriptions does not exist, or was written by this package."""
    try:
        check_no_pipe(path)
        return path.read_text(encoding="utf-8", errors="replace").startswith(OURS)
    except FileNotFoundError:
        return True
    except (OSError, DataError):
        return False
