"""What a user must know of how an image was read, and which of it is the same for many images of a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sparse3dunet.inference.scale import scale_note
from sparse3dunet.io.volumes import NO_VOXEL_SIZE, Volume

FIGURES = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")
"""Numbers, in which notes of one kind differ."""


def image_notes(
    volumes: Sequence[Volume], spacing: Sequence[float] | None, more: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Return the notes on an image, and on its prediction: the kind and the text of each, which names its file.

    Those of one kind differ in files and figures alone.

    Args:
        volumes: the image's files.
        spacing: voxel size in mm that the network was trained at; None if unknown.
        more: notes of the prediction.
    """
    first = volumes[0]
    texts = [f"{first.path} {NO_VOXEL_SIZE}"] if not first.has_voxel_size else []
    texts += [text for volume in volumes for text in volume.notes]
    texts += filter(None, [scale_note(first, spacing), *more])
    paths = "|".join(re.escape(path) for path in sorted({v.path for v in volumes}, key=len, reverse=True))
    return [(FIGURES.sub("*", re.sub(paths, "*", text)), text) for text in dict.fromkeys(texts)]
