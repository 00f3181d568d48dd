"""Voxels of HDF5 that are not in the dataset itself: a file from elsewhere must not choose which others are read."""

import os

import h5py
import numpy as np
import pytest

from sparse3dunet.io import read_image
from sparse3dunet.io.formats import open_image
from sparse3dunet.io.hdf5 import label_dataset
from sparse3dunet.io.voxel_files import voxel_files
from tests.io.microscopy import voxels
from tests.io.test_microscopy_bad import error_of

ARRAY = voxels((8, 7, 6))


def write_source(path, array=ARRAY):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["raw"] = array.T


def write_virtual(path, name, inner="raw", dtype=np.uint8, planes=6):
    """A dataset that shows the first planes of a source of as many as ARRAY has."""
    path.parent.mkdir(exist_ok=True)
    layout = h5py.VirtualLayout((6, 7, 8), dtype)
    layout[:planes] = h5py.VirtualSource(str(name), inner, (6, 7, 8))[:planes]
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("raw", layout, fillvalue=9)
    return path


def write_pattern(path, name, inner="raw"):
    """A dataset of as many planes as there are, each in a source with its number."""
    many = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((6, 7, 8), (many, 7, 8))
    space.select_hyperslab((0, 0, 0), (many, 1, 1), block=(1, 7, 8))
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_virtual(space, name.encode(), inner.encode(), h5py.h5s.create_simple((7, 8)))
    with h5py.File(path, "a") as file:
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, options)
    return path


def test_voxels_of_any_file(tmp_path):
    """External storage takes the bytes of any file for voxels."""
    (tmp_path / "secret").write_bytes(bytes(336))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", shape=(6, 7, 8), dtype="u1", external=[(str(tmp_path / "secret"), 0, 336)])
        layout = h5py.VirtualLayout((6, 7, 8), np.uint8)
        layout[...] = h5py.VirtualSource(".", "raw", (6, 7, 8))
        file.create_virtual_dataset("label", layout)
    for name in ("", ":/label"):
        assert "in another file (external storage), which is not read" in error_of(f"{tmp_path}/a.h5{name}")
        with pytest.raises(ValueError, match="external storage"):
            open_image(f"{tmp_path}/a.h5{name}")
    assert voxel_files(tmp_path / "a.h5") == []


@pytest.mark.parametrize("form", ["absolute", "up", "up and down", "working folder", "within", "pattern"])
def test_virtual_datasets_of_files_elsewhere(tmp_path, monkeypatch, form):
    write_source(tmp_path / "other/secret.h5")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    image = tmp_path / "in/a.h5"
    if form == "absolute":
        write_virtual(image, tmp_path / "other/secret.h5")
    elif form == "up":
        write_virtual(image, "../other/secret.h5")
    elif form == "up and down":
        (tmp_path / "in").mkdir()
        (tmp_path / "in/link").symlink_to(tmp_path / "home")
        write_virtual(image, "link/../other/secret.h5")
    elif form == "working folder":  # where HDF5 looks, too
        write_source(tmp_path / "home/secret.h5")
        write_virtual(image, "secret.h5")
    elif form == "within":  # by a dataset that it shows
        write_virtual(image, "parts/b.h5")
        write_virtual(tmp_path / "in/parts/b.h5", tmp_path / "other/secret.h5")
    else:  # the first one is beside it
        write_source(tmp_path / "in/p0.h5", ARRAY[..., 0])
        write_source(tmp_path / "home/p1.h5", ARRAY[..., 1])
        write_pattern(image, "p%b.h5")
    with h5py.File(image) as file:
        assert file["raw"].size
    message = error_of(image)
    assert "which is elsewhere and not read; expected files in its folder, or in folders there" in message
    with pytest.raises(ValueError, match="which is elsewhere"):
        open_image(image)
    assert not any(part in file for file in voxel_files(image) for part in ("home", "other"))


def test_virtual_datasets_of_links_elsewhere(tmp_path):
    """HDF5 follows the links of a source."""
    write_source(tmp_path / "other/secret.h5")
    write_virtual(tmp_path / "a.h5", ".", "out")
    write_virtual(tmp_path / "b.h5", "a.h5", "out")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["out"] = h5py.ExternalLink(str(tmp_path / "other/secret.h5"), "/raw")
    for name in ("a.h5", "b.h5"):
        assert "link to another file, which is not followed" in error_of(tmp_path / name)


@pytest.mark.parametrize("name", ["p.h5", "parts/p.h5", "absolute", "moved", "a%%b.h5", "from a link"])
def test_virtual_datasets_of_files_beside(tmp_path, name):
    image, part = tmp_path / "a.h5", tmp_path / ("parts/p.h5" if "/" in name else "p.h5")
    if "%" in name:
        part = tmp_path / "a%b.h5"
    write_source(part)
    write_virtual(image, {"absolute": part, "moved": "/former/folder/p.h5", "from a link": "p.h5"}.get(name, name))
    if name == "from a link":
        (tmp_path / "cases").mkdir()
        (tmp_path / "cases/a.h5").symlink_to(image)
        image = tmp_path / "cases/a.h5"
    for path in (image, os.path.relpath(image)):
        found = read_image(path)
        np.testing.assert_array_equal(found.data, ARRAY)
        assert found.notes == ()
    np.testing.assert_array_equal(open_image(image).data[:], ARRAY)
    (listed,) = voxel_files(image)
    assert os.path.samefile(listed, part)


