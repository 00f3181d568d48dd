"""MetaImage, read and written by ITK, with a check of the voxels that ITK lacks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io.itk import itk_affine, itk_array, itk_header, itk_read, itk_write
from sparse3dunet.io.volumes import Volume


def read_meta_image(path: Path) -> Volume:
    """Read a MetaImage, in one file or two, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Raises:
        DataError: when it is damaged, or has another format.
    """
    reader = itk_header(path, "MetaImageIO")
    _check_voxels(path, reader)
    return Volume(str(path), itk_array(itk_read(reader, path)), itk_affine(reader))


def write_meta_image(path: Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) on a grid without shear.

    Raises:
        OSError: when not all could be written.
    """
    itk_write(path, "MetaImageIO", array, affine, {key: _ascii_line(text) for key, text in metadata.items()})
    fields, end = _header_fields(path)
    # ITK does not check the end of the file (see itk_write).
    if path.stat().st_size != end + int(fields.get("compresseddatasize", array.nbytes)):
        raise OSError(f"{path} could not be written completely; is the disk full?")


def _ascii_line(text: str) -> str:
    """Return text as one line in ASCII: MetaIO would lose other letters at the end."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise DataError if a MetaImage's voxels are missing, truncated or damaged.

    ITK prints at most a line for such files, and returns what it has: with the middle of a file overwritten, 7502 of
    15000 compressed voxels were wrong. For truncated files, its message is "No such file or directory".
    """
    fields, start = _header_fields(path)
    name = fields.get("elementdatafile", "")
    if name.startswith("LIST") or "%" in name:  # a file for each slice
        return
    file = path
    if name.upper() != "LOCAL":
        file, start = path.parent / name, max(int(fields.get("headersize", 0)), 0)
    if not file.is_file():
        raise DataError(f"{path}: the voxel file {file} is missing. Copy it too, or export the image again.")
    voxel = sitk.Image([1, 1, 1], reader.GetPixelID())
    num_bytes = int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents() * voxel.GetSizeOfPixelComponent()
    found = file.stat().st_size - start
    if fields.get("compresseddata", "").lower() == "true":
        # Without a given size, ITK finds no voxels after a header.
        found = _inflated_size(path, file, start, int(fields.get("compresseddatasize", 0 if file == path else found)))
    elif fields.get("binarydata", "").lower() != "true":  # text
        return
    if found < num_bytes:
        raise DataError(
            f"{path}: truncated: {file.name} contains {found} bytes of voxels, expected {num_bytes}. Copy or export it "
            "again."
        )


def _header_fields(path: Path) -> tuple[dict[str, str], int]:
    """Return a MetaImage's header by lower-case keys, and the offset of its end."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and (line := file.readline()):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip()
        return fields, file.tell()


def _inflated_size(path: Path, file: Path, start: int, num_bytes: int) -> int:
    """Return the decompressed size of the zlib or gzip stream of `num_bytes` from `start` on in a file.

    Raises:
        DataError: when it is damaged.
    """
    inflater, found = zlib.decompressobj(wbits=47), 0  # of either kind
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            while not inflater.eof:
                packed = inflater.unconsumed_tail or stream.read(min(2**20, start + num_bytes - stream.tell()))
                if not packed:
                    break
                found += len(inflater.decompress(packed, 2**24))
    except zlib.error as error:
        raise DataError(f"{path}: the voxels in {file.name} are damaged ({error}). Copy or export it again.") from error
    return found
