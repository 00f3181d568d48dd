"""A path names a file, or a place in one; a folder whose name looks like a file's does not mislead."""

from pathlib import Path

import pytest

from sparse3dunet.io.suffixes import files_of, is_image_file, output_suffix, split
from tests.io.microscopy import voxels, write


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a_raw.h5", voxels())
    write(tmp_path / "ngff04.ome.zarr", voxels())
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.h5").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "file", "inner"),
    [
        *[(name, name, "") for name in ("a.nii.gz", "new.h5", "new.zarr", "a", "results.zarr/records/a.json")],
        *[(f"a_raw.h5{link}raw", "a_raw.h5", "raw") for link in (":/", "/", ":")[:2]],
        ("a_raw.h5:", "a_raw.h5", ""),
        ("ngff04.ome.zarr/labels/cells", "ngff04.ome.zarr", "labels/cells"),
        ("results.zarr/a.tif", "results.zarr/a.tif", ""),
        ("results.zarr/a.ome.zarr", "results.zarr/a.ome.zarr", ""),
        ("results.h5/a.h5", "results.h5/a.h5", ""),
        ("results.h5/model/model.pt", "results.h5/model/model.pt", ""),
    ],
)
def test_places_in_files(folder, path, file, inner):
    assert split(folder / path) == (folder / file, inner)


def test_files_on_disk(folder):
    assert files_of(folder / "a_raw.h5:/raw") == [str(folder / "a_raw.h5")]
    zarr_files = files_of(folder / "ngff04.ome.zarr/fine")
    assert len(zarr_files) == len([p for p in (folder / "ngff04.ome.zarr").rglob("*") if p.is_file()]) > 2
    assert is_image_file(folder / "ngff04.ome.zarr")
    assert is_image_file(folder / "ngff04.ome.zarr/fine")
    assert not is_image_file(folder / "ngff04.ome.zarr/labels/cells")
    assert not is_image_file(folder / "missing.h5:/raw")


def test_results_in_a_folder_that_is_named_like_a_file(folder):
    assert output_suffix(folder / "results.zarr/a.OME.TIF") == ".ome.tif"
    assert output_suffix(Path("results.h5") / "a.nii.gz") == ".nii.gz"
