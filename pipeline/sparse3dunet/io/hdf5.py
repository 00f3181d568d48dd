"""HDF5 as ilastik and pytorch-3dunet write it, with h5py: one volume in a dataset, ``file.h5:/path/to/dataset``.

Sources: ilastik's ``axistags`` (JSON of VIGRA's AxisTags: a key for each dimension), pytorch-3dunet's
``element_size_um`` (voxel size along z, y and x in µm).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.chunked import ChunkedArray
from sparse3dunet.io.hdf5_sources import check_sources, linked
from sparse3dunet.io.microscopy import package, readable, stored_order, volume_of
from sparse3dunet.io.suffixes import split
from sparse3dunet.io.volumes import Volume

USUAL = ("raw", "exported_data", "data", "volume", "label")
"""Names of datasets to read where none is given, in this order."""
LABEL, MAP = "label", "data"
"""Names of the datasets that are written."""
TYPE_FLAGS = {"c": 1, "x": 2, "y": 2, "z": 2, "t": 8}


def read_hdf5(path: Path, opened: bool = False) -> Volume:
    """Read a dataset to an (X, Y, Z) or (X, Y, Z, C) volume.

    Args:
        path: the file, with the dataset behind it, or without: then it is the only one of the file, or one of USUAL.
        opened: whether to leave the voxels on disk, as a :class:`~sparse3dunet.io.chunked.ChunkedArray`; the file is
            then open as long as that exists.

    Raises:
        DataError: when it is damaged, lacks the dataset, or that is no volume, or in other files than those beside it.
    """
    file, inner = split(path)
    h5py = package("h5py", path)
    with readable(path, "a whole HDF5 file"):
        if opened:
            return _volume(h5py, path, h5py.File(file, "r"), inner, opened)
        with h5py.File(file, "r") as content:
            return _volume(h5py, path, content, inner, opened)


def label_dataset(path: str) -> str:
    """Return the path of an annotation: to the dataset "label" if an HDF5 file has it, and none is given."""
    file, inner = split(path)
    if inner or file.suffix.lower() not in (".h5", ".hdf5") or not file.is_file():
        return path
    h5py = package("h5py", path)
    with readable(path, "a whole HDF5 file"), h5py.File(file, "r") as content:
        try:
            is_there = isinstance(linked(h5py, Path(path), content, LABEL), h5py.Dataset)
        except DataError:  # a link to another file
            return path
        return f"{path}:/{LABEL}" if is_there else path


def write_hdf5(
    path: Path, array: np.ndarray, like: Volume, class_names: Mapping[int, str] | None = None, description: str = ""
) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) as the dataset "label", or "data" if `class_names` is None.

    Class names are the attribute ``labels``, a JSON object by value.

    Raises:
        DataError: when h5py is missing.
        OSError: when it could not be written.
    """
    h5py = package("h5py", path)
    stored, axes = stored_order(array)
    with h5py.File(path, "w") as content:
        new_dataset(content, stored.shape, stored.dtype, axes, like, class_names, description, data=stored)


def new_dataset(
    content: Any,
    shape: Sequence[int],
    dtype: Any,
    axes: str,
    like: Volume,
    class_names: Mapping[int, str] | None,
    description: str,
    **options: Any,
) -> Any:
    """Make the dataset of a result in an open file, with its attributes; `options` are those of h5py."""
    packing: dict[str, Any] = {"compression": "gzip", "shuffle": True} if np.dtype(dtype).kind != "f" else {}
    tags = [{"key": axis, "typeFlags": TYPE_FLAGS[axis], "resolution": 0, "description": ""} for axis in axes]
    name = MAP if class_names is None else LABEL
    dataset = content.create_dataset(name, shape=tuple(shape), dtype=dtype, **packing, **options)
    dataset.attrs["axistags"] = json.dumps({"axes": tags})
    if like.has_voxel_size:
        dataset.attrs["element_size_um"] = [1000 * size for size in reversed(like.spacing)]
    if class_names:
        names = {str(value): name for value, name in class_names.items()}
        dataset.attrs["labels"] = json.dumps(names, ensure_ascii=False)
    if description:
        dataset.attrs["description"] = description
    return dataset


def _volume(h5py: Any, path: Path, content: Any, inner: str, opened: bool) -> Volume:
    dataset = _dataset(h5py, path, content, inner)
    notes = check_sources(h5py, path, dataset)
    voxels = ChunkedArray.of(dataset) if opened else dataset[()]
    return replace(volume_of(path, voxels, _axes_of(dataset), _sizes(dataset)), notes=notes)


def _dataset(h5py: Any, path: Path, content: Any, inner: str) -> Any:
    """Return the dataset to read."""
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 3:
            found[name] = item.shape

    content.visititems(visit)  # which follows no links
    outside: DataError | None = None
    for name in [inner] if inner else [*USUAL, *(found if len(found) == 1 else ())]:
        try:
            item = linked(h5py, path, content, name)
        except DataError as error:
            outside = error
            continue
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 3:
            return item
        if isinstance(item, h5py.Dataset) and inner:
            raise DataError(f"{path}: found shape {item.shape}; expected a volume of three dimensions.")
    if outside is not None:
        raise outside
    listed = ", ".join(f"{key} {shape}" for key, shape in list(found.items())[:10]) or "none"
    what = f"no dataset {inner}" if inner else "no dataset is named, and none has a usual name"
    raise DataError(
        f"{path}: {what}; expected a volume. Datasets of three or more dimensions: {listed}. Pass one: "
        f"{split(path)[0].name}:/{next(iter(found), 'raw')}."
    )


def _axes_of(dataset: Any) -> str | None:
    """Return ilastik's axes, slowest first; None if there are none that can be read."""
    try:
        tags = dataset.attrs["axistags"]
        tags = json.loads(tags.decode() if isinstance(tags, bytes) else str(tags))
        keys = [str(axis["key"]).lower() for axis in tags["axes"]]
        return "".join(key if len(key) == 1 else "?" for key in keys)  # any text would be shown in messages
    except (KeyError, ValueError, TypeError):
        return None


def _sizes(dataset: Any) -> dict[str, float | None]:
    """Return the voxel size in mm by axis."""
    sizes = np.ravel(dataset.attrs.get("element_size_um", ()))
    if len(sizes) != 3 or sizes.dtype.kind not in "iuf" or not (np.isfinite(sizes) & (sizes > 0)).all():
        return {}
    return {axis: float(size) / 1000 for axis, size in zip("zyx", sizes)}
