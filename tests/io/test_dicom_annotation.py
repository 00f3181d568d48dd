"""DICOM segmentations and structure sets lie on the voxels of the image that they were made on."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pydicom import Dataset, dcmread
from scipy import ndimage
from skimage.draw import polygon

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.defaults import SEGMENTS, set_defaults
from sparse3dunet.io.dicom_annotation import LabelOnImage, annotation_file, class_values, read_on_grid, segment_names
from sparse3dunet.io.rtstruct import filled
from sparse3dunet.io.volumes import Volume
from tests.io.dicom_files import LPS, PLANES, series_affine, write_rtstruct, write_seg, write_series

SHAPE = (13, 11, 7)


@pytest.fixture(autouse=True)
def options(monkeypatch):
    """Options are kept in the environment."""
    for name in ("SPARSE3DUNET_SERIES", SEGMENTS):
        monkeypatch.setenv(name, "")


def voxels():
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)


def masks():
    liver, spleen = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    liver[3:9, 2:7, [1, 4]] = True
    spleen[10:12, 8:, 4] = True
    return {"Liver": liver, "Spleen": spleen}


def annotation():
    expected = np.full(SHAPE, -1, np.int16)
    expected[:, :, [1, 4]] = 0
    for value, mask in enumerate(masks().values(), 1):
        expected[mask] = value
    return expected


def on(image, path):
    return read_on_grid(path, image, class_values(segment_names(path)))


@pytest.mark.parametrize(
    ("plane", "kind"),
    [
        *((plane, "BINARY") for plane in PLANES),
        ("axial", "LABELMAP"),
        ("oblique", "LABELMAP"),
        ("oblique", "FRACTIONAL"),
    ],
)
def test_segmentation_lies_on_its_series(tmp_path, plane, kind):
    """In all orientations, whatever the order of the frames; a frame's size is no multiple of 8."""
    series = write_series(tmp_path / "ct", voxels(), plane)
    order = np.array([4, 0, 6, 1, 5, 2, 3])
    path = write_seg(tmp_path / "seg.dcm", series, masks(), kind, order)
    image = read_image(series)
    np.testing.assert_array_equal(image.data, voxels())
    np.testing.assert_allclose(image.affine, series_affine(plane), atol=1e-6)
    label = on(image, path)
    np.testing.assert_array_equal(label.data, annotation())
    assert any("2 of 7 slices" in text for text in label.notes)
    assert any("half of the largest value (255)" in text for text in label.notes) == (kind == "FRACTIONAL")
    alone = read_image(path)
    start = np.linalg.solve(image.affine, alone.affine[:, 3])[:3].round(3).astype(int)
    np.testing.assert_array_equal(start, [0, 0, 1 if alone.data.shape[2] < 7 else 0])
    there = np.maximum(annotation(), 0)[:, :, start[2] : start[2] + alone.data.shape[2]]
    np.testing.assert_array_equal(alone.data, there)


def circles(plane="axial"):
    """Contours, in mm, of a ring and of a disc that is partly outside of the image, and their areas by voxel."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    affine = LPS @ series_affine(plane)

    def circle(x, y, radius, z):
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles), np.full(60, z)])
        return points.T[:, :2], points.T @ affine[:3, :3].T + affine[:3, 3]

    grid = np.stack(np.meshgrid(np.arange(13), np.arange(11), indexing="ij"), -1).reshape(-1, 2)

    def area(flat):
        return Outline(flat, closed=True).contains_points(grid).reshape(13, 11)

    outer, hole, disc = circle(5.3, 4.9, 4.2, 2), circle(5.1, 5.2, 1.8, 2), circle(12.2, 5.4, 3.1, 5)
    expected = np.full(SHAPE, -1, np.int16)
    expected[:, :, 2], expected[:, :, 5] = area(outer[0]) ^ area(hole[0]), 2 * area(disc[0])
    return {"ring": [outer[1], hole[1]], "disc": [disc[1]]}, expected


@pytest.mark.parametrize("plane", PLANES)
def test_contours_are_filled_as_another_rasteriser_does(tmp_path, plane):
    """By matplotlib's test of points in a polygon."""
    series = write_series(tmp_path / "ct", voxels(), plane)
    contours, expected = circles(plane)
    label = on(read_image(series), write_rtstruct(tmp_path / "rt.dcm", contours))
    np.testing.assert_array_equal(label.data, expected)


