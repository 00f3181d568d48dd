"""Volumes of OME-Zarr and HDF5 are opened without reading voxels, and their boxes are those of the whole volume."""

import itertools

import h5py
import nibabel as nib
import numpy as np
import pytest
import zarr

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.chunked import ChunkedArray
from sparse3dunet.io.formats import count_channels, open_image
from sparse3dunet.io.parts import Part, part_path, relative, split_part
from tests.io.microscopy import SPACING, voxels, write

KINDS = ("ngff04.ome.zarr", "ngff05.zarr", "ilastik.h5", "pytorch3dunet.hdf5")
BOXES = [np.s_[:, :, :], np.s_[1:4, 2:, 3:5], np.s_[::2, 1::3, :1], np.s_[2:2, :, :], np.s_[-3:]]
ORIENTATIONS = [
    np.array(list(zip(order, signs)))
    for order, signs in itertools.product([(0, 1, 2), (2, 0, 1), (1, 2, 0)], [(1, -1, 1), (-1, -1, 1)])
]


@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_volume_is_the_read_one(tmp_path, kind, channels):
    if channels and kind.startswith("pytorch"):
        pytest.skip("this kind states no axes")
    path = write(tmp_path / kind, voxels((7, 6, 5, *channels)))
    whole, opened = read_image(path), open_image(path)
    assert isinstance(opened.data, ChunkedArray)
    assert opened.data.shape == whole.data.shape
    assert opened.data.dtype == whole.data.dtype
    assert (opened.spacing, opened.num_channels) == (whole.spacing, whole.num_channels)
    np.testing.assert_array_equal(opened.affine, whole.affine)
    for box in BOXES:
        np.testing.assert_array_equal(opened.data[box], whole.data[box])
    assert count_channels(path) == whole.num_channels


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turning_as_nibabel_does(tmp_path, orientation):
    path = write(tmp_path / KINDS[0], voxels())
    expected = nib.apply_orientation(read_image(path).data, orientation)
    found = open_image(path).data.turned(orientation)
    assert found.shape == expected.shape
    for box in BOXES:
        np.testing.assert_array_equal(found[box], expected[box])
    flipped_back = found.turned(np.array([(0, -1), (1, -1), (2, -1)]))
    np.testing.assert_array_equal(flipped_back[:], expected[::-1, ::-1, ::-1])


def test_nothing_but_the_box_is_read(tmp_path):
    """A damaged chunk elsewhere is not noticed; an array as a whole is never made by accident."""
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    options = {"chunks": (4, 4, 4), "compressors": None, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    group.create_array("0", data=voxels((8, 8, 8)) + 1, **options)
    scale = [{"type": "scale", "scale": [1, 1, 1]}]
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
    (tmp_path / "a.zarr/0/1/1/1").write_bytes(b"short")
    data = open_image(tmp_path / "a.zarr").data
    np.testing.assert_array_equal(data[:4], (voxels((8, 8, 8)) + 1).T[:4])
    with pytest.raises(Exception, match=r".+"):
        data[4:, 4:, 4:]
    with pytest.raises(TypeError, match="box by box"):
        np.asarray(data)


@pytest.mark.parametrize("sign", [1, -1])
def test_boxes_are_whole_chunks_and_cover_the_array(tmp_path, sign):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", shape=(70, 45, 33), dtype=np.uint8, chunks=(16, 8, 32))
    data = open_image(tmp_path / "a.h5").data.turned(np.array([(0, sign), (1, 1), (2, sign)]))
    assert data.shape == (33, 45, 70)
    counts = np.zeros(data.shape, int)
    for box in data.boxes(10_000):
        counts[box] += 1
        assert counts[box].size <= 10_000
        for along, n, chunk, flips in zip(box, data.shape, data.chunks, (sign < 0, False, sign < 0)):
            ends = (n - along.stop, n - along.start) if flips else (along.start, along.stop)
            assert ends[0] % chunk == 0
            assert ends[1] % chunk == 0 or ends[1] == n
    assert (counts == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_volume(tmp_path, kind):
    path = write(tmp_path / kind, voxels())
    whole = read_image(path)
    box, inner = (slice(1, 6), slice(0, 4), slice(2, 5)), (slice(3, 5), slice(0, 9), slice(4, 5))
    part = read_image(part_path(path, Part(box)))
    np.testing.assert_array_equal(part.data, whole.data[box])
    np.testing.assert_allclose(part.affine @ [0, 0, 0, 1], whole.affine @ [1, 0, 2, 1])
    assert part.spacing == pytest.approx(np.array(SPACING) / 1000, rel=1e-6)
    masked = read_image(part_path(path, Part(box, inner, 300)))
    expected = np.full(whole.data.shape, 300)
    expected[inner] = whole.data[inner]
    np.testing.assert_array_equal(masked.data, expected[box])


def test_paths_of_parts(tmp_path):
    part = Part((slice(0, 5), slice(10, 20), slice(3, 4)), (slice(1, 2), slice(10, 20), slice(3, 4)), -1)
    for path in ("a.ome.zarr", "b.h5:/raw", "c.zarr/labels/x"):
        assert split_part(part_path(path, part)) == (type(tmp_path)(path), part)
        assert split_part(path) == (type(tmp_path)(path), None)
    assert relative(part.inner, part.box) == (slice(1, 2), slice(0, 10), slice(0, 1))


def test_what_is_no_part(tmp_path):
    path = write(tmp_path / KINDS[0], voxels())
    beyond = part_path(path, Part((slice(0, 5), slice(0, 9), slice(0, 5))))
    with pytest.raises(DataError, match=r"part_0-5_0-9_0-5: the part lies outside of the volume, shape \(7, 6, 5\)"):
        read_image(beyond)
    with pytest.raises(DataError, match=r"a\.nii\.gz: this format is read as a whole.*Convert it to \.ome\.zarr"):
        open_image("a.nii.gz")
