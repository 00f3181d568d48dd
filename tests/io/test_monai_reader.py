"""Units of length are read as mm everywhere, and MONAI's LoadImage sees the same volumes as we do."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImage

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.monai_reader import VolumeReader

AFFINE = np.array([[-0.5, 0, 0, 10], [0, 2.0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save(path, array, units="mm", affine=AFFINE):
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def voxels(*shape):
    return np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)


@pytest.mark.parametrize(("units", "scale"), [("mm", 1), ("unknown", 1), ("micron", 1e-3), ("meter", 1e3)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_units(tmp_path, units, scale, suffix):
    path = save(tmp_path / f"a{suffix}", voxels(4, 5, 6), units)
    volume, loaded = read_image(path), LoadImage(reader=VolumeReader)(path)
    for affine in (volume.affine, loaded.affine.numpy()):
        np.testing.assert_allclose(affine[:3], AFFINE[:3] * scale, rtol=1e-6)
        np.testing.assert_array_equal(affine[3], [0, 0, 0, 1])
    np.testing.assert_allclose(volume.spacing, np.array([0.5, 2, 3]) * scale, rtol=1e-6)


def test_a_unit_that_nifti_does_not_know_is_mm(tmp_path):
    path = save(tmp_path / "a.nii", voxels(4, 5, 6))
    content = bytearray(path.read_bytes())
    content[123] = 7  # xyzt_units
    path.write_bytes(content)
    np.testing.assert_allclose(read_image(path).affine, AFFINE)


def test_a_result_keeps_the_units_of_its_image(tmp_path):
    path = save(tmp_path / "a.nii.gz", voxels(4, 5, 6), "micron")
    write_segmentation(tmp_path / "out.nii.gz", np.ones((4, 5, 6), np.uint8), read_image(path), {0: "a", 1: "b"})
    ours, theirs = nib.load(tmp_path / "out.nii.gz"), nib.load(path)
    assert ours.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    write_segmentation(tmp_path / "out.mha", np.ones((4, 5, 6), np.uint8), read_image(path), {0: "a", 1: "b"})
    np.testing.assert_allclose(sitk.ReadImage(str(tmp_path / "out.mha")).GetSpacing(), [5e-4, 2e-3, 3e-3])


def test_voxels_of_a_few_nanometres_are_no_degenerate_affine(tmp_path):
    path = save(tmp_path / "a.nii", voxels(4, 5, 6), affine=np.diag([4e-6, 4e-6, 4e-5, 1]))
    assert read_image(path).spacing == pytest.approx((4e-6, 4e-6, 4e-5))


@pytest.mark.parametrize("bad", [[0, 1, 1], [np.nan, 1, 1]])
def test_degenerate_affines_are_refused(tmp_path, bad):
    path = save(tmp_path / "a.nii", voxels(4, 5, 6))
    image = nib.load(path)
    header, data = image.header.copy(), np.asarray(image.dataobj)
    header["srow_x"][0] = bad[0]
    header["srow_x"][3] = 0
    header["qform_code"] = 0
    nib.save(nib.Nifti1Image(data, None, header), path)
    with pytest.raises(DataError, match="degenerate"):
        read_image(path)


def test_axes_in_one_plane_are_refused(tmp_path):
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    image = nib.Nifti1Image(voxels(4, 5, 6), None)
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="one plane"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1), (4, 5, 6, 3)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_as_monais_reader(tmp_path, shape, suffix):
    path = save(tmp_path / f"a{suffix}", voxels(*shape))
    ours = LoadImage(reader=VolumeReader, ensure_channel_first=True)(path)
    theirs = LoadImage(reader="NibabelReader", ensure_channel_first=True)(path)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.meta["filename_or_obj"] == theirs.meta["filename_or_obj"]
    assert ours.pixdim.tolist() == theirs.pixdim.tolist()


def test_files_of_channels_as_monais_reader(tmp_path):
    paths = [save(tmp_path / f"{i}.nii", voxels(4, 5, 6) + i) for i in range(3)]
    ours = LoadImage(reader=VolumeReader, ensure_channel_first=True)(paths)
    np.testing.assert_array_equal(ours, LoadImage(reader="NibabelReader", ensure_channel_first=True)(paths))
    assert ours.shape == (3, 4, 5, 6)


def test_other_formats(tmp_path):
    array = voxels(4, 5, 6)
    write_segmentation(tmp_path / "a.nrrd", array, read_image(save(tmp_path / "a.nii", array)), {})
    loaded = LoadImage(reader=VolumeReader, ensure_channel_first=True)(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(loaded[0], array)
    np.testing.assert_allclose(loaded.affine, AFFINE)


def test_whether_the_file_tells_the_sides(tmp_path):
    path = save(tmp_path / "a.nii", voxels(4, 5, 6))
    assert LoadImage(reader=VolumeReader)(path).meta["is_placed"]
    image = nib.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    assert not LoadImage(reader=VolumeReader)(path).meta["is_placed"]


def test_no_other_reader_takes_what_is_refused(tmp_path):
    """MONAI's LoadImage tries its own readers where the given one fails to read."""
    path = save(tmp_path / "a.nii.gz", voxels(40, 50, 60))
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be read"):
        LoadImage(reader=VolumeReader)(path)


def test_channels_that_do_not_fit_together(tmp_path):
    paths = [save(tmp_path / f"{i}.nii", voxels(4, 5, 6), affine=np.diag([1 + 4 * i, 1, 1, 1])) for i in range(2)]
    with pytest.raises(DataError, match=r"1\.nii: its position in space differs"):
        LoadImage(reader=VolumeReader)(paths)
    paths[1] = save(tmp_path / "wide.nii", voxels(4, 5, 6, 2))
    with pytest.raises(DataError, match=r"wide\.nii"):
        LoadImage(reader=VolumeReader)(paths)