def test_contours_that_overlap_on_a_slice(tmp_path):
    """Those within others at one height are holes; doubled ones, and others of other heights, do not cut holes."""
    image = read_image(write_series(tmp_path / "ct", voxels()))
    to_world = LPS @ image.affine

    def square(low, high, z):
        points = np.array([[low, low, z, 1], [high, low, z, 1], [high, high, z, 1], [low, high, z, 1]])
        return (points @ to_world.T)[:, :3]

    outer, hole = square(1.5, 8.5, 2), square(3.5, 5.5, 2.0001)
    twice = [outer, hole, np.roll(outer, 1, axis=0)[::-1], hole]
    heights = [square(1.5, 6.5, 4), square(3.5, 8.5, 4.2)]
    label = on(image, write_rtstruct(tmp_path / "rt.dcm", {"a": twice + heights})).data
    expected = np.full(SHAPE, -1)
    expected[:, :, [2, 4]] = 0
    expected[2:9, 2:9, 2], expected[4:6, 4:6, 2] = 1, 0
    expected[2:7, 2:7, 4], expected[4:9, 4:9, 4] = 1, 1
    np.testing.assert_array_equal(label, expected)


def test_any_polygon_is_filled_as_by_scikit_image():
    """Stars that cross themselves and the image's border; the even-odd rule decides."""
    draw = np.random.default_rng(3)
    for count in (3, 4, 7, 30):
        points = draw.uniform(-4, 20, (count, 2)).round(3) + 1e-4  # on no voxel's centre
        expected = np.zeros((13, 17), bool)
        expected[polygon(*points.T, expected.shape)] = True
        np.testing.assert_array_equal(filled(points, expected.shape), expected)
    assert not filled(np.array([[2.0, 3.0]]), (5, 5)).any()


def test_contours_through_voxel_centres_differ_at_the_border_alone(tmp_path):
    """Rasterisers differ in whether the border itself is inside."""
    series = write_series(tmp_path / "ct", voxels())
    affine = LPS @ series_affine()
    corners = np.array([[2, 3, 4], [9, 3, 4], [9, 8, 4], [2, 8, 4.0]])
    square = corners @ affine[:3, :3].T + affine[:3, 3]
    found = on(read_image(series), write_rtstruct(tmp_path / "rt.dcm", {"square": [square]})).data[:, :, 4]
    closed = np.zeros((13, 11), bool)
    closed[2:10, 3:9] = True
    assert not (found[~closed] == 1).any()
    assert (found[ndimage.binary_erosion(closed)] == 1).all()


def test_annotation_on_a_nifti_image_with_other_axes(tmp_path):
    """Slices may lie along any axis of the image."""
    import nibabel as nib

    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    turned = nib.Nifti1Image(voxels(), series_affine()).as_reoriented([[2, 1], [0, -1], [1, 1]])
    nib.save(turned, tmp_path / "ct.nii")
    expected = nib.Nifti1Image(annotation(), series_affine()).as_reoriented([[2, 1], [0, -1], [1, 1]])
    for annotated in (path, write_rtstruct(tmp_path / "rt.dcm", circles()[0])):
        label = on(read_image(tmp_path / "ct.nii"), annotated)
        if annotated == path:
            np.testing.assert_array_equal(label.data, np.asarray(expected.dataobj))
        else:
            rings = nib.Nifti1Image(circles()[1], series_affine()).as_reoriented([[2, 1], [0, -1], [1, 1]])
            np.testing.assert_array_equal(label.data, np.asarray(rings.dataobj))


