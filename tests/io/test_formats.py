"""Images of any format are read alike, and results lie on exactly their grid, by what other programs read of them."""

import json
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet import io as formats
from sparse3dunet.errors import DataError
from sparse3dunet.io import (
    natural_suffix,
    read_image,
    write_map,
    write_segmentation,
)
from sparse3dunet.io.suffixes import ORIENTED_SUFFIXES
from sparse3dunet.io.volumes import Volume

SHAPE = (7, 6, 5)
NAMES = {0: "background", 1: "shell", 2: "Flüssigkeit: rot = 50 %"}
ITK_FORMATS, NIFTI_FORMATS = (".nrrd", ".mha"), (".nii.gz", ".nii")
CORNERS = np.array(np.meshgrid(*[(0, n - 1) for n in SHAPE], indexing="ij")).reshape(3, -1).T
LPS = np.diag([-1.0, -1, 1, 1])


def grid(axes, spacing=(0.7, 1.3, 5), origin=(-31.7, 12.9, 44.4)):
    """An affine in the precision of NIfTI's header."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes) * spacing
    affine[:3, 3] = origin
    return affine.astype(np.float32).astype(float)


def rotation(a, b):
    first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return first @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])


GRIDS = {
    "aligned": grid(np.eye(3), (2, 2, 2)),
    "anisotropic": grid(np.eye(3)),
    "flipped": grid(np.diag([-1, 1, -1])),
    "permuted": grid(np.eye(3)[[2, 0, 1]]),
    "left-handed": grid(np.diag([-1, 1, 1])),
    "oblique": grid(rotation(0.3, -0.7)),
    "oblique left-handed": grid(rotation(2.1, 0.4)[:, [1, 0, 2]]),
}
SHEARED = grid(np.eye(3) + np.eye(3, k=1) * 0.1)


def voxels(dtype=np.int16, shape=SHAPE, low=0, high=3):
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


def write_input(path, array, affine):
    """As other programs do: nibabel writes NIfTI, SimpleITK the others."""
    if path.name.endswith(NIFTI_FORMATS):
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection((lps[:3, :3] / spacing).ravel())
    sitk.WriteImage(image, str(path))
    return path


def image_like(affine=GRIDS["oblique"], shape=SHAPE):
    return Volume("made", np.zeros(shape), affine)


def read_by_sitk(path):
    """Voxels by (X, Y, Z) or (X, Y, Z, C), the eight corners in RAS, and the image."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    corners = [image.TransformIndexToPhysicalPoint([int(i) for i in corner]) for corner in CORNERS]
    return array.transpose(2, 1, 0, *range(3, array.ndim)), np.array(corners) * (-1, -1, 1), image


def metadata(image):
    return {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}


def labels_in(path):
    extensions = nib.load(path).header.extensions
    return [json.loads(e.get_content()) for e in extensions if e.get_code() == 6]


