"""Where windows lie, equal to MONAI's, and boxes cut out of arrays of any layout, equal to NumPy's padding."""

import itertools

import numpy as np
import pytest
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from sparse3dunet.inference.windows import Axis, Windows, cut

LENGTHS = [*range(1, 36), 63, 64, 65, 97, 128, 131]
BORDERS = [("replicate", "edge"), ("mirror", "reflect")]
BOXES = [
    [(0, 9), (0, 12), (0, 5)],
    [(2, 7), (3, 4), (1, 5)],
    [(-3, 4), (5, 15), (-1, 6)],
    [(-31, 40), (-2, 3), (-11, -6)],  # longer than the volume several times, and beside it
    [(9, 14), (12, 40), (-20, 25)],
]


def starts_of_monai(shape, size, overlap):
    """Of its SlidingWindowInferer, which pads what is smaller than a window, half of it before."""
    padded = [max(n, s) for n, s in zip(shape, size)]
    interval = _get_scan_interval(padded, size, len(shape), [overlap] * len(shape))
    before = [(p - n) // 2 for p, n in zip(padded, shape)]
    parts = dense_patch_slices(padded, size, interval)
    return [tuple(part.start - b for part, b in zip(parts_, before)) for parts_ in parts]


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 1 / 3, 0.5, 0.6, 0.7, 0.75, 0.9, 0.99])
def test_overlapping_equals_monai(overlap):
    for length, size in itertools.product(LENGTHS, [1, 2, 3, 5, 8, 15, 16, 17, 33, 96]):
        expected = [start for (start,) in starts_of_monai([length], [size], overlap)]
        assert list(Axis.overlapping(length, size, overlap).starts) == expected, (length, size)


def test_overlapping_leaves_no_gap():
    for length, size, overlap in itertools.product(LENGTHS, [1, 4, 7, 32], [0, 0.3, 0.5, 0.9]):
        assert covered(Axis.overlapping(length, size, overlap)).all(), (length, size, overlap)


def covered(axis):
    """How often each voxel is given, and that what is given lies at the same place in the output."""
    times = np.zeros(axis.length, int)
    for start in axis.starts:
        inside, output = axis.inside(start), axis.of_output(start)
        assert 0 <= output.start < output.stop <= axis.size
        assert (inside.start - start, inside.stop - start) == (output.start, output.stop)
        times[inside] += 1
    return times


@pytest.mark.parametrize("multiple", [1, 2, 4, 6, 9])
def test_seamless(multiple):
    """Each voxel is given, none of the tiles for nothing, all at multiples of the downsampling."""
    for length, size, margin in itertools.product(LENGTHS, [9, 10, 12, 17, 28, 44], [2, 20]):
        axis = Axis.seamless(length, size, margin, multiple)
        assert covered(axis).all()
        assert axis.starts[0] == 0
        assert not any(start % multiple for start in axis.starts)
        assert len(set(np.diff(axis.starts))) <= 1
        assert axis.starts[-1] < length
        assert all(axis.of_input(start) == (start - margin, start + size + margin) for start in axis.starts)
        if len(axis.starts) > 1:
            assert axis.starts[-2] + size < length


@pytest.mark.parametrize(("size", "multiple"), [(1, 2), (7, 8), (28, 32)])
def test_too_small_for_seamless(size, multiple):
    with pytest.raises(ValueError, match=rf"window of {size + 40} voxels gives {size}.*{multiple}.*larger window"):
        Axis.seamless(100, size, 20, multiple)


@pytest.mark.parametrize("overlap", [0, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(41, 23, 35), (10, 50, 33), (7, 9, 11), (64, 20, 27), (20, 64, 100)])
def test_rows_hold_all_windows(shape, overlap):
    """Those of MONAI, each once, in rows that follow each other."""
    size = (16, 20, 24)
    windows = Windows(tuple(Axis.overlapping(n, s, overlap) for n, s in zip(shape, size)))
    rows = list(windows.rows())
    places = [place for _, row in rows for place in row]
    assert sorted(places) == sorted(starts_of_monai(shape, size, overlap))
    assert len(places) == windows.count
    assert windows.output_size == size
    assert [start for start, _ in rows] == list(windows.axes[windows.row_axis].starts)
    assert all(place[windows.row_axis] == start for start, row in rows for place in row)


@pytest.mark.parametrize(
    ("shape", "row_axis"),
    [((100, 20, 30), 0), ((20, 100, 30), 1), ((20, 30, 100), 2), ((64, 64, 64), 2), ((64, 64, 9), 1), ((3, 2, 1), 0)],
)
def test_rows_are_small(shape, row_axis):
    """They go across the longest axis, in windows; of equal ones the last, along which files are slowest."""
    assert Windows(tuple(Axis.overlapping(n, 16, 0.5) for n in shape)).row_axis == row_axis


