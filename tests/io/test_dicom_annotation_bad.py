"""Truncated or contradictory segmentations and structure sets are refused: a lost structure would become background."""

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.dicom_annotation import class_values, read_on_grid, segment_names
from sparse3dunet.io.rtstruct import filled
from tests.io.dicom_files import write_rtstruct, write_seg, write_series
from tests.io.test_dicom_annotation import circles, masks, on, options, voxels  # noqa: F401

BY_FRAME = "PerFrameFunctionalGroupsSequence"
SQUARE = np.array([[9.9, -21, 5], [13, -21, 5], [13, -15, 5], [9.9, -15, 5]])
SQUARES = {"a": [SQUARE], "b": [SQUARE + np.array([0, 0, 2.5])]}


def saved(elements, path, lengths):
    """Save elements with sequences of stated lengths, delimited ones, or without types."""
    if lengths == "delimited":
        for element in elements.iterall():
            if element.VR == "SQ":
                element.value.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    if lengths == "implicit":
        Dataset(elements).save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    else:
        elements.save_as(path)


@pytest.mark.parametrize("lengths", ["stated", "delimited", "implicit"])
@pytest.mark.parametrize("kind", ["contours", "BINARY", "LABELMAP"])
def test_a_truncated_file_is_refused_or_loses_nothing(tmp_path, kind, lengths):
    """Cut behind any byte of the last 120, or of every 150th: pydicom returns what there is of each element."""
    series = write_series(tmp_path / "ct", voxels())
    path = tmp_path / "a.dcm"
    if kind == "contours":
        write_rtstruct(path, SQUARES)
    else:
        write_seg(path, series, masks(), kind)
    saved(dcmread(path), path, lengths)
    image, content = read_image(series), path.read_bytes()
    whole = on(image, path).data
    refused = []
    for size in {*range(1, len(content), 150), *range(len(content) - 120, len(content))}:
        path.write_bytes(content[:size])
        try:
            np.testing.assert_array_equal(on(image, path).data, whole, f"{size} of {len(content)} bytes")
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in text for text in refused)


def structures(edit):
    def spoil(path, series):
        elements = dcmread(write_rtstruct(path, SQUARES))
        edit(elements)
        elements.save_as(path)

    return spoil


def segments(edit, kind="BINARY"):
    def spoil(path, series):
        elements = dcmread(write_seg(path, series, masks(), kind))
        edit(elements)
        elements.save_as(path)

    return spoil


def as_text(keyword):
    """A fault: the element is text, in which a patient's name may be."""

    def edit(elements):
        del elements[keyword]
        elements.add_new(keyword, "LO", "Doe^John")

    return edit


def malformed_number(path, series):
    content = write_rtstruct(path, {"a": [SQUARE]}).read_bytes()
    path.write_bytes(content.replace(b"\x22\0IS\x02\x0011", b"\x22\0IS\x02\0ab"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (structures(lambda e: e.ROIContourSequence[1].__delattr__("ReferencedROINumber")), "1 contour.s. are of no"),
        (structures(lambda e: setattr(e.ROIContourSequence[0], "ReferencedROINumber", 7)), "1 contour.s. are of 7 by"),
        (structures(lambda e: setattr(e.StructureSetROISequence[1], "ROINumber", 11)), "structure 2 of 2 has the num"),
        (structures(lambda e: e.StructureSetROISequence[1].__delattr__("ROINumber")), "structure 2 of 2 has no number"),
        (malformed_number, "structure 1 of 1 has no number"),
        (segments(lambda e: setattr(e.SegmentSequence[1], "SegmentNumber", 1)), "segment 2 of 2 has the number 1"),
        (segments(lambda e: e.SegmentSequence.pop()), "is of segment 2, which the header does not list"),
        (segments(lambda e: e.SegmentSequence.pop(), "LABELMAP"), "voxels have the value 2, which is no segment's"),
        (segments(lambda e: e.PerFrameFunctionalGroupsSequence.pop()), "2 frames have a place, but NumberOfFrames"),
        (segments(as_text("ReferencedSeriesSequence")), r"cannot be read \(ValueError\); expected a whole DICOM segm"),
        (segments(as_text("SegmentSequence")), r"cannot be read \(ValueError\)"),
        (segments(lambda e: as_text("PixelMeasuresSequence")(e.SharedFunctionalGroupsSequence[0])), "cannot be read"),
        (structures(as_text("ReferencedFrameOfReferenceSequence")), "expected a whole DICOM structure set"),
        (structures(lambda e: as_text("ContourSequence")(e.ROIContourSequence[0])), "cannot be read"),
        (segments(as_text("Rows")), r"Rows \(0028\|0010\) is no positive whole number"),
        (segments(as_text("MaximumFractionalValue"), "FRACTIONAL"), r"MaximumFractionalValue .* is no positive whole"),
        (segments(lambda e: setattr(e, "Rows", 7)), r"\(54 bytes\); expected 35: 13 columns x 7 rows x 3 frame"),
        (segments(lambda e: setattr(e, "Rows", 7), "FRACTIONAL"), r"\(430 bytes\); expected 273: 13 columns x 7"),
    ],
)
def test_contradictions_are_refused(tmp_path, spoil, words):
    series = write_series(tmp_path / "ct", voxels())
    path = tmp_path / "a.dcm"
    spoil(path, series)
    with pytest.raises(DataError, match=words) as error:
        on(read_image(series), path)
    assert "\n" not in str(error.value)


