"""Inference: equal to MONAI's, and results on each input's own grid."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inferers import AutocastInferer
from sparse3dunet.networks import UNet3D
from tests.conftest import ROOT, make_volume, run_bundle, write_nifti

INFERENCE = ("run", "inference", "--config_file", ROOT / "bundle/configs/inference.yaml")


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((8, 8, 8), 2, 0.5, mode="gaussian")])
def test_autocast(inferer):
    torch.manual_seed(0)
    network = UNet3D(1, 3, channels=(4, 8), norm="instance", padding="same").eval()
    x = torch.randn(1, 1, 16, 12, 8)
    with torch.no_grad():
        expected = inferer(x, network)
        assert torch.equal(AutocastInferer(inferer, enabled=False)(x, network), expected)
        rounded = AutocastInferer(inferer, enabled=True)(x, network)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, expected)
    torch.testing.assert_close(rounded, expected, rtol=0.1, atol=0.05)


def test_autocast_trains_float32_weights():
    network = UNet3D(1, 2, channels=(4, 8), norm="instance", padding="same")
    AutocastInferer(SimpleInferer(), enabled=True)(torch.randn(1, 1, 8, 8, 8), network).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_valid_convolutions_are_refused_by_sliding_windows():
    network = UNet3D(1, 2, channels=(4, 8)).eval()
    inferer = AutocastInferer(SlidingWindowInferer((20, 20, 20)))
    with torch.no_grad(), pytest.raises(DataError, match="use SlabInferer"):
        inferer(torch.rand(1, 1, 40, 40, 40), network)


def oblique() -> np.ndarray:
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, 0.7, 3.0])
    affine[:3, 3] = [12.5, -40.25, 7]
    return affine


def permuted() -> np.ndarray:
    """Axes stored as superior, left, anterior."""
    return np.array([[0, -2.0, 0, 5], [0, 0, 1.0, -3], [1.5, 0, 0, 9], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory):
    """One volume stored on several grids, and what inference made of each."""
    root = tmp_path_factory.mktemp("predict")
    image, *_ = make_volume(0)
    grids = {"straight": np.diag([2.0, 2, 2, 1]), "oblique": oblique(), "permuted": permuted()}
    for name, affine in grids.items():
        write_nifti(root / "images" / f"{name}.nii.gz", image, affine)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(image, permuted()))
    nib.save(canonical, root / "images" / "canonical.nii.gz")
    places = ("--dataset_dir", root / "images", "--output_dir", root / "out")
    result = run_bundle(*INFERENCE, *places, "--model_file", trained / "models/model.pt")
    assert result.returncode == 0, result.stderr
    assert f"Segmented 4 volume(s): {root / 'out'}" in result.stdout
    return root


def test_results_lie_on_the_inputs_grid(predicted):
    names = {path.name for path in (predicted / "out").glob("*.nii.gz")}
    assert names == {f"{name}_seg.nii.gz" for name in ("straight", "oblique", "permuted", "canonical")}
    for name in names:
        source = nib.load(predicted / "images" / name.replace("_seg", ""))
        segmentation = nib.load(predicted / "out" / name)
        assert segmentation.shape == source.shape
        assert np.abs(segmentation.affine - source.affine).max() < 1e-5
        assert segmentation.get_data_dtype() == np.uint8
        assert set(np.unique(segmentation.dataobj)) <= {0, 1, 2}


def test_the_order_of_axes_on_disk_does_not_matter(predicted):
    """The same volume, once stored with permuted and flipped axes, gets the same segmentation."""
    permuted_result = nib.as_closest_canonical(nib.load(predicted / "out/permuted_seg.nii.gz"))
    canonical_result = nib.load(predicted / "out/canonical_seg.nii.gz")
    assert np.array_equal(permuted_result.dataobj, canonical_result.dataobj)
    assert len(np.unique(canonical_result.dataobj)) > 1


def test_pictures_are_made(predicted):
    pictures = {path.name for path in (predicted / "out/pictures").iterdir()}
    assert pictures == {f"{name}.png" for name in ("straight", "oblique", "permuted", "canonical")}


def test_faults_are_told_in_one_line(trained, tmp_path):
    image, *_ = make_volume(0)
    image[3, 3, 3] = np.nan
    bad = write_nifti(tmp_path / "images" / "bad.nii.gz", image)
    model = ("--model_file", trained / "models/model.pt")
    for arguments, words in [
        (("--dataset_dir", bad.parent, *model), ["1 of 1 volume(s) failed", str(bad), "NaN"]),
        (("--dataset_dir", tmp_path / "nowhere", *model), ["nowhere", "does not exist"]),
        (("--dataset_dir", trained / "dataset/imagesTr", "--model_file", tmp_path / "no.pt"), ["no trained model"]),
        (("--dataset_dir", bad.parent, *model, "--output_dir", bad.parent), ["is also the folder of the images"]),
    ]:
        result = run_bundle(*INFERENCE, "--output_dir", tmp_path / "out", *arguments)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert all(word in last for word in words), last
    assert not list((tmp_path / "out").glob("*.nii.gz"))
