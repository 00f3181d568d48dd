"""TIFF stacks, ImageJ's hyperstacks and OME-TIFF, with tifffile.

Sources: the OME-TIFF specification 6; ImageJ's ``TiffDecoder`` and ``FileOpener`` for its description
("spacing", "unit", "zunit", "cf").
"""

from __future__ import annotations

import hashlib
import html
import logging
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_axes
from sparse3dunet.io.microscopy import in_mm, package, readable, stored_order, volume_of
from sparse3dunet.io.payload import named
from sparse3dunet.io.text_header import without_texts
from sparse3dunet.io.volumes import Volume

RESOLUTION_UNITS = {2: "inch", 3: "cm"}
"""Values of the tag ResolutionUnit."""
LARGEST_IMAGEJ = 2**32 - 2**20
"""Bytes of voxels that fit in an ImageJ TIFF, whose offsets have 32 bits."""
INTEGERS = ("uint8", "int16", "uint16", "int32", "uint32")
"""Types of calibrated whole numbers, in the order of preference."""
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def read_tiff(path: Path) -> Volume:
    """Read a stack to an (X, Y, Z) or (X, Y, Z, C) volume; uncompressed contiguous stacks are memory-mapped.

    Raises:
        DataError: when it is damaged, not one volume, or compressed by a method whose codec is missing.
    """
    tifffile = package("tifffile", path)
    with readable(path, "a whole TIFF stack"), _complaints(path), tifffile.TiffFile(path) as file:
        series = _only_series(path, file)
        array = _voxels(path, file, series)
        array, notes = _calibrated(path, array, (file.imagej_metadata or {}) if file.is_imagej else {})
        return replace(volume_of(path, array, _axes_of(series), _sizes(file)), notes=notes)


def ome_files(path: Path, xml: str) -> list[Path]:
    """Return the files that OME-XML names; the pages of several files are one stack."""
    names = re.findall(r"""\bFileName\s*=\s*["']([^"']*)["']""", xml)
    return [path.parent / html.unescape(name) for name in dict.fromkeys(names)]


def is_ome(path: str | Path) -> bool:
    """Return whether a file is an OME-TIFF, by its content; False if it cannot be read."""
    try:
        tifffile = package("tifffile", path)
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome)
    except Exception:  # see read_tiff
        return False


def write_tiff(
    path: Path, array: np.ndarray, like: Volume, class_names: Mapping[int, str] | None = None, description: str = ""
) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) as ImageJ TIFF, or as OME-TIFF if `path` ends with .ome.tif.

    Voxel sizes are in µm. Class names are ``label_0: name`` lines of ImageJ's Info, and a MapAnnotation in OME.

    Raises:
        DataError: when ImageJ TIFF cannot hold the values.
        OSError: when it could not be written.
    """
    tifffile = package("tifffile", path)
    names = {f"label_{value}": " ".join(name.split()) for value, name in (class_names or {}).items()}
    names |= {"description": description} if description else {}
    stored, axes = stored_order(array)
    spacing = [1000 * size for size in like.spacing] if like.has_voxel_size else None
    options: dict[str, Any]
    if path.name.lower().endswith(".ome.tif"):
        options = {"ome": True, "metadata": _ome_metadata(stored, axes, spacing, names)}
    else:
        stored, options = _imagej(path, stored, axes, spacing, names)
    if stored.dtype.kind != "f":
        options["compression"] = "zlib"
    tifffile.imwrite(path, stored, photometric="minisblack", software="sparse3dunet", **options)


def check_imagej(path: str | Path, like: Volume, class_names: Mapping[int, str]) -> None:
    """Raise DataError unless ImageJ TIFF can hold a label map of these values on an image's grid."""
    bad = next((value for value in class_names if not 0 <= value < 2**16), None)
    if bad is not None:
        raise DataError(
            f"{path}: the class {class_names[bad]!r} has the value {bad}; expected 0 to 65535, as ImageJ TIFF holds. "
            "Write to .ome.tif."
        )
    if 2 * np.prod(like.spatial_shape, dtype=float) > LARGEST_IMAGEJ:
        raise DataError(f"{path}: {like.spatial_shape} voxels are too many for ImageJ TIFF (4 GB). Write to .ome.tif.")


@contextmanager
def _complaints(path: Path) -> Iterator[None]:
    """Context that raises DataError if tifffile logs an error: it then returns what it has, such as fewer pages.

    What it logs in this thread is not shown; another thread may be reading another file.
    """
    errors: list[str] = []
    logger, thread = logging.getLogger("tifffile"), get_ident()

    def keep(record: logging.LogRecord) -> bool:
        is_ours = record.thread == thread
        if is_ours and record.levelno >= logging.ERROR:
            errors.append(record.getMessage())
        return not is_ours

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
    if errors:
        reason = without_texts(" ".join(re.sub(r"<[^>]*>", "", errors[0]).split()))
        raise DataError(
            f"{path}: truncated or damaged ({reason[:200]}); expected a whole TIFF. Copy or export it again."
        )


