"""Look at every file before a long run, and say in one message what is wrong with which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from sparse3dunet.datalist import Case
from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE
from sparse3dunet.networks import UNet3D
from sparse3dunet.transforms.annotation import SparseLabel

AFFINE_TOLERANCE = 0.1
"""Voxels by which any corner of a label may lie off the image's."""

SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Volume:
    """One file's voxels (X, Y, Z) or (X, Y, Z, C) and its voxel-to-world affine, in mm."""

    path: str
    data: np.ndarray
    affine: np.ndarray


def read_volume(path: str | Path) -> Volume:
    """Read a NIfTI file whole.

    Raises:
        DataError: when it is missing, empty, truncated, no NIfTI file, or has a degenerate affine.
    """
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    except Exception as error:  # nibabel, zlib and the file system raise a dozen kinds here
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). The file is missing, truncated or no NIfTI "
            "image; copy or export it again, or take the case out of the data set."
        ) from error
    if data.dtype.names is not None:
        raise DataError(f"{path}: holds colours ({data.dtype}), expected one number per voxel. Export it as numbers.")
    affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: its affine is degenerate (a spacing of 0 or NaN): {affine[:3].tolist()}.")
    return Volume(str(path), data, affine)


def check_image(volume: Volume, num_channels: int = 1) -> None:
    """Raise DataError unless the volume is three-dimensional, has `num_channels`, and all its values are finite."""
    shape = volume.data.shape
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or channels != num_channels:
        raise DataError(
            f"{volume.path}: expected a 3D image with {num_channels} channel(s), found shape {shape} of "
            f"{volume.data.dtype}."
        )
    bad = int(volume.data.size - np.isfinite(volume.data).sum())
    if bad:
        raise DataError(
            f"{volume.path}: {bad} of {volume.data.size} voxels are NaN or infinite. "
            "Replace them, by the background's value for example."
        )


def check_same_grid(label: Volume, image: Volume) -> None:
    """Raise DataError unless both have one shape and their affines agree within a tenth of a voxel at every corner."""
    if label.data.shape != image.data.shape[:3]:
        raise DataError(
            f"{label.path}: shape {label.data.shape} differs from the image's, {image.data.shape[:3]} ({image.path}). "
            "Label and image must lie on one grid; resample the label to the image, or look for a mix-up of files."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in label.data.shape], [1], indexing="ij")).reshape(4, -1)
    off = np.linalg.solve(image.affine, label.affine @ corners) - corners
    if np.abs(off).max() > AFFINE_TOLERANCE:
        raise DataError(
            f"{label.path}: its position in space differs from the image's by up to {np.abs(off).max():.1f} voxels "
            f"({image.path}). Copy the image's header to the label if the voxels belong together."
        )
    if not np.array_equal(nib.io_orientation(label.affine), nib.io_orientation(image.affine)):
        # Only possible for oblique grids, half-way between two orientations.
        raise DataError(
            f"{label.path}: its axes and the image's ({image.path}) round to different directions, although their "
            "affines nearly agree. Copy the image's header to the label."
        )


def check_case(
    case: Case, num_classes: int, ignore_index: int | Sequence[int] | None, num_channels: int
) -> tuple[int, ...]:
    """Read all files of a case and return the image's shape in RAS order; raise DataError for the first fault."""
    image = read_volume(case[IMAGE])
    check_image(image, num_channels)
    for key, unlabeled in ((LABEL, ignore_index), (REFERENCE, None)):
        if key in case:
            label = read_volume(case[key])
            check_same_grid(label, image)
            values = torch.as_tensor(np.ascontiguousarray(label.data, dtype=np.float32))
            SparseLabel(num_classes, unlabeled)(MetaTensor(values[None], meta={"filename_or_obj": label.path}))
    by_axis = zip(nib.io_orientation(image.affine)[:, 0], image.data.shape)
    return tuple(n for _, n in sorted(by_axis, key=lambda pair: pair[0]))


