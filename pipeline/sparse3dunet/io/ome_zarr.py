"""OME-Zarr 0.4 and 0.5 (and plain Zarr arrays), with zarr. A label of an image is ``x.zarr/labels/name``.

Source: the specification of OME-Zarr (NGFF), https://ngff.openmicroscopy.org/0.5. Zarr does not notice a missing chunk:
it is read as the fill value, since chunks that contain nothing else need not be stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.colors import colors_of
from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import ChunkedArray
from sparse3dunet.io.microscopy import SIGNS, in_mm, package, readable, stored_order, volume_of
from sparse3dunet.io.suffixes import split
from sparse3dunet.io.volumes import Volume

SMALLEST_LEVEL = 256
"""Longest axis in voxels up to which a level of a pyramid is the last."""
CHUNK = 64
"""Voxels of a chunk along each axis."""
VERSIONS = {"0.4": 2, "0.5": 3}
"""Version of Zarr by that of OME-Zarr."""


def read_ome_zarr(path: Path, opened: bool = False) -> Volume:
    """Read the finest level of an image to an (X, Y, Z) or (X, Y, Z, C) volume.

    Args:
        path: the folder, or a group in it.
        opened: whether to leave the voxels on disk, as a :class:`~sparse3dunet.io.chunked.ChunkedArray`.

    Raises:
        DataError: when it is damaged, a plate, several images, or no volume.
    """
    zarr = package("zarr", path)
    _check_exists(path)
    with readable(path, "an OME-Zarr folder"):
        node = _open(zarr, path)
        if hasattr(node, "shape"):  # an array without metadata of OME
            _check_chunks(path, path)
            return volume_of(path, _voxels(node, opened), None, {})
        metadata, version = _metadata(node)
        if "multiscales" not in metadata:
            return _read_other(path, node, metadata, opened)
        return _read_multiscales(path, node, metadata["multiscales"][0], version, opened)


def label_group(path: str) -> str:
    """Return the path of an annotation: to the one label of an OME-Zarr image, if it has labels and none is given.

    Raises:
        DataError: when it has several.
    """
    file, inner = split(path)
    folder = file / "labels"
    if inner or file.suffix.lower() != ".zarr" or not folder.is_dir():
        return path
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) > 1:
        raise DataError(
            f"{path}: found {len(names)} labels, {', '.join(names)}; expected one. Pass {folder}/{names[0]}."
        )
    return str(folder / names[0]) if names else path


def write_ome_zarr(
    path: Path, array: np.ndarray, like: Volume, class_names: Mapping[int, str] | None = None, description: str = ""
) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) as a pyramid; with `class_names`, as a label image with colours.

    The version is that of the image, or 0.4. Coarser levels take every second voxel.

    Raises:
        DataError: when zarr is missing.
        OSError: when it could not be written.
    """
    zarr = package("zarr", path)
    version = version_for(zarr, like)
    stored, axes = stored_order(array)
    group = new_group(zarr, path, VERSIONS[version])
    levels, level = [stored], stored
    while max(level.shape[-3:]) > SMALLEST_LEVEL:
        level = level[..., ::2, ::2, ::2]
        levels.append(level)
    for number, level in enumerate(levels):
        new_level(group, str(number), level.shape, level.dtype, axes, VERSIONS[version])[...] = level
    describe(group, axes, len(levels), like, version, class_names, description)


def version_for(zarr: Any, like: Volume) -> str:
    """Return the version of OME-Zarr for a result: that of its image, if it has one that can be written, or 0.4."""
    version = like.header.get("ome_zarr", "0.4") if isinstance(like.header, dict) else "0.4"
    return version if VERSIONS.get(version) == 2 or hasattr(zarr, "create_group") else "0.4"


def describe(
    group: Any,
    axes: str,
    levels: int,
    like: Volume,
    version: str,
    class_names: Mapping[int, str] | None,
    description: str,
) -> None:
    """Write the metadata of OME: the levels "0", "1", ... and, with `class_names`, the label's colours."""
    metadata: dict[str, Any] = {"multiscales": [_multiscales(axes, levels, like, version, description)]}
    if class_names is not None:
        metadata["image-label"] = _image_label(class_names, version)
    group.attrs.update({"ome": {"version": version, **metadata}} if version == "0.5" else metadata)


