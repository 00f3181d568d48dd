"""Results in DICOM lie on their series as those in NIfTI do, for other readers, and refer to it."""

import importlib
import sys

import highdicom
import nibabel as nib
import numpy as np
import pytest
from highdicom._standard_utils import check_required_attributes, get_iod_module_map
from pydicom import dcmread
from pydicom.sr.codedict import codes

from sparse3dunet import __version__
from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output, read_image, write_map, write_segmentation
from sparse3dunet.io.dicom_codes import class_code
from sparse3dunet.io.formats import read_segmentation
from sparse3dunet.io.volumes import Volume
from tests.io.dicom_files import PLANES, sources, write_series

SHAPE = (13, 11, 7)
NAMES = {0: "background", 5: "Liver", 2: "kidney_left", 3: "thing (SCT:39607008)", 9: "absent"}


def labels():
    """Values with holes, single voxels, and a slice without any."""
    draw = np.random.default_rng(1)
    found = np.array([0, 5, 2, 3])[draw.integers(0, 4, SHAPE) * (draw.random(SHAPE) > 0.4)]
    found[2:9, 2:9, 5], found[4:6, 4:6, 5], found[5, 5, 5] = 5, 0, 2
    found[:, :, 3] = 0
    return found.astype(np.uint8)


def ct(folder, plane="axial", **elements):
    voxels = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
    return read_image(write_series(folder, voxels, plane, **elements))


@pytest.mark.parametrize("plane", PLANES)
def test_segmentation_is_that_of_nifti_for_another_reader(tmp_path, plane):
    image = ct(tmp_path / "ct", plane)
    write_segmentation(tmp_path / "a.seg.dcm", labels(), image, NAMES)
    write_segmentation(tmp_path / "a.nii.gz", labels(), image, NAMES)
    seg = highdicom.seg.segread(tmp_path / "a.seg.dcm")
    uids = [str(elements.SOPInstanceUID) for elements in sources(tmp_path / "ct")]
    pixels = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    nifti = nib.load(tmp_path / "a.nii.gz")
    expected = np.asarray(nifti.dataobj)
    for number, (value, name) in enumerate(list(NAMES.items())[1:], 1):
        np.testing.assert_array_equal(pixels.transpose(2, 1, 0) == number, expected == value)
        assert seg.get_segment_description(number).segment_label == name.partition(" (")[0]
    volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine  # slices, rows, columns
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in volume.spatial_shape], [1], indexing="ij")).reshape(4, -1)
    inside = np.linalg.solve(nifti.affine, affine @ ends)[:3].round(3)
    np.testing.assert_array_equal(inside.max(axis=1), np.array(SHAPE) - 1)
    np.testing.assert_array_equal(inside.min(axis=1), 0)


@pytest.mark.parametrize("plane", PLANES)
def test_structures_are_the_voxels_when_filled(tmp_path, plane):
    image = ct(tmp_path / "ct", plane)
    path = tmp_path / "a.rtstruct.dcm"
    write_segmentation(path, labels(), image, NAMES)
    np.testing.assert_array_equal(read_segmentation(path, image, NAMES), labels())
    found = dcmread(path)
    assert [roi.ROIName for roi in found.StructureSetROISequence] == ["Liver", "kidney_left", "thing", "absent"]
    # Each contour refers to the slice that it lies on.
    position = {s.SOPInstanceUID: np.array(s.ImagePositionPatient, float) for s in sources(tmp_path / "ct")}
    normal = np.cross(PLANES[plane][:3], PLANES[plane][3:])
    for contour in found.ROIContourSequence[0].ContourSequence:
        (reference,) = contour.ContourImageSequence
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        np.testing.assert_allclose((points - position[reference.ReferencedSOPInstanceUID]) @ normal, 0, atol=1e-4)


