"""MetaImage: read and written by ITK, but for compressed voxels, which it does not look at closely enough."""

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
    voxels = _compressed_voxels(path, reader)
    return Volume(str(path), itk_array(itk_read(reader, path)) if voxels is None else voxels, itk_affine(reader))


def write_meta_image(path: Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, C) on a grid without shear.

    Raises:
        OSError: when not all could be written.
    """
    itk_write(path, "MetaImageIO", array, affine, {key: _ascii_line(text) for key, text in metadata.items()})
    fields, end = _header_fields(path)
    # ITK does not look at the end of the file (see itk_write).
    if path.stat().st_size != end + int(fields.get("compresseddatasize") or array.nbytes):
        raise OSError(f"{path} could not be written to its end; is the disk full?")


def _ascii_line(text: str) -> str:
    """Text as MetaIO keeps it: one line, from whose end letters that are not ASCII would be lost."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode()


def _compressed_voxels(path: Path, reader: sitk.ImageFileReader) -> np.ndarray | None:
    """The voxels (X, Y, Z) or (X, Y, Z, C) of a MetaImage where they are compressed; None where ITK can read them.

    Where compressed voxels are damaged or too few, or their size is not given, ITK prints a line at most and hands out
    what it has: of 15000 voxels, 7502 were wrong with the middle of the file overwritten. Where voxels are missing, it
    says "No such file or directory" even of files cut short.

    Raises:
        DataError: when voxels are missing, truncated or damaged.
    """
    fields, end = _header_fields(path)
    name = fields.get("elementdatafile", "")
    if name.startswith("LIST") or "%" in name:  # a file for each slice
        return None
    is_local = name.upper() == "LOCAL"
    file, start = (path, end) if is_local else (path.parent / name, max(int(fields.get("headersize", 0)), 0))
    dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype)
    num_bytes = int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents() * dtype.itemsize
    if fields.get("compresseddata", "").lower() != "true":
        is_text = fields.get("binarydata", "").lower() != "true"
        _check_size(path, file, start if is_text else start + num_bytes)
        return None
    _check_size(path, file, start)
    voxels = _inflate(path, file, start, num_bytes)
    big_endian = "true" in (fields.get(f"{key}byteordermsb", "").lower() for key in ("binarydata", "element"))
    values = voxels.view(dtype.newbyteorder(">" if big_endian else "<")).astype(dtype, copy=False)
    if reader.GetNumberOfComponents() == 1:
        return values.reshape(reader.GetSize(), order="F")
    return np.moveaxis(values.reshape((-1, *reader.GetSize()), order="F"), 0, 3)


def _header_fields(path: Path) -> tuple[dict[str, str], int]:
    """A MetaImage's header, by keys in small letters, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and (line := file.readline()):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip()
        return fields, file.tell()


def _check_size(path: Path, file: Path, num_bytes: int) -> None:
    """Raise DataError unless the `file` of an image's voxels, be it `path` itself, is there and large enough."""
    if not file.is_file():
        raise DataError(f"{path}: its voxels' file {file} is missing. Copy it, too, or export the image again.")
    size = file.stat().st_size
    if size < num_bytes:
        raise DataError(
            f"{path}: truncated: {file.name} holds {size} bytes, expected {num_bytes}. Copy or export it again."
        )


def _inflate(path: Path, file: Path, start: int, num_bytes: int) -> np.ndarray:
    """The `num_bytes` that the zlib or gzip stream at `start` of a file gives, (num_bytes,) uint8."""
    voxels, done = np.empty(num_bytes, np.uint8), 0
    inflater = zlib.decompressobj(wbits=47)  # of either kind
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            while not inflater.eof and (packed := inflater.unconsumed_tail or stream.read(2**20)):
                part = np.frombuffer(inflater.decompress(packed, 2**24), np.uint8)[: num_bytes - done]
                voxels[done : done + len(part)] = part
                done += len(part)
    except zlib.error as error:
        raise DataError(f"{path}: the voxels in {file.name} are damaged ({error}). Copy or export it again.") from error
    if done < num_bytes:
        raise DataError(
            f"{path}: truncated: {file.name} holds {done} bytes of voxels, expected {num_bytes}. Copy or export it "
            "again."
        )
    return voxels
