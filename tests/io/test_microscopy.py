"""TIFF, OME-Zarr and HDF5 as other programs write them are read with axes and voxel sizes, and results are for them."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import zarr

from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output, natural_suffix, read_image, write_map, write_segmentation
from sparse3dunet.io.defaults import AXES, VOXEL_SIZE
from sparse3dunet.io.formats import annotation_path, count_channels
from sparse3dunet.io.volumes import Volume, on_grid_of
from tests.io import microscopy
from tests.io.microscopy import KINDS, SHAPE, SPACING, affine, voxels, write

NAMES = {0: "background", 1: "Zellkern", 3: "Flüssigkeit: 50 %"}
OUTPUTS = (".tif", ".ome.tif", ".ome.zarr", ".h5")


def image_like(shape=SHAPE, **more):
    return Volume("made", np.zeros(shape), affine(), has_orientation=False, **more)


# Reading


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_voxels_as_in_nifti(tmp_path, kind):
    array = voxels()
    nib.save(nib.Nifti1Image(array, affine()), tmp_path / "a.nii.gz")
    expected, found = read_image(tmp_path / "a.nii.gz"), read_image(write(tmp_path / kind, array))
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_allclose(found.affine, expected.affine, rtol=1e-6)
    assert found.has_voxel_size
    assert not found.is_placed


@pytest.mark.parametrize("kind", KINDS[:-1])  # the last one states no axes
def test_channels(tmp_path, kind):
    array = voxels((*SHAPE, 2))
    found = read_image(write(tmp_path / kind, array))
    np.testing.assert_array_equal(found.data, array)
    np.testing.assert_allclose(found.spacing, np.array(SPACING) / 1000, rtol=1e-6)
    assert count_channels(tmp_path / kind) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_voxel_size(tmp_path, monkeypatch, kind):
    path = write(tmp_path / kind, voxels(), spacing=None)
    found = read_image(path)
    assert found.spacing == (1, 1, 1)
    assert not found.has_voxel_size
    monkeypatch.setenv(VOXEL_SIZE, "400, 300, 2000 nm")
    found = read_image(path)
    np.testing.assert_allclose(found.affine, affine())
    assert found.has_voxel_size
    stated = read_image(write(tmp_path / f"sized_{kind}", voxels(), (5, 5, 5)))
    np.testing.assert_allclose(stated.spacing, [0.005] * 3)


@pytest.mark.parametrize("dtype", ["bool", ">u2", ">f4", "<i4", "float16", "float64"])
@pytest.mark.parametrize("kind", ["plain.tif", "raw.h5"])
def test_types(tmp_path, kind, dtype):
    array = voxels(high=2).astype(dtype)
    if kind == "plain.tif":
        tifffile.imwrite(tmp_path / kind, array.T, byteorder=">" if dtype.startswith(">") else "<")
    else:
        write(tmp_path / kind, array)
    found = read_image(tmp_path / kind).data
    assert found.dtype.isnative
    assert found.dtype.kind in "uif"
    np.testing.assert_array_equal(found, array.astype(found.dtype))


@pytest.mark.parametrize(
    "options", [{"bigtiff": True}, {"compression": "zlib"}, {"compression": "lzw"}, {"tile": (16, 16)}]
)
def test_kinds_of_tiff(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, voxels())
    (tmp_path / "b.tiff").symlink_to(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tiff").data, voxels())


@pytest.mark.parametrize("layout", [{"planarconfig": "contig"}, {"planarconfig": "separate"}])
def test_colours_are_channels(tmp_path, layout):
    colours = voxels((*SHAPE, 3), high=200)
    stored = colours.transpose(2, 1, 0, 3) if layout["planarconfig"] == "contig" else colours.transpose(2, 3, 1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **layout)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, colours)


@pytest.mark.parametrize(
    ("unit", "scale"), [("nm", 1e-6), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("um", 1e-3), ("mm", 1), ("inch", 25.4)]
)
def test_units_of_imagej(tmp_path, unit, scale):
    metadata = {"axes": "ZYX", "unit": unit, "spacing": 3.0}
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, imagej=True, resolution=(2, 4), metadata=metadata)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").spacing, np.array([0.5, 0.25, 3]) * scale)


def test_imagej_leaves_out_a_spacing_of_one(tmp_path):
    metadata = {"axes": "ZYX", "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, imagej=True, resolution=(2, 4), metadata=metadata)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").spacing, [5e-4, 2.5e-4, 1e-3])


def test_resolution_without_a_spacing_of_slices_is_no_voxel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, resolution=(72, 72), resolutionunit="INCH")
    found = read_image(tmp_path / "a.tif")
    assert found.spacing == (1, 1, 1)
    assert not found.has_voxel_size


def test_units_of_ome(tmp_path):
    metadata = {"axes": "ZYX"}
    for axis, size, unit in (("X", 500, "nm"), ("Y", 0.5, "µm"), ("Z", 0.001, "mm")):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, ome=True, metadata=metadata)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").spacing, [5e-4, 5e-4, 1e-3])
    assert natural_suffix(tmp_path / "a.tif") == ".ome.tif"


@pytest.mark.parametrize("unit", ["&#181;m", "&#xB5;m", "&#x3bc;m", "&#109;m"])
def test_units_of_ome_with_references_to_characters(tmp_path, unit):
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, ome=True, metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(tmp_path / "a.tif")
    sizes = " ".join(f'PhysicalSize{axis}="2" PhysicalSize{axis}Unit="{unit}"' for axis in "XYZ")
    tifffile.tiffcomment(tmp_path / "a.tif", xml.replace("<Pixels ", f"<Pixels {sizes} ").encode())
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").spacing, [2 if "109" in unit else 2e-3] * 3)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", ["ngff04.ome.zarr", "ngff05.zarr"])
def test_the_finest_level_wherever_it_is_listed(tmp_path, kind, scaled):
    """The specification lists it first."""
    path = write(tmp_path / kind, voxels())
    group = zarr.open_group(path)
    metadata = dict(group.attrs)
    levels = metadata.get("ome", metadata)["multiscales"][0]["datasets"]
    levels.reverse()
    for level in [] if scaled else levels:
        del level["coordinateTransformations"]
    group.attrs.update(metadata)
    found = read_image(path)
    np.testing.assert_array_equal(found.data, voxels())
    np.testing.assert_allclose(found.spacing, np.array(SPACING if scaled else (1, 1, 1)) / 1000, rtol=1e-6)


def test_where_an_ome_zarr_image_is(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    microscopy.write_ngff(group, voxels().T, "zyx", SPACING, "4")
    multiscales = group.attrs["multiscales"]
    shift = {"type": "translation", "translation": [4, 3, 2]}
    multiscales[0]["datasets"][0]["coordinateTransformations"].append(shift)
    multiscales[0]["coordinateTransformations"] = [{"type": "scale", "scale": [10, 10, 10]}]
    group.attrs["multiscales"] = multiscales
    found = read_image(tmp_path / "a.zarr")
    np.testing.assert_allclose(found.spacing, np.array(SPACING) / 100)
    np.testing.assert_allclose(found.affine[:3, 3], [0.02, -0.03, 0.04])
    write_map(tmp_path / "b.ome.zarr", voxels(), found)
    np.testing.assert_allclose(read_image(tmp_path / "b.ome.zarr").affine, found.affine)


@pytest.mark.parametrize(("axes", "order"), [("zyx", (2, 1, 0)), ("xyz", (0, 1, 2)), ("yxz", (1, 0, 2))])
def test_axes_that_are_passed(tmp_path, monkeypatch, axes, order):
    monkeypatch.setenv(AXES, axes)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = voxels().transpose(order)
    tifffile.imwrite(tmp_path / "a.tif", voxels().transpose(order), metadata=None)
    for name in ("a.h5", "a.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name).data, voxels())


def test_channels_without_axes(tmp_path, monkeypatch):
    array = voxels((*SHAPE, 2))
    path = write(tmp_path / "a.h5", array)
    with pytest.raises(DataError, match=r"a\.h5: found 4 dimensions.*Pass a letter.*--axes czyx"):
        read_image(path)
    monkeypatch.setenv(AXES, "czyx")
    np.testing.assert_array_equal(read_image(path).data, array)


def test_places_in_a_file(tmp_path):
    """pytorch-3dunet's files hold image and label; labels of OME-Zarr are groups in the image."""
    image, label = voxels(high=200), voxels(seed=1)
    with h5py.File(write(tmp_path / "a.h5", image), "a") as file:
        file["label"] = label.T
        file["more/cells"] = voxels(seed=2).T
    zarr_path = write(tmp_path / "ngff04.zarr", image)
    labels = zarr.open_group(zarr_path).create_group("labels/cells")
    microscopy.write_ngff(labels, label.T, "zyx", SPACING, "4")
    for path in (tmp_path / "a.h5", zarr_path):
        np.testing.assert_array_equal(read_image(path).data, image)
        np.testing.assert_array_equal(read_image(annotation_path(str(path))).data, label)
    for inner in (":/more/cells", "/more/cells"):
        np.testing.assert_array_equal(read_image(f"{tmp_path}/a.h5{inner}").data, voxels(seed=2))
    np.testing.assert_array_equal(read_image(zarr_path / "labels/cells").data, label)
    zarr.open_group(zarr_path).create_group("labels/membranes")
    with pytest.raises(DataError, match=r"found 2 labels, cells, membranes; expected one"):
        annotation_path(str(zarr_path))


