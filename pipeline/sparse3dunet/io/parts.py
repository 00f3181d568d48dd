"""Parts of a volume, named by a path: ``big.ome.zarr/part_0-224_64-288_10-107`` is a box of ``big.ome.zarr``.

A part of an annotation can have an inner box, outside of which its voxels read as another value: so that parts may
overlap, and each annotated voxel still belongs to one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[slice, slice, slice]
"""Voxels along x, y and z, each with a start and a stop."""

_BOX = r"(\d+-\d+_\d+-\d+_\d+-\d+)"
_NAME = re.compile(rf"part_{_BOX}(?:_within_{_BOX}_else_(-?\d+))?")


@dataclass(frozen=True)
class Part:
    """A part of a volume.

    Attributes:
        box: voxels of the volume.
        inner: voxels of the volume, within `box`, that keep their value; None for all.
        outside: value of the others.
    """

    box: Box
    inner: Box | None = None
    outside: int = 0

    @property
    def name(self) -> str:
        """Last component of the path."""
        inner = "" if self.inner is None else f"_within_{_text(self.inner)}_else_{self.outside}"
        return f"part_{_text(self.box)}{inner}"


def part_path(path: str | Path, part: Part) -> str:
    """Return the path of a part of a volume."""
    return str(Path(path) / part.name)


def split_part(path: str | Path) -> tuple[Path, Part | None]:
    """Return the path of a volume and the part of it that a path names; None for the whole of it."""
    path = Path(path)
    found = _NAME.fullmatch(path.name)
    if found is None:
        return path, None
    inner = None if found[2] is None else _box(found[2])
    return path.parent, Part(_box(found[1]), inner, int(found[3] or 0))


def relative(inner: Sequence[slice], box: Sequence[slice]) -> Box:
    """Return the voxels `inner` of a volume as voxels of its part `box`, as far as they lie in it."""
    x, y, z = (
        slice(max(a.start, b.start) - b.start, max(min(a.stop, b.stop), b.start) - b.start) for a, b in zip(inner, box)
    )
    return x, y, z


def _text(box: Box) -> str:
    return "_".join(f"{along.start}-{along.stop}" for along in box)


def _box(text: str) -> Box:
    x, y, z = (slice(*map(int, along.split("-"))) for along in text.split("_"))
    return x, y, z