def test_segments_named_background_and_ignore(tmp_path):
    series = write_series(tmp_path / "ct", voxels())
    found = masks()
    background, ignore = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    background[:3, :2, 6], ignore[0, 0, 6] = True, False
    found = {**found, "Background": background}
    expected = np.where(annotation() > 0, annotation(), -1)
    expected[background] = 0
    label = on(read_image(series), write_seg(tmp_path / "a.dcm", series, found))
    np.testing.assert_array_equal(label.data, expected)
    ignore[:, 9:, 1] = True
    label = on(read_image(series), write_seg(tmp_path / "b.dcm", series, {**masks(), "unlabeled": ignore}))
    np.testing.assert_array_equal(label.data, np.where(ignore, -1, annotation()))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_slices_outside_of_the_image_are_told(tmp_path, kind):
    """The series was copied in part: annotated slices must not be lost without a word."""
    series = write_series(tmp_path / "ct", voxels())
    seg = write_seg(tmp_path / "seg.dcm", series, masks(), kind)
    contours = write_rtstruct(tmp_path / "rt.dcm", circles()[0])
    half = read_image(write_series(tmp_path / "half", voxels()[:, :, :4]))
    for path in (seg, contours):
        (note,) = [text for text in on(half, path).notes if "are outside of" in text]
        assert f"{path}: 1 of its slices or contours are outside of the image ({half.path})" in note
        assert not any("are outside of" in text for text in on(read_image(series), path).notes)
    narrow = replace(half, data=half.data[:8])  # the disc is beside it
    assert any("1 of its slices or contours" in text for text in on(narrow, contours).notes)


def test_background_and_ignore_are_never_left_out(tmp_path):
    """Without them, all that nobody looked at would be background; segments that are named count over them."""
    series = write_series(tmp_path / "ct", voxels())
    background, ignore = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    background[:6, :, 1], ignore[8:, :, 1] = True, True
    path = write_seg(tmp_path / "seg.dcm", series, {**masks(), "Background": background, "ignore": ignore})
    set_defaults(segments="liver")
    expected = np.full(SHAPE, -1, np.int16)
    expected[background] = 0
    expected[masks()["Liver"]] = 1
    np.testing.assert_array_equal(on(read_image(series), path).data, expected)
    ignore[:, :, 1] = True
    path = write_seg(tmp_path / "seg.dcm", series, {**masks(), "Background": background, "ignore": ignore})
    with pytest.raises(DataError, match=r"overlap: Background and ignore in 66 voxels"):
        on(read_image(series), path)


def test_overlaps_need_an_order(tmp_path):
    series = write_series(tmp_path / "ct", voxels())
    body = np.zeros(SHAPE, bool)
    body[1:, 1:, [1, 4]] = True
    path = write_seg(tmp_path / "seg.dcm", series, {"Body": body, **masks()})
    image = read_image(series)
    with pytest.raises(DataError, match=r"overlap: Body and Liver in 60 voxels; Body and Spleen.*--segments 'Body,Liv"):
        on(image, path)
    set_defaults(segments="body, spleen")
    label = on(image, path)
    expected = np.full(SHAPE, -1, np.int16)
    expected[:, :, [1, 4]] = body[:, :, [1, 4]]
    expected[masks()["Spleen"]] = 2
    np.testing.assert_array_equal(label.data, expected)
    assert any("are in Body and in Spleen, and count as Spleen" in text for text in label.notes)
    with pytest.raises(DataError, match="--segments is 'a,A'"):
        set_defaults(segments="a,A")


def test_frames_without_a_voxel_do_not_make_a_slice_annotated(tmp_path):
    """Some programs write all frames; a slice that nobody painted would be learned as background."""
    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks(), omit_empty_frames=False)
    assert dcmread(path).NumberOfFrames == 14
    np.testing.assert_array_equal(on(read_image(series), path).data, annotation())


