"""A path names a file, or a place in one; a folder whose name looks like a file's does not mislead."""

import os
from pathlib import Path

import numpy as np
import pytest

from sparse3dunet.io.suffixes import files_of, is_image_file, output_suffix, split, state_of
from tests.io.dicom_files import write_series
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


def test_changes_of_slices_are_seen_beside_other_files(tmp_path):
    """In a study with a DICOMDIR, the slices are in sub-folders; results next to a series are none of its files."""
    write_series(tmp_path / "PAT/CT", np.zeros((4, 3, 5)), name="IM")
    for name in ("DICOMDIR", "README.txt", ".DS_Store", "out/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    slices = [str(tmp_path / f"PAT/CT/IM{k}") for k in range(5)]
    assert files_of(tmp_path) == slices
    before = state_of(tmp_path)
    os.utime(slices[2], ns=(1, before[-1] + 1))
    assert state_of(tmp_path) != before
    (tmp_path / "PAT/CT/out").mkdir()
    (tmp_path / "PAT/CT/out/a.nii").touch()
    assert files_of(tmp_path / "PAT/CT") == slices
    assert files_of(tmp_path / "out") == [str(tmp_path / "out/a.json")]


def test_results_in_a_folder_that_is_named_like_a_file(folder):
    assert output_suffix(folder / "results.zarr/a.OME.TIF") == ".ome.tif"
    assert output_suffix(Path("results.h5") / "a.nii.gz") == ".nii.gz"
