"""Paths that do not exist: what is told of them, before the import of what takes seconds."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Sequence

from sparse3dunet.errors import DataError

PAIR_OR_DATA_SET = (
    "a scan and its annotation (SCAN ANNOTATION: two files, or the folder of a DICOM series and a file), or a data set "
    "(a folder, or a JSON datalist)"
)
TRAIN_ONE = "Train one (run training), or pass one: its file, or the folder of the training."
_PLACES = (".h5", ".hdf5", ".zarr", "?")
"""Parts of paths that name a place within a file, which need not exist as a path."""


def no_part_of_pair(path: object, what: str) -> DataError:
    """Return the error that a scan, or its annotation, does not exist."""
    return DataError(f"{path} does not exist; expected the {what}. The order is: SCAN ANNOTATION.")


def no_source(path: object) -> DataError:
    """Return the error that the only input of densify does not exist."""
    return DataError(f"{path} does not exist; expected {PAIR_OR_DATA_SET}.")


def no_data_set(path: object) -> DataError:
    """Return the error that a data set does not exist."""
    return DataError(
        f"dataset_dir {path} does not exist. Pass a folder with dataset.json, imagesTr/ and labelsTr/, "
        "a folder of images and labels, or a JSON datalist: --dataset_dir FOLDER."
    )


def no_image(path: object) -> DataError:
    """Return the error that an image to predict does not exist."""
    return DataError(f"{path} does not exist, nor does any file match it. Pass images, or their folder.")


def no_model(path: object) -> DataError:
    """Return the error that a model does not exist."""
    return DataError(f"{path}: there is no trained model. {TRAIN_ONE}")


def broken_link(path: str | os.PathLike[str]) -> str:
    """Return what is wrong with a link that leads nowhere, to follow its path; empty for all else."""
    if not os.path.islink(path):
        return ""
    try:
        os.stat(path)
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        return f"is a link to {os.readlink(path)}, which {'leads back to itself' if is_loop else 'does not exist'}"
    return ""


def check_sources(sources: Sequence[str]) -> None:
    """Raise DataError if the inputs of densify clearly do not exist; what is unclear is left to the reader."""
    paths = [os.path.abspath(os.path.expanduser(source)) for source in sources]
    if len(paths) == 2:
        for path, what in zip(paths, ("scan", "annotation")):
            if _is_missing(path):
                raise no_part_of_pair(path, what)
    elif len(paths) == 1 and _is_missing(paths[0]):
        raise no_source(paths[0])


def check_data_set(folder: str) -> None:
    """Raise DataError if a data set clearly does not exist."""
    path = os.path.abspath(os.path.expanduser(folder))
    if _is_missing(path):
        raise no_data_set(path)


def check_prediction(model: str, images: Sequence[str]) -> None:
    """Raise DataError if a model or an image to predict clearly does not exist."""
    path = os.path.join(os.getcwd(), os.path.expanduser(model))
    if not os.path.exists(path):
        raise no_model(path)
    for image in images:
        path = os.path.abspath(os.path.expanduser(image))
        if _is_missing(path) and not os.path.lexists(path) and not path.endswith(".json") and not glob.has_magic(path):
            raise no_image(path)


def _is_missing(path: str) -> bool:
    return not os.path.exists(path) and not any(place in path.lower() for place in _PLACES)
