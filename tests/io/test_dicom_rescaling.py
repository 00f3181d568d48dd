"""Values are rescaled as a file states it, whatever its kind, or refused if it is not sure what they are."""

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedUSVolumeStorage,
    EnhancedXAImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    NuclearMedicineImageStorage,
    RLELossless,
)

from sparse3dunet.errors import DataError
from sparse3dunet.io import dicom_rescaling, read_image
from tests.io.dicom_files import write_series
from tests.io.test_dicom_frames import edit, write_frames
from tests.io.test_formats import voxels

SHARED, BY_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
KINDS = [
    EnhancedCTImageStorage,  # in which GDCM applies it
    EnhancedUSVolumeStorage,
    EnhancedXAImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    NuclearMedicineImageStorage,
]


def rescale(path, kind, place, slope=0.5, **elements):
    """Have the groups of a file state a rescaling, and its elements another one."""

    def change(file):
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = kind
        file.update({"RescaleSlope": 3, "RescaleIntercept": 7, **elements})
        for part in (SHARED, BY_FRAME):
            for item in file.get(part) or []:
                item.pop("PixelValueTransformationSequence", None)
        for item in file[place]:
            group = Dataset()
            group.RescaleSlope, group.RescaleIntercept, group.RescaleType = slope, -10, "US"
            item.PixelValueTransformationSequence = [group]

    edit(change)(path)
    return path


@pytest.mark.parametrize("place", [SHARED, BY_FRAME])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_rescaled_as_their_groups_state(tmp_path, kind, place):
    stored = voxels().astype(np.uint16)
    path = rescale(write_frames(tmp_path / "frames.dcm", stored), kind, place)
    np.testing.assert_array_equal(read_image(path).data, stored * 0.5 - 10)


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_and_inverted_frames_are_rescaled(tmp_path, kind):
    stored = np.random.default_rng(0).integers(0, 4000, (32, 30, 3)).astype(np.uint16)
    path = rescale(
        write_frames(tmp_path / "frames.dcm", stored), kind, BY_FRAME, PhotometricInterpretation="MONOCHROME1"
    )
    edit(lambda file: file.compress(RLELossless))(path)
    np.testing.assert_array_equal(read_image(path).data, stored * 0.5 - 10)


def test_a_series_of_single_frames_is_rescaled_by_frame(tmp_path):
    folder = write_series(tmp_path / "us", voxels())
    for path in folder.iterdir():
        edit(lambda file: file.update({BY_FRAME: [Dataset()]}))(path)
        z = dcmread(path).InstanceNumber
        rescale(path, MultiFrameGrayscaleWordSecondaryCaptureImageStorage, BY_FRAME, slope=z)
    expected = voxels().astype(float) * np.arange(1, voxels().shape[2] + 1) - 10
    np.testing.assert_array_equal(read_image(folder).data, expected)


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    path = rescale(write_frames(tmp_path / "frames.dcm"), KINDS[0], SHARED)

    def full(_):
        raise OSError("Doe^John")

    monkeypatch.setattr(dicom_rescaling, "_two_pixels", full)
    with pytest.raises(DataError, match=r"frames\.dcm: it was not found out whether its RescaleSlope") as error:
        read_image(path)
    assert "Doe" not in str(error.value)


def test_a_slope_of_zero_is_refused(tmp_path):
    path = rescale(write_frames(tmp_path / "frames.dcm"), KINDS[0], SHARED, slope=0)
    series = write_series(tmp_path / "ct", voxels(), RescaleSlope=lambda k: 0 if k == 2 else 1)
    for image in (path, series):
        with pytest.raises(DataError, match=r"RescaleSlope \(0028\|1053\) is 0, .*; expected .* other than 0"):
            read_image(image)


@pytest.mark.parametrize(("stored", "high"), [(12, 15), (12, 10)])
def test_values_in_other_bits_are_refused(tmp_path, stored, high):
    """As before the standard of 2000 values could be in the upper bits; some programs state so, but use the lowest."""
    series = write_series(tmp_path / "ct", voxels(), BitsStored=stored, HighBit=high)
    path = write_frames(tmp_path / "frames.dcm")
    edit(lambda file: file.update({"BitsStored": stored, "HighBit": high}))(path)
    for image in (path, series):
        with pytest.raises(DataError, match=rf"HighBit .* is {high}, with {stored} bits stored; expected 11"):
            read_image(image)


def test_a_high_bit_does_not_matter_if_all_are_stored(tmp_path):
    series = write_series(tmp_path / "ct", voxels(), HighBit=11)
    np.testing.assert_array_equal(read_image(series).data, voxels())