def _check_exists(path: Path) -> None:
    if not path.is_dir():
        file, inner = split(path)
        found = "no such group" if inner and file.is_dir() else "does not exist" if not file.exists() else "is a file"
        raise DataError(f"{path}: {found}; expected an OME-Zarr folder. Pass its path, or that of a label in it.")


def _open(zarr: Any, path: Path) -> Any:
    file, inner = split(path)
    if (file / "zarr.json").is_file() and not hasattr(zarr, "create_group"):
        raise DataError(
            f"{path}: OME-Zarr 0.5 needs zarr 3, and that Python 3.11 or newer; found zarr {zarr.__version__}. Update, "
            "or save the image as OME-Zarr 0.4."
        )
    node = zarr.open(str(file), mode="r")
    return node[inner] if inner else node


def _metadata(group: Any) -> tuple[dict[str, Any], str]:
    """Return the metadata of OME, and their version."""
    attributes = dict(group.attrs)
    if isinstance(attributes.get("ome"), dict):
        return attributes["ome"], str(attributes["ome"].get("version", "0.5"))
    return attributes, "0.4"


def _voxels(array: Any, opened: bool) -> Any:
    return ChunkedArray.of(array) if opened else array[...]


def _read_other(path: Path, group: Any, metadata: Mapping[str, Any], opened: bool) -> Volume:
    """Read a group that is no image itself, but contains one.

    Raises:
        DataError: when it contains none or several.
    """
    groups, arrays = sorted(group.group_keys()), sorted(group.array_keys())
    if "plate" in metadata or "well" in metadata:
        raise DataError(f"{path}: found a plate of many images; expected one. Pass one: {path}/A/1/0, for example.")
    inside = [name for name in (*groups, *arrays) if name not in ("OME", "labels")]
    if len(inside) == 1:
        volume = read_ome_zarr(path / inside[0], opened)
        return Volume(str(path), volume.data, volume.affine, volume.header, False, volume.has_voxel_size)
    raise DataError(
        f"{path}: found no image of OME-Zarr (multiscales), but {', '.join(inside[:10]) or 'nothing'}; expected one. "
        + (f"Pass one of these: {path}/{inside[0]}." if inside else "Pass another folder.")
    )


def _read_multiscales(path: Path, group: Any, multiscales: Mapping[str, Any], version: str, opened: bool) -> Volume:
    levels = multiscales["datasets"]
    # 0.2 and older state none
    listed = multiscales.get("axes") or list("tczyx")[-len(group[levels[0]["path"]].shape) :]
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in listed]
    names = "".join(str(axis["name"]).lower()[:1] for axis in axes)
    level = _finest(group, levels)
    array = group[level["path"]]
    _check_chunks(path, path / str(level["path"]))
    scale, shift = _placement(path, names, level, multiscales)
    sizes = {name: in_mm(scale[i], axes[i].get("unit")) for i, name in enumerate(names)}
    origin = [0.0, 0.0, 0.0]
    if all(sizes.get(name) for name in "xyz"):
        origin = [float(shift[i] / scale[i]) * float(sizes[name] or 0) for name in "xyz" for i in [names.index(name)]]
    header = {"ome_zarr": version if version in VERSIONS else "0.4"}
    return volume_of(path, _voxels(array, opened), names, sizes, origin, header)


