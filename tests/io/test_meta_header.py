"""Headers of MetaImages as other programs write them: with any other format's keys, and texts of several lines."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from tests.io.dicom_files import write_series
from tests.io.test_formats import voxels
from tests.io.test_text_geometry import write_header


def test_what_simpleitk_writes_from_nifti_and_dicom(tmp_path):
    nib.save(nib.Nifti1Image(voxels(), np.diag([-1, -2, 3, 1])), tmp_path / "scan.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")), str(tmp_path / "scan.mha"))
    assert b"dim[0] = 3" in (tmp_path / "scan.mha").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "scan.mha").data, voxels())
    slices = write_series(tmp_path / "series", voxels())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(slices)))
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    for key in reader.GetMetaDataKeys(0):
        image.SetMetaData(key, reader.GetMetaData(0, key))
    sitk.WriteImage(image, str(tmp_path / "series.mha"))
    assert b"0008|0060 = " in (tmp_path / "series.mha").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "series.mha").data, read_image(slices).data)


@pytest.mark.parametrize(
    "lines",
    [
        *("key = ", "=", "0020|4000 = two\r\nlines\nzz = 1", "what: is = this: ? = %s", "ünï/$(a) = \x1b$B"),
        *("note: a\nnote: b", "\r\n \n", "x = " + "1" * 9000, "DimSize[0] = 3"),
    ],
)
def test_other_lines_are_none_of_the_image(tmp_path, lines):
    read_image(write_header(tmp_path / "a.mha", f"ElementSpacing = 1 2 3\n{lines}\n"))


@pytest.mark.parametrize(
    "lines",
    [
        *("DimSize : 9 9 9", "bare\nElementSpacing = 2 2 2", "BinaryData", "Comment\n= x", "k" * 300 + " = 1", "bare"),
        *("HeaderSize\rx = 5", "bare\n\nElementType = MET_CHAR", "Name = " + "1" * 300, "a \0 = 1"),
    ],
)
def test_lines_by_which_metaio_would_read_something_else_are_refused(tmp_path, lines):
    """MetaIO takes what follows a line without a separator for its value."""
    with pytest.raises(DataError, match=r"a\.mha: cannot be read \(line \d+ of its header"):
        read_image(write_header(tmp_path / "a.mha", f"{lines}\n"))
