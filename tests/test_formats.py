"""Images of any format are read alike, and results lie on exactly their grid, by what other programs read of them."""

import json
import re
import time
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet import dicom, formats
from sparse3dunet.errors import DataError
from sparse3dunet.formats import (
    check_output,
    dicom_series,
    is_dicom_folder,
    natural_suffix,
    read_image,
    write_map,
    write_segmentation,
)
from sparse3dunet.volumes import Volume

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


@pytest.mark.parametrize("output", [*formats.OUTPUT_SUFFIXES])
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
    for field in (*same, "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units", "descrip", "sizeof_hdr"):
        assert source[field].tobytes() == result[field].tobytes(), field
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
@pytest.mark.parametrize("output", [*formats.OUTPUT_SUFFIXES])
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


# Bytes and memory


@pytest.mark.parametrize("output", [*formats.OUTPUT_SUFFIXES])
def test_same_input_gives_same_bytes(tmp_path, output, monkeypatch):
    image, labels = image_like(), voxels(np.uint8)
    write_segmentation(tmp_path / f"a{output}", labels, image, NAMES)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    for n, other in enumerate((labels, np.ascontiguousarray(labels), np.asfortranarray(labels))):
        write_segmentation(tmp_path / f"b{n}{output}", other, image, NAMES)
        assert (tmp_path / f"a{output}").read_bytes() == (tmp_path / f"b{n}{output}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("output", [*formats.OUTPUT_SUFFIXES])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_on_disk_stay_there(tmp_path, monkeypatch, output, order):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 2**18)
    shape = (128, 128, 256)
    labels = np.memmap(tmp_path / "labels.raw", np.uint8, "w+", shape=shape, order=order)
    labels[:] = np.arange(256, dtype=np.uint8)
    labels[3, 5] = 1
    image, maps = Volume("made", labels, np.eye(4)), labels.reshape(128, 128, 64, 4, order=order)
    tracemalloc.start()
    write_segmentation(tmp_path / f"out{output}", labels, image, NAMES)
    if output != ".seg.nrrd":
        write_map(tmp_path / f"map{output}", maps, Volume("made", maps, np.eye(4)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < labels.nbytes / 3
    np.testing.assert_array_equal(read_by_sitk(tmp_path / f"out{output}")[0], labels)


def test_unfinished_files_do_not_remain(tmp_path, monkeypatch):
    (tmp_path / "out.nii.gz").write_bytes(b"old")
    monkeypatch.setattr(formats, "_chunks", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_segmentation(tmp_path / "out.nii.gz", voxels(np.uint8), image_like(), NAMES)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.nii.gz", b"old")]


@pytest.mark.parametrize("labels", [voxels(np.float32), voxels(shape=(6, 7, 5)), voxels(shape=(*SHAPE, 2))])
def test_wrong_arrays(tmp_path, labels):
    with pytest.raises(ValueError, match="expected"):
        write_segmentation(tmp_path / "out.nii", labels, image_like(), NAMES)


def test_wrong_outputs(tmp_path):
    with pytest.raises(DataError, match=r"out\.png: in no format that is written; expected one of \.nii\.gz"):
        check_output(tmp_path / "out.png", image_like())
    with pytest.raises(DataError, match="holds segmentations only"):
        write_map(tmp_path / "out.seg.nrrd", voxels(), image_like())


# What is wrong with files


def cut(part):
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * len(path.read_bytes()))])


def spoil_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"x" * 40
    path.write_bytes(content)


def compressed(function):
    def change(path):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=True)
        function(path)

    return change


def put(old, new):
    return lambda path: path.write_bytes(re.sub(old, lambda _: new, path.read_bytes(), count=1))


def lose(suffix):
    return lambda path: path.with_suffix(suffix).unlink()


