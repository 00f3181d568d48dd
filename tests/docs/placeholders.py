"""The files that the commands of the documentation name, made of the built-in scan."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
from skimage.measure import find_contours

from sparse3dunet.data.slices import slices_mask
from sparse3dunet.datasets.mni152 import load_template
from sparse3dunet.transforms.simulate import choose_slices
from tests.io.dicom_files import LPS, series_affine, write_rtstruct, write_seg, write_series

SPACING = 6
UNLABELED = 255
NAMES = ("background", "liver", "tumor")
TINY = "--network_def#channels [4,8,8] --largest_patch_size [16,16,16] --max_epochs 1 --epoch_length 2 --num_workers 0"


def make_files(folder: Path, environment: dict[str, str], code: str) -> None:
    """Write what the commands in `code` name into a folder.

    Args:
        folder: working folder of the commands.
        environment: variables for the commands that this runs.
        code: the page's commands.
    """
    image, dense = load_template(SPACING)
    gray = (1000 * image.get_fdata()).astype(np.int16)
    mask = slices_mask(dense.shape, choose_slices(dense > 0, 3, "equidistant"))
    sparse = np.where(mask, dense, UNLABELED).astype(np.uint8)
    _nifti(folder / "scan.nii.gz", gray, image.affine)
    _nifti(folder / "annotation.nii.gz", sparse, image.affine)
    for name in ("MY_DATA", "DATA", "FOLDER", "hippocampus"):
        if name in code:
            _data_set(folder / name, gray, dense, mask, image.affine)
    if "labelsTr " in code:
        _nifti(folder / "labelsTr/a.nii.gz", dense, image.affine)
    for name in ("IMAGES", "FOLDER_OF_NIFTI", "SCANS"):
        for number in range(2):
            _nifti(folder / name / f"scan_{number}.nii.gz", _noisy(gray, number), image.affine)
    if any(name in code for name in ("STUDY", "CT ", "rtstruct.dcm")):
        _dicom(folder, gray, dense)
    if any(name in code for name in (".h5", ".zarr", ".tif")):
        _microscopy(folder, gray, dense, sparse)
    if any(name in code for name in ("MODEL", "bundle/models", "kidney")):
        _model(folder, environment)


def _noisy(gray: np.ndarray, seed: int) -> np.ndarray:
    return gray + np.random.default_rng(seed).normal(0, 20, gray.shape).astype(np.int16)


def _nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _data_set(folder: Path, gray: np.ndarray, dense: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> None:
    """A Decathlon folder of four volumes."""
    names = [f"case_{number}.nii.gz" for number in range(4)]
    sparse = np.where(mask, dense, 3).astype(np.uint8)
    for number, name in enumerate(names):
        _nifti(folder / "imagesTr" / name, _noisy(gray, number), affine)
        for labels, array in (("labelsTr", sparse), ("labelsTr_sparse", sparse), ("labelsDense", dense)):
            _nifti(folder / labels / name, array, affine)
    if folder.name == "hippocampus":
        for name in names:
            _nifti(folder / "labelsTr" / name, dense, affine)
        split = {"train": [name.removesuffix(".nii.gz") for name in names[1:]], "val": ["case_0"]}
        (folder / "split.json").write_text(json.dumps(split))
    content = {"modality": {"0": "MRI"}, "labels": {str(k): name for k, name in enumerate(NAMES)}}
    content["training"] = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps(content))


def _dicom(folder: Path, gray: np.ndarray, dense: np.ndarray) -> None:
    """A series in the folders STUDY and CT, a segmentation and a structure set of it, on three axial slices."""
    slices = choose_slices(dense > 0, [0, 0, 3], "equidistant")
    mask = slices_mask(dense.shape, slices)
    for name in ("STUDY", "CT"):
        write_series(folder / name, gray)
    masks = {name: (dense == number) & mask for number, name in enumerate(NAMES) if number}
    write_seg(folder / "annotation.dcm", folder / "CT", masks)
    to_lps = LPS @ series_affine()
    contours = {name: [] for name in masks}
    for number, name in enumerate(NAMES[1:], 1):
        for k in slices[2]:
            for points in find_contours(np.pad(dense[:, :, k] == number, 1), 0.5):
                voxels = np.column_stack([points[:-1] - 1, np.full(len(points) - 1, k), np.ones(len(points) - 1)])
                contours[name].append((to_lps @ voxels.T).T[:, :3])
    write_rtstruct(folder / "rtstruct.dcm", contours)


def _microscopy(folder: Path, gray: np.ndarray, dense: np.ndarray, sparse: np.ndarray) -> None:
    """The scan as files of microscopy, with voxels of 0.5 x 0.5 x 2 µm, and its annotation."""
    import h5py
    import tifffile
    import zarr

    from tests.io.microscopy import write, write_ngff

    spacing = (0.5, 0.5, 2.0)
    values = gray.clip(0).astype(np.uint16)
    write(folder / "ome.ome.tif", values, spacing).rename(folder / "stack.ome.tif")
    tifffile.imwrite(folder / "annotation.tif", sparse.T, imagej=True, metadata={"axes": "ZYX"})
    (folder / "stacks").mkdir()
    for name in "ab":
        tifffile.imwrite(folder / f"stacks/{name}.tif", values.T, imagej=True, metadata={"axes": "ZYX"})
    with h5py.File(folder / "cells.h5", "w") as file:
        for name, array in (("raw", values), ("label", sparse)):
            file.create_dataset(name, data=array.T, chunks=(32, 32, 32)).attrs["element_size_um"] = spacing[::-1]
    for name, array in (("embryo", values), ("big", values), ("annotation", sparse)):
        group = zarr.create_group(str(folder / f"{name}.ome.zarr"), zarr_format=2)
        write_ngff(group, array.T, "zyx", spacing, "4")
        if name == "embryo":
            write_ngff(group.create_group("labels/nuclei"), sparse.T, "zyx", spacing, "4")
    content = {"labels": {"0": "background", "1": "cell", "2": "nucleus"}, "ignore_index": UNLABELED}
    content["training"] = [{"image": "big.ome.zarr", "label": "annotation.ome.zarr"}]
    (folder / "datalist.json").write_text(json.dumps(content))


def _model(folder: Path, environment: dict[str, str]) -> None:
    """A model, trained for seconds, as bundle/models and MODEL."""
    image, dense = load_template(SPACING)
    mask = slices_mask(dense.shape, choose_slices(dense > 0, 3, "equidistant"))
    _data_set(folder / "training_data", (1000 * image.get_fdata()).astype(np.int16), dense, mask, image.affine)
    places = "--dataset_dir training_data --ckpt_dir bundle/models --output_dir eval"
    command = ["sparse3dunet", "run", "training", *places.split(), *TINY.split()]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    shutil.copytree(folder / "bundle/models", folder / "MODEL")
