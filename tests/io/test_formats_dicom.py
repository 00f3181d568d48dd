"""DICOM series are read as ITK reads them, and each of their faults is named."""

import re
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.io import (
    dicom_series,
    is_dicom_folder,
    natural_suffix,
    read_image,
    write_segmentation,
)
from sparse3dunet.io.itk import itk_affine
from sparse3dunet.io.suffixes import ORIENTED_SUFFIXES
from tests.io.dicom_files import write_rtstruct, write_seg, write_series
from tests.io.test_formats import LPS, NAMES, assert_on_grid, rotation, voxels
from tests.io.test_formats_files import cut, put

CT = "1.2.840.10008.5.1.4.1.1.2"
SPACING = (0.7, 1.3, 2.5)
AXES = rotation(0.3, -0.7)
"""Of the series, LPS."""


def decimals(values):
    return "\\".join(f"{value:.10g}"[:16] for value in values)


def series_affine(axes=AXES):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * SPACING, (10, -20, 5)
    return LPS @ affine


def write_slice(path, pixels, position, axes=AXES, uid="1.2.3.4", spacing=SPACING, **tags):
    """One slice, (X, Y), with the tags that make it part of a volume."""
    image = sitk.GetImageFromArray(pixels.T)
    image.SetSpacing(spacing[:2])
    tags = {
        "0008|0060": "CT",
        "0008|0016": CT,
        "0008|0018": f"{uid}.{zlib.crc32(path.name.encode())}",
        "0008|103e": f"series {uid}",
        "0020|000d": "1.2.3",
        "0020|000e": uid,
        "0020|0032": decimals(position),
        "0020|0037": decimals(axes[:, :2].T.ravel()),
        "0028|1052": "0",
        "0028|1053": "1",
        **tags,
    }
    for key, value in tags.items():
        if value is not None:
            image.SetMetaData(key, value)
    path.parent.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path.with_suffix(".dcm")))
    writer.Execute(image)
    path.with_suffix(".dcm").rename(path)
    return path


@pytest.fixture
def series(tmp_path):
    """A folder with an oblique series, (7, 6, 5) voxels, in shuffled names, some without a suffix."""
    for k, name in enumerate(("IM7", "b.dcm", "IM1", "a.dcm", "IM3.ima")):
        write_slice(tmp_path / "series" / name, ct()[:, :, k], [10, -20, 5] + AXES[:, 2] * SPACING[2] * k)
    (tmp_path / "series/notes.txt").write_text("hello")
    (tmp_path / "series/.DS_Store").write_bytes(b"\0")
    return tmp_path / "series"


def ct():
    return voxels(low=-1000, high=1000)


def test_series_is_read_in_order_of_positions(series, tmp_path):
    assert is_dicom_folder(series)
    assert not is_dicom_folder(tmp_path)
    assert not is_dicom_folder(series / "IM1")
    assert [str(s) for s in dicom_series(series)] == ["1.2.3.4 (CT, 5 slice(s))"]
    volume = read_image(series)
    assert volume.path == str(series)
    np.testing.assert_array_equal(volume.data, ct())
    assert volume.data.dtype == np.int16
    np.testing.assert_allclose(volume.affine, series_affine(), atol=1e-7)
    assert natural_suffix(volume) == ".nii.gz"
    for suffix in ORIENTED_SUFFIXES:
        path = tmp_path / f"out{suffix}"
        write_segmentation(path, voxels(np.uint8), volume, NAMES)
        assert_on_grid(path, voxels(np.uint8), series_affine(), tolerance=1e-5)


def test_series_agrees_with_itks_own_reader(series):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series), "1.2.3.4"))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, read_image(series).data)
    np.testing.assert_allclose(itk_affine(image), read_image(series).affine, atol=1e-6)


def test_slopes_may_differ_by_slice(series):
    """As in PET; some slices then are floats, which ITK's reader of series rounds."""
    expected = ct().astype(float)
    put(rb"\x28\0\x53\x10\x02\0\0\x001 ", b"\x28\0\x53\x10\x02\0\0\0.5")(series / "IM1")
    expected[:, :, 2] *= 0.5
    put(rb"\x28\0\x52\x10\x02\0\0\x000 ", b"\x28\0\x52\x10\x02\0\0\x0010")(series / "a.dcm")
    expected[:, :, 3] += 10
    np.testing.assert_array_equal(read_image(series).data, expected)