@pytest.mark.parametrize(
    ("suffix", "spoil", "words"),
    [
        *((s, cut(p), ["expected a whole"]) for s in (*NIFTI_FORMATS, *ITK_FORMATS) for p in (0, 0.005)),
        *((s, lambda p: p.write_text("<html>" * 99), ["copy or export it again"]) for s in (".nii", *ITK_FORMATS)),
        *((s, lambda p: p.unlink(), ["cannot be read", "missing"]) for s in (".nii.gz", *ITK_FORMATS)),
        (".nii", cut(0.6), ["cannot be read"]),
        (".nrrd", cut(0.8), ["fread got only", "15000"]),
        (".mha", cut(0.8), ["image.mha holds 24279 bytes, expected 30349"]),
        (".nrrd", compressed(cut(0.8)), ["expected 30000 bytes but received"]),
        (".mha", compressed(cut(0.8)), ["truncated", "bytes of voxels, expected 30000"]),
        (".nrrd", compressed(spoil_middle), ["cannot be read (data read error)"]),
        (".mha", compressed(spoil_middle), ["the voxels in image.mha are damaged (Error -3"]),
        (".nhdr", lose(".raw"), ["couldn't open", "image.raw"]),
        (".mhd", lose(".raw"), ["image.raw is missing"]),
        (".nhdr", lambda p: cut(0.5)(p.with_suffix(".raw")), ["fread got only"]),
        (".mhd", lambda p: cut(0.5)(p.with_suffix(".raw")), ["image.raw holds 15000 bytes", "expected 30000"]),
        (".nrrd", put(rb"directions: \(-?[\d.]+,", b"directions: (0,"), ["0"]),
        (".mha", put(rb"ElementSpacing = \S+", b"ElementSpacing = 0"), ["affine is degenerate"]),
        (".mha", put(rb"TransformMatrix = \S+", b"TransformMatrix = nan"), ["affine is degenerate"]),
        (".nrrd", lambda p: sitk.WriteImage(sitk.Image([4, 5], sitk.sitkInt16), str(p)), ["found shape (4, 5)"]),
        (".mha", lambda p: sitk.WriteImage(sitk.Image([4, 5, 6, 7], sitk.sitkInt16), str(p)), ["over time"]),
        (".nrrd", lambda p: sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), str(p)), ["magnitude"]),
        (".nii", lambda p: nib.save(nib.Nifti1Image(np.zeros((2, 3, 4), complex), np.eye(4)), p), ["magnitude"]),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, spoil, words, capfd):
    path = write_input(tmp_path / f"image{suffix}", voxels(shape=(30, 25, 20), high=999), GRIDS["aligned"])
    spoil(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    for word in (path.name, *words):
        assert word in message
    assert "\n" not in message
    assert not re.search(r"0x[0-9a-f]{4}|\.cxx|\.hxx|Exception", message)
    assert "WARNING" not in capfd.readouterr().err


def test_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: in no known format; expected \.nii\.gz"):
        read_image(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"none\.dcm does not exist"):
        read_image(tmp_path / "none.dcm")
    with pytest.raises(DataError, match="a folder without DICOM files"):
        read_image(tmp_path)


# DICOM

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
    assert [str(s) for s in dicom_series(series)] == ['"series 1.2.3.4" (CT, 5 slice(s))']
    volume = read_image(series)
    assert volume.path == str(series)
    np.testing.assert_array_equal(volume.data, ct())
    assert volume.data.dtype == np.int16
    np.testing.assert_allclose(volume.affine, series_affine(), atol=1e-7)
    assert natural_suffix(volume) == ".nii.gz"
    for suffix in formats.OUTPUT_SUFFIXES:
        path = tmp_path / f"out{suffix}"
        write_segmentation(path, voxels(np.uint8), volume, NAMES)
        assert_on_grid(path, voxels(np.uint8), series_affine(), tolerance=1e-5)


def test_series_agrees_with_itks_own_reader(series):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series), "1.2.3.4"))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, read_image(series).data)
    np.testing.assert_allclose(dicom.itk_affine(image), read_image(series).affine, atol=1e-6)


def test_slopes_may_differ_by_slice(series):
    """As in PET; some slices then are floats, which ITK's reader of series rounds."""
    expected = ct().astype(float)
    put(rb"\x28\0\x53\x10\x02\0\0\x001 ", b"\x28\0\x53\x10\x02\0\0\0.5")(series / "IM1")
    expected[:, :, 2] *= 0.5
    put(rb"\x28\0\x52\x10\x02\0\0\x000 ", b"\x28\0\x52\x10\x02\0\0\x0010")(series / "a.dcm")
    expected[:, :, 3] += 10
    np.testing.assert_array_equal(read_image(series).data, expected)


