"""Multi-frame DICOM files are read as ITK reads them, pixels must fit their header, and each fault is named."""

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output, natural_suffix, read_image
from tests.io.test_formats import LPS, voxels
from tests.io.test_formats_dicom import CT, SPACING, ct, series  # noqa: F401
from tests.io.test_formats_files import cut, put

GROUPS = {
    "PlanePositionSequence": "ImagePositionPatient",
    "PlaneOrientationSequence": "ImageOrientationPatient",
    "PixelMeasuresSequence": "PixelSpacing",
}


def write_frames(path, frames=None, compressor=None):
    """A file of five frames (enhanced CT)."""
    image = sitk.GetImageFromArray((ct() if frames is None else frames).T)
    image.SetSpacing(SPACING)
    image.SetOrigin((1, 2, 20))
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0008|0016", f"{CT}.1")
    sitk.WriteImage(image, str(path), compressor is not None, compressor=compressor or "")
    return path


def test_frames_of_one_file(tmp_path):
    path = write_frames(tmp_path / "frames.dcm")
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, ct())
    affine = LPS @ np.array([[0.7, 0, 0, 1], [0, 1.3, 0, 2], [0, 0, 2.5, 20], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine, affine)
    np.testing.assert_array_equal(read_image(tmp_path).data, ct())
    assert natural_suffix(path) == ".nii.gz"
    # Frames in descending order, which GDCM takes for ascending ones.
    for old, new in ((b"20", b"xx"), (b"30", b"20"), (b"xx", b"30")):
        put(rb"1\\2\\" + old, b"1\\2\\" + new)(path)
    for old, new in ((b"22.5", b"xxxx"), (b"27.5", b"22.5"), (b"xxxx", b"27.5")):
        put(rb"1\\2\\" + old, b"1\\2\\" + new)(path)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, ct()[:, :, ::-1])
    np.testing.assert_allclose(volume.affine, affine)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (rb"1\\2\\22.5", b"1\\2\\21.5", ["frames.dcm: frame 1 and frame 2 are 1.500 mm apart"]),
        (rb"1\\2\\22.5", b"1\\2\\20.0", ["frames.dcm: frame 1 and frame 2 are at the same position"]),
        (rb"\x20\0\x32\0", b"\x20\0\x31\0", ["4 of 5 frames have a position"]),
    ],
)
def test_faults_of_frames_are_named(tmp_path, old, new, words):
    path = write_frames(tmp_path / "frames.dcm")
    put(old, new)(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    for word in words:
        assert word in str(error.value)


def edit(change):
    """Applies `change` to the elements of a file."""

    def apply(path):
        elements = pydicom.dcmread(path)
        change(elements)
        elements.save_as(path)

    return apply


def resize(**sizes):
    return edit(lambda elements: elements.update(sizes))


def set_in_frame(number, group, **values):
    def change(elements):
        part = pydicom.Dataset()
        part.update(values)
        setattr(elements.PerFrameFunctionalGroupsSequence[number], group, [part])

    return edit(change)


@pytest.mark.parametrize("keyword", ["SharedFunctionalGroupsSequence", "PlanePositionSequence"])
def test_places_of_frames_that_are_text(tmp_path, keyword):
    def spoil(elements):
        elements.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian  # which states kinds
        place = elements if keyword in elements else elements.PerFrameFunctionalGroupsSequence[1]
        del place[keyword]
        place.add_new(keyword, "LO", "Doe^John")
        elements["PixelData"].VR = "OW"

    path = write_frames(tmp_path / "frames.dcm")
    edit(spoil)(path)
    with pytest.raises(DataError, match=r"frames\.dcm: a DICOM file without a readable image") as error:
        read_image(path)
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (edit(lambda e: setattr(e, "PixelData", e.PixelData[:-14])), ["70 bytes of pixels, expected 84", "truncated"]),
        (edit(lambda e: setattr(e, "PixelData", e.PixelData + bytes(12))), ["96 bytes of pixels, expected 84"]),
        (lambda file: cut((file.stat().st_size - 10) / file.stat().st_size)(file), ["74 bytes", "expected 84"]),
        (resize(Rows=7), ["84 bytes of pixels, expected 98: 7 columns x 7 rows x 1 frame(s) x 1 sample(s) of 16 bits"]),
        (resize(Rows=5), ["84 bytes of pixels, expected 70"]),
        (resize(Rows=60000, Columns=60000), ["84 bytes of pixels, expected 7200000000"]),
        (resize(Columns=6), ["84 bytes of pixels, expected 72"]),
        (resize(Columns=0), ["expected 0"]),
        (resize(SamplesPerPixel=3), ["expected 252"]),
        (resize(NumberOfFrames=2), ["expected 168"]),
        (edit(lambda e: e.pop("Rows")), ["without a readable image (no Rows)"]),
    ],
)
def test_pixels_that_do_not_fit_the_header_are_refused(series, tmp_path, spoil, words):  # noqa: F811
    spoil(series / "IM1")
    for path in (series, series / "IM1"):
        with pytest.raises(DataError) as error:
            read_image(path)
        for word in ("IM1: ", *words):
            assert word in str(error.value)