def test_a_label_names_its_image_and_values(tmp_path):
    """As data sets list it: each case has other numbers of segments, but the same names."""
    series = write_series(tmp_path / "ct=1&a", voxels())
    path = write_seg(tmp_path / "seg ?.dcm", series, masks())
    named = str(LabelOnImage(path, str(series), {"spleen": 7, "liver": 3, "ä//b": 9}, 250))
    assert LabelOnImage.parse(named).values == {"spleen": 7, "liver": 3, "ä//b": 9}
    expected = np.select([annotation() == 1, annotation() == 2, annotation() < 0], [3, 7, 250])
    np.testing.assert_array_equal(read_image(named).data, expected)
    np.testing.assert_array_equal(read_image(named).affine, read_image(series).affine)
    dense = LabelOnImage(path, str(series), {"background": 5, "spleen": 7}, 5)
    np.testing.assert_array_equal(read_image(str(dense)).data, np.where(annotation() == 2, 7, 5))


def test_a_folder_may_be_named_like_a_label_on_an_image(tmp_path):
    series = write_series(tmp_path / "a?image=ct", voxels())
    np.testing.assert_array_equal(read_image(series).data, voxels())
    path = write_seg(tmp_path / "a?image=ct/seg", series, masks())
    assert annotation_file(series) == path
    named = str(LabelOnImage(path, str(series), {"liver": 1, "spleen": 2}))
    np.testing.assert_array_equal(read_image(named).data, annotation())
    for damaged in (named.replace("&unlabeled=-1", ""), named.replace("&1=", "&one=")):
        with pytest.raises(DataError, match="does not exist"):
            read_image(damaged)


def shifted(mm):
    contours = circles()[0]
    return {name: [points + np.array([0, 0, mm]) for points in listed] for name, listed in contours.items()}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p, s: write_rtstruct(p, shifted(1.0)), ["a contour of ring is up to 0.40 slices off", "at most 0.25"]),
        (lambda p, s: write_rtstruct(p, shifted(100)), ["no voxel of the image", "all 3 are outside"]),
        (lambda p, s: write_rtstruct(p, {}), ["found no segment or structure"]),
        (lambda p, s: write_rtstruct(p, {"a": []}), ["they are empty"]),
        (lambda p, s: write_rtstruct(p, {"a": [np.zeros((1, 3))]}, kind="POINT"), ["they are empty"]),
        (lambda p, s: write_rtstruct(p, {"a": [[1.0, 2]]}), ["2 coordinates that are no x, y, z"]),
        (
            lambda p, s: write_rtstruct(p, circles()[0], frame_of_reference="1.2.3.8"),
            ["frame of reference is 1.2.3.8, that of the image 1.2.3.9"],
        ),
        (lambda p, s: p.write_bytes(write_seg(p, s, masks()).read_bytes()[:-20]), ["pixels cannot be read", "trunca"]),
        (lambda p, s: p.write_bytes(write_seg(p, s, masks()).read_bytes()[:1500]), ["seg.dcm: "]),
    ],
)
def test_faults_are_named(tmp_path, spoil, words):
    series = write_series(tmp_path / "ct", voxels())
    path = tmp_path / "seg.dcm"
    spoil(path, series)
    with pytest.raises(DataError) as error:
        on(read_image(series), path)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_segmentation_of_another_series_is_refused(tmp_path):
    series = write_series(tmp_path / "ct", voxels())
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    other = write_series(tmp_path / "other", voxels(), PixelSpacing=[1.3, 0.9])
    with pytest.raises(DataError, match=r"frame 1 is not on a slice of the image.*0.7 x 1.3 mm.*0.9 x 1.3 x 2.5 mm"):
        on(read_image(other), path)
    with pytest.raises(DataError, match="none of kidney is a segment; found Liver, Spleen"):
        read_on_grid(path, read_image(series), {"Kidney": 1})


def test_contours_alone_have_no_grid(tmp_path):
    path = write_rtstruct(tmp_path / "rt.dcm", circles()[0])
    with pytest.raises(DataError, match=r"contours .* have no grid of their own"):
        read_image(path)