def without(*tags):
    return lambda folder: write_slice(folder / "IM1", ct()[:, :, 2], [0, 0, 0], **dict.fromkeys(tags))


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
        (lambda f: (f / "IM1").unlink(), ["b.dcm and a.dcm lie 5.000 mm apart", "2.500 mm", "A slice is missing"]),
        (replace(k=2.1), ["50 mm apart, slices elsewhere 2.500 mm", "or resample it"]),
        (replace("double", k=3), ["a.dcm and double lie at one position, -2.888 mm", "Remove the double"]),
        (replace("second", uid="1.2.5"), ["holds 2 DICOM series", '"series 1.2.3.4" (CT, 5 slice(s))', "of its own"]),
        (localizer, ["holds 2 DICOM series", '"series 1.2.9" (CT, 2 slice(s))', "expected one"]),
        (replace(shape=(7, 8)), ["IM3.ima", "size", "[7, 6", "[7, 8", "expected one for all slices"]),
        (replace(spacing=(0.8, 1.3)), ["pixel spacing in mm", "[1.3, 0.8]", "[1.3, 0.7]"]),
        (replace(axes=rotation(0.3, -0.6)), ["orientation", "0.955"]),
        (tilt, ["tilted by 11.31 degrees", "IM3.ima lies 2.00 mm beside", "IM7", "dcm2niix"]),
        (turn(rb"[^\\]+", b"0"), ["IM1: its orientation is [0.0, 0.29552020", "orthogonal"]),
        (turn(rb"\\", b"1"), ["ImageOrientationPatient", "expected 6 numbers"]),
        (lambda f: [put(rb"1\.3\\\.7", b"1.3\\.0")(file) for file in f.iterdir()], ["affine is degenerate"]),
        (only("IM1"), ["IM1", "holds one slice, which is no volume"]),
        (only("notes.txt"), ["series: a folder without DICOM files", "mix-up of folders"]),
        (lambda f: put(rb"\xe0\x7f\x10\0.*(?s:.)*", b"")(f / "IM1"), ["IM1: a DICOM file without an image"]),
        (lambda f: cut(0.95)(f / "IM3.ima"), ["IM3.ima: a DICOM file without an image", "truncated"]),
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


def test_series_of_two_slices_and_rounded_positions(series):
    only("IM7", "b.dcm")(series)
    np.testing.assert_array_equal(read_image(series).data, ct()[:, :, :2])
    replace("IM1", k=2.003)(series)
    assert read_image(series).data.shape == (7, 6, 3)


def test_folder_of_folders_names_them(series):
    with pytest.raises(DataError, match="Pass one of its folders: series"):
        read_image(series.parent)


def write_frames(path):
    """A file of five frames (enhanced CT)."""
    image = sitk.GetImageFromArray(ct().T)
    image.SetSpacing(SPACING)
    image.SetOrigin((1, 2, 20))
    image.SetMetaData("0008|0060", "CT")
    image.SetMetaData("0008|0016", f"{CT}.1")
    sitk.WriteImage(image, str(path))
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
        (rb"1\\2\\22.5", b"1\\2\\21.5", ["frames.dcm: frame 1 and frame 2 lie 1.500 mm apart"]),
        (rb"1\\2\\22.5", b"1\\2\\20.0", ["frames.dcm: frame 1 and frame 2 lie at one position"]),
        (rb"\x20\0\x32\0", b"\x20\0\x31\0", ["holds 5 frames, of which 4 say where they lie"]),
    ],
)
def test_faults_of_frames_are_named(tmp_path, old, new, words):
    path = write_frames(tmp_path / "frames.dcm")
    put(old, new)(path)
    with pytest.raises(DataError) as error:
        read_image(path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("length", [b"DS\x08\0", b"\x08\0\0\0"])
def test_positions_of_frames_are_found_in_files_of_either_encoding(tmp_path, length):
    (tmp_path / "a").write_bytes(
        b"".join(b"\xfe\xff\0\xe0\x20\0\x32\0" + length + text for text in (b"1\\2\\3.5 ", b"-1\\2e1\\0"))
        + (b"\xe0\x7f\x10\0" + b"\x20\0\x32\0" + length + b"7\\7\\7777")
    )
    assert dicom._values_in_frames(tmp_path / "a", dicom.POSITION) == [[1, 2, 3.5], [-1, 20, 0]]


def test_one_slice_is_no_volume(series):
    with pytest.raises(DataError, match=r"a\.dcm: holds one slice, which is no volume.*Pass the folder"):
        read_image(series / "a.dcm")
