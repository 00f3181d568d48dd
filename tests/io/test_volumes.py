"""What a volume's grid must be, and what can be written on it."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_map, write_segmentation
from sparse3dunet.io.volumes import (
    Volume,
    check_affine,
    check_finite,
    check_same_grid,
    count_nifti_channels,
    on_grid_of,
    read_volume,
    values_found,
)
from sparse3dunet.io.writing import replacing

SHAPE = (7, 6, 5)
IMAGE = Volume("image.nii.gz", np.zeros(SHAPE), np.diag([0.5, 1, 2, 1]))


@pytest.mark.parametrize(("unit", "mm"), [("unknown", 1), ("mm", 1), ("micron", 1e-3), ("meter", 1e3)])
def test_units_of_length(tmp_path, unit, mm):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([0.5, 1, 2, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").spacing == pytest.approx((0.5 * mm, mm, 2 * mm))


@pytest.mark.parametrize(
    "axes",
    [
        np.diag([1.0, 0, 2]),
        np.diag([1.0, np.nan, 2]),
        np.diag([1.0, np.inf, 2]),
        [[1, 2, 0], [2, 4, 0], [0, 0, 1]],
        [[1, 0, 1], [0, 1, 1], [0, 0, 0]],
    ],
)
def test_axes_that_span_no_volume(axes):
    affine = np.eye(4)
    affine[:3, :3] = axes
    with pytest.raises(DataError, match=r"a\.nii: the affine is degenerate"):
        check_affine("a.nii", affine)
    check_affine("a.nii", np.diag([1e-6, 1, 1e6, 1]))
    check_affine("a.nii", np.array([[1, 0.5, 0, 3], [0, 1, 0.5, 3], [0, 0, 1, 3], [0, 0, 0, 1.0]]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("change", ["position", "spacing"])
def test_the_same_grid_up_to_a_tenth_of_a_voxel(axis, change):
    for share, fits in ((0.09, True), (-0.09, True), (0.11, False), (-0.11, False)):
        affine = IMAGE.affine.copy()
        if change == "position":
            affine[axis, 3] += share * IMAGE.affine[axis, axis]
        else:  # as much at the last voxel
            affine[axis, axis] *= 1 + share / (SHAPE[axis] - 1)
        other = Volume("b.nii.gz", np.zeros(SHAPE), affine)
        if fits:
            check_same_grid(other, IMAGE)
        else:
            with pytest.raises(DataError, match=r"b\.nii\.gz: its position in space differs .* by up to 0\.11 voxels"):
                check_same_grid(other, IMAGE)
    with pytest.raises(DataError, match=r"shape \(7, 6, 4\) differs from the image's, \(7, 6, 5\)"):
        check_same_grid(Volume("b.nii.gz", np.zeros((7, 6, 4)), IMAGE.affine), IMAGE)


@pytest.mark.parametrize("axes", ["LPS", "PIR", "ASL"])
def test_the_same_grid_in_another_orientation_is_told_as_that(axes):
    """To copy the header would mirror the voxels; turned as the message says, they are on the grid."""
    label = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), IMAGE.affine)
    ours = nib.io_orientation(label.affine)
    turned = label.as_reoriented(nib.orientations.ornt_transform(ours, nib.orientations.axcodes2ornt(axes)))
    other = Volume("b.nii.gz", np.asarray(turned.dataobj), turned.affine)
    with pytest.raises(DataError, match=rf"b\.nii\.gz: it has the image's grid .* along {axes}, .*RAS") as error:
        check_same_grid(other, IMAGE)
    assert "Copy" not in str(error.value)
    axes_back = nib.orientations.ornt_transform(nib.io_orientation(other.affine), ours)
    back = turned.as_reoriented(axes_back)
    check_same_grid(Volume("b.nii.gz", np.asarray(back.dataobj), back.affine), IMAGE)
    with pytest.raises(DataError, match=r"differs .* by up to [1-9]"):
        check_same_grid(Volume("b.nii.gz", np.zeros(SHAPE), IMAGE.affine @ np.diag([-1, 1, 1, 1])), IMAGE)


def test_a_distance_is_never_told_as_the_tolerance():
    for off in (0.1 + 1e-9, 0.1004, 0.11, 0.96, 3.04):
        affine = IMAGE.affine.copy()
        affine[0, 3] += off * IMAGE.affine[0, 0]
        with pytest.raises(DataError) as error:
            check_same_grid(Volume("b.nii.gz", np.zeros(SHAPE), affine), IMAGE)
        told = float(str(error.value).split("by up to ")[1].split()[0])
        assert told > 0.1
        assert told == pytest.approx(off, abs=0.051)


def test_a_label_map_without_a_place_of_its_own_lies_on_its_image():
    """If voxels belong together by their indices: of one shape, and of one voxel size if both state it."""
    sized = Volume("b.tif", np.zeros(SHAPE), np.diag([0.5, 1, 2, 1]), has_orientation=False)
    assert np.array_equal(on_grid_of(sized, IMAGE).affine, IMAGE.affine)
    moved = replace(IMAGE, affine=IMAGE.affine + np.eye(4, k=3))
    assert np.array_equal(on_grid_of(sized, moved).affine, moved.affine)
    other = replace(sized, affine=np.diag([0.5, 1, 3, 1]))
    for given, image in (
        (replace(sized, data=np.zeros((7, 6, 4))), moved),  # another shape
        (other, moved),  # another voxel size
        (replace(sized, has_orientation=True), moved),  # both have a place
    ):
        assert on_grid_of(given, image) is given
    one = Volume("b.nii", np.zeros(SHAPE), np.eye(4))  # as of a program that knows no size
    unplaced = replace(moved, has_orientation=False)
    assert np.array_equal(on_grid_of(one, unplaced).affine, moved.affine)
    unsized = replace(other, has_voxel_size=False)
    assert np.array_equal(on_grid_of(unsized, moved).affine, moved.affine)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
def test_arrays_that_are_no_result_of_the_image(tmp_path, suffix):
    """Nothing is written of them."""
    names = {0: "background", 1: "liver"}
    for wrong in (np.zeros((7, 6, 4), np.uint8), np.zeros((7, 6), np.uint8), np.zeros((*SHAPE, 2), np.uint8)):
        with pytest.raises(ValueError, match=r"expected an array of the image's shape \(7, 6, 5\), got"):
            write_segmentation(tmp_path / f"a{suffix}", wrong, IMAGE, names)
    with pytest.raises(ValueError, match="expected integers, got float32"):
        write_segmentation(tmp_path / f"a{suffix}", np.zeros(SHAPE, np.float32), IMAGE, names)
    with pytest.raises(ValueError, match="expected real numbers, got complex64"):
        write_map(tmp_path / f"a{suffix}", np.zeros(SHAPE, np.complex64), IMAGE)
    assert not list(tmp_path.iterdir())
    for right in (np.zeros(SHAPE, bool), np.zeros(SHAPE, np.int8), np.zeros(SHAPE, np.uint16)):
        write_segmentation(tmp_path / f"a{suffix}", right, IMAGE, names)


def test_a_link_in_a_drafts_place_is_not_followed(tmp_path):
    """Another could have put it there: what it leads to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_text("x")
    with replacing(tmp_path / "a.txt", ".txt") as draft:
        draft.write_text("first")
    draft.symlink_to(precious)
    with replacing(tmp_path / "a.txt", ".txt") as again:
        assert again == draft, "else this tests nothing"
        again.write_text("second")
    assert precious.read_text() == "x"
    assert (tmp_path / "a.txt").read_text() == "second"
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, 2.9e38])
def test_voxels_that_are_no_numbers_for_a_network(bad):
    """1e39 is one in 64 bits, and infinite in 32; so is the square of 2.9e38, and the training's loss."""
    data = np.zeros((3, 4, 5))
    check_finite(Volume("scan.nii.gz", data, np.eye(4)))
    data[1, 2, 3] = bad
    large = rf"too large to compute with in 32-bit floats, such as {re.escape(f'{bad:g}')}; expected at most 1e\+36"
    words = large if 1 < bad < np.inf else "NaN or infinite"
    with pytest.raises(DataError, match=f"1 of 60 voxels are {words}"):
        check_finite(Volume("scan.nii.gz", data, np.eye(4)))
    check_finite(Volume("label.nii.gz", np.full((3, 4, 5), 2**63 - 1), np.eye(4)))


