"""Images in any format (NIfTI, NRRD, MetaImage, DICOM), and results on exactly their grid in the same or another."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from sparse3dunet.dicom import (
    dicom_series,
    is_dicom_file,
    is_dicom_folder,
    itk_affine,
    itk_array,
    itk_read,
    itk_reader,
    read_dicom_file,
    read_dicom_folder,
)
from sparse3dunet.errors import DataError
from sparse3dunet.layouts import IMAGE_SUFFIXES
from sparse3dunet.pictures import CLASS_COLORS
from sparse3dunet.volumes import Volume, check_affine, read_volume

__all__ = [
    "IMAGE_SUFFIXES",
    "OUTPUT_SUFFIXES",
    "check_output",
    "dicom_series",
    "is_dicom_folder",
    "natural_suffix",
    "read_image",
    "write_map",
    "write_segmentation",
]

OUTPUT_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
NIFTI_SUFFIXES, NRRD_SUFFIXES, META_SUFFIXES = (".nii.gz", ".nii"), (".nrrd", ".nhdr"), (".mha", ".mhd")
SHEAR_TOLERANCE = 1e-4
"""Cosine between two axes of a grid up to which they count as orthogonal."""
BLOCK_BYTES = 2**26
"""Voxels are written in blocks of this size, so that arrays on disk never are in memory whole."""
FAST = 1
"""Level of compression; higher ones take several times as long to make label maps little smaller."""
LPS = np.diag([-1.0, -1, 1, 1])
"""From the world of NIfTI, RAS, to that of NRRD, MetaImage and DICOM."""
UNKNOWN_SIZE = b"0" * 20
"""Put where the header of a MetaImage says how large its voxels are once they are compressed."""
META_TYPES = {
    "int8": "MET_CHAR",
    "uint8": "MET_UCHAR",
    "int16": "MET_SHORT",
    "uint16": "MET_USHORT",
    "int32": "MET_INT",
    "uint32": "MET_UINT",
    "int64": "MET_LONG_LONG",
    "uint64": "MET_ULONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}


def read_image(source: str | Path) -> Volume:
    """Read an image whole; uncompressed NIfTI files and ITK's images are not copied into other memory.

    Args:
        source: a NIfTI, NRRD or MetaImage file (IMAGE_SUFFIXES), a folder that holds one DICOM series, or a DICOM file
            of several frames.

    Returns:
        Voxels (X, Y, Z), or (X, Y, Z, C) where they have several components, first axis fastest on disk; affine in
        mm, RAS.

    Raises:
        DataError: when it is missing, truncated, damaged, no volume, complex, has a degenerate affine, or is none of
            these formats.
    """
    path = Path(source)
    if path.is_dir():
        return read_dicom_folder(path)
    suffix = _suffix(path, IMAGE_SUFFIXES)
    if suffix in NIFTI_SUFFIXES:
        return read_volume(source)
    if suffix in NRRD_SUFFIXES:
        return _read_nrrd(path)
    if suffix in META_SUFFIXES:
        return _read_meta_image(path)
    if is_dicom_file(path):
        return read_dicom_file(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected an image, or a folder that holds a DICOM series.")
    raise DataError(
        f"{path}: in no known format; expected {', '.join(IMAGE_SUFFIXES)}, a DICOM file of several frames, or a "
        "folder that holds a DICOM series. Convert it to .nii.gz."
    )


def natural_suffix(source: Volume | str | Path) -> str:
    """The suffix of results for an input: its own format in a single file; NIfTI for DICOM and whatever else."""
    path = Path(source.path if isinstance(source, Volume) else source)
    suffix = _suffix(path, IMAGE_SUFFIXES)
    if path.is_dir() or not suffix:
        return ".nii.gz"
    return ".nrrd" if suffix in NRRD_SUFFIXES else ".mha" if suffix in META_SUFFIXES else suffix


def check_output(path: str | Path, like: Volume, class_names: Mapping[int, str] | None = None) -> None:
    """Whether a result on `like`'s grid can be written to `path`; to be asked before hours of computing, too.

    Raises:
        DataError: when the format is unknown, cannot hold the grid, which is sheared, or a value of `class_names`.
    """
    suffix = _output_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        return
    shear = _shear(like.affine)
    if shear > SHEAR_TOLERANCE:
        raise DataError(
            f"{path}: the grid of {like.path} is sheared (the cosine between two of its axes is {shear:.4f}), which "
            f"{suffix} cannot hold; expected orthogonal axes. Write to .nii.gz, which can."
        )
    if suffix == ".seg.nrrd":
        _check_segment_values(path, class_names or {})


def write_segmentation(path: str | Path, labels: np.ndarray, like: Volume, class_names: Mapping[int, str]) -> None:
    """Write a label map on exactly the grid of an image, with the names of its classes.

    The same input gives the same bytes. Names are kept in NIfTI as JSON in a header extension, ``{"labels": {"0":
    "background", ...}}``; in NRRD and MetaImage as keys ``label_0``, ... (MetaImage holds ASCII only: other letters
    are escaped as in Python, ``\\xfc``); in .seg.nrrd as segments of 3D Slicer's, all but the background.

    Args:
        path: of the file, which goes by its suffix (OUTPUT_SUFFIXES); its folder is made where it is missing.
        labels: (X, Y, Z) integers in the order of `like.data`, in memory or on disk, in any memory layout.
        like: the image, in whatever format; from NIfTI to NIfTI, the header's geometry is copied bit by bit.
        class_names: by value in `labels`, that of the background first.

    Raises:
        DataError: see :func:`check_output`.
        ValueError: when `labels` are no integers, or of another shape than the image.
    """
    check_output(path, like, class_names)
    _check_shape(labels, like, "biu", 3)
    suffix = _output_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        header = _nifti_header(labels, like)
        header.set_intent("label")
        names = {"labels": {str(value): name for value, name in class_names.items()}}
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(names).encode()))
        _write_nifti(path, labels, header)
    else:
        metadata = {f"label_{value}": name for value, name in class_names.items()}
        if suffix == ".seg.nrrd":
            metadata = _slicer_segments(labels.shape, class_names)
        (_write_meta_image if suffix == ".mha" else _write_nrrd)(path, labels, like.affine, metadata)


def write_map(path: str | Path, values: np.ndarray, like: Volume, description: str = "") -> None:
    """Write numbers on exactly the grid of an image: confidence, or a probability for each class.

    The same input gives the same bytes. Integers are compressed, and in .nii.gz all; floats, which hardly shrink, are
    not in .nrrd and .mha.

    Args:
        path: as for :func:`write_segmentation`, but not .seg.nrrd.
        values: (X, Y, Z), or (X, Y, Z, K) to be written as a fourth dimension of NIfTI and as components in other
            formats; integers or floats, of which 16-bit ones become 32-bit.
        like: the image.
        description: what the numbers are; in NIfTI its first 79 bytes.

    Raises:
        DataError: see :func:`check_output`.
        ValueError: when `values` are no real numbers, or of another shape than the image.
    """
    check_output(path, like)
    _check_shape(values, like, "biuf", values.ndim if values.ndim == 4 else 3)
    suffix = _output_suffix(path)
    if suffix == ".seg.nrrd":
        raise DataError(f"{path}: .seg.nrrd holds segmentations only, expected one of .nii.gz, .nrrd and .mha.")
    if suffix in NIFTI_SUFFIXES:
        header = _nifti_header(values, like)
        header["descrip"] = description.encode()[:79].decode(errors="ignore").encode()
        _write_nifti(path, values, header)
    else:
        metadata = {"description": description} if description else {}
        (_write_meta_image if suffix == ".mha" else _write_nrrd)(path, values, like.affine, metadata)


def _suffix(path: str | Path, suffixes: tuple[str, ...]) -> str:
    """The one of `suffixes` that a file's name ends with, in letters of whatever case, or ""."""
    name = Path(path).name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix)), "")


