"""An image whose voxels are of another order of magnitude than the model's is refused or told: its unit is wrong."""

import numpy as np
import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.inference.predictor import Grid
from sparse3dunet.inference.scale import scale_note
from sparse3dunet.io.volumes import Volume
from tests.conftest import make_dataset, make_volume, run_sparse3dunet, run_training, write_nifti


def image(size, shape=(40, 30, 20)):
    return Volume("scan.nii.gz", np.zeros(shape, np.float32), np.diag([*np.broadcast_to(size, 3), 1.0]))


@pytest.mark.parametrize(
    ("size", "shape", "words"),
    [
        (0.002, (40, 30, 20), "0.002 x 0.002 x 0.002 mm, are 1e[+]03 times smaller"),
        (2000, (40, 30, 20), "2000 x 2000 x 2000 mm, are 1e[+]03 times larger"),
        ((0.001, 0.001, 2), (2000, 2000, 20), "are 159 times smaller"),
        (0.1, (5, 5, 5), "are 20 times smaller"),
    ],
)
def test_other_orders_of_magnitude_are_refused(size, shape, words):
    volume = Volume("scan.nii.gz", np.broadcast_to(np.float32(0), shape), image(size).affine)
    with pytest.raises(DataError, match=rf"scan\.nii\.gz: its voxels, .*{words} .* 2 x 2 x 2 mm; .*--voxel-size"):
        Grid.of(volume, (2, 2, 2))
    Grid.of(volume, None)


@pytest.mark.parametrize(("size", "told"), [(2, False), (0.3, False), ((0.5, 0.5, 5), False), (0.2, True), (20, True)])
def test_suspicious_sizes_are_told(size, told):
    volume = image(size)
    assert bool(scale_note(volume, (2, 2, 2))) == told
    assert scale_note(volume, None) == ""
    Grid.of(volume, (2, 2, 2))


def test_a_batch_goes_on(tmp_path):
    """With the other images, and without a file of the one that is refused."""
    trained = run_training(make_dataset(tmp_path / "data"), tmp_path / "run", "--spacing", "[2, 2, 2]")
    assert trained.returncode == 0, trained.stderr
    for number, factor in enumerate((1, 10, 1000)):
        data = make_volume(number, (20, 22, 18))[0]
        write_nifti(tmp_path / "in" / f"case_{number}.nii.gz", data, np.diag([*[2.0 * factor] * 3, 1.0]))
    result = run_sparse3dunet("predict", tmp_path / "run/models", tmp_path / "in", "-o", tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("error: 1 of 3 volume(s) failed"), result.stderr
    assert "1e+03 times larger" in result.stderr
    assert "case_1.nii.gz: its voxels" in result.stdout.replace("\n", " ")
    assert {file.name for file in (tmp_path / "out").glob("*.nii.gz")} == {"case_0_seg.nii.gz", "case_1_seg.nii.gz"}