def assert_on_grid(path, array, affine, tolerance=1e-6):
    found, corners, _ = read_by_sitk(path)
    expected = CORNERS @ affine[:3, :3].T + affine[:3, 3]
    # ITK computes NIfTI's geometry with 32-bit numbers.
    np.testing.assert_allclose(corners, expected, rtol=0, atol=max(tolerance, 2e-5 * path.name.count(".nii")))
    np.testing.assert_array_equal(found, array)
    if path.name.endswith(NIFTI_FORMATS):
        image = nib.load(path)
        np.testing.assert_allclose(nib.affines.apply_affine(image.affine, CORNERS), expected, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    volume = read_image(path)
    np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(volume.data, array)


# Grids


@pytest.mark.parametrize("output", ORIENTED_SUFFIXES)
@pytest.mark.parametrize("source", [*NIFTI_FORMATS, *ITK_FORMATS])
@pytest.mark.parametrize("name", GRIDS)
def test_results_lie_on_the_images_grid(tmp_path, name, source, output):
    array = voxels(low=-100, high=100)
    path = write_input(tmp_path / f"image{source}", array, GRIDS[name])
    image = read_image(path)
    np.testing.assert_array_equal(image.data, array)
    np.testing.assert_allclose(image.affine, GRIDS[name], rtol=0, atol=1e-6)

    labels = voxels(np.uint8)
    write_segmentation(tmp_path / f"out{output}", labels, image, NAMES)
    assert_on_grid(tmp_path / f"out{output}", labels, GRIDS[name])
    if output != ".seg.nrrd":
        values = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
        write_map(tmp_path / f"map{output}", values, image)
        assert_on_grid(tmp_path / f"map{output}", values, GRIDS[name])


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_voxels_in_a_file_of_their_own(tmp_path, suffix):
    path = write_input(tmp_path / f"image{suffix}", voxels(), GRIDS["oblique"])
    assert_on_grid(path, voxels(), GRIDS["oblique"])


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("RAS", (1, 1, 1)),
    ],
)
def test_spaces_of_nrrd(tmp_path, space, signs):
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 7 6 5\nspace directions: (0,2,0) (1.5,0,0) "
        "(0,0,-3)\nkinds: domain domain domain\nendian: little\nencoding: raw\nspace origin: (10,20,30)\n\n"
    )
    path = tmp_path / "image.nrrd"
    path.write_bytes(header.encode() + voxels().tobytes("F"))
    affine = np.diag([*signs, 1]) @ np.array([[0, 1.5, 0, 10], [2, 0, 0, 20], [0, 0, -3, 30], [0, 0, 0, 1.0]])
    assert_on_grid(path, voxels(), affine)
    write_segmentation(tmp_path / "out.nrrd", voxels(np.uint8), read_image(path), NAMES)
    assert_on_grid(tmp_path / "out.nrrd", voxels(np.uint8), affine)


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".mha"])
def test_sheared_grids_go_to_nifti_alone(tmp_path, suffix):
    image = read_image(write_input(tmp_path / "image.nii.gz", voxels(), SHEARED))
    with pytest.raises(DataError, match=r"sheared .*0\.\d+.*Write to \.nii\.gz"):
        write_segmentation(tmp_path / f"out{suffix}", voxels(np.uint8), image, NAMES)
    for like in (image, image_like(SHEARED)):
        write_segmentation(tmp_path / "out.nii.gz", voxels(np.uint8), like, NAMES)
        np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, SHEARED)


def test_a_slice_is_a_volume_of_one(tmp_path):
    array = voxels(shape=(7, 6, 1))
    for suffix in (*NIFTI_FORMATS, *ITK_FORMATS):
        image = read_image(write_input(tmp_path / f"image{suffix}", array, GRIDS["oblique"]))
        write_segmentation(tmp_path / f"out{suffix}", array, image, NAMES)
        np.testing.assert_array_equal(read_image(tmp_path / f"out{suffix}").data, array)


# NIfTI's header


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 2)])
def test_header_is_the_images_own(tmp_path, kind, order, shape):
    array = voxels(shape=shape)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(array, None, header)
    image.set_sform(SHEARED, 4)
    image.set_qform(GRIDS["left-handed"], 2)
    image.header.set_xyzt_units("micron", "msec")
    image.header["cal_max"], image.header["descrip"] = 80, b"made by hand"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    nib.save(image, tmp_path / "image.nii.gz")

    volume = read_image(tmp_path / "image.nii.gz")
    write_segmentation(tmp_path / "out.nii", voxels(np.uint8), volume, NAMES)
    source, result = nib.load(tmp_path / "image.nii.gz").header, nib.load(tmp_path / "out.nii").header
    same = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d")
    for field in (*same, "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "sizeof_hdr"):
        assert source[field].tobytes() == result[field].tobytes(), field
    assert not bytes(result["descrip"]).strip(b"\0")  # it may name the patient
    np.testing.assert_array_equal(source["pixdim"][:4], result["pixdim"][:4])
    assert result.endianness == order
    assert (result.get_data_shape(), result.get_data_dtype()) == (SHAPE, np.uint8)
    assert (result["cal_max"], result.get_intent()[0]) == (0, "label")
    assert labels_in(tmp_path / "out.nii") == [{"labels": {"0": "background", "1": "shell", "2": NAMES[2]}}]
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out.nii").dataobj), voxels(np.uint8))


def test_header_for_other_formats(tmp_path):
    write_segmentation(tmp_path / "out.nii.gz", voxels(np.uint8), image_like(), NAMES)
    header = nib.load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()) == (1, 1, ("mm", "sec"))
    np.testing.assert_allclose(header.get_qform(), GRIDS["oblique"], atol=1e-5)
    write_segmentation(tmp_path / "long.nii", np.zeros((40000, 1, 1), np.uint8), image_like(shape=(40000, 1, 1)), NAMES)
    assert nib.load(tmp_path / "long.nii").header["sizeof_hdr"] == 540