def test_pixels_may_be_padded(series):  # noqa: F811
    edit(lambda elements: setattr(elements, "PixelData", elements.PixelData + bytes(2)))(series / "IM1")
    np.testing.assert_array_equal(read_image(series).data, ct())


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")
@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_pixels(tmp_path, compressor):
    frames = voxels(np.uint16, (40, 32, 5), high=3000)
    path = write_frames(tmp_path / "frames.dcm", frames, compressor)
    np.testing.assert_array_equal(read_image(path).data, frames)
    content = path.read_bytes()
    for spoil in (resize(Rows=60), resize(Rows=16), resize(Columns=39), resize(NumberOfFrames=6), cut(0.9)):
        path.write_bytes(content)
        spoil(path)
        with pytest.raises(DataError, match=r"frames\.dcm: .*[Cc]opy or export it again"):
            read_image(path)


@pytest.mark.parametrize("syntax", [pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.DeflatedExplicitVRLittleEndian])
def test_frames_of_files_in_other_encodings(tmp_path, syntax):
    path = write_frames(tmp_path / "frames.dcm")
    expected = read_image(path)
    elements = pydicom.dcmread(path)
    elements.file_meta.TransferSyntaxUID = syntax
    elements.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    for frame, height in enumerate((25, 20, 22.5, 27.5, 30)):
        set_in_frame(frame, "PlanePositionSequence", ImagePositionPatient=[1, 2, height])(path)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, expected.data[:, :, [1, 2, 0, 3, 4]])
    np.testing.assert_allclose(volume.affine, expected.affine)


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        (
            "PlaneOrientationSequence",
            {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
            ["differ in ImageOrientationPatient (0020|0037): [1.0, 0.0", "and [0.0, 1.0"],
        ),
        (
            "PixelValueTransformationSequence",
            {"RescaleSlope": 2e-4, "RescaleIntercept": 0},
            ["differ in RescaleSlope (0028|1053)", "0.0002", "one file for each volume"],
        ),
        (
            "PixelMeasuresSequence",
            {"PixelSpacing": [1.3, 0.8]},
            ["differ in PixelSpacing", "[1.3, 0.7] and [1.3, 0.8]"],
        ),
    ],
)
def test_frames_that_differ_are_refused(tmp_path, group, values, words):
    path = write_frames(tmp_path / "frames.dcm")
    set_in_frame(2, group, **values)(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    for word in words:
        assert word in str(error.value)


def test_elements_of_other_sequences_do_not_count(tmp_path):
    """As of a small picture of the file, or of images that it was made from."""
    path = write_frames(tmp_path / "frames.dcm")
    other = pydicom.Dataset()
    other.update({"Rows": 1, "Columns": 2, "BitsAllocated": 8, "ImagePositionPatient": [7, 7, 7]})
    other.add_new("PixelData", "OB", b"xx")
    edit(lambda elements: elements.update({"IconImageSequence": [other], "SourceImageSequence": [other]}))(path)
    np.testing.assert_array_equal(read_image(path).data, ct())


def test_series_of_single_frames_with_groups(series):  # noqa: F811
    """Enhanced CT in a file for each slice."""

    def enhance(elements):
        groups = pydicom.Dataset()
        for group, keyword in GROUPS.items():
            part = pydicom.Dataset()
            setattr(part, keyword, elements.pop(keyword).value)
            setattr(groups, group, [part])
        elements.update({"PerFrameFunctionalGroupsSequence": [groups], "NumberOfFrames": 1, "SOPClassUID": f"{CT}.1"})

    expected = read_image(series)
    for name in ("IM7", "b.dcm", "IM1", "a.dcm", "IM3.ima"):
        edit(enhance)(series / name)
    np.testing.assert_array_equal(read_image(series).data, expected.data)
    np.testing.assert_allclose(read_image(series).affine, expected.affine)


def without_groups(path, sop_class, **elements):
    """Rewrites a file as one of a kind whose frames have no elements of their own; returns its path."""

    def change(file):
        del file.PerFrameFunctionalGroupsSequence, file.SharedFunctionalGroupsSequence
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = sop_class
        file.update(elements)

    edit(change)(path)
    return path


SECONDARY, NUCLEAR = "1.2.840.10008.5.1.4.1.1.7.3", "1.2.840.10008.5.1.4.1.1.20"
SIZES = {"PixelSpacing": [1.3, 0.7], "SpacingBetweenSlices": 2.5}
PLACE = {"ImagePositionPatient": [1, 2, 30], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


def test_sizes_of_frames_without_a_position(tmp_path):
    volume = read_image(without_groups(write_frames(tmp_path / "frames.dcm"), SECONDARY, **SIZES))
    np.testing.assert_array_equal(volume.data, ct())
    np.testing.assert_allclose(volume.spacing, (0.7, 1.3, 2.5))
    assert not volume.is_placed
    assert volume.has_voxel_size
    assert "no position in the patient" in volume.notes[0]
    with pytest.raises(DataError, match=r"states no position. Write to \.nii\.gz"):
        check_output(tmp_path / "out.rtstruct.dcm", volume, {0: "background", 1: "liver"})
    volume = read_image(without_groups(write_frames(tmp_path / "b.dcm"), SECONDARY, SpacingBetweenSlices=2.5))
    assert (volume.has_voxel_size, volume.is_placed) == (False, False)


@pytest.mark.parametrize("in_detector", [False, True])
def test_frames_against_the_normal_of_nuclear_medicine(tmp_path, in_detector):
    detector = pydicom.Dataset()
    detector.update(PLACE)
    place = {"DetectorInformationSequence": [detector]} if in_detector else PLACE
    sizes = {**SIZES, "SpacingBetweenSlices": -2.5, "NumberOfSlices": 5, "NumberOfTimeSlots": 8}
    volume = read_image(without_groups(write_frames(tmp_path / "frames.dcm"), NUCLEAR, **sizes, **place))
    np.testing.assert_allclose(
        volume.affine, LPS @ [[0.7, 0, 0, 1], [0, 1.3, 0, 2], [0, 0, -2.5, 30], [0, 0, 0, 1]], atol=1e-12
    )
    assert volume.is_placed


@pytest.mark.parametrize("several", [{"NumberOfTimeSlots": 2}, {"NumberOfSlices": 1, "NumberOfRRIntervals": 5}])
def test_several_volumes_of_nuclear_medicine(tmp_path, several):
    path = without_groups(write_frames(tmp_path / "frames.dcm"), NUCLEAR, **SIZES, **PLACE, **several)
    with pytest.raises(DataError, match=r"frames\.dcm: 5 frames, which are several volumes \(NumberOf"):
        read_image(path)
