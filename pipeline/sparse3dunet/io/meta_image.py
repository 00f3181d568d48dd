"""MetaImage: read and written by ITK, which does not look closely enough at whether voxels are whole."""

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
    """Read a MetaImage, in one file or in two, to an (X, Y, Z) or (X, Y, Z, C) volume.

    Raises:
        DataError: when it is damaged, or something else.
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
    # ITK does not look at the end of the file (see itk_write).
    if path.stat().st_size != end + int(fields.get("compresseddatasize", array.nbytes)):
        raise OSError(f"{path} could not be written to its end; is the disk full?")


def _ascii_line(text: str) -> str:
    """Text as MetaIO keeps it: one line, from whose end letters that are not ASCII would be lost."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _check_voxels(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise DataError where a MetaImage's voxels are missing, truncated or damaged.

    Of such files ITK prints a line at most and hands out what it has: of 15000 compressed voxels, 7502 were wrong with
    the middle of the file overwritten. Where voxels are missing, it says "No such file or directory" even of files cut
    short.
    """
    fields, start = _header_fields(path)
    name = fields.get("elementdatafile", "")
    if name.startswith("LIST") or "%" in name:  # a file for each slice
        return
    file = path
    if name.upper() != "LOCAL":
        file, start = path.parent / name, max(int(fields.get("headersize", 0)), 0)
    if not file.is_file():
        raise DataError(f"{path}: its voxels' file {file} is missing. Copy it, too, or export the image again.")
    voxel = sitk.Image([1, 1, 1], reader.GetPixelID())
    num_bytes = int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents() * voxel.GetSizeOfPixelComponent()
    found = file.stat().st_size - start
    if fields.get("compresseddata", "").lower() == "true":
        # Where the size is not given, ITK finds no voxels behind a header.
        found = _inflated_size(path, file, start, int(fields.get("compresseddatasize", 0 if file == path else found)))
    elif fields.get("binarydata", "").lower() != "true":  # text
        return
    if found < num_bytes:
        raise DataError(
            f"{path}: truncated: {file.name} holds {found} bytes of voxels, expected {num_bytes}. Copy or export it "
            "again."
        )


def _header_fields(path: Path) -> tuple[dict[str, str], int]:
    """A MetaImage's header, by keys in small letters, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and (line := file.readline()):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip()
        return fields, file.tell()


def _inflated_size(path: Path, file: Path, start: int, num_bytes: int) -> int:
    """The number of bytes that the zlib or gzip stream in `num_bytes` from `start` on of a file gives.

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