def test_changed_affine_overrules_the_header(tmp_path):
    image = read_image(write_input(tmp_path / "image.nii", voxels(), GRIDS["aligned"]))
    moved = Volume(image.path, image.data, GRIDS["oblique"], image.header)
    write_segmentation(tmp_path / "out.nii", voxels(np.uint8), moved, NAMES)
    assert_on_grid(tmp_path / "out.nii", voxels(np.uint8), GRIDS["oblique"])


def test_uncompressed_nifti_stays_on_disk(tmp_path):
    assert isinstance(read_image(write_input(tmp_path / "a.nii", voxels(), np.eye(4))).data, np.memmap)


# Values


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", ">i2"])
@pytest.mark.parametrize("output", ORIENTED_SUFFIXES)
def test_types_of_labels(tmp_path, dtype, output):
    low = -1 if np.dtype(dtype).kind == "i" else 0
    labels = voxels(dtype, low=low, high=2)
    write_segmentation(tmp_path / f"out{output}", labels, image_like(), {low: "background", 1: "one"})
    assert_on_grid(tmp_path / f"out{output}", labels, GRIDS["oblique"])
    kept = np.dtype("uint8") if dtype == "bool" else labels.dtype.newbyteorder("=")
    assert read_by_sitk(tmp_path / f"out{output}")[0].dtype == kept


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("output", [*NIFTI_FORMATS, *ITK_FORMATS])
@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_maps_with_a_number_for_each_class(tmp_path, dtype, output, num_classes):
    values = (voxels(shape=(*SHAPE, num_classes), high=255) / (1 if dtype == "uint8" else 254)).astype(dtype)
    path = tmp_path / "new folder" / f"out{output}"
    write_map(path, values, image_like(), "Wahrscheinlichkeit ä" * 5)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data, values if num_classes > 1 else values[..., 0])
    np.testing.assert_allclose(volume.affine, GRIDS["oblique"], atol=1e-6)
    assert volume.data.dtype == ("float32" if dtype == "float16" else dtype)
    if output in NIFTI_FORMATS:
        assert nib.load(path).shape == values.shape
        assert bytes(nib.load(path).header["descrip"]).decode().startswith("Wahrscheinlichkeit ä")
    else:
        assert read_by_sitk(path)[2].GetNumberOfComponentsPerPixel() == num_classes
        assert metadata(read_by_sitk(path)[2])["description"].startswith("Wahrscheinlichkeit")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 3), ("uint8", 4), ("float32", 2), ("int16", 5)])
def test_components_are_channels(tmp_path, suffix, dtype, channels):
    array = voxels(dtype, (*SHAPE, channels), high=200)
    for compress in (False, True):
        path = write_input(tmp_path / f"image{suffix}", array, GRIDS["oblique"])
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=compress)
        volume = read_image(path)
        np.testing.assert_array_equal(volume.data, array)
        assert (volume.num_channels, volume.data.dtype) == (channels, dtype)


def test_channels_of_nrrd_may_come_last(tmp_path):
    array = voxels(shape=(*SHAPE, 2))
    header = (
        "NRRD0004\ntype: short\ndimension: 4\nspace: RAS\nsizes: 7 6 5 2\nspace directions: (1,0,0) (0,1,0) (0,0,1) "
        "none\nkinds: domain domain domain list\nendian: big\nencoding: raw\n\n"
    )
    (tmp_path / "image.nrrd").write_bytes(header.encode() + array.astype(">i2").tobytes("F"))
    np.testing.assert_array_equal(read_image(tmp_path / "image.nrrd").data, array)


def test_compressed_meta_images_of_others(tmp_path):
    """Big endian, and in a file of its own."""
    packed = zlib.compress(voxels(">i2").tobytes("F"))
    fields = "NDims = 3\nDimSize = 7 6 5\nElementSpacing = 1 2 3\nElementType = MET_SHORT\nCompressedData = True\n"
    fields += f"CompressedDataSize = {len(packed)}\nBinaryData = True\nBinaryDataByteOrderMSB = True\n"
    (tmp_path / "a.mhd").write_text(f"ObjectType = Image\n{fields}ElementDataFile = a.zraw\n")
    (tmp_path / "a.zraw").write_bytes(packed)
    np.testing.assert_array_equal(read_image(tmp_path / "a.mhd").data, voxels())
    np.testing.assert_array_equal(read_by_sitk(tmp_path / "a.mhd")[0], voxels())


def test_voxels_outlive_the_image(tmp_path):
    array = voxels(shape=(64, 64, 64), high=30000)
    data = read_image(write_input(tmp_path / "a.nrrd", array, np.eye(4))).data
    copies = [np.full(array.shape, 7, np.int16) for _ in range(20)]
    np.testing.assert_array_equal(data, array)
    assert len(copies) == 20


