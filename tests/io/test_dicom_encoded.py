"""Compressed frames that are larger or smaller than the header says are refused, in images and in segmentations."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.dicom_annotation import read_on_grid
from sparse3dunet.io.dicom_encoded import check_encoded_file, jpeg_size, rle_sizes
from tests.io.dicom_files import write_seg, write_series
from tests.io.test_dicom_decoding import compressed
from tests.io.test_dicom_frames import edit, resize, write_frames
from tests.io.test_formats import voxels

SHAPE = (12, 10, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Rows": 15}, "has 960 pixels in 2 .*; expected 480, 32 columns x 15 rows"),
        ({"Rows": 29}, "has 960 pixels in 2 .*; expected 928, 32 columns x 29 rows"),
        ({"Columns": 16}, "has 960 pixels in 2 .*; expected 480, 16 columns x 30 rows"),
        ({"Columns": 64}, "has 960 pixels in 2 .*; expected 1920, 64 columns x 30 rows"),
        (
            {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            "has 960 pixels in 2 .*; expected 960, .* in 1 ",
        ),
    ],
)
def test_run_lengths_of_a_series_that_are_not_as_large_as_its_header_says(tmp_path, change, words):
    folder, _ = compressed(tmp_path / "series")
    for path in folder.iterdir():
        resize(**change)(path)
    with pytest.raises(DataError, match=rf"IM\d+: frame 1 of its compressed pixels {words}.*copy or export it again"):
        read_image(folder)


def test_run_lengths_may_be_padded(tmp_path):
    """To an even number of pixels, as some programs do."""
    folder, slices = compressed(tmp_path / "series")
    path = next(folder.iterdir())
    elements = pydicom.dcmread(path)
    array = elements.pixel_array
    parts = [(array >> shift).astype(np.uint8) for shift in (8, 0)]
    segments = [b"".join(bytes([len(row) - 1]) + row.tobytes() for row in part) for part in parts]
    segments = [segment + bytes([255, 0]) for segment in segments]  # one byte, twice
    starts = [2, 64, 64 + len(segments[0]), *[0] * 13]
    frame = np.array(starts, "<u4").tobytes() + b"".join(segments)
    assert rle_sizes(frame, array.size) == [array.size + 2] * 2
    elements.PixelData = encapsulate([frame])
    elements.save_as(path)
    np.testing.assert_array_equal(read_image(folder).data, slices)


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 6, 3), (2, 1, 3), (300, 1, 3), (1, 300, 3)])
@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_run_lengths_of_small_frames(tmp_path, shape, interpretation):
    """Which GDCM takes for damaged."""
    stored = np.random.default_rng(0).integers(-2000, 2000, shape).astype(np.int16)
    folder = write_series(
        tmp_path / "ct", stored, RescaleSlope=0.5, RescaleIntercept=-10, PhotometricInterpretation=interpretation
    )
    for path in folder.iterdir():
        edit(lambda elements: elements.compress(RLELossless))(path)
    np.testing.assert_array_equal(read_image(folder).data, stored * 0.5 - 10)


@pytest.mark.parametrize("shape", [(13, 17), (13, 1), (1, 1)])
@pytest.mark.parametrize("zeros", [0, 1, 4, 32, 1001])
@pytest.mark.parametrize("last", [0, 7])
def test_run_lengths_may_end_with_zeros(shape, zeros, last):
    """Each two of them would be a literal of one zero."""
    pixels = bytes([*range(1, np.prod(shape)), last])[: np.prod(shape)]
    parts = [pixels[:-1][i : i + 128] for i in range(0, len(pixels) - 1, 128)]
    literal = [bytes([len(part) - 1]) + part for part in parts]
    packed = b"".join([*literal, bytes([0, last])])
    frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + packed + bytes(zeros)
    assert rle_sizes(frame, len(pixels)) == [len(pixels)]
    assert rle_sizes(frame[:64] + packed + bytes([0, 9]) + bytes(zeros), len(pixels)) == [len(pixels) + 1]


def test_long_padding_is_read(tmp_path):
    folder, slices = compressed(tmp_path / "series")
    path = next(folder.iterdir())
    elements = pydicom.dcmread(path)
    (frame,) = generate_frames(elements.PixelData, number_of_frames=1)
    elements.PixelData = encapsulate([frame + bytes(4000)])
    elements.save_as(path)
    np.testing.assert_array_equal(read_image(folder).data, slices)


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated"])
def test_files_without_a_size_are_left_to_the_decoder(tmp_path, name):
    folder, _ = compressed(tmp_path / "series")
    for path in folder.iterdir():
        edit(lambda elements: elements.pop(name))(path)
        check_encoded_file(path)
    with pytest.raises(DataError):
        read_image(folder)


def segmentation(folder, syntax):
    """A label map in DICOM whose frames are compressed."""
    series = write_series(folder / "ct", np.zeros(SHAPE, np.int16))
    mask = np.zeros(SHAPE, bool)
    mask[3:8, 2:7, 1:3] = True
    path = write_seg(folder / "seg.dcm", series, {"liver": mask}, "LABELMAP")
    elements = pydicom.dcmread(path)
    if syntax == JPEG2000Lossless:
        frames = []
        for frame in elements.pixel_array:
            Image.fromarray(frame).save(stream := io.BytesIO(), "JPEG2000", no_jp2=True)
            frames.append(stream.getvalue())
        elements.PixelData = encapsulate(frames)
        elements["PixelData"].VR = "OB"
        elements.file_meta.TransferSyntaxUID = syntax
    else:
        elements.compress(syntax)
    elements.save_as(path)
    return series, path, mask


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("change", [{"Rows": 5}, {"Columns": 6}, {"Columns": 24}])
def test_frames_of_a_segmentation_that_are_not_as_large_as_its_header_says(tmp_path, syntax, change):
    series, path, mask = segmentation(tmp_path, syntax)
    image = read_image(series)
    np.testing.assert_array_equal(read_on_grid(path, image, {"liver": 1}).data > 0, mask)
    resize(**change)(path)
    with pytest.raises(DataError, match=r"seg\.dcm: frame \d of its compressed pixels has .*; expected .* as in the"):
        read_on_grid(path, image, {"liver": 1})


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_sizes_that_jpeg_states(tmp_path, compressor):
    path = write_frames(tmp_path / "frames.dcm", voxels(np.uint16, (40, 32, 5), high=3000), compressor)
    np.testing.assert_array_equal(read_image(path).spatial_shape, (40, 32, 5))
    resize(Rows=16)(path)
    with pytest.raises(DataError, match="has 40 columns x 32 rows; expected 40 columns x 16 rows"):
        read_image(path)


@pytest.mark.parametrize("frame", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\0", b"\xff\xd8" + b"\xff" * 50, bytes(200)])
def test_frames_without_a_size_are_left_to_the_decoder(frame):
    assert jpeg_size(frame) is None
