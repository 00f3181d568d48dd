"""DICOM series as old or careless programs write them: no preamble, padding, unknown encodings, slices at one place."""

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from sparse3dunet.errors import DataError
from sparse3dunet.io import is_dicom_folder, read_image
from tests.io.dicom_files import GAP, series_affine, write_series

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)


def assert_read(folder):
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.data, VOXELS)
    np.testing.assert_allclose(volume.affine, series_affine(), atol=1e-4)


@pytest.mark.parametrize("has_meta", [True, False])
def test_series_without_a_preamble(tmp_path, has_meta):
    """As before the standard of 1995 files had none; the first group may be that of the file, or of the image."""
    folder = write_series(tmp_path / "ct", VOXELS)
    for path in folder.iterdir():
        if has_meta:
            path.write_bytes(path.read_bytes()[132:])
        else:
            Dataset(dcmread(path)).save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    assert is_dicom_folder(folder)
    assert_read(folder)


def patched(folder, *pairs):
    """Replace bytes in every file; each must be there, and keep its length."""
    for path in folder.iterdir():
        content = path.read_bytes()
        for before, after in pairs:
            assert before in content
            assert len(before) == len(after)
            content = content.replace(before, after)
        path.write_bytes(content)


def test_texts_that_are_padded_or_in_no_known_encoding(tmp_path):
    """Spaces and null bytes around what is read, and bytes that are no UTF-8 in other elements, are accepted."""
    texts = {"PatientName": "Test^Mueller", "SeriesDescription": "thorax, axial ", "SpecificCharacterSet": "ISO_IR 192"}
    folder = write_series(tmp_path / "ct", VOXELS, Modality="CT    ", SeriesInstanceUID="1.2.3.4", **texts)
    patched(
        folder,
        (b"Test^Mueller", b"Test^M\xfcller\xff"),
        (b"thorax, axial ", b"thorax\xe4\xff axi\x00 "),
        (b"CT    ", b" CT \x00 "),
    )
    assert is_dicom_folder(folder)
    assert_read(folder)


def test_numbers_that_are_padded(tmp_path):
    """Decimals are texts of a fixed length in many programs' files."""
    folder = write_series(tmp_path / "ct", VOXELS, PixelSpacing=["1.3     ", " 0.7    "], RescaleSlope=" 1.0 ")
    assert_read(folder)


def test_rescaling_that_is_empty(tmp_path):
    assert_read(write_series(tmp_path / "ct", VOXELS, RescaleSlope=None, RescaleIntercept=None))


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
@pytest.mark.parametrize("stored", ["0,75", "1\\2 ", "abcd", "    "])
def test_rescaling_that_is_no_number(tmp_path, keyword, stored):
    """Such as with a decimal comma: values were rescaled by what comes before it, or anything."""
    folder = write_series(tmp_path / "ct", VOXELS, **{keyword: "7.25"})
    patched(folder, (b"7.25", stored.encode()))
    with pytest.raises(DataError, match=rf"ct/IM\d: {keyword} \(0028\|105[23]\) is no number such as 0.75"):
        read_image(folder)


@pytest.mark.parametrize(("distance", "same"), [(0.0, True), (0.001, True), (0.02, True), (0.05, False)])
def test_two_slices_nearly_at_one_position(tmp_path, distance, same):
    """Within a hundredth of the largest distance they are duplicates, and told as such; else a slice is off."""
    heights = GAP * np.array([0, 1, 2, 2 + distance / GAP, 3])
    with pytest.raises(DataError) as error:
        read_image(write_series(tmp_path / "ct", VOXELS, heights=heights))
    assert ("are at the same position" in str(error.value)) == same
    assert ("are 0.050 mm apart, other slices" in str(error.value)) != same
    assert "IM" in str(error.value)


@pytest.mark.parametrize("bits", [16, 12])
def test_values_of_slices_that_are_shown_inverted(tmp_path, bits):
    """Of all or some: what is stored does not depend on how it is shown, also where values have fewer bits."""
    inverted = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 2}
    for name, kind in (("all", "MONOCHROME1"), ("some", lambda k: f"MONOCHROME{1 + k % 2}")):
        folder = write_series(tmp_path / name, VOXELS, PhotometricInterpretation=kind, **inverted)
        np.testing.assert_array_equal(read_image(folder).data, 2 * VOXELS)


def test_values_of_other_encodings_that_are_shown_inverted(tmp_path):
    voxels = np.tile(VOXELS, (4, 5, 1))
    for name, syntax in (("deflated", DeflatedExplicitVRLittleEndian), ("packed", RLELossless)):
        folder = write_series(tmp_path / name, voxels, PhotometricInterpretation="MONOCHROME1")
        for path in folder.iterdir():
            elements = dcmread(path)
            if syntax == RLELossless:
                elements.compress(syntax)
            else:
                elements.file_meta.TransferSyntaxUID = syntax
            elements.save_as(path)
        np.testing.assert_array_equal(read_image(folder).data, voxels)
    before = sorted(path.name for path in folder.iterdir())
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-90])
    with pytest.raises(DataError, match=path.name):
        read_image(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("keyword", ["PatientID", "FrameOfReferenceUID"])
def test_slices_of_several_scans_are_told_without_their_values(tmp_path, keyword):
    folder = write_series(tmp_path / "ct", VOXELS, **{keyword: lambda k: f"1.2.777.{k // 3}"})
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.data, VOXELS)
    assert [f"differ in {keyword} (" in note for note in volume.notes] == [True]
    assert "777" not in volume.notes[0]
    assert read_image(write_series(tmp_path / "one", VOXELS)).notes == ()


def test_a_table_of_values_is_told(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "HU", b"\5\0\6\0"
    volume = read_image(write_series(tmp_path / "ct", VOXELS, ModalityLUTSequence=[table]))
    np.testing.assert_array_equal(volume.data, VOXELS)
    assert ["is not applied" in note for note in volume.notes] == [True]