def in_shared(group, keyword, value):
    return segments(lambda e: setattr(e.SharedFunctionalGroupsSequence[0][group][0], keyword, value))


@pytest.mark.parametrize(
    ("group", "keyword", "value"),
    [
        ("PlaneOrientationSequence", "ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("PlaneOrientationSequence", "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("PlaneOrientationSequence", "ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]),
        ("PixelMeasuresSequence", "PixelSpacing", [0, 0]),
        ("PixelMeasuresSequence", "PixelSpacing", [1.3, -0.7]),
    ],
)
def test_frames_on_no_plane_are_refused(tmp_path, group, keyword, value):
    """With their image, and alone."""
    series, path = write_series(tmp_path / "ct", voxels()), tmp_path / "a.dcm"
    in_shared(group, keyword, value)(path, series)
    for read in (lambda: on(read_image(series), path), lambda: read_image(path)):
        with pytest.raises(
            DataError, match=r"a\.dcm: frame 1 has the pixel spacing .*; expected two positive"
        ) as error:
            read()
        assert "\n" not in str(error.value)


def test_structures_without_contours_and_structure_zero_are_read(tmp_path):
    """Planning systems list structures that nobody drew; some count from 0."""
    series = write_series(tmp_path / "ct", voxels())
    contours, expected = circles()
    elements = dcmread(write_rtstruct(tmp_path / "a.dcm", {"undrawn": [], **contours}))
    for listed, keyword in (
        (elements.StructureSetROISequence, "ROINumber"),
        (elements.ROIContourSequence, "ReferencedROINumber"),
    ):
        for number, item in enumerate(listed):
            setattr(item, keyword, number)
    elements.ROIContourSequence.pop(0)
    elements.save_as(tmp_path / "a.dcm")
    assert class_values(segment_names(tmp_path / "a.dcm")) == {"undrawn": 1, "ring": 2, "disc": 3}
    label = read_on_grid(tmp_path / "a.dcm", read_image(series), {"ring": 1, "disc": 2})
    np.testing.assert_array_equal(label.data, expected)


def test_text_in_place_of_a_frame_of_reference_is_not_shown(tmp_path):
    path = write_rtstruct(tmp_path / "rt.dcm", SQUARES)
    elements = dcmread(path)
    elements.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "Doe^John"
    elements.save_as(path)
    image = read_image(write_series(tmp_path / "ct", voxels()))
    with pytest.raises(DataError, match="frame of reference is no UID but text of 8 character"):
        read_on_grid(path, image, {"a": 1})


def test_sequences_that_nothing_reads_may_be_anything(tmp_path):
    """Programs keep those that they do not know as bytes, whatever their length."""
    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    expected = on(read_image(series), path).data
    elements = dcmread(path)
    elements.add_new("OriginalAttributesSequence", "UN", bytes(70_000))
    elements.SegmentSequence[0].add_new("AnatomicRegionSequence", "LO", "Liver")
    elements.save_as(path)
    np.testing.assert_array_equal(on(read_image(series), path).data, expected)


def test_far_points_take_no_memory(tmp_path):
    square = np.array([[2.0, -1e9], [2, 1e9], [1e12, 1e9], [1e12, -1e9]]) + 0.5
    expected = np.zeros((13, 11), bool)
    expected[3:] = True
    np.testing.assert_array_equal(filled(square, expected.shape), expected)
    series = write_series(tmp_path / "ct", voxels())
    for far in (1e12, 1e300):
        path = write_rtstruct(tmp_path / "rt.dcm", {"a": [[[10, -20, 5], [far, -20, 5], [14, -25, 5]]]})
        with pytest.raises(DataError, match=r"no x, y, z of points in mm; expected .* at most 1e\+06"):
            on(read_image(series), path)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0, r"mm apart .* at most 10000 slices"),
        (1e-9, r"frames on 2 alone, at least 7.5 mm apart; expected at most 100 times"),
        (1e-3, r"SpacingBetweenSlices is 0\.001 mm, by which \d+ slices would have frames on 2 alone"),
    ],
)
def test_a_grid_of_its_own_is_of_plausible_size(tmp_path, gap, words):
    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks() if gap else {"a": masks()["Spleen"]})
    elements = dcmread(path)
    elements.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = gap
    elements.save_as(path)
    with pytest.raises(DataError, match=words):
        read_image(path)


def test_frames_of_which_the_stated_distance_is_no_part(tmp_path):
    """They are the truth; a part of their distance may be stated, if slices without a segment have no frame."""
    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    elements = dcmread(path)
    heights = sorted({float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in elements[BY_FRAME]})
    for gap, count in ((2.5, 1 + round((heights[-1] - heights[0]) / 2.5)), (2.0, len(heights))):
        elements.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = gap
        elements.save_as(path)
        volume = read_image(path)
        assert volume.data.shape[2] == count
        assert any("no multiples" in note for note in volume.notes) == (gap == 2.0)


def test_fractions_above_the_largest_are_refused(tmp_path):
    series, path = write_series(tmp_path / "ct", voxels()), tmp_path / "a.dcm"
    segments(lambda e: setattr(e, "MaximumFractionalValue", 100), "FRACTIONAL")(path, series)
    with pytest.raises(DataError, match=r"a\.dcm: frame \d+ has the value 255; expected .* 100, as in Maximum"):
        on(read_image(series), path)