def replace(name="IM1", k=2.0, shape=(7, 6), **more):
    position = [10, -20, 5] + AXES[:, 2] * SPACING[2] * k
    return lambda folder: write_slice(folder / name, voxels(shape=shape), position, **more)


def tilt(folder):
    for k, name in enumerate(("IM7", "b.dcm", "IM1", "a.dcm", "IM3.ima")):
        replace(name, k, **{"0020|0032": decimals([10, -20 + 0.5 * k, 5 + 2.5 * k])}, axes=np.eye(3))(folder)


def turn(old, new):
    """Changes ImageOrientationPatient, by as many characters, to what no writer would write."""

    def change(folder):
        for file in folder.iterdir():
            value = rb"(?<=\x20\0\x37\0.\0\0\0)[-.\d\\]+"
            content = re.sub(value, lambda m: re.sub(old, lambda n: new * len(n[0]), m[0], count=1), file.read_bytes())
            file.write_bytes(content)

    return change


def localizer(folder):
    for k in range(2):
        replace(f"loc{k}", k, uid="1.2.9")(folder)


def only(*names):
    return lambda folder: [file.unlink() for file in folder.iterdir() if file.name not in names]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "IM1").unlink(), ["b.dcm and a.dcm are 5.000 mm apart", "2.500 mm", "A slice is missing"]),
        (replace(k=2.1), ["50 mm apart, other slices 2.500 mm", "or resample it"]),
        (replace("double", k=3), ["a.dcm and double are at the same position, -2.888 mm", "Remove the duplicate"]),
        (
            replace("second", uid="1.2.5"),
            ["found 2 DICOM series", "1.2.3.4 (CT, 5 slice(s))", "its own folder"],
        ),
        (localizer, ["found 2 DICOM series", "1.2.9 (CT, 2 slice(s))", "expected one"]),
        (replace(shape=(7, 8)), ["IM3.ima", "size", "[7, 6", "[7, 8", "expected the same for all slices"]),
        (replace(spacing=(0.8, 1.3)), ["pixel spacing in mm", "[1.3, 0.8]", "[1.3, 0.7]"]),
        (replace(axes=rotation(0.3, -0.6)), ["orientation", "0.955"]),
        (tilt, ["tilted by 11.31 degrees", "IM3.ima is 2.00 mm off", "IM7", "dcm2niix"]),
        (turn(rb"[^\\]+", b"0"), ["IM1: the orientation is [0.0, 0.29552020", "orthogonal"]),
        (turn(rb"\\", b"1"), ["ImageOrientationPatient", "expected 6 numbers"]),
        (lambda f: [put(rb"1\.3\\\.7", b"1.3\\.0")(file) for file in f.iterdir()], ["affine is degenerate"]),
        (only("IM1"), ["IM1", "found one slice, which is not a volume"]),
        (only("notes.txt"), ["series: a folder without DICOM files", "mix-up of folders"]),
        (lambda f: put(rb"\xe0\x7f\x10\0.*(?s:.)*", b"")(f / "IM1"), ["IM1: a DICOM file without a readable image"]),
        (lambda f: cut(0.95)(f / "IM3.ima"), ["IM3.ima: a DICOM file without a readable image", "truncated"]),
        (lambda f: put(rb"\x20\0\x32\0", b"\x20\0\x31\0")(f / "IM1"), ["IM1: ImagePositionPatient", "expected 3 num"]),
        (lambda f: put(rb"\x28\0\x30\0", b"\x28\0\x2f\0")(f / "IM1"), ["IM1: PixelSpacing (0028|0030) is missing"]),
    ],
)
def test_faults_of_series_are_named(series, spoil, words):
    spoil(series)
    with pytest.raises(DataError) as error:
        read_image(series)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", [0.009, -0.009, 0.02])
def test_distances_that_alternate_a_little_count_as_even(tmp_path, step):
    """As where positions were rounded to whole steps of the table; a note tells it."""
    heights = np.cumsum([0, *([1 + step, 1 - step] * 4)]) * 2.5
    voxels = ct()[:, :, [0, 1, 2, 3, 4, 0, 1, 2, 3]]
    volume = read_image(write_series(tmp_path / "ct", voxels, "oblique", heights))
    np.testing.assert_array_equal(volume.data, voxels)
    np.testing.assert_allclose(volume.spacing, (0.7, 1.3, 2.5), atol=1e-6)
    assert bool(volume.notes) == (step == 0.02)
    if volume.notes:
        low, high = 2.5 * (1 - abs(step)), 2.5 * (1 + abs(step))
        assert f"ct: the slices are {low:.3f} to {high:.3f} mm apart; they count as evenly spaced" in volume.notes[0]