def padded(volume, bounds, mode):
    """A box of the volume, by NumPy's padding."""
    around = [(max(-start, 0), max(stop - n, 0)) for (start, stop), n in zip(bounds, volume.shape)]
    box = tuple(slice(start + before, stop + before) for (start, stop), (before, _) in zip(bounds, around))
    return np.pad(volume, around, mode)[box]


def layouts(volume):
    """The same voxels, differently laid out in memory."""
    wide = np.zeros([2 * n for n in volume.shape], volume.dtype)
    wide[::2, ::2, ::2] = volume
    return {
        "contiguous": np.ascontiguousarray(volume),
        "Fortran": np.asfortranarray(volume),
        "flipped": np.ascontiguousarray(volume[::-1, :, ::-1])[::-1, :, ::-1],
        "transposed": np.ascontiguousarray(volume.transpose(2, 0, 1)).transpose(1, 2, 0),
        "strided": wide[::2, ::2, ::2],
    }


@pytest.mark.parametrize(("border", "mode"), BORDERS)
@pytest.mark.parametrize("bounds", BOXES)
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "flipped", "transposed", "strided"])
def test_cut_is_padding(layout, bounds, border, mode):
    volume = np.random.default_rng(0).normal(size=(9, 12, 5)).astype(np.float32)
    view = layouts(volume)[layout]
    box = cut([view], bounds, border)
    assert np.array_equal(box[0], padded(volume, bounds, mode))
    assert box.dtype == np.float32
    assert box.flags.c_contiguous
    assert not np.shares_memory(box, view)  # what normalises it in place leaves the image as it is


@pytest.mark.parametrize(("border", "mode"), BORDERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 1), (2, 1, 3), (2, 2, 2)])
def test_cut_of_thin_volumes(shape, border, mode):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for start, stop in itertools.product([-9, -3, -2, -1, 0], [1, 2, 3, 4, 5, 12]):
        bounds = [(start, stop)] * 3
        assert np.array_equal(cut([volume], bounds, border)[0], padded(volume, bounds, mode)), bounds


@pytest.mark.parametrize(("border", "mode"), BORDERS)
@pytest.mark.parametrize("dtype", ["u1", "i1", ">i2", "u2", "i4", "i8", "f2", ">f4", "f8", "?"])
def test_cut_of_any_type(dtype, border, mode):
    volume = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, (9, 12, 5)).astype(dtype)
    for bounds in BOXES:
        box = cut([volume], bounds, border)
        assert box.dtype == np.float32
        assert np.array_equal(box[0], padded(volume, bounds, mode).astype(np.float32))


@pytest.mark.parametrize(("border", "mode"), BORDERS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_cut_of_files(order, border, mode, tmp_path):
    """Read-only, behind a header of odd length, as they come; and views of them."""
    volume = np.random.default_rng(0).integers(-999, 999, (9, 12, 5)).astype(np.int16)
    (tmp_path / "a.raw").write_bytes(bytes(353) + volume.tobytes(order))
    on_disk = np.memmap(tmp_path / "a.raw", np.int16, "r", 353, volume.shape, order)
    turned = on_disk.transpose(1, 2, 0)[::-1, :, ::-1]
    for bounds in BOXES:
        assert np.array_equal(cut([on_disk], bounds, border)[0], padded(volume, bounds, mode))
        assert np.array_equal(cut([turned], bounds, border)[0], padded(np.array(turned), bounds, mode))


@pytest.mark.parametrize("bounds", BOXES)
def test_cut_of_channels(bounds):
    """Each its own, whatever its type and layout."""
    volume = np.random.default_rng(0).integers(0, 99, (9, 12, 5, 3))
    channels = [volume[..., 0].astype(np.uint8), np.asfortranarray(volume[..., 1]), volume[..., 2].astype(np.float64)]
    box = cut(channels, bounds)
    assert box.shape == (3, *(stop - start for start, stop in bounds))
    for found, channel in zip(box, channels, strict=True):
        assert np.array_equal(found, padded(channel, bounds, "edge"))


class Recording:
    """An array that tells what was read of it."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, box):
        self.read.append(self.array[box].shape)
        return self.array[box]


@pytest.mark.parametrize(
    ("bounds", "border", "read"),
    [
        ([(2, 7), (3, 4), (-1, 4)], "replicate", (5, 1, 4)),
        ([(-9, 3), (12, 99), (4, 6)], "replicate", (3, 1, 1)),
        ([(-3, 2), (10, 14), (0, 5)], "mirror", (4, 3, 5)),
    ],
)
def test_cut_reads_no_more_than_it_needs(bounds, border, read):
    channel = Recording(np.zeros((9, 12, 5)))
    cut([channel], bounds, border)
    assert channel.read == [read]


def test_unknown_border():
    with pytest.raises(ValueError, match="border must be one of"):
        cut([np.zeros((3, 3, 3))], [(0, 2)] * 3, "zeros")
