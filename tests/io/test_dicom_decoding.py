"""Compressed DICOM is decoded in a process of its own: what ends that process is an error of one file."""

import multiprocessing
import os
import random
import signal
import threading

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from sparse3dunet.errors import DataError
from sparse3dunet.io import dicom_decoding, read_image
from tests.io.dicom_files import write_series
from tests.io.test_dicom_frames import write_frames
from tests.io.test_formats import voxels

SHAPE = (32, 30, 4)


def compressed(folder):
    """A series of smooth slices, compressed by run lengths."""
    slices = np.add.outer(np.add.outer(np.arange(SHAPE[0]), np.arange(SHAPE[1])), 50 * np.arange(SHAPE[2]))
    write_series(folder, slices)
    for path in folder.iterdir():
        elements = pydicom.dcmread(path)
        elements.compress(RLELossless)
        elements.save_as(path)
    return folder, slices


def test_pixels_are_those_that_were_compressed(tmp_path):
    folder, slices = compressed(tmp_path / "series")
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.data, slices)
    assert volume.data.flags.writeable


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_has_a_decoder_of_its_own(tmp_path):
    folder, slices = compressed(tmp_path / "series")
    read_image(folder)
    child = multiprocessing.get_context("fork").Process(target=read_image, args=(folder,))
    child.start()
    np.testing.assert_array_equal(read_image(folder).data, slices)
    child.join(60)
    assert child.exitcode == 0
    np.testing.assert_array_equal(read_image(folder).data, slices)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are stopped by a signal")
def test_a_decoder_that_dies_is_one_file_and_the_next_is_read(tmp_path):
    folder, slices = compressed(tmp_path / "series")
    read_image(folder)
    pid = dicom_decoding._DECODERS[-1].process.pid
    os.kill(pid, signal.SIGSTOP)
    for delay, number in ((0.2, signal.SIGSEGV), (0.4, signal.SIGCONT)):
        threading.Timer(delay, os.kill, (pid, number)).start()
    with pytest.raises(DataError, match=r"IM\d: its compressed pixels .* ended by SIGSEGV\. Copy or export"):
        read_image(folder)
    np.testing.assert_array_equal(read_image(folder).data, slices)


def test_a_decoder_that_hangs_is_ended(tmp_path, monkeypatch):
    folder, _ = compressed(tmp_path / "series")
    read_image(folder)
    monkeypatch.setattr(dicom_decoding, "LONGEST", 0.5)
    os.kill(dicom_decoding._DECODERS[-1].process.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"IM\d: .*longer than"):
        read_image(folder)


def test_what_would_unpack_to_far_more_is_refused(tmp_path):
    folder, _ = compressed(tmp_path / "series")
    path = next(folder.iterdir())
    elements = pydicom.dcmread(path)
    elements.Rows = elements.Columns = 60_000
    elements.save_as(path)
    with pytest.raises(DataError, match=rf"{path.name}: .*bytes for compressed pixels of 7200000000: 60000 columns"):
        read_image(folder)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes behind the header, mostly near the start of the pixels."""
    changed, start = bytearray(content), content.index(b"\xe0\x7f\x10\x00") + 8
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = start + rng.randrange(min(len(changed) - start, 120 if rng.random() < 0.6 else 10**9))
        what = rng.randrange(4)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 255))
        elif what == 2:
            changed[at : at + 4] = rng.choice((b"\xff", b"\x7f", b"\0")) * len(changed[at : at + 4])
        else:
            del changed[at : at + rng.randrange(1, 30)]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [5, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "RLE"])
def test_damaged_pixels_are_read_or_refused(tmp_path, compressor, count):
    if compressor == "RLE":
        source, _ = compressed(tmp_path / "series")
        path = next(source.iterdir())
    else:
        source = path = write_frames(tmp_path / "frames.dcm", voxels(np.uint16, (40, 32, 5), high=3000), compressor)
    content, shape = path.read_bytes(), read_image(source).data.shape
    for number in range(count):
        path.write_bytes(mutated(content, random.Random(f"{compressor}/{number}")))
        try:
            assert read_image(source).data.shape == shape
        except DataError as error:
            assert path.name in str(error)  # noqa: PT017
            assert len(str(error).splitlines()) == 1  # noqa: PT017