@pytest.mark.parametrize(
    ("heights", "words"),
    [
        (np.cumsum([0, *([1.03, 0.97] * 4)]) * 2.5, ["mm apart, other slices 2.500 mm", "or resample it"]),
        (np.cumsum([0, *([1.02] * 50), *([0.98] * 50)]), ["mm apart, other slices 1.000 mm", "or resample it"]),
    ],
)
def test_distances_that_differ_more_are_refused(tmp_path, heights, words):
    """Also small ones that add up: then slices are up to a distance from where even ones would be."""
    shape = (4, 4, len(heights))
    write_series(tmp_path / "ct", np.zeros(shape, np.int16), heights=heights)
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "ct")
    for word in words:
        assert word in str(error.value)


def test_one_of_several_series_is_chosen(series, tmp_path, monkeypatch):
    """By UID or number, at any depth; whether or not annotation lies beside it."""
    others = ct()[:, :, ::-1]
    for number in (2, 3):
        numbers = {"SeriesInstanceUID": f"1.2.8.{number}", "SeriesNumber": number}
        write_series(tmp_path / f"study/p/{number}", others + number, **numbers)
    mask = {"x": ct() > 0}
    write_seg(tmp_path / "study/p/seg", tmp_path / "study/p/2", mask)
    write_rtstruct(tmp_path / "study/p/2/rt", {})
    with pytest.raises(DataError, match=r"1\.2\.8\.2 \(number 2, CT, 5 .*; 1\.2\.8\.3 \(number 3, .*--series 2"):
        read_image(tmp_path / "study")
    for name, number in (("2", 2), ("1.2.8.3", 3)):
        monkeypatch.setenv("SPARSE3DUNET_SERIES", name)
        np.testing.assert_array_equal(read_image(tmp_path / "study").data, others + number)
    monkeypatch.setenv("SPARSE3DUNET_SERIES", "4")
    with pytest.raises(DataError, match="none of them has the UID or number 4"):
        read_image(tmp_path / "study")
    write_series(tmp_path / "study/p/4", others, SeriesInstanceUID="1.2.8.4", SeriesNumber=3)
    monkeypatch.setenv("SPARSE3DUNET_SERIES", "3")
    with pytest.raises(DataError, match="2 of them have the UID or number 3"):
        read_image(tmp_path / "study")
    (tmp_path / "other").mkdir()
    (tmp_path / "study/p/seg").rename(tmp_path / "other/seg")
    with pytest.raises(DataError, match=r"1 DICOM file\(s\), but no image"):
        read_image(tmp_path / "other")


def test_series_of_two_slices_and_rounded_positions(series):
    only("IM7", "b.dcm")(series)
    np.testing.assert_array_equal(read_image(series).data, ct()[:, :, :2])
    replace("IM1", k=2.003)(series)
    assert read_image(series).data.shape == (7, 6, 3)


def test_series_in_nested_folders(series, tmp_path):
    """As on the discs of hospitals; the first level with images counts."""
    (tmp_path / "DISC/PAT0").mkdir(parents=True)
    series.rename(tmp_path / "DISC/PAT0/SE0")
    np.testing.assert_array_equal(read_image(tmp_path).data, ct())
    replace("other", uid="1.2.5")(tmp_path / "DISC/PAT0/SE0")
    with pytest.raises(DataError, match=r"found 2 DICOM series: 1.2.3.4 \(CT, 5 slice.*--series 1.2.3.4; or move each"):
        read_image(tmp_path)
    replace("other", uid="Doe^John")(tmp_path / "DISC/PAT0/SE0")
    with pytest.raises(DataError, match=r"no UID but text of 8 character\(s\) \(CT") as error:
        read_image(tmp_path)
    assert "Doe" not in str(error.value)


def test_one_slice_is_no_volume(series):
    with pytest.raises(DataError, match=r"a\.dcm: found one slice, which is not a volume.*Pass the folder"):
        read_image(series / "a.dcm")