def test_a_folder_with_one_annotation_stands_for_it(tmp_path):
    (tmp_path / "a").mkdir()
    assert annotation_file(tmp_path / "a") is None
    path = write_rtstruct(tmp_path / "a/rt", circles()[0])
    assert annotation_file(tmp_path / "a") == path
    write_rtstruct(tmp_path / "a/second", circles()[0])
    with pytest.raises(DataError, match="found 2 DICOM segmentations or structure sets"):
        annotation_file(tmp_path / "a")


def test_a_misspelled_segment_is_told(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "ct", voxels()), masks())
    set_defaults(segments="liver,splen")
    with pytest.raises(DataError, match=r"no segment is named splen \(--segments\); found Liver, Spleen"):
        segment_names(path)
    with pytest.raises(DataError, match="no segment is named splen"):
        read_image(path)


def test_names_with_commas_are_chosen_in_quotes(tmp_path):
    """The message about an overlap shows how."""
    series = write_series(tmp_path / "ct", voxels())
    liver, spleen = masks().values()
    path = write_seg(tmp_path / "seg.dcm", series, {"Lung, left": liver | spleen, "Tube 5\" '": spleen})
    image = read_image(series)
    with pytest.raises(DataError, match="overlap") as error:
        on(image, path)
    set_defaults(segments=str(error.value).split("--segments '")[1].removesuffix("'."))
    assert segment_names(path) == ["Lung, left", "Tube 5\" '"]
    np.testing.assert_array_equal(on(image, path).data, annotation())
    set_defaults(segments=' "lung, left" ,')
    np.testing.assert_array_equal(on(image, path).data, np.where(annotation() == 2, 1, annotation()))
    set_defaults(segments="lung, left")
    with pytest.raises(DataError, match=r'no segment is named lung, left .*; found "Lung, left", "Tube 5"'):
        segment_names(path)


def test_names_that_differ_in_case_alone_are_one_class(tmp_path):
    series = write_series(tmp_path / "ct", voxels())
    found = {"Liver": masks()["Liver"], "liver": masks()["Spleen"], "Spleen": np.zeros(SHAPE, bool)}
    found["Spleen"][0, 0, 1] = True
    path = write_seg(tmp_path / "seg.dcm", series, found)
    assert class_values(segment_names(path)) == {"Liver": 1, "Spleen": 2}
    expected = np.where(annotation() > 0, 1, annotation())
    expected[0, 0, 1] = 2
    np.testing.assert_array_equal(on(read_image(series), path).data, expected)


def test_structures_in_other_frames_of_reference_are_left_out(tmp_path):
    series = write_series(tmp_path / "ct", voxels())
    contours, expected = circles()
    path = write_rtstruct(tmp_path / "rt.dcm", contours)
    elements = dcmread(path)
    elements.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3.8"
    elements.save_as(path)
    image = read_image(series)
    label = on(image, path)
    np.testing.assert_array_equal(label.data[:, :, 2], expected[:, :, 2])
    assert (label.data[:, :, [0, 1, 3, 4, 5, 6]] == -1).all()
    assert any("left out, in other frames" in text and "disc (1.2.3.8)" in text for text in label.notes)
    with pytest.raises(DataError, match=r"frame of reference is 1\.2\.3\.8, that of the image 1\.2\.3\.9"):
        read_on_grid(path, image, {"disc": 1})
    unnamed = Volume("ct.nii", image.data, image.affine)
    label = on(unnamed, path)
    np.testing.assert_array_equal(label.data, expected)
    assert any("several frames of reference" in text for text in label.notes)


@pytest.mark.parametrize("has_meta", [True, False])
def test_files_without_a_preamble(tmp_path, has_meta):
    series = write_series(tmp_path / "ct", voxels())
    image = read_image(series)
    for kind in ("BINARY", "FRACTIONAL"):
        elements = dcmread(write_seg(tmp_path / "whole.dcm", series, masks(), kind))
        if has_meta:
            (tmp_path / "seg.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[132:])
        else:
            bare = Dataset(elements)
            bare.save_as(tmp_path / "seg.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert (tmp_path / "seg.dcm").read_bytes()[128:132] != b"DICM"
        np.testing.assert_array_equal(on(image, tmp_path / "seg.dcm").data, annotation())