@pytest.mark.parametrize("suffix", [".seg.dcm", ".rtstruct.dcm"])
def test_objects_have_what_the_standard_requires(tmp_path, suffix):
    image = ct(tmp_path / "ct")
    write_segmentation(tmp_path / f"a{suffix}", labels(), image, NAMES, is_semi_automatic=True)
    found = dcmread(tmp_path / f"a{suffix}")
    iod = "segmentation" if suffix == ".seg.dcm" else "rt-structure-set"
    modules = [module["key"] for module in get_iod_module_map()[iod] if module["usage"] == "M"]
    assert "patient" in modules
    for module in set(modules) - {"segmentation-multi-frame-functional-groups"}:  # whose groups may be in two places
        check_required_attributes(found, module)
    assert (found.PatientID, found.StudyInstanceUID, found.FrameOfReferenceUID) == ("7", "1.2.3", "1.2.3.9")
    assert found.SeriesInstanceUID != "1.2.3.4"
    text = str(found)
    assert text.count("1.2.3.4.7") >= 2  # the last slice
    assert (found.Manufacturer, found.SoftwareVersions) == ("sparse3dunet", __version__)
    assert "'SEMIAUTOMATIC'" in text
    assert "'10200004'" in text
    write_segmentation(tmp_path / f"b{suffix}", labels(), image, NAMES)
    other = dcmread(tmp_path / f"b{suffix}")
    assert "'AUTOMATIC'" in str(other)
    assert other.SOPInstanceUID != found.SOPInstanceUID


def test_segmentation_says_what_made_it(tmp_path):
    write_segmentation(tmp_path / "a.seg.dcm", labels(), ct(tmp_path / "ct"), NAMES)
    liver, kidney, thing, absent = dcmread(tmp_path / "a.seg.dcm").SegmentSequence
    (how,) = liver.SegmentationAlgorithmIdentificationSequence
    assert (how.AlgorithmName, how.AlgorithmVersion) == ("sparse3dunet", __version__)
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    (kind,) = kidney.SegmentedPropertyTypeCodeSequence
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert thing.SegmentedPropertyTypeCodeSequence[0].CodeValue == "39607008"
    assert absent.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


@pytest.mark.parametrize(
    ("name", "keyword", "side"),
    [
        ("liver", "Liver", None),
        ("Left kidney", "Kidney", "Left"),
        ("lung_right", "Lung", "Right"),
        ("kidneys", "Kidney", None),
        ("left ventricle", "LeftVentricle", None),
        ("Adrenal gland, left", "AdrenalGland", "Left"),
        ("tumour", "Neoplasm", None),
        ("grey matter", "GrayMatter", None),
        ("class 1", "Tissue", None),
        ("left", "Tissue", None),
    ],
)
def test_codes_by_name(name, keyword, side):
    code = class_code(name)
    assert (code.label, code.kind.value) == (name, getattr(codes.SCT, keyword).value)
    assert (code.side and code.side.meaning) == side


def test_nothing_found_is_a_result_too(tmp_path):
    image = ct(tmp_path / "ct")
    for suffix in (".seg.dcm", ".rtstruct.dcm"):
        write_segmentation(tmp_path / f"a{suffix}", np.zeros(SHAPE, np.uint8), image, NAMES)
        assert not read_segmentation(tmp_path / f"a{suffix}", image, NAMES).any()


def test_frames_of_one_file(tmp_path):
    """The frames of an enhanced CT, in descending order, and a result for each."""
    image = ct(tmp_path / "ct")
    slices = sources(tmp_path / "ct")
    for elements in slices:
        elements.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    frames = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, "1.2.7", 1, "1.2.7.1", 1)
    frames.PixelData = frames.pixel_array[::-1].tobytes()
    frames.PerFrameFunctionalGroupsSequence = list(frames.PerFrameFunctionalGroupsSequence)[::-1]
    frames.save_as(tmp_path / "frames.dcm")
    volume = read_image(tmp_path / "frames.dcm")
    np.testing.assert_array_equal(volume.data, image.data)
    for suffix in (".seg.dcm", ".rtstruct.dcm"):
        path = tmp_path / f"a{suffix}"
        write_segmentation(path, labels(), volume, NAMES)
        for one in (image, volume):  # the same places, whatever the files
            np.testing.assert_array_equal(read_segmentation(path, one, NAMES), labels())
    reference = dcmread(path).ROIContourSequence[0].ContourSequence[0].ContourImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == "1.2.7.1"
    lowest = frames.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
    assert lowest.PlanePositionSequence[0].ImagePositionPatient[2] == 5


