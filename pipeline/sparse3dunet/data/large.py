"""Volumes larger than memory: which they are, by the size of the volume and the memory of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from sparse3dunet.data.memory import machine_memory
from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import stored_bytes
from sparse3dunet.io.defaults import default_volume_memory
from sparse3dunet.io.formats import is_chunked, open_image, opened_once
from sparse3dunet.io.parts import split_part
from sparse3dunet.io.suffixes import split
from sparse3dunet.io.volumes import Volume

SHARE = 0.5
"""Share of the machine's memory that one volume may take."""
BYTES = 16
"""Bytes of memory that a voxel of one channel takes while it is read, checked and trained on."""
MOST_UNPACKED = 10**6
"""Bytes of voxels for each byte on disk above which hardly any of them can ever have been written."""
_TOLD: set[str] = set()


def volume_memory() -> int:
    """Return the bytes of memory that one volume may take; 0 without the option if the machine's are not known."""
    given = default_volume_memory()
    return int(SHARE * machine_memory()) if given is None else given


def is_large(volume: Volume) -> bool:
    """Return whether an opened volume is too large to be read as a whole."""
    limit = volume_memory()
    known = limit > 0 or default_volume_memory() is not None
    return known and needed(volume) > limit


def needed(volume: Volume) -> int:
    """Return the bytes of memory that a volume would take."""
    return BYTES * volume.data.size


def open_large(paths: str | Sequence[str]) -> list[Volume] | None:
    """Open an image, in one file or one for each channel, if it is too large to be read as a whole.

    This is decided by the headers. It is told once for each file.

    Returns:
        The opened volumes; None for images that are read as a whole, among them all those of other formats than
        OME-Zarr and HDF5, parts of volumes, and those whose header cannot be read.

    Raises:
        DataError: when hardly any of its voxels were ever written.
    """
    files = [paths] if isinstance(paths, str) else list(paths)
    if not all(is_chunked(file) and split_part(file)[1] is None for file in files):
        return None
    try:
        if not any(is_large(open_image(file)) for file in files):
            return None
        volumes = [opened_once(file) for file in files]
    except DataError:  # its reader tells it
        return None
    for volume in volumes:
        _check_written(volume)
    _tell(volumes[0], len(volumes))
    return volumes


def _check_written(volume: Volume) -> None:
    """Raise DataError if an image is a shape of nearly no content, which would be computed on for years."""
    file, _ = split(volume.path)
    enough = volume.data.nbytes // MOST_UNPACKED
    stored = stored_bytes(volume.data, file, enough)
    if stored < enough:
        shape = " x ".join(map(str, volume.spatial_shape))
        raise DataError(
            f"{volume.path}: {shape} voxels, of which {stored} bytes are on disk; expected an image, of which at least "
            "some were written. Copy or export it again."
        )


def _tell(volume: Volume, count: int) -> None:
    if volume.path in _TOLD:
        return
    _TOLD.add(volume.path)
    shape = " x ".join(map(str, volume.spatial_shape))
    gib = (count * needed(volume) / 2**30, volume_memory() / 2**30)
    print(
        f"{volume.path}: {shape} voxels would take about {gib[0]:.3g} GiB in memory, more than {gib[1]:.3g} GiB "
        "(--volume-memory): it is read chunk by chunk.",
        flush=True,
    )
