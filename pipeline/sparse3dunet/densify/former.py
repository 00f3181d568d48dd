"""What a run finds in its folder of a former one, and what was typed to start it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sparse3dunet.models.checkpoints import file_digest


def look_at_templates(output_dir: Path, templates: dict[str, str], files: Sequence[str]) -> list[str]:
    """Tell of templates that were passed unchanged, or changed but not passed; one that was passed is the user's.

    Args:
        output_dir: where they are.
        templates: by file name, their digests as they were written; loses those that were passed.
        files: of annotation that was passed.
    """
    told = []
    passed = {file_digest(file) for file in files}
    for name, written in list(templates.items()):
        path = output_dir / name
        now = file_digest(path) if path.is_file() else written
        if written in passed:
            told.append(
                f"{path} is passed as it was written: what was predicted on the suggested slices now counts as "
                "annotated, although nobody has changed it."
            )
        elif now != written and now not in passed:
            told.append(
                f"{path} was changed since it was written, but is no annotation of this run; pass it, to learn from it."
            )
        if passed & {written, now}:
            del templates[name]
    return told


def typed() -> str:
    """The command line, as it can be typed again."""
    program = Path(sys.argv[0])
    module = program.parent.name if program.name == "__main__.py" else ""
    start = ["python", "-m", "monai.bundle" if module == "bundle" else module] if module else [program.name]
    return shlex.join([*start, *sys.argv[1:]])