def test_a_virtual_dataset_of_as_many_planes_as_there_are(tmp_path):
    image = write_pattern(tmp_path / "a.h5", ".", "plane%b")
    with h5py.File(image, "a") as file:
        for z in range(4):
            file[f"plane{z}"] = ARRAY.T[z]
    np.testing.assert_array_equal(read_image(image).data, ARRAY[..., :4])


def test_a_virtual_dataset_of_itself(tmp_path):
    """It would end the process."""
    write_virtual(tmp_path / "a.h5", "b.h5")
    write_virtual(tmp_path / "b.h5", "a.h5")
    write_virtual(tmp_path / "c.h5", ".")
    for name in ("a.h5", "c.h5"):
        assert "a virtual dataset shows itself" in error_of(tmp_path / name)


@pytest.mark.parametrize(("stored", "shown"), [("f4", "u1"), ("i4", "u2"), ("i1", "u1"), ("S3", "u1")])
def test_types_that_change_values(tmp_path, stored, shown):
    write_source(tmp_path / "b.h5", ARRAY.astype(stored))
    write_virtual(tmp_path / "a.h5", "b.h5", dtype=shown)
    message = error_of(tmp_path / "a.h5")
    assert f"virtual dataset of {np.dtype(shown)} shows one of {np.dtype(stored)}, which may change values" in message


@pytest.mark.parametrize(("stored", "shown"), [("u1", "f4"), ("f8", "f4"), ("i4", "f4"), ("u1", ">u2"), ("bool", "u1")])
def test_types_that_keep_values(tmp_path, stored, shown):
    write_source(tmp_path / "b.h5", ARRAY.astype(stored))
    write_virtual(tmp_path / "a.h5", "b.h5", dtype=shown)
    np.testing.assert_array_equal(read_image(tmp_path / "a.h5").data, ARRAY.astype(stored))


def test_voxels_that_are_in_no_source(tmp_path):
    write_source(tmp_path / "b.h5")
    write_virtual(tmp_path / "a.h5", "b.h5", planes=4)
    for found in (read_image(tmp_path / "a.h5"), open_image(tmp_path / "a.h5")):
        (note,) = found.notes
        assert note.startswith(f"{tmp_path}/a.h5: 112 of 336 voxels of the virtual dataset are in none")
        assert (found.data[:, :, 4:] == 9).all()


@pytest.mark.parametrize("planes", [4, 6])
@pytest.mark.parametrize("shape", [(8, 7, 3), (8, 6, 7), (8, 7, 6, 1)])
def test_sources_of_another_shape(tmp_path, planes, shape):
    """HDF5 would read on behind the end of a smaller one, and return whatever is there."""
    write_source(tmp_path / "b.h5", voxels(shape))
    write_virtual(tmp_path / "a.h5", "b.h5", planes=planes)
    assert "shows more or other voxels than those of the other one" in error_of(tmp_path / "a.h5")


@pytest.mark.parametrize("fault", [None, "missing", "damaged", "another dataset", "in this file"])
def test_virtual_datasets(tmp_path, fault):
    """HDF5 reads zeros where it does not find what a virtual dataset shows."""
    array = voxels((8, 7, 6))
    (tmp_path / "parts").mkdir()
    layout = h5py.VirtualLayout((6, 7, 8), np.uint8)
    for z in range(6):
        with h5py.File(tmp_path / f"parts/{z}.h5", "w") as file:
            file["raw"] = array.T[z]
        layout[z] = h5py.VirtualSource(f"parts/{z}.h5", "raw", (7, 8))
    if fault == "in this file":
        layout[3] = h5py.VirtualSource(".", "own", (7, 8))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
        file["own"] = array.T[3]
    part = tmp_path / "parts/3.h5"
    if fault == "missing":
        part.unlink()
    elif fault == "damaged":
        part.write_bytes(part.read_bytes()[:100])
    elif fault == "another dataset":
        with h5py.File(part, "a") as file:
            file.move("raw", "other")
    if fault in (None, "in this file"):
        np.testing.assert_array_equal(read_image(tmp_path / "a.h5").data, array)
    else:
        assert "a dataset of parts/3.h5, which is missing or damaged" in error_of(tmp_path / "a.h5")


def test_links(tmp_path):
    """Those within the file are followed; one to another file is not: it may name any file of the user's."""
    array, small = voxels((8, 7, 6)), voxels((4, 5, 6))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["raw"] = array.T
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/er/volume"] = array.T
        file["small"] = small.T
        file["flat"] = small[0]
        file["deep/link"] = h5py.SoftLink("er/volume")
        file["raw"] = h5py.SoftLink("/deep/link")
        file["group"] = h5py.SoftLink("deep")
        for name, target in (("circle", "/circle"), ("nothing", "/deep/none"), ("through", "/out/raw")):
            file[name] = h5py.SoftLink(target)
        file["label"] = h5py.ExternalLink("other.h5", "/raw")
        file["out"] = h5py.ExternalLink("other.h5", "/")
    for name in ("", ":/raw", ":/group/er/volume", ":/group/link", "/deep/link"):
        np.testing.assert_array_equal(read_image(f"{tmp_path}/a.h5{name}").data, array)
    for name in ("label", "out/raw", "through"):
        assert "link to another file, which is not followed" in error_of(f"{tmp_path}/a.h5:/{name}")
    for name in ("circle", "nothing", "deep", "raw/raw"):
        assert "no dataset" in error_of(f"{tmp_path}/a.h5:/{name}")
    assert "found shape (5, 6)" in error_of(f"{tmp_path}/a.h5:/flat")
    assert label_dataset(f"{tmp_path}/a.h5") == f"{tmp_path}/a.h5"
