"""Scans of other formats than NIfTI in the page: what is drawn lies where it was drawn."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.io import read_image
from tests.annotate.client import Client, opened
from tests.conftest import write_nifti
from tests.io.dicom_files import PLANES, write_series
from tests.io.microscopy import voxels, write

LABEL, INDEX = 2, 3


def draw(client: Client) -> tuple[np.ndarray, np.ndarray]:
    """Draw class 1 on an axial slice; return what is drawn, and the first channel as the page gets it, in RAS order."""
    shape = client.state()["scan"]["shape"]
    drawn = np.zeros(shape[:2], np.uint8)
    drawn[1:3, 2] = LABEL
    assert client.paint(2, INDEX, drawn).status_code == 200
    return drawn, np.asarray(nib.Nifti1Image.from_bytes(client.get("api/scan.nii").content).dataobj)


def exported(client: Client, source: Path) -> tuple[Path, np.ndarray]:
    """Return the file that is exported, and its voxels in the order of the page."""
    path = Path(client.post("api/export").json()["path"])
    written, scan = read_image(path), read_image(source)
    assert written.data.shape == scan.spatial_shape
    return path, nib.apply_orientation(written.data, nib.io_orientation(scan.affine))


@pytest.mark.parametrize("plane", PLANES)
def test_dicom_series(tmp_path, plane):
    """On the grid of the series, whatever its direction; nothing of the patient in the name."""
    folder = tmp_path / "ct"
    write_series(folder, voxels((6, 7, 8), np.int16, 900), plane)
    client = Client(opened(folder, tmp_path / "out"))
    drawn, shown = draw(client)
    scan = read_image(folder)
    np.testing.assert_array_equal(shown, nib.apply_orientation(scan.data, nib.io_orientation(scan.affine)))
    path, found = exported(client, folder)
    assert path.name == "ct_annotation.nii.gz"
    np.testing.assert_allclose(read_image(path).affine, scan.affine, atol=1e-4)
    np.testing.assert_array_equal(found[:, :, INDEX], np.where(drawn > 0, 1, 255))
    assert (np.delete(found, INDEX, axis=2) == 255).all()


@pytest.mark.parametrize("name", ["ome.ome.tif", "ngff05.ome.zarr", "ilastik.h5"])
def test_channels_of_microscopy(tmp_path, name):
    """Each is shown by itself; the annotation is one for all."""
    array = voxels((6, 7, 8, 2), np.uint8, 200)
    source = write(tmp_path / name, array)
    client = Client(opened(source, tmp_path / "out"))
    assert client.state()["scan"]["channels"] == 2
    drawn, first = draw(client)
    second = np.asarray(nib.Nifti1Image.from_bytes(client.get("api/scan.nii", channel=1).content).dataobj)
    scan = read_image(source)
    for channel, shown in enumerate((first, second)):
        turned = nib.apply_orientation(array[..., channel], nib.io_orientation(scan.affine))
        np.testing.assert_array_equal(shown, turned)
    _, found = exported(client, source)
    np.testing.assert_array_equal(found[:, :, INDEX], np.where(drawn > 0, 1, 255))


def test_a_scan_larger_than_memory_is_refused(tmp_path, error_of, monkeypatch):
    monkeypatch.setenv("SPARSE3DUNET_VOLUME_MEMORY", "0")
    source = write(tmp_path / "ngff04.ome.zarr", voxels((6, 7, 8)))
    message = error_of("annotate", source, "-o", tmp_path / "out")
    assert "ngff04.ome.zarr: 6 x 7 x 8 voxels are too many for the memory" in message
    assert "the page shows whole scans" in message


def test_bad_references(tmp_path, error_of):
    """Told at once, not by the first run."""
    scan = write(tmp_path / "ome.ome.tif", voxels((6, 7, 8)))
    command = ("annotate", scan, "-o", tmp_path / "out", "--reference")
    assert "missing.nii.gz does not exist" in error_of(*command, tmp_path / "missing.nii.gz")
    assert "not named segments" in error_of(*command, tmp_path / "a.seg.nrrd")


def test_bad_scans(error_of, tmp_path):
    assert "does not exist" in error_of("annotate", tmp_path / "none.nii.gz", "-o", tmp_path / "out")
    flat = write_nifti(tmp_path / "flat.nii.gz", np.zeros((5, 5, 1), np.float32))
    assert "two slices or more" in error_of("annotate", flat, "-o", tmp_path / "out")
    assert not (tmp_path / "out" / "work" / "annotate" / "session.json").exists()
