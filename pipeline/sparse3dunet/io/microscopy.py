"""What the formats of microscopy share: named axes instead of an orientation, and voxel sizes with a unit.

Their x is the first axis of a volume, y the second and z the third. None of them states where the patient's left is, so
the affine is a convention, ``diag(x, -y, z)``: with it, pictures show x to the right and y downwards, as Fiji does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import IN_MM, default_axes, default_voxel_size
from sparse3dunet.io.text_header import without_texts
from sparse3dunet.io.volumes import Volume, check_affine

SIGNS = np.array([1.0, -1.0, 1.0])
"""Directions of x, y and z in the convention of the affine."""
DIRECTION_TOLERANCE = 1e-4
"""Cosine between an axis and that of the convention up to which they count as parallel."""
CHANNELS = {"s": "c"}
"""TIFF's samples of a pixel, such as red, green and blue, are channels."""


def package(name: str, path: str | Path, extra: str = "microscopy") -> Any:
    """Import an optional package, which `extra` of this one installs.

    Raises:
        DataError: when it is not installed, with the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(
            f"{path}: this format needs the package {name}, which is not installed. Install it: "
            f"pip install 'sparse3dunet[{extra}]'."
        ) from error


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[None]:
    """Context that turns the many kinds of errors of a reading package into one DataError of one line."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "It is missing, truncated, damaged or something else; copy or export it again."
        if _is_missing_codec(reason):
            hint = "Install it, or save the file without this compression."
        elif not isinstance(error, OSError):  # whose quotes are paths
            reason = without_texts(reason)
        raise DataError(f"{path}: cannot be read ({reason[:300]}); expected {what}. {hint}") from error


def _is_missing_codec(reason: str) -> bool:
    return "imagecodecs" in reason or "codec not available" in reason or "unknown codec" in reason.lower()


def in_mm(size: Any, unit: str | None) -> float | None:
    """Return a size in mm; None if it is no positive number, or the unit is missing, pixels or unknown."""
    scale = IN_MM.get(str(unit or "").strip().lower().replace("\\u00b5", "µ"))
    try:
        size = float(size)
    except (TypeError, ValueError):
        return None
    return size * scale if scale is not None and 0 < size < float("inf") else None


def volume_of(
    path: str | Path,
    array: Any,
    axes: str | None,
    sizes: Mapping[str, float | None],
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    header: Any = None,
) -> Volume:
    """Return an array as a volume (X, Y, Z) or (X, Y, Z, C).

    Args:
        path: file, for messages.
        array: voxels as stored; or a :class:`~sparse3dunet.io.chunked.ChunkedArray`, of which nothing is read.
        axes: a letter for each dimension, in lower case, slowest first; None if the file does not state them: those of
            ``--axes``, otherwise zyx.
        sizes: voxel size in mm by axis; None where the file does not state it. Unless all three are stated, those of
            ``--voxel-size`` are used, otherwise 1 mm.
        origin: position of the first voxel along x, y and z, in mm.
        header: see :class:`Volume`.

    Raises:
        DataError: when it is not one volume of real numbers.
    """
    axes = _axes(path, array.shape, axes)
    array, axes = _without_time(path, array, axes)
    order = [axes.index(axis) for axis in "xyzc" if axis in axes]
    data = _plain(path, array.transpose(order))
    data = data.squeeze(3) if data.shape[3:] == (1,) else data
    stated = [sizes.get(axis) for axis in "xyz"]
    has_voxel_size = all(stated)
    spacing = stated if has_voxel_size else default_voxel_size() or (1.0, 1.0, 1.0)
    affine = np.diag([*SIGNS, 1.0]) * np.array([*spacing, 1.0], float)
    affine[:3, 3] = SIGNS * origin + 0.0  # no negative zeros
    check_affine(path, affine)
    known = has_voxel_size or default_voxel_size() is not None
    return Volume(str(path), data, affine, header, has_orientation=False, has_voxel_size=known)


def _axes(path: str | Path, shape: tuple[int, ...], axes: str | None) -> str:
    """Return the axes of an array, as stated, set or by default.

    Raises:
        DataError: when they are those of no volume, or do not match the array's dimensions.
    """
    if axes is None:
        axes = default_axes() or ("zyx" if len(shape) == 3 else "")
        if len(axes) != len(shape):
            said = f"--axes {axes} has {len(axes)}" if axes else "the file does not say which they are"
            raise DataError(
                f"{path}: found {len(shape)} dimensions, shape {tuple(shape)}, and {said}; expected a volume. Pass a "
                "letter for each dimension, for example --axes zyx, or --axes czyx if the first one is the channels."
            )
    if len(axes) != len(shape):
        raise DataError(
            f"{path}: the file states {len(axes)} axes, {axes.upper()}, but found {len(shape)} dimensions, shape "
            f"{tuple(shape)}; expected an axis for each. Correct the axes in the file, or export it again."
        )
    axes = "".join(CHANNELS.get(axis, axis) if CHANNELS.get(axis, "") not in axes else axis for axis in axes)
    kept = "".join(axis for axis, n in zip(axes, shape) if n > 1 or axis in "xyzc")
    if not set("xyz") <= set(kept) or not set(kept) <= set("xyzct") or len(set(axes)) < len(axes):
        raise DataError(
            f"{path}: found the axes {axes.upper()}, shape {tuple(shape)}; expected a volume with Z, Y and X, and at "
            "most channels (C). Export the whole stack as one volume, each volume in its own file."
        )
    return axes


def _without_time(path: str | Path, array: np.ndarray, axes: str) -> tuple[np.ndarray, str]:
    """Remove axes of length 1 other than x, y, z and c."""
    if "t" in axes and array.shape[axes.index("t")] > 1:
        raise DataError(
            f"{path}: found {array.shape[axes.index('t')]} time points (axes {axes.upper()}, shape {array.shape}); "
            "expected one volume. Save each time point in its own file (in Fiji: Image > Duplicate, one frame); if "
            "these are slices, say so (in Fiji: Image > Properties)."
        )
    drop = tuple(i for i, axis in enumerate(axes) if axis not in "xyzc")
    return array.squeeze(drop), "".join(axis for axis in axes if axis in "xyzc")


def _plain(path: str | Path, array: np.ndarray) -> np.ndarray:
    """Return real numbers in the machine's byte order."""
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        raise DataError(
            f"{path}: found {array.dtype}, shape {array.shape}; expected one real number per voxel. Export it as "
            "integers or floats."
        )
    name = {"bool": "uint8", "float16": "float32"}.get(array.dtype.name)
    return array.astype(name or array.dtype.newbyteorder("="), copy=False)


def check_grid(path: str | Path, like: Volume, suffix: str) -> None:
    """Raise DataError if a format that only has voxel sizes cannot hold an image's grid."""
    axes = like.affine[:3, :3] / np.linalg.norm(like.affine[:3, :3], axis=0)
    if np.abs(axes - np.diag(SIGNS)).max() > DIRECTION_TOLERANCE:
        raise DataError(
            f"{path}: {like.path} states an orientation, which {suffix} cannot hold. Write to .nii.gz or .nrrd."
        )


def stored_order(array: np.ndarray) -> tuple[np.ndarray, str]:
    """Return an array (X, Y, Z) or (X, Y, Z, C) as (Z, Y, X) or (C, Z, Y, X), and these axes."""
    return (array.transpose(2, 1, 0), "zyx") if array.ndim == 3 else (array.transpose(3, 2, 1, 0), "czyx")