def _only_series(path: Path, file: Any) -> Any:
    if len(file.series) != 1:
        shapes = ", ".join(f"{series.axes} {series.shape}" for series in file.series[:5])
        raise DataError(
            f"{path}: found {len(file.series)} images of different sizes or positions ({shapes}); expected one volume. "
            "Save each in its own file (in Fiji: Bio-Formats Importer, then File > Save As)."
        )
    return file.series[0]


def _voxels(path: Path, file: Any, series: Any) -> np.ndarray:
    if file.is_imagej:
        _check_imagej_pages(path, file, series)
    if file.is_ome and series.kind in ("generic", "imagej"):
        _check_other_planes(path, file)
    is_own = series.keyframe.parent is file and not series.is_multifile
    is_mapped = is_own and series.dataoffset is not None
    planes = series.pages[:1] if is_mapped else list(series.pages)
    empty = sum(page is None or _is_empty(page) for page in planes)
    if empty:  # tifffile fills them with zeros
        raise DataError(
            f"{path}: {empty} of {len(series.pages)} planes are missing, or some of their strips or tiles; expected "
            "all. If the stack has several files, copy all of them; otherwise export it again."
        )
    if is_mapped:
        return package("tifffile", path).memmap(path, series=0, mode="r")
    if is_own:
        return series.asarray()
    _check_folder(path, planes)
    # Plane by plane, as tifffile may take the offset of contiguous ones for one in the file itself
    return file.asarray(slice(None), series=series).reshape(series.shape)


def _check_other_planes(path: Path, file: Any) -> None:
    """Raise DataError if OME-XML, of which tifffile could make nothing, names other files: it reads the file's own."""
    others = [other for other in ome_files(path, file.ome_metadata) if other.name != path.name]
    if others:
        raise DataError(
            f"{path}: planes of it are in {named(others[0].name)}, which is missing, damaged or of another shape; "
            "expected it in the same folder. Copy it there, too, or give back its name to a file that was renamed."
        )


def _check_folder(path: Path, planes: list[Any]) -> None:
    """Raise DataError if planes are in files elsewhere: a file must not choose which others are read."""
    folder = Path(os.path.realpath(path)).parent
    if not all(Path(os.path.realpath(page.parent.filehandle.path)).is_relative_to(folder) for page in planes):
        raise DataError(
            f"{path}: planes of it are in a file elsewhere, which is not read; expected files in its folder, or in "
            "folders there. Copy all files of the stack there, or pass the other file."
        )


def _is_empty(page: Any) -> bool:
    """Return whether voxels of a plane are not stored, as in GDAL's sparse files: an offset or a size of 0."""
    if page.is_contiguous:  # which is read from the first offset on, whatever the size
        return not page.dataoffsets[0]
    is_whole = min(len(page.dataoffsets), len(page.databytecounts)) >= math.prod(page.chunked)
    return not (is_whole and all(page.dataoffsets) and all(page.databytecounts))


def _check_imagej_pages(path: Path, file: Any, series: Any) -> None:
    """Raise DataError if there are fewer planes than the description states."""
    stated = int((file.imagej_metadata or {}).get("images", 1))
    found = int(np.prod(series.shape[:-2])) if series.axes.endswith("YX") else stated
    if found != stated:
        raise DataError(
            f"{path}: found {found} planes, but its description states {stated}. Copy it again, or save it in Fiji."
        )


