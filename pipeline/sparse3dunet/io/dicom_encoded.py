"""Sizes of compressed frames of DICOM files, as encoded in them, which decoders do not compare with the header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, encaps
from pydicom.config import disable_value_validation
from pydicom.uid import RLELossless

from sparse3dunet.errors import DataError
from sparse3dunet.io.dicom_header import get_nr_frames

J2K_START = b"\xff\x4f\xff\x51"
"""Start of a codestream of JPEG 2000, and the marker of its size."""
RLE_HEADER = 64
"""Bytes."""
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers in JPEG and JPEG-LS that state the size."""
ELEMENTS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PixelData")


def check_encoded_file(path: Path) -> None:
    """Raise DataError unless the compressed frames of a file are as large as its header says.

    What cannot be read here is left to the decoder, which tells.
    """
    try:
        with disable_value_validation():
            elements = dcmread(path, specific_tags=list(ELEMENTS), force=True)
            _ = elements.PixelData
    except Exception:  # pydicom raises a dozen kinds here
        return
    check_encoded(path, elements)


def check_encoded(path: Path, elements: Dataset) -> None:
    """Raise DataError unless the compressed frames among the elements are as large as these say.

    Run lengths may give more pixels than there are, by less than a row or column, and end with any number of zeros:
    some programs pad them. JPEG, JPEG-LS and JPEG 2000 state columns and rows. Frames of other kinds are not looked at,
    nor are those of files without these elements, of which the decoder tells.
    """
    try:
        rows, columns, bits = (int(elements[name].value) for name in ("Rows", "Columns", "BitsAllocated"))
        samples = int(elements.get("SamplesPerPixel") or 1)
        is_rle = elements.file_meta.get("TransferSyntaxUID") == RLELossless
    except (AttributeError, KeyError, TypeError, ValueError):
        return
    for number, frame in enumerate(_frames(elements), 1):
        found = expected = ""
        if is_rle and bits % 8 == 0:
            sizes, count = rle_sizes(frame, rows * columns), samples * bits // 8
            spare = rows * columns // max(rows, columns, 1)
            if len(sizes) != count or not all(0 <= size - rows * columns < max(spare, 1) for size in sizes):
                found = f"{'/'.join(map(str, dict.fromkeys(sizes)))} pixels in {len(sizes)} run-length segment(s)"
                expected = f"{rows * columns}, {columns} columns x {rows} rows, in {count} segment(s)"
        elif not is_rle and (size := jpeg_size(frame)) not in (None, (columns, rows)):
            found, expected = "{} columns x {} rows".format(*size or ()), f"{columns} columns x {rows} rows"
        if found:
            raise DataError(
                f"{path}: frame {number} of its compressed pixels has {found}; expected {expected}, as in the header. "
                "It is damaged, or its header was changed; copy or export it again."
            )


def _frames(elements: Dataset) -> Iterator[bytes]:
    """Yield the encoded frames, up to the first fault of how they are packed, of which the decoder tells."""
    count = int(get_nr_frames(elements, warn=False))
    split: Any = getattr(encaps, "generate_frames", None)
    try:
        if split is not None:
            yield from split(elements.PixelData, number_of_frames=count)
        else:  # pydicom 2, to which MONAI Label is bound
            yield from encaps.generate_pixel_data_frame(elements.PixelData, count)  # type: ignore[attr-defined]
    except Exception:  # pydicom raises a dozen kinds here
        return


def rle_sizes(frame: bytes, enough: int) -> list[int]:
    """Return the number of bytes that each segment of a frame of run lengths unpacks to.

    Args:
        frame: encoded frame.
        enough: number of bytes from which on zeros up to a segment's end are padding, and give none.
    """
    words = [int.from_bytes(frame[i : i + 4], "little") for i in range(0, RLE_HEADER, 4)]
    starts = words[1 : 1 + min(words[0], 15)]
    return [_unpacked_size(frame[start:stop], enough) for start, stop in zip(starts, [*starts[1:], len(frame)])]


def _unpacked_size(packed: bytes, enough: int) -> int:
    """Return the number of bytes that run lengths (PackBits) give; a last byte that pads them gives none.

    Neither do zeros after enough bytes, which as run lengths would be literals of one zero each.
    """
    place, size, end = 0, 0, len(packed)
    zeros = len(packed.rstrip(b"\0"))
    while place < end - 1 and not (size >= enough and place >= zeros):
        code = packed[place]
        if code < 128:  # so many and one more bytes as they are
            size += code + 1
            place += code + 2
        elif code > 128:  # one byte, repeated
            size += 257 - code
            place += 2
        else:
            place += 1
    return size - max(place - end, 0)


def jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Return columns and rows that a frame in JPEG, JPEG-LS or JPEG 2000 states; None if there are none."""
    start = frame.find(J2K_START, 0, 200)  # after boxes, in JP2
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(frame[i : i + 4], "big") for i in range(start + 8, start + 24, 4))
        return right - left, bottom - top
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        if frame[place + 1] in FRAME_MARKERS:
            rows, columns = (int.from_bytes(frame[i : i + 2], "big") for i in (place + 5, place + 7))
            return (columns, rows) if rows else None  # stated after the first scan
        is_filler = frame[place + 1] == 0xFF
        place += 1 if is_filler else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None
