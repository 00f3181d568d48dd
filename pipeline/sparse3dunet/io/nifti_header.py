"""Header of a NIfTI file, checked as it is on disk: nibabel mends some damage without a word."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from sparse3dunet.errors import DataError
from sparse3dunet.io.text_header import shown

SIZES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
"""Header classes by sizeof_hdr."""
BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
CODES = range(6)
"""Valid qform_code and sform_code."""


def check_nifti_header(path: str | Path) -> None:
    """Raise DataError for a header that nibabel would mend, each time to another volume than the one that was meant.

    A file that cannot be read at all is left to nibabel.
    """
    try:
        with gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb") as file:
            block = file.read(max(SIZES))
    except (OSError, EOFError, zlib.error):
        return
    if len(block) < min(SIZES):
        return
    sizes = {int.from_bytes(block[:4], order): order for order in BYTE_ORDERS}
    size = next((size for size in sizes if size in SIZES and len(block) >= size), None)
    if size is None:
        raise _damaged(path, "sizeof_hdr", int.from_bytes(block[:4], "little"), "348 or 540")
    header: Any = SIZES[size](block[:size], "<" if sizes[size] == "little" else ">", check=False)
    _check_fields(path, header)


def _check_fields(path: str | Path, header: Any) -> None:
    if bytes(header["magic"])[:2] != b"n+":
        raise _damaged(path, "magic", shown(bytes(header["magic"]).decode("latin-1")), "n+1 or n+2, of a single file")
    dims = int(header["dim"][0])
    if not 1 <= dims <= 7:
        raise _damaged(path, "dim[0]", dims, "1 to 7")
    pixdim = np.asarray(header["pixdim"][1:4], float)
    if not (np.isfinite(pixdim).all() and (pixdim[: min(dims, 3)] > 0).all()):
        raise _damaged(path, "pixdim[1:4]", pixdim.tolist(), "positive numbers")
    for name in ("scl_slope", "scl_inter"):
        if np.isinf(header[name]):
            raise _damaged(path, name, float(header[name]), "a finite number")
    for name in ("qform_code", "sform_code"):
        if int(header[name]) not in CODES:
            raise _damaged(path, name, int(header[name]), "0 to 5")
    try:
        bits = header.get_data_dtype().itemsize * 8
    except nib.spatialimages.HeaderDataError:  # of a type that nibabel does not read
        return
    except KeyError as error:
        raise _damaged(path, "datatype", int(header["datatype"]), "one of NIfTI's types of numbers") from error
    if int(header["bitpix"]) != bits:
        raise _damaged(path, "bitpix", int(header["bitpix"]), f"{bits} as for datatype {int(header['datatype'])}")


def _damaged(path: str | Path, name: str, value: Any, expected: str) -> DataError:
    return DataError(
        f"{path}: its header is damaged, or not NIfTI: {name} is {value}, expected {expected}; copy or export it "
        "again, as a whole NIfTI file."
    )
