"""Segments and structures that are partly outside of the image are told, by their numbers and without their names."""

from dataclasses import replace

import numpy as np
import pytest

from sparse3dunet.io import read_image
from tests.io.dicom_files import LPS, series_affine, write_rtstruct, write_seg, write_series
from tests.io.test_dicom_annotation import on, options  # noqa: F401
from tests.io.test_formats import voxels

WORDS = "reach beyond the border"


def told(label):
    return [note for note in label.notes if WORDS in note]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_pixels_of_frames_outside_of_the_image(tmp_path, kind):
    series = write_series(tmp_path / "ct", voxels())
    image = read_image(series)
    liver, spleen = np.zeros(image.spatial_shape, bool), np.zeros(image.spatial_shape, bool)
    liver[:2, :2, 1:3], liver[5, :3, 2] = True, True
    spleen[:3, 3, 2] = True
    path = write_seg(tmp_path / "a.dcm", series, {"Liver": liver, "Spleen": spleen}, kind)
    assert not told(on(image, path))
    narrow = replace(image, data=image.data[:5])
    assert told(on(narrow, path)) == [
        f"{path}: segments or structures {WORDS} of the image ({image.path}), where they were left out: 3 of 11 pixels "
        "(27 %) of number 1. Check that the image is whole, and the one that was annotated."
    ]


def rectangle(low, high, slice_number=1):
    """A contour in mm, by columns and rows."""
    corners = np.array([(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])], float)
    points = np.column_stack([corners, np.full(4, slice_number)])
    affine = LPS @ series_affine()
    return points @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(
    ("low", "high", "outside", "total"),
    [
        ((-0.5, -0.5), (3.5, 3.5), 0, 16),
        ((-1.4, -1.4), (3.5, 3.5), 0, 16),  # drawn along the border
        ((-2.5, 0.5), (1.5, 2.5), 4, 8),
        ((0.5, 0.5), (1.5, 1000), None, None),  # as far as counted
    ],
)
def test_areas_of_contours_outside_of_the_image(tmp_path, low, high, outside, total):
    image = read_image(write_series(tmp_path / "ct", voxels()))
    inner = rectangle((1.5, 1.5), (2.5, 2.5), 2)
    path = write_rtstruct(tmp_path / "a.dcm", {"Doe": [rectangle(low, high)], "in": [inner]})
    label = on(image, path)
    columns, rows = (slice(max(0, int(np.ceil(a))), int(np.ceil(b))) for a, b in zip(low, high))
    expected = np.zeros(image.spatial_shape, bool)
    expected[columns, rows, 1] = True
    np.testing.assert_array_equal(label.data == 1, expected)
    notes = told(label)
    assert len(notes) == (outside != 0)
    if outside:
        assert f"left out: {outside} of {total} pixels (50 %) of number 11." in notes[0]
    assert not any("Doe" in note for note in notes)


def test_holes_outside_of_the_image_are_not_counted(tmp_path):
    image = read_image(write_series(tmp_path / "ct", voxels()))
    ring = [rectangle((-6.5, -0.5), (2.5, 4.5)), rectangle((-4.5, 1.5), (0.5, 2.5))]
    (note,) = told(on(image, write_rtstruct(tmp_path / "a.dcm", {"a": ring})))
    assert "26 of 40 pixels (65 %) of number 11" in note