def _output_suffix(path: str | Path) -> str:
    suffix = _suffix(path, OUTPUT_SUFFIXES)
    if not suffix:
        raise DataError(f"{path}: in no format that is written; expected one of {', '.join(OUTPUT_SUFFIXES)}.")
    return suffix


def _check_shape(array: np.ndarray, like: Volume, kinds: str, ndim: int) -> None:
    if array.ndim != ndim or array.shape[:3] != like.spatial_shape:
        raise ValueError(f"expected an array of the image's shape {like.spatial_shape}, got {array.shape}.")
    if array.dtype.kind not in kinds:
        raise ValueError(f"expected {'integers' if 'f' not in kinds else 'real numbers'}, got {array.dtype}.")


def _shear(affine: np.ndarray) -> float:
    """The largest cosine between two axes of a grid."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


# Reading


def _read_nrrd(path: Path) -> Volume:
    reader = _read_header(path, "NrrdImageIO")
    return Volume(str(path), itk_array(itk_read(reader, path)), itk_affine(reader))


def _read_meta_image(path: Path) -> Volume:
    reader = _read_header(path, "MetaImageIO")
    voxels = _meta_voxels(path, reader)
    return Volume(str(path), itk_array(itk_read(reader, path)) if voxels is None else voxels, itk_affine(reader))


def _read_header(path: Path, io: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a volume of real numbers.

    Raises:
        DataError: when the header is damaged, or that of something else.
    """
    reader = itk_reader(path, io)
    itk_read(reader, path, information_only=True)
    if reader.GetDimension() != 3:
        raise DataError(
            f"{path}: expected a three-dimensional volume, found shape {reader.GetSize()}. Export the whole stack as "
            "one volume; split a series over time into volumes, and store channels as the components of a voxel."
        )
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise DataError(
            f"{path}: holds complex numbers ({kind}), expected one real number per voxel. Export the magnitude, for "
            "example."
        )
    check_affine(path, itk_affine(reader))
    return reader