def test_series_without_what_may_be_missing(tmp_path):
    """As programs that remove the patient's identity leave it."""
    gone = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
    gone += ("AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator")
    ct(tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        elements = dcmread(path)
        for keyword in gone:
            del elements[keyword]
        elements.PatientIdentityRemoved = "YES"
        elements.save_as(path)
    image = read_image(tmp_path / "ct")
    for suffix in (".seg.dcm", ".rtstruct.dcm"):
        path = tmp_path / f"a{suffix}"
        write_segmentation(path, labels(), image, NAMES)
        assert dcmread(path).PatientIdentityRemoved == "YES"
        np.testing.assert_array_equal(read_segmentation(path, image, NAMES), labels())


def test_what_cannot_be_written_is_told_before(tmp_path, monkeypatch):
    image = ct(tmp_path / "ct")
    nifti = Volume("scan.nii.gz", image.data, image.affine)
    with pytest.raises(DataError, match=r"scan\.nii\.gz is not DICOM. Write to \.nii\.gz"):
        check_output("a.seg.dcm", nifti, NAMES)
    with pytest.raises(DataError, match="name of a class is 'xxxx"):
        check_output("a.rtstruct.dcm", image, {0: "background", 1: "x" * 65})
    with pytest.raises(DataError, match="twice the same"):
        check_output("a.seg.dcm", image, {0: "background", 1: "x", 2: "X"})
    with pytest.raises(DataError, match="for segmentations only"):
        write_map(tmp_path / "a.seg.dcm", np.zeros(SHAPE), image)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    importlib.invalidate_caches()
    with pytest.raises(DataError, match=r"needs the package highdicom.*pip install 'sparse3dunet\[dicom\]'"):
        check_output("a.seg.dcm", image, NAMES)
    check_output("a.rtstruct.dcm", image, NAMES)  # which needs pydicom alone
    for path in (tmp_path / "ct").iterdir():
        elements = dcmread(path)
        del elements.StudyInstanceUID
        elements.save_as(path)
    with pytest.raises(DataError, match="StudyInstanceUID is missing, so nothing can refer to it"):
        check_output("a.rtstruct.dcm", read_image(tmp_path / "ct"), NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"ct"}


@pytest.mark.parametrize("suffix", [".seg.dcm", ".rtstruct.dcm"])
@pytest.mark.parametrize(
    ("character_set", "patient"),
    [
        (None, "Test^A"),
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Ангелов^Пётр"),
    ],
)
def test_names_in_any_script(tmp_path, suffix, character_set, patient):
    """Whatever the character set of the series; the patient's name and ID are the same."""
    names = {0: "background", 5: "肝", 2: "脾", 3: "Größe"}
    image = ct(tmp_path / "ct", SpecificCharacterSet=character_set, PatientName=patient, StudyID=patient[:4])
    path = tmp_path / f"a{suffix}"
    check_output(path, image, names)
    write_segmentation(path, labels(), image, names)
    np.testing.assert_array_equal(read_segmentation(path, image, names), labels())
    found = dcmread(path)
    assert (found.SpecificCharacterSet, str(found.PatientName)) == ("ISO_IR 192", patient)
    assert (found.PatientID, found.StudyID) == ("7", patient[:4])
    content = path.read_bytes()
    assert all(name.encode() in content for name in (*list(names.values())[1:], patient))
