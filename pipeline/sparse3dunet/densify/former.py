"""Templates of a former run in the output folder, and the command line of this one."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse3dunet.io.written import file_digest


def check_templates(output_dir: Path, templates: dict[str, str], files: Sequence[str]) -> list[str]:
    """Return warnings on templates that were passed unchanged, or changed but not passed.

    Args:
        output_dir: folder of the templates.
        templates: digest by file name, as written; those that were passed, which are the user's now, are removed.
        files: annotation files that were passed.
    """
    warnings = []
    passed = {file_digest(file) for file in files}
    for name, written in list(templates.items()):
        path = output_dir / name
        now = file_digest(path) if path.exists() else written
        if written in passed:
            warnings.append(
                f"{path} was passed unchanged: the prediction on the suggested slices now counts as annotation, "
                "although nobody corrected it."
            )
        elif now != written and now not in passed:
            warnings.append(f"{path} was edited, but is not an annotation of this run; pass it to train on it.")
        if passed & {written, now}:
            del templates[name]
    return warnings


def command_line() -> str:
    """Return the command line of this process, quoted for a shell."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else ""
    start = ["python", "-m", "monai.bundle" if module == "bundle" else module] if module else [program.name]
    return shlex.join([*start, *sys.argv[1:]])