def _calibrated(path: Path, array: np.ndarray, metadata: Mapping[str, Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the calibrated values of an ImageJ TIFF, and notes: signed integers are stored as unsigned ones.

    ImageJ calibrates integers alone, with function 0, a straight line, and curves.
    """
    if "cf" not in metadata or array.dtype.kind != "u" or array.dtype.itemsize > 2:
        return array, ()
    try:
        offset, factor = (float(metadata.get(key, 0)) for key in ("c0", "c1"))
        is_line = int(metadata["cf"]) == 0 and bool(factor) and bool(np.isfinite([offset, factor]).all())
    except (TypeError, ValueError, OverflowError):
        is_line = False
    if not is_line:
        return array, (
            f"{path}: its calibration in ImageJ is no straight line, so the values are taken as they are stored. For "
            "calibrated ones, apply it in Fiji, and save the image with 32 bits.",
        )
    if (offset, factor) == (0, 1):
        return array, ()
    low, high = sorted((offset, offset + factor * np.iinfo(array.dtype).max))
    kinds = [kind for kind in INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    is_whole = offset.is_integer() and factor.is_integer()
    values = np.empty(array.shape, kinds[0] if kinds and is_whole else "float32")
    for stored, calibrated in zip(array, values):  # plane by plane, as the stored ones may be on disk
        calibrated[...] = offset + factor * stored.astype(np.float64)
    return values, ()


def _axes_of(series: Any) -> str | None:
    """Return the axes of a series; None if they are not known."""
    axes = series.axes.lower()
    unknown = [axis for axis in axes if axis not in "tzcyxs"]
    if not unknown:
        return axes
    if len(default_axes() or "") == len(axes) or len(unknown) > 1 or "z" in axes:
        return None
    return axes.replace(unknown[0], "z")  # the pages


def _sizes(file: Any) -> dict[str, float | None]:
    """Return the voxel size in mm by axis."""
    if file.is_ome:
        return _ome_sizes(file.ome_metadata)
    tags = file.pages[0].tags
    unit = RESOLUTION_UNITS.get(int(tags["ResolutionUnit"].value)) if "ResolutionUnit" in tags else None
    depth: Any = None
    units = dict.fromkeys("xyz", unit)
    if file.is_imagej:
        metadata = file.imagej_metadata or {}
        unit = metadata.get("unit") or unit
        units = {"x": unit, "y": metadata.get("yunit") or unit, "z": metadata.get("zunit") or unit}
        depth = metadata.get("spacing", 1)  # ImageJ leaves out a spacing of 1
    sizes = {"x": _per_pixel(tags, "X"), "y": _per_pixel(tags, "Y"), "z": depth}
    return {axis: in_mm(size, units[axis]) for axis, size in sizes.items()}


def _per_pixel(tags: Any, axis: str) -> float | None:
    tag = tags.get(f"{axis}Resolution")
    if tag is None or not tag.value[0]:
        return None
    return tag.value[1] / tag.value[0]


def _ome_sizes(xml: str) -> dict[str, float | None]:
    """Return PhysicalSizeX, Y and Z of the first image in mm; the unit is µm by default."""
    found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    pairs = re.findall(r"""(\w+)\s*=\s*["']([^"']*)["']""", found[0]) if found else []
    attributes = {name: html.unescape(text) for name, text in pairs}
    units = {axis: attributes.get(f"PhysicalSize{axis}Unit", "µm") for axis in "XYZ"}
    return {axis.lower(): in_mm(attributes.get(f"PhysicalSize{axis}"), units[axis]) for axis in "XYZ"}


def _ome_metadata(
    stored: np.ndarray, axes: str, spacing: list[float] | None, names: Mapping[str, str]
) -> dict[str, Any]:
    digest = hashlib.sha256(repr((stored.shape, stored.dtype.str, spacing, sorted(names.items()))).encode())
    for plane in stored:
        digest.update(np.ascontiguousarray(plane).data)
    metadata: dict[str, Any] = {"axes": axes.upper(), "UUID": str(uuid.UUID(digest.hexdigest()[:32]))}
    for axis, size in zip("XYZ", spacing or ()):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if names:
        metadata["MapAnnotation"] = {"Namespace": "sparse3dunet", **names}
    return metadata


def _imagej(
    path: Path, stored: np.ndarray, axes: str, spacing: list[float] | None, names: Mapping[str, str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the voxels in ImageJ's order and one of its types, and tifffile's options."""
    stored, axes = (stored.swapaxes(0, 1), "zcyx") if axes == "czyx" else (stored, axes)
    if stored.dtype.kind in "iu" and stored.size and stored.min() >= 0:
        stored = stored.astype(np.promote_types(np.min_scalar_type(int(stored.max())), np.uint8), copy=False)
    if stored.dtype.name not in IMAGEJ_TYPES or stored.nbytes > LARGEST_IMAGEJ:
        raise DataError(
            f"{path}: found {stored.dtype}, {stored.nbytes / 2**30:.1f} GiB; ImageJ TIFF holds up to 4 GiB of "
            f"{', '.join(IMAGEJ_TYPES)}. Write to .ome.tif."
        )
    metadata: dict[str, Any] = {"axes": axes.upper()}
    if names:
        metadata["Info"] = "\n".join(f"{key}: {text}" for key, text in names.items())
    if spacing is None:
        return stored, {"imagej": True, "metadata": metadata}
    metadata |= {"spacing": spacing[2], "unit": "um"}
    return stored, {"imagej": True, "resolution": (1 / spacing[0], 1 / spacing[1]), "metadata": metadata}