@pytest.mark.parametrize(("shape", "channels"), [((3, 4, 5), 1), ((3, 4, 5, 1), 1), ((3, 4, 5, 2), 2)])
def test_channels_by_the_header(tmp_path, shape, channels):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), path)
    assert count_nifti_channels(path) == channels
    path.write_bytes(b"nothing")
    assert count_nifti_channels(path) == 0


@pytest.mark.parametrize("axes", [[[1, 1, 0], [0, 0, 0], [0, 0, 1]], np.diag([1.0, 0, 1]), np.diag([1.0, np.nan, 1])])
def test_a_file_whose_axes_span_no_volume(tmp_path, axes):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    affine = np.eye(4)
    affine[:3, :3] = axes
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: the affine is degenerate"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_values_are_counted_exactly(dtype):
    """Identifiers of an atlas differ by 4, which 32-bit floats of their size do not."""
    values = [0, 3, 7] if np.dtype(dtype).itemsize < 4 or dtype == np.float32 else [0, 312782546, 312782550]
    data = np.array(values, dtype).repeat((5, 2, 1))
    found = values_found(data)
    if dtype == np.float64:
        assert found == {0: 5, float(np.float32(312782550)): 3}  # as scaled integers on disk may be
    else:
        assert found == dict(zip(values, (5, 2, 1)))
    assert values_found(np.array([], dtype)) == {}


def test_tensors_are_written_and_names_are_a_dictionary(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "image.nii")
    image, labels = read_image(tmp_path / "image.nii"), np.arange(120).reshape(4, 5, 6) % 3
    for number, given in enumerate((torch.from_numpy(labels), MetaTensor(labels), labels.tolist())):
        write_segmentation(tmp_path / f"{number}.nii.gz", given, image, {0: "a", 1: "b", 2: "c"})
        assert np.array_equal(np.asarray(nib.load(tmp_path / f"{number}.nii.gz").dataobj), labels)
        write_map(tmp_path / f"{number}.mha", given, image)
    for names in (["a", "b"], None):
        with pytest.raises(ValueError, match="class_names must be a dictionary of names by value"):
            write_segmentation(tmp_path / "x.nii.gz", labels, image, names)
