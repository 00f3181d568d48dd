"""Each fault of a microscopy file is named in one line, with what to do; none gives a wrong volume silently."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from sparse3dunet.errors import DataError
from sparse3dunet.io import check_output, read_image
from sparse3dunet.io.defaults import parse_axes, parse_voxel_size
from tests.io.microscopy import KINDS, SHAPE, voxels, write
from tests.io.test_microscopy import OUTPUTS, image_like


def error_of(path):
    """The message about a file, which is one line that names it."""
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "options",
    [
        {"metadata": None},
        {"metadata": None, "compression": "zlib"},
        {"imagej": True},
        {"imagej": True, "compression": "zlib"},
        {"ome": True, "compression": "zlib"},
        {"bigtiff": True},
    ],
)
def test_truncated_tiff(tmp_path, options, share):
    path = tmp_path / ("a.ome.tif" if options.get("ome") else "a.tif")
    array = voxels((40, 30, 20), np.uint16, 60000)
    tifffile.imwrite(path, array.T, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    try:
        found = read_image(path).data
    except DataError as error:
        assert re.search("truncated|cannot be read|planes|expected", str(error))  # noqa: PT017
        assert str(path) in str(error)  # noqa: PT017
    else:  # what is cut off is not needed
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["ilastik.h5", "raw.h5"])
def test_truncated_hdf5(tmp_path, kind, share):
    path = write(tmp_path / kind, voxels((40, 30, 20), np.uint16, 60000))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "expected a whole HDF5 file" in error_of(path)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"type": "scale", "scale": [2.0]}, "scale has 1 number.s., but there are 3 axes"),
        ({"type": "scale", "scale": [1.0, 2, 2, 2]}, "scale has 4 number"),
        ({"type": "scale", "scale": 2.0}, "scale has 1 number"),
        ({"type": "translation", "translation": [2.0]}, "translation has 1 number"),
        ({"type": "scale", "path": "scales"}, "neither a scale nor a translation, or its numbers are in another file"),
        ({"type": "affine", "affine": [[1.0]]}, "neither a scale nor a translation"),
    ],
)
def test_other_transformations_of_zarr(tmp_path, step, words):
    """NumPy would take one number for all axes."""
    path = write(tmp_path / "ngff04.ome.zarr", voxels())
    group = zarr.open_group(path)
    (multiscales,) = group.attrs["multiscales"]
    multiscales["datasets"][0]["coordinateTransformations"] = [step]
    group.attrs["multiscales"] = [multiscales]
    assert re.search(words, error_of(path))


NAME = "Doe^John O'Neil"


@pytest.mark.parametrize("description", [f"shape=({NAME})", f'{{"shape": "{NAME}"}}', f"ImageJ=1.5\nslices={NAME}\n"])
def test_no_message_quotes_a_description(tmp_path, description):
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, metadata=None, description=description)
    assert not re.search("Doe|Neil", error_of(tmp_path / "a.tif"))


@pytest.mark.parametrize("attribute", ['SizeZ="5"', 'DimensionOrder="XYCZT"'])
def test_no_message_quotes_the_attributes_of_ome(tmp_path, attribute):
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels().T, ome=True, metadata={"axes": "ZYX"})
    xml = tifffile.tiffcomment(tmp_path / "a.ome.tif")
    assert attribute in xml
    other = xml.replace(attribute, f'{attribute.partition("=")[0]}="{NAME}"')
    tifffile.tiffcomment(tmp_path / "a.ome.tif", other.encode())
    assert not re.search("Doe|Neil", error_of(tmp_path / "a.ome.tif"))


def test_no_message_quotes_the_names_of_axes(tmp_path):
    path = write(tmp_path / "ilastik.h5", voxels())
    with h5py.File(path, "a") as file:
        attributes = file["exported_data"].attrs
        attributes["axistags"] = attributes["axistags"].replace('"z"', f'"{NAME}"')
    assert not re.search("doe|neil", error_of(path), re.IGNORECASE)


@pytest.mark.parametrize("axes", ["zy", "zyxc"])
def test_as_many_axes_as_dimensions(tmp_path, axes):
    """It was said that the file is damaged."""
    path = write(tmp_path / "ilastik.h5", voxels())
    with h5py.File(path, "a") as file:
        file["exported_data"].attrs["axistags"] = f'{{"axes": {[{"key": axis} for axis in axes]}}}'.replace("'", '"')
    assert f"the file states {len(axes)} axes, {axes.upper()}, but found 3 dimensions" in error_of(path)


@pytest.mark.parametrize("kind", ["ngff04.zarr", "ngff05.zarr", "blosc"])
def test_truncated_chunks(tmp_path, kind):
    """Blosc's decoder would read on behind the end, and return whatever is in memory there."""
    array = voxels((40, 30, 20), np.uint16, 60000)
    if kind == "blosc":
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=array, compressors=zarr.codecs.BloscCodec())
    else:
        path = write(tmp_path / kind, array)
    assert read_image(path).data.size == array.size
    chunk = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:1000])
    assert re.search("cannot be read|is truncated", error_of(path))


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.h5", "a.hdf5"])
def test_other_files(tmp_path, name):
    assert re.search("cannot be read|does not exist", error_of(tmp_path / name))
    (tmp_path / name).write_text("something else altogether, without any voxels")
    assert "cannot be read" in error_of(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    assert "cannot be read" in error_of(tmp_path / name)


def test_no_folder_of_zarr(tmp_path):
    assert "does not exist" in error_of(tmp_path / "a.zarr")
    (tmp_path / "a.zarr").write_text("a file")
    assert "is a file" in error_of(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    assert "b.zarr" in error_of(tmp_path / "b.zarr")
    write(tmp_path / "ngff04.zarr", voxels())
    assert "no such group" in error_of(tmp_path / "ngff04.zarr/labels/cells")


def test_a_missing_plane_of_ome(tmp_path):
    """tifffile would fill it with zeros."""
    path = write(tmp_path / "a_ome.ome.tif", voxels())
    content = path.read_bytes()
    path.write_bytes(content.replace(b'PlaneCount="5"', b'PlaneCount="4"'))
    assert re.search("1 of 5 planes are missing", error_of(path))


def set_tag(path, page, tag, number, value):
    """Set one number of a TIFF's tag; value None leaves that and all further ones out."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        found = file.pages[page].aspage().tags[tag]
        size = {3: 2, 4: 4}[int(found.dtype)]
        place = found.offset + 4 if value is None else found.valueoffset + size * number
    content[place : place + 4 if value is None else place + size] = (
        number.to_bytes(4, "little") if value is None else value.to_bytes(size, "little")
    )
    path.write_bytes(content)


@pytest.mark.parametrize("tag", ["Offsets", "ByteCounts"])
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "ome": True, "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "imagej": True, "metadata": {"axes": "ZYX"}},
        {"compression": "zlib", "rowsperstrip": 7},
        {"tile": (16, 16)},
        {"compression": "zlib", "tile": (16, 16)},
        {"rowsperstrip": 7},
    ],
)
@pytest.mark.parametrize("page", [0, 2])
def test_strips_and_tiles_that_are_not_stored(tmp_path, options, tag, page):
    """tifffile would fill them with zeros."""
    path = tmp_path / ("a.ome.tif" if options.get("ome") else "a.tif")
    tifffile.imwrite(path, voxels((33, 40, 5), np.uint16, 60000).T, **{"metadata": None, **options})
    assert read_image(path).data.shape == (33, 40, 5)
    set_tag(path, page, ("Tile" if "tile" in options else "Strip") + tag, 0, 0)
    assert re.search(r"\d of 5 planes are missing, or some of their strips or tiles", error_of(path))


@pytest.mark.parametrize("page", [0, 2])
@pytest.mark.parametrize("options", [{"metadata": None}, {"metadata": None, "contiguous": False}, {}])
def test_planes_that_are_nowhere(tmp_path, options, page):
    """The header would be read as voxels."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane in [voxels((33, 40, 5)).T] if "contiguous" not in options else voxels((33, 40, 5)).T:
            file.write(plane, **options)
    set_tag(tmp_path / "a.tif", page if options else 0, "StripOffsets", 0, 0)
    assert "1 of 5 planes are missing" in error_of(tmp_path / "a.tif")


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_fewer_tiles_than_there_are(tmp_path, tag):
    tifffile.imwrite(tmp_path / "a.tif", voxels((33, 40, 5)).T, metadata=None, tile=(16, 16), compression="zlib")
    set_tag(tmp_path / "a.tif", 2, tag, 3, None)
    assert "1 of 5 planes are missing" in error_of(tmp_path / "a.tif")


def test_fewer_planes_than_imagej_says(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, voxels().T, imagej=True, compression="zlib")
    path.write_bytes(path.read_bytes().replace(b"images=5", b"images=9"))
    assert "5 planes" in error_of(path)


@pytest.mark.parametrize("kind", ["imagej", "ome", "ngff", "h5"])
def test_several_time_points(tmp_path, kind):
    array = voxels((7, 6, 5, 4)).T
    path = tmp_path / {"imagej": "a.tif", "ome": "a.ome.tif", "ngff": "a.zarr", "h5": "a.h5"}[kind]
    if kind in ("imagej", "ome"):
        tifffile.imwrite(path, array, metadata={"axes": "TZYX"}, **{kind: True})
    elif kind == "ngff":
        group = zarr.create_group(path, zarr_format=2)
        group.create_array("0", data=array)
        axes = [{"name": name} for name in "tzyx"]
        group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    else:
        with h5py.File(path, "w") as file:
            file["raw"] = array
            file["raw"].attrs["axistags"] = '{"axes": [{"key": "t"}, {"key": "z"}, {"key": "y"}, {"key": "x"}]}'
    message = error_of(path)
    assert "found 4 time points" in message
    assert "Save each time point in its own file" in message


def test_several_images_in_a_file(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(voxels().T)
        file.write(voxels((9, 8, 4)).T)
    assert "found 2 images of different sizes" in error_of(tmp_path / "a.tif")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    for name in ("0", "1"):
        group.create_group(name)
    assert re.search(r"found no image.*0, 1.*a\.zarr/0", error_of(tmp_path / "a.zarr"))
    group.attrs["plate"] = {}
    assert "found a plate" in error_of(tmp_path / "a.zarr")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one"] = file["two"] = voxels()
    assert re.search(r"dimensions: .*one \(7, 6, 5\).*a\.h5:/one", error_of(tmp_path / "a.h5"))
    assert "no dataset three" in error_of(tmp_path / "a.h5:/three")


@pytest.mark.parametrize("kind", ["a.tif", "a.ome.tif", "a.h5", "a.zarr"])
def test_what_is_no_volume(tmp_path, kind):
    flat = voxels()[..., 0]
    if kind.endswith(".tif"):
        tifffile.imwrite(tmp_path / kind, flat)
    elif kind == "a.h5":
        with h5py.File(tmp_path / kind, "w") as file:
            file["raw"] = flat
    else:
        zarr.create_array(tmp_path / kind, data=flat)
    assert "expected a volume" in error_of(tmp_path / kind)


def test_complex_numbers(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels(dtype=np.complex64).T)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = voxels(dtype=np.complex64)
    for name in ("a.tif", "a.h5"):
        assert "expected one real number per voxel" in error_of(tmp_path / name)


def test_two_files_at_a_time(tmp_path):
    """Of two that are read in two threads, as by ``check``, only the truncated one is refused."""
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    for path in (good, bad):
        tifffile.imwrite(path, voxels((40, 30, 20)).T, metadata=None)
    bad.write_bytes(bad.read_bytes()[:5000])

    def read(path):
        try:
            return read_image(path).data.shape
        except DataError:
            return None

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(read, [good, bad] * 20)) == [(40, 30, 20), None] * 20


# What is not installed


@pytest.mark.parametrize(("kind", "package"), [*zip(KINDS[::2], ("tifffile", "zarr", "h5py"))])
def test_a_package_that_is_missing(tmp_path, monkeypatch, kind, package):
    path = write(tmp_path / kind, voxels())
    monkeypatch.setitem(sys.modules, package, None)
    message = error_of(path)
    assert f"needs the package {package}" in message
    assert "pip install 'sparse3dunet[microscopy]'" in message


@pytest.mark.parametrize("output", OUTPUTS)
def test_results_need_the_package_before_anything_is_computed(tmp_path, monkeypatch, output):
    for package in ("tifffile", "zarr", "h5py"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"is not installed\. Install it: pip install"):
        check_output(tmp_path / f"a{output}", image_like(SHAPE))


def test_a_codec_that_is_missing(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", voxels().T, compression="lzw")

    def decode(*arguments, **options):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", decode)
    assert re.search(r"'imagecodecs' package.*Install it, or save the file without", error_of(tmp_path / "a.tif"))


def test_zarr_3_without_its_package(tmp_path, monkeypatch):
    """On Python 3.10 there is only zarr 2."""
    path = write(tmp_path / "ngff05.zarr", voxels())
    monkeypatch.delattr(zarr, "create_group")
    assert re.search(r"needs zarr 3.*Python 3\.11", error_of(path))


# Options


@pytest.mark.parametrize(
    ("text", "size"),
    [("0.5,0.5,2um", (5e-4, 5e-4, 2e-3)), ("1, 1, 2.5 mm", (1, 1, 2.5)), ("[4e1,8,8]nm", (4e-5, 8e-6, 8e-6))],
)
def test_voxel_sizes(text, size):
    np.testing.assert_allclose(parse_voxel_size(text), size)


@pytest.mark.parametrize(
    "text", ["0.5,0.5,2", "1um", "1,1um", "1,1,0um", "1,1,-1um", "a,b,cum", "1,1,1 px", "", "1,1,nanum"]
)
def test_bad_voxel_sizes(text):
    with pytest.raises(DataError, match="expected the sizes along x, y and z and their unit"):
        parse_voxel_size(text)


@pytest.mark.parametrize("text", ["", "zy", "zyxx", "zyxq", "abc"])
def test_bad_axes(text):
    with pytest.raises(DataError, match="expected a letter for each dimension"):
        parse_axes(text)