def _finest(group: Any, levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the level of the most voxels: the specification lists it first, but not all files do."""
    return max(levels, key=lambda level: group[level["path"]].size if level["path"] in group else -1)


def _placement(path: Path, names: str, *parts: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and the shift of the coordinate transformations of a level, and of what it is in.

    Raises:
        DataError: when there are others.
    """
    scale, shift = np.ones(len(names)), np.zeros(len(names))
    for step in (step for part in parts for step in part.get("coordinateTransformations") or ()):
        if "scale" in step:
            factors = _by_axis(path, "scale", step["scale"], len(names))
            scale, shift = scale * factors, shift * factors
        elif "translation" in step:
            shift = shift + _by_axis(path, "translation", step["translation"], len(names))
        elif step.get("type", "identity") != "identity":
            raise DataError(
                f"{path}: a coordinate transformation is neither a scale nor a translation, or its numbers are in "
                "another file; expected a number for each axis. Export the image again."
            )
    return scale, shift


def _by_axis(path: Path, name: str, numbers: Any, count: int) -> np.ndarray:
    """Return the numbers of a coordinate transformation.

    Raises:
        DataError: unless there is one for each axis; NumPy would take a single one for all.
    """
    found = np.array(numbers, float)
    if found.shape != (count,):
        raise DataError(
            f"{path}: {name} has {found.size} number(s), but there are {count} axes; expected one for each. Export the "
            "image again."
        )
    return found


def _check_chunks(path: Path, folder: Path) -> None:
    """Raise DataError if a chunk in an array's folder is truncated, which the decoder of Blosc does not notice.

    It would read on behind the end. A chunk's header states its size in bytes 12 to 15.
    """
    if not _is_blosc(folder):
        return
    for file in folder.rglob("*"):
        if file.name.startswith(".") or file.name == "zarr.json" or not file.is_file():
            continue
        with file.open("rb") as stream:
            stated, found = int.from_bytes(stream.read(16)[12:], "little"), file.stat().st_size
        if stated != found:
            raise DataError(f"{path}: the chunk {file} is truncated: {found} bytes of {stated}. Copy the folder again.")


def _is_blosc(folder: Path) -> bool:
    """Return whether an array's chunks are those of Blosc, by its metadata in version 2 or 3 of Zarr."""
    if (folder / ".zarray").is_file():
        metadata = json.loads((folder / ".zarray").read_text(encoding="utf-8"))
        return (metadata.get("compressor") or {}).get("id") == "blosc"
    if (folder / "zarr.json").is_file():
        codecs = json.loads((folder / "zarr.json").read_text(encoding="utf-8")).get("codecs") or [{}]
        return codecs[-1].get("name") == "blosc"
    return False


def new_group(zarr: Any, path: Path, zarr_format: int) -> Any:
    """Make an empty group; what is there is replaced."""
    if hasattr(zarr, "create_group"):
        return zarr.create_group(str(path), overwrite=True, zarr_format=zarr_format)
    return zarr.open_group(str(path), mode="w")  # zarr 2, for Python 3.10


def new_level(group: Any, name: str, shape: Sequence[int], dtype: Any, axes: str, zarr_format: int) -> Any:
    """Make an array of zeros in a group: a level of a pyramid."""
    chunks = tuple(min(n, CHUNK) if axis != "c" else 1 for n, axis in zip(shape, axes))
    options: dict[str, Any] = {"shape": tuple(shape), "chunks": chunks, "dtype": dtype}
    if not hasattr(group, "create_array"):
        return group.create_dataset(name, **options, dimension_separator="/")
    if zarr_format == 2:
        return group.create_array(name, **options, chunk_key_encoding={"name": "v2", "separator": "/"})
    return group.create_array(name, **options, dimension_names=list(axes))


def _multiscales(axes: str, levels: int, like: Volume, version: str, description: str) -> dict[str, Any]:
    spacing = dict(zip("xyz", [1000 * size for size in like.spacing])) if like.has_voxel_size else {}
    origin = dict(zip("xyz", [float(value) for value in 1000 * SIGNS * like.affine[:3, 3]]))
    unit = {"unit": "micrometer"} if spacing else {}
    listed = [{"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", **unit} for a in axes]
    datasets = []
    for number in range(levels):
        step = 2**number
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [1.0 if a == "c" else spacing.get(a, 1.0) * step for a in axes]}
        ]
        if spacing and any(origin.values()):
            steps.append({"type": "translation", "translation": [0.0 if a == "c" else origin[a] + 0.0 for a in axes]})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    found = {"name": description or "segmentation", "axes": listed, "datasets": datasets}
    return found if version == "0.5" else {"version": version, **found}


def _image_label(class_names: Mapping[int, str], version: str) -> dict[str, Any]:
    """Return the colours and names of labels; the background is transparent."""
    colors, properties = [], []
    for number, ((value, name), rgb) in enumerate(zip(class_names.items(), colors_of(class_names))):
        colors.append({"label-value": value, "rgba": [*rgb, 255 if number else 0]})
        properties.append({"label-value": value, "name": name})
    return {**({"version": version} if version == "0.4" else {}), "colors": colors, "properties": properties}