# Names


@pytest.mark.parametrize("output", [".nrrd", ".mha"])
def test_names_are_found_again_by_itk(tmp_path, output):
    names = {-1: "background", 0: "zero", 7: NAMES[2]}
    labels = np.full(SHAPE, -1, np.int16)
    write_segmentation(tmp_path / f"out{output}", labels, image_like(), names)
    found = metadata(read_by_sitk(tmp_path / f"out{output}")[2])
    assert (found["label_-1"], found["label_0"]) == ("background", "zero")
    assert found["label_7"] == (NAMES[2] if output == ".nrrd" else "Fl\\xfcssigkeit: rot = 50 %")


@pytest.mark.parametrize("name", ["=core", ":core", "== a", "= a: b", "=", "a=b", "-1"])
def test_names_that_begin_with_a_separator_are_found_again_in_meta_images(tmp_path, name):
    write_segmentation(tmp_path / "out.mha", np.zeros(SHAPE, np.uint8), image_like(), {0: name})
    found = metadata(read_by_sitk(tmp_path / "out.mha")[2])["label_0"]
    assert found.encode("latin-1").decode("unicode_escape") == name


def test_segments_of_slicer(tmp_path):
    names = {0: "background", 3: "shell", 1: NAMES[2], **{n: f"class {n}" for n in range(10, 17)}}
    write_segmentation(tmp_path / "a.seg.nrrd", voxels(np.uint8), image_like(), names)
    found = metadata(read_by_sitk(tmp_path / "a.seg.nrrd")[2])
    segment = {key: found[f"Segment0_{key}"] for key in ("ID", "Name", "LabelValue", "Layer", "Extent", "Tags")}
    assert list(segment.values()) == ["Segment_1", "shell", "3", "0", "0 6 0 5 0 4", "Segmentation.Status:inprogress|"]
    assert (found["Segment0_NameAutoGenerated"], found["Segment0_ColorAutoGenerated"]) == ("0", "0")
    assert (found["Segment1_Name"], found["Segment1_LabelValue"]) == (NAMES[2], "1")
    assert found["Segment0_Color"] == found["Segment7_Color"] == "0.901961 0.623529 0"
    assert found["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert found["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert found["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    assert "Segment8_ID" in found
    assert "Segment9_ID" not in found


def test_fields_whose_names_are_damaged(tmp_path):
    """SimpleITK lists them, but cannot return them: one of a segment is missed, others are none of ours."""
    file = tmp_path / "a.seg.nrrd"
    write_segmentation(file, voxels(np.uint8), image_like(), {0: "background", 1: "shell"})
    whole = file.read_bytes()
    file.write_bytes(
        whole.replace(b"Segmentation_Source", b"other\xff_Source").replace(b"Segmentation_M", b"x\xffegm_M")
    )
    assert np.array_equal(read_image(file).data, voxels(np.uint8))
    file.write_bytes(whole.replace(b"Segment0_LabelValue", b"Segment0_Label\xffalue"))
    with pytest.raises(DataError, match="describes a segment has a name that is not in UTF-8"):
        read_image(file)


def test_slicer_holds_no_negative_segments(tmp_path):
    with pytest.raises(DataError, match=r"'odd' has the value -2; expected a positive one.*\.nii\.gz"):
        write_segmentation(tmp_path / "a.seg.nrrd", voxels(), image_like(), {-1: "background", -2: "odd"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        *(("a.nii", ".nii"), ("a.b.nii.gz", ".nii.gz"), ("a.NII.GZ", ".nii.gz"), ("a.seg.nrrd", ".nrrd")),
        *(("a.nhdr", ".nrrd"), ("a.mhd", ".mha"), ("a.mha", ".mha")),
        *((name, ".nii.gz") for name in (".", "a.dcm", "IM0001")),
    ],
)
def test_natural_suffix(source, suffix):
    assert natural_suffix(source) == natural_suffix(Volume(source, np.zeros(SHAPE), np.eye(4))) == suffix


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2)])
def test_whether_a_file_tells_the_patients_sides(tmp_path, codes):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.eye(4))
    image.set_qform(np.eye(4), codes[0])
    image.set_sform(np.eye(4), codes[1])
    nib.save(image, tmp_path / "a.nii.gz")
    assert formats.read_image(tmp_path / "a.nii.gz").is_placed == any(codes)