def check_cases(
    cases: Sequence[Case],
    num_classes: int,
    ignore_index: int | Sequence[int] | None = None,
    num_channels: int = 1,
) -> list[tuple[int, ...]]:
    """Read every file of a data set and return the images' spatial shapes, in RAS order as the network sees them.

    Checks that files can be read whole; that images are finite and have `num_channels`; that labels lie on their
    image's grid, hold only classes and unlabeled values, and have an annotated voxel.

    Raises:
        DataError: when anything is wrong; the message lists each bad case.
    """
    return _check_all(lambda case: check_case(case, num_classes, ignore_index, num_channels), cases)


def check_images(cases: Sequence[Case], num_channels: int = 1) -> list[Case]:
    """Read every image that is to be predicted, and return the list as it came.

    Raises:
        DataError: when an image cannot be read whole, has another number of channels, or holds NaN or infinity.
    """
    _check_all(lambda case: check_image(read_volume(case[IMAGE]), num_channels), cases)
    return list(cases)


def _check_all(check: Callable, cases: Sequence[Case]) -> list:
    """Apply `check` to all cases, two at a time (decompression releases the interpreter lock)."""

    def attempt(case: Case) -> tuple[object, str | None]:
        try:
            return check(case), None
        except DataError as error:
            return None, str(error)

    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(attempt, cases))
    problems = [problem for _, problem in results if problem is not None]
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        listed = "\n  ".join(problems[:SHOWN_PROBLEMS])
        raise DataError(f"{len(problems)} of {len(cases)} cases cannot be used:\n  {listed}{more}")
    return [result for result, _ in results]


def fit_patch_size(
    shapes: Sequence[Sequence[int]], largest: Sequence[int], multiple_of: Sequence[int] | int = 8
) -> list[int]:
    """The patch size for volumes of the given shapes: `largest`, or less where most volumes are smaller.

    Args:
        shapes: spatial shapes of the volumes.
        largest: upper bound per axis.
        multiple_of: what the network needs each length to be a multiple of.

    Returns:
        Per axis the 90th percentile of the volumes' lengths, rounded up to a multiple, but no more than `largest`,
        rounded down to one (and at least one multiple).
    """
    factors = np.broadcast_to(multiple_of, 3)
    typical = np.ceil(np.percentile(np.asarray(shapes), 90, axis=0) / factors)
    bound = np.maximum(np.asarray(largest) // factors, 1)
    return [int(n) for n in np.minimum(typical, bound) * factors]


def check_patch_size(network: torch.nn.Module, patch_size: Sequence[int]) -> None:
    """Raise DataError unless a UNet3D makes of a patch an output of the same size, as sliding windows need it."""
    if not isinstance(patch_size, (list, tuple)) or len(patch_size) != 3:
        raise DataError(f'patch_size must be three whole numbers, as --patch_size "[64,64,64]"; found {patch_size!r}.')
    if not isinstance(network, UNet3D):
        return
    if network.padding != "same":
        raise DataError(
            "the bundle's sliding windows need a network whose output is as large as its input, but its convolutions "
            f"are {network.padding!r}: set --network_def#padding same."
        )
    try:
        network.output_size(patch_size)
    except ValueError as error:
        raise DataError(
            f'patch_size {list(patch_size)}: {error} Set --patch_size "[64,64,64]", for example, or other channels.'
        ) from error


def check_output_dir(output_dir: str | Path, inputs: str | Path | None = None) -> None:
    """Raise DataError where results cannot go: to a file, or to the folder that the inputs are read from."""
    if not isinstance(output_dir, (str, Path)):
        raise DataError(
            f"a folder for results is {output_dir!r}, which is no text; write it as ./{output_dir} instead."
        )
    path = Path(output_dir)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path.absolute()}, to which results should go, is a file; pass a folder.")
    if inputs is not None and path.resolve() == Path(str(inputs)).expanduser().resolve():
        raise DataError(
            f"output_dir {path.absolute()} is where the images are read from, so that a second run would take the "
            "results for images. Pass another folder: --output_dir FOLDER."
        )
