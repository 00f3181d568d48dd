"""Files of microscopy, written by the packages of each format and not by ours."""

import json
from pathlib import Path

import h5py
import numpy as np
import tifffile
import zarr

SHAPE = (7, 6, 5)
SPACING = (0.4, 0.3, 2.0)
"""Voxel size along x, y and z in µm."""
KINDS = ("imagej.tif", "ome.ome.tif", "ngff04.ome.zarr", "ngff05.zarr", "ilastik.h5", "pytorch3dunet.hdf5")


def voxels(shape=SHAPE, dtype=np.uint8, high=4, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def affine(spacing=SPACING):
    """In mm: x to the right and y down, as on a screen."""
    return np.diag([spacing[0] / 1000, -spacing[1] / 1000, spacing[2] / 1000, 1])


def write(path: Path, array: np.ndarray, spacing=SPACING) -> Path:
    """Write an array (X, Y, Z) or (X, Y, Z, C) in the way that its name says; spacing None for none."""
    stored, axes = (array.T, "zyx") if array.ndim == 3 else (array.transpose(3, 2, 1, 0), "czyx")
    kind = path.name.split(".")[0].rpartition("_")[2]
    if kind == "imagej":
        sized = {"spacing": spacing[2], "unit": "um"} if spacing else {}
        options = {"resolution": (1 / spacing[0], 1 / spacing[1])} if spacing else {}
        if axes == "czyx":
            stored, axes = stored.swapaxes(0, 1), "zcyx"
        tifffile.imwrite(path, stored, imagej=True, metadata={"axes": axes.upper(), **sized}, **options)
    elif kind == "ome":
        sizes = {f"PhysicalSize{a}": size for a, size in zip("XYZ", spacing or ())}
        tifffile.imwrite(path, stored, ome=True, metadata={"axes": axes.upper(), **sizes}, photometric="minisblack")
    elif kind.startswith("ngff"):
        write_ngff(zarr.create_group(str(path), zarr_format=int(kind[-1]) - 2), stored, axes, spacing, kind[-1])
    elif kind == "ilastik":
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("exported_data", data=stored)
            tags = [{"key": a, "typeFlags": 1 if a == "c" else 2, "resolution": 0, "description": ""} for a in axes]
            dataset.attrs["axistags"] = json.dumps({"axes": tags})
            if spacing:
                dataset.attrs["element_size_um"] = spacing[::-1]
    else:
        with h5py.File(path, "a") as file:
            dataset = file.create_dataset("raw", data=stored, compression="gzip")
            if spacing:
                dataset.attrs["element_size_um"] = spacing[::-1]
    return path


def write_ngff(group, stored, axes, spacing, version):
    """A multiscale image of two levels, the coarser one of which is another image altogether."""
    unit = {"unit": "micrometer"} if spacing else {}
    scale = [1.0] * axes.count("c") + [*(spacing or (1.0, 1.0, 1.0))[::-1]]
    for name, level in (("fine", stored), ("coarse", 9 - stored[..., ::2, ::2, ::2])):
        group.create_array(name, shape=level.shape, dtype=level.dtype, chunks=level.shape)[...] = level
    multiscales = {
        "axes": [{"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", **unit} for a in axes],
        "datasets": [
            {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [s * step for s in scale]}]}
            for name, step in (("fine", 1), ("coarse", 2))
        ],
    }
    if version == "5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscales]}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscales}]


def read(path: Path):
    """Return voxels (X, Y, Z), voxel size in µm along x, y, z (None for none), and class names, read by the package."""
    name = path.name
    if name.endswith(".tif"):
        with tifffile.TiffFile(path) as file:
            array = file.asarray().T
            if file.is_ome:
                ome = tifffile.xml2dict(file.ome_metadata)["OME"]
                pixels, found = ome["Image"]["Pixels"], ome.get("StructuredAnnotations", {}).get("MapAnnotation", {})
                entries = found.get("Value", {}).get("M", [])
                entries = entries if isinstance(entries, list) else [entries]
                names = {entry["K"]: entry["value"] for entry in entries}
                sizes = [pixels.get(f"PhysicalSize{a}") for a in "XYZ"]
                assert all(pixels.get(f"PhysicalSize{a}Unit", "µm") == "µm" for a in "XYZ")
            else:
                assert file.is_imagej
                info = file.imagej_metadata.get("Info", "")
                names = dict(line.split(": ", 1) for line in info.splitlines())
                tags = file.pages[0].tags
                sizes = [tags[f"{a}Resolution"].value[::-1] for a in "XY"]
                sizes = [*(a / b for a, b in sizes), file.imagej_metadata.get("spacing")]
                sizes = sizes if file.imagej_metadata.get("unit") == "um" else None
        return array, sizes if sizes and None not in sizes else None, names
    if name.endswith(".h5"):
        with h5py.File(path) as file:
            (dataset,) = file.values()
            assert [a["key"] for a in json.loads(dataset.attrs["axistags"])["axes"]] == ["z", "y", "x"]
            sizes = dataset.attrs.get("element_size_um")
            names = json.loads(dataset.attrs.get("labels", "{}"))
            array = dataset[()].T
        return array, None if sizes is None else [*sizes[::-1]], {f"label_{k}": v for k, v in names.items()}
    group = zarr.open_group(path, mode="r")
    metadata = group.attrs["ome"] if "ome" in group.attrs else dict(group.attrs)
    (multiscales,) = metadata["multiscales"]
    assert [a["name"] for a in multiscales["axes"]] == ["z", "y", "x"]
    first = multiscales["datasets"][0]
    sizes = first["coordinateTransformations"][0]["scale"][::-1]
    sized = all(a.get("unit") == "micrometer" for a in multiscales["axes"])
    names = {f"label_{p['label-value']}": p["name"] for p in metadata.get("image-label", {}).get("properties", [])}
    return group[first["path"]][:].T, sizes if sized else None, names