# Label maps without a voxel size or an orientation


def test_a_label_belongs_to_its_image_by_indices(tmp_path):
    image = read_image(write(tmp_path / "ome.ome.tif", voxels()))
    bare = read_image(write(tmp_path / "raw.h5", voxels(), None))
    np.testing.assert_array_equal(on_grid_of(bare, image).affine, image.affine)
    nib.save(nib.Nifti1Image(voxels(), np.diag([-4e-4, -3e-4, 2e-3, 1])), tmp_path / "a.nii")
    turned = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(on_grid_of(turned, image).affine, image.affine)
    other = read_image(write(tmp_path / "other_ome.ome.tif", voxels(), (1, 1, 1)))
    assert on_grid_of(other, image) is other
    part = read_image(write(tmp_path / "part.h5", voxels((7, 6, 4)), None))
    assert on_grid_of(part, image) is part


# Writing


@pytest.mark.parametrize("output", OUTPUTS)
def test_results_are_read_by_the_formats_own_packages(tmp_path, output):
    path = tmp_path / f"out{output}"
    write_segmentation(path, voxels(dtype=np.int16), image_like(), NAMES)
    array, spacing, names = microscopy.read(path)
    np.testing.assert_array_equal(array, voxels())
    np.testing.assert_allclose(spacing, SPACING, rtol=1e-6)
    assert names == {f"label_{value}": name for value, name in NAMES.items()}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    found = read_image(path)
    np.testing.assert_array_equal(found.data, voxels())
    np.testing.assert_allclose(found.affine, affine(), rtol=1e-6)


