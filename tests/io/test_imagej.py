"""What ImageJ's description says of sizes and values, as Fiji writes it."""

import numpy as np
import pytest
import tifffile

from sparse3dunet.io import read_image, read_label
from tests.io.microscopy import voxels


def write(path, array, *lines):
    """Write (X, Y, Z) voxels with these lines in the description; 2 pixels in a unit of length."""
    text = "\n".join(("ImageJ=1.54f", f"images={array.shape[2]}", f"slices={array.shape[2]}", *lines, ""))
    options = {"resolution": (2, 2), "resolutionunit": 1, "metadata": None, "photometric": "minisblack"}
    tifffile.imwrite(path, array.T, description=text, **options)
    return path


@pytest.mark.parametrize(
    ("lines", "spacing"),
    [
        (["unit=micron", "spacing=2.0"], (0.0005, 0.0005, 0.002)),
        (["unit=micron", "zunit=mm", "spacing=0.002"], (0.0005, 0.0005, 0.002)),
        (["unit=micron", "yunit=nm", "zunit=\\u00B5m"], (0.0005, 0.0000005, 0.001)),
        (["unit=micron", "zunit=slices", "spacing=2"], None),
    ],
)
def test_units_by_axis(tmp_path, lines, spacing):
    volume = read_image(write(tmp_path / "a.tif", voxels(), *lines))
    np.testing.assert_allclose(volume.spacing, spacing or (1, 1, 1))
    assert volume.has_voxel_size == (spacing is not None)


@pytest.mark.parametrize(
    ("lines", "dtype", "values"),
    [
        (["cf=0", "c0=-32768", "c1=1", "vunit=gray value"], np.int16, lambda v: v.astype(int) - 32768),
        (["cf=0", "c0=-1024.0", "c1=1.0"], np.int32, lambda v: v.astype(int) - 1024),
        (["cf=0", "c0=0.5", "c1=0.25"], np.float32, lambda v: 0.5 + 0.25 * v),
        (["cf=0", "c0=0", "c1=1"], np.uint16, lambda v: v),
        (["cf=20"], np.uint16, lambda v: v),
        (["cf=3", "c0=1", "c1=2", "c2=3"], np.uint16, lambda v: v),
        (["cf=0", "c0=nan", "c1=Doe"], np.uint16, lambda v: v),
    ],
)
def test_calibrated_values(tmp_path, lines, dtype, values):
    array = voxels(dtype=np.uint16, high=2**16)
    array[0, 0, :2] = 0, 2**16 - 1
    path = write(tmp_path / "a.tif", array, *lines)
    volume = read_image(path)
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, values(array))
    assert ["no straight line" in note for note in volume.notes] == [True] * (lines[0] != "cf=0" or "c0=nan" in lines)
    assert "Doe" not in str(volume.notes)


def test_a_signed_label_map(tmp_path):
    """Fiji stores -1 for unlabeled as 32767."""
    labels = np.where(voxels() == 3, -1, voxels()).astype(np.int16)
    lines = ("cf=0", "c0=-32768", "c1=1")
    stored = (labels.astype(int) + 32768).astype(np.uint16)
    np.testing.assert_array_equal(read_label(write(tmp_path / "a.tif", stored, *lines)).data, labels)