def _meta_voxels(path: Path, reader: sitk.ImageFileReader) -> np.ndarray | None:
    """The voxels (X, Y, Z) or (X, Y, Z, C) of a MetaImage where they are compressed; None where ITK can read them.

    Where compressed voxels are damaged, ITK prints a line and hands out what it has; where others are missing, it does
    not say so.

    Raises:
        DataError: when voxels are missing, truncated or damaged.
    """
    fields, end = _meta_fields(path)
    name = fields.get("elementdatafile", "")
    if name.startswith("LIST") or "%" in name:  # a file for each slice
        return None
    is_local = name.upper() == "LOCAL"
    file, start = (path, end) if is_local else (path.parent / name, max(int(fields.get("headersize", 0)), 0))
    dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype)
    num_bytes = int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents() * dtype.itemsize
    if fields.get("compresseddata", "").lower() != "true":
        is_text = fields.get("binarydata", "").lower() != "true"
        _check_voxel_file(path, file, start if is_text else start + num_bytes)
        return None
    _check_voxel_file(path, file, start)
    voxels = _inflate(path, file, start, num_bytes)
    big_endian = "true" in (fields.get(f"{key}byteordermsb", "").lower() for key in ("binarydata", "element"))
    values = voxels.view(dtype.newbyteorder(">" if big_endian else "<")).astype(dtype, copy=False)
    if reader.GetNumberOfComponents() == 1:
        return values.reshape(reader.GetSize(), order="F")
    return np.moveaxis(values.reshape((-1, *reader.GetSize()), order="F"), 0, 3)


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """A MetaImage's header, by keys in small letters, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "elementdatafile" not in fields and (line := file.readline()):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip()
        return fields, file.tell()


def _check_voxel_file(path: Path, file: Path, num_bytes: int) -> None:
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


# Writing


@contextmanager
def _replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when it is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def _chunks(array: np.ndarray, dtype: np.dtype) -> Iterator[bytes]:
    """An array's bytes, first axis fastest, in blocks of at most BLOCK_BYTES where slices are no larger."""
    size = array[..., :1].size * dtype.itemsize
    if array.ndim > 3 and size > BLOCK_BYTES:
        for i in range(array.shape[-1]):
            yield from _chunks(array[..., i], dtype)
        return
    step = max(BLOCK_BYTES // size, 1)
    for start in range(0, array.shape[-1], step):
        yield array[..., start : start + step].astype(dtype, copy=False).tobytes("F")


def _stored_type(array: np.ndarray) -> np.dtype:
    """The type that an array's numbers are written in, little endian."""
    name = {"bool": "uint8", "float16": "float32"}.get(array.dtype.name, array.dtype.name)
    return np.dtype(name).newbyteorder("<")


def _compressing(file: BinaryIO, compress: bool) -> AbstractContextManager[Any]:
    """Writes into a file; compressed, with neither its name nor the time, so that it is the same each time."""
    if not compress:
        return nullcontext(file)
    return gzip.GzipFile(filename="", mode="wb", compresslevel=FAST, fileobj=file, mtime=0)


def _nifti_header(array: np.ndarray, like: Volume) -> Any:
    """A header for an array on an image's grid: the image's own, where that is NIfTI's, else a new one."""
    header = like.header
    if (
        isinstance(header, nib.Nifti1Header)
        and header.is_single
        and np.array_equal(header.get_best_affine(), like.affine)
    ):
        header = header.copy()
        header.extensions.clear()  # which speak of the image's voxels, and may name the patient
    else:
        # NIfTI-1 counts voxels in 16 bits.
        header = nib.Nifti2Header() if max(array.shape) > np.iinfo(np.int16).max else nib.Nifti1Header()
        header.set_data_shape(array.shape)
        header.set_sform(like.affine, code=1)
        header.set_qform(like.affine, code=int(_shear(like.affine) <= SHEAR_TOLERANCE))  # which cannot be sheared
        header.set_xyzt_units("mm", "sec")
    header.set_data_shape(array.shape)
    header.set_data_dtype(_stored_type(array))
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.set_intent("none")
    return header


def _write_nifti(path: str | Path, array: np.ndarray, header: Any) -> None:
    header["vox_offset"] = 0  # to be set by the extensions' size
    with _replacing(path) as file, _compressing(file, _output_suffix(path) == ".nii.gz") as stream:
        header.write_to(stream)
        stream.writelines(_chunks(array, header.get_data_dtype()))


def _components_first(array: np.ndarray) -> np.ndarray:
    """(X, Y, Z, K) as (K, X, Y, Z), as NRRD and MetaImage store it; (X, Y, Z) where there is but one."""
    if array.ndim == 3:
        return array
    return array[..., 0] if array.shape[3] == 1 else np.moveaxis(array, 3, 0)


def _numbers(values: Any) -> list[str]:
    """Numbers as text that gives exactly the same numbers again."""
    return [repr(float(value) + 0.0) for value in values]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_nrrd(path: str | Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    array, dtype = _components_first(array), _stored_type(array)
    with _replacing(path) as file:
        file.write(_nrrd_header(array.shape, dtype, affine, metadata))
        with _compressing(file, dtype.kind != "f") as stream:
            stream.writelines(_chunks(array, dtype))


def _nrrd_header(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, metadata: Mapping[str, str]) -> bytes:
    vectors = [f"({','.join(_numbers(column))})" for column in (LPS @ affine)[:3].T]
    has_components = len(shape) == 4
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "# http://teem.sourceforge.net/nrrd/format.html",
        f"type: {({'float32': 'float', 'float64': 'double'}).get(dtype.name, dtype.name)}",
        f"dimension: {len(shape)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, shape))}",
        f"space directions: {'none ' * has_components}{' '.join(vectors[:3])}",
        f"kinds: {'vector ' * has_components}domain domain domain",
        "endian: little",
        f"encoding: {'raw' if dtype.kind == 'f' else 'gzip'}",
        f"space origin: {vectors[3]}",
        *(f"{key}:={_one_line(value)}".replace("\\", "\\\\") for key, value in metadata.items()),
    ]
    return "\n".join([*lines, "", ""]).encode()


def _ascii_line(text: str) -> str:
    """Text as MetaIO keeps it, which cuts it at the first letter that is not ASCII."""
    return _one_line(text).encode("ascii", "backslashreplace").decode()


def _write_meta_image(path: str | Path, array: np.ndarray, affine: np.ndarray, metadata: Mapping[str, str]) -> None:
    array, dtype = _components_first(array), _stored_type(array)
    header = _meta_header(array.shape, dtype, affine, metadata)
    with _replacing(path) as file:
        file.write(header)
        if dtype.kind == "f":
            file.writelines(_chunks(array, dtype))
            return
        deflater = zlib.compressobj(FAST)
        size = sum(file.write(deflater.compress(chunk)) for chunk in _chunks(array, dtype))
        size += file.write(deflater.flush())
        file.seek(header.index(UNKNOWN_SIZE))
        file.write(b"%0*d" % (len(UNKNOWN_SIZE), size))


def _meta_header(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray, metadata: Mapping[str, str]) -> bytes:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        f"CompressedData = {dtype.kind != 'f'}",
        *([f"CompressedDataSize = {UNKNOWN_SIZE.decode()}"] if dtype.kind != "f" else []),
        f"TransformMatrix = {' '.join(_numbers((lps[:3, :3] / spacing).T.ravel()))}",
        f"Offset = {' '.join(_numbers(lps[:3, 3]))}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {' '.join(_numbers(spacing))}",
        *(f"{key} = {_ascii_line(value)}" for key, value in metadata.items()),
        f"DimSize = {' '.join(map(str, shape[-3:]))}",
        *([f"ElementNumberOfChannels = {shape[0]}"] if len(shape) == 4 else []),
        f"ElementType = {META_TYPES[dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*lines, ""]).encode()


# 3D Slicer


def _check_segment_values(path: str | Path, class_names: Mapping[int, str]) -> None:
    for value, name in list(class_names.items())[1:]:
        if value <= 0:
            raise DataError(
                f"{path}: the class {name!r} has the value {value}; expected a positive one, as 3D Slicer's segments "
                "have. Write to .nii.gz or .nrrd, or train with other values."
            )


def _slicer_segments(shape: tuple[int, ...], class_names: Mapping[int, str]) -> dict[str, str]:
    """3D Slicer's description of a segmentation in one layer: a segment for each class but the first."""
    metadata = {}
    for i, (value, name) in enumerate(list(class_names.items())[1:]):
        color = CLASS_COLORS[i % len(CLASS_COLORS)]
        segment = {
            "ID": f"Segment_{i + 1}",
            "Name": name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{int(part, 16) / 255:.6g}" for part in re.findall(r"[0-9a-f]{2}", color)),
            "ColorAutoGenerated": "0",
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": " ".join(f"0 {n - 1}" for n in shape),
            "Tags": "Segmentation.Status:inprogress|",
        }
        metadata.update({f"Segment{i}_{key}": text for key, text in segment.items()})
    return {
        **metadata,
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