@pytest.mark.parametrize("output", OUTPUTS)
def test_maps_of_several_classes(tmp_path, output):
    values = np.random.default_rng(0).random((*SHAPE, 3), dtype=np.float32)
    path = tmp_path / f"out{output}"
    write_map(path, values, image_like(), "probabilities")
    np.testing.assert_array_equal(read_image(path).data, values)
    write_map(path, values[..., 0], image_like(), "confidence")  # replaces it
    np.testing.assert_array_equal(read_image(path).data, values[..., 0])


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_voxel_size_is_made_up(tmp_path, output):
    write_segmentation(tmp_path / f"out{output}", voxels(), image_like(has_voxel_size=False), NAMES)
    assert microscopy.read(tmp_path / f"out{output}")[1] is None


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_same_input_gives_the_same_bytes(tmp_path, output):
    paths = [tmp_path / f"{name}{output}" for name in "ab"]
    for path in paths:
        write_segmentation(path, voxels(), image_like(), NAMES)
    files = [sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] for path in paths]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_a_pyramid_of_labels_in_colour(tmp_path):
    labels = voxels((300, 20, 10))
    write_segmentation(tmp_path / "a.ome.zarr", labels, image_like(labels.shape), NAMES)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    datasets = group.attrs["multiscales"][0]["datasets"]
    assert [group[entry["path"]].shape for entry in datasets] == [(10, 20, 300), (5, 10, 150)]
    np.testing.assert_array_equal(group["1"][:], labels.T[::2, ::2, ::2])
    np.testing.assert_allclose(datasets[1]["coordinateTransformations"][0]["scale"], [4, 0.6, 0.8])
    image_label = json.loads(json.dumps(group.attrs["image-label"]))
    assert [entry["label-value"] for entry in image_label["colors"]] == [0, 1, 3]
    assert image_label["colors"][0]["rgba"][3] == 0
    assert all(entry["rgba"][3] == 255 for entry in image_label["colors"][1:])


@pytest.mark.parametrize("kind", ["ngff04.ome.zarr", "ngff05.zarr"])
def test_results_have_the_version_of_their_image(tmp_path, kind):
    image = read_image(write(tmp_path / kind, voxels()))
    write_segmentation(tmp_path / "out.ome.zarr", voxels(), image, NAMES)
    group = zarr.open_group(tmp_path / "out.ome.zarr", mode="r")
    assert group.metadata.zarr_format == (2 if "04" in kind else 3)
    assert ("ome" in group.attrs) == ("05" in kind)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_orientation_is_not_lost(tmp_path, output):
    image = Volume("scan.nii.gz", np.zeros(SHAPE), np.diag([-1.0, -1, 1, 1]))
    with pytest.raises(DataError, match=r"scan\.nii\.gz states an orientation, which \.\S+ cannot hold.*\.nii\.gz"):
        write_segmentation(tmp_path / f"out{output}", voxels(), image, NAMES)
    assert not list(tmp_path.iterdir())


def test_values_that_imagej_does_not_hold(tmp_path):
    with pytest.raises(DataError, match=r"'odd' has the value -2; expected 0 to 65535.*\.ome\.tif"):
        check_output(tmp_path / "a.tif", image_like(), {0: "background", -2: "odd"})
    with pytest.raises(DataError, match=r"found float64.*\.ome\.tif"):
        write_map(tmp_path / "a.tif", voxels(dtype=np.float64), image_like())
    assert not list(tmp_path.iterdir())
    write_segmentation(tmp_path / "a.ome.tif", voxels(dtype=np.int16) - 2, image_like(), {0: "background", -2: "odd"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.ome.tif").data, voxels(dtype=np.int16) - 2)
