"""Densifier and show, as notebooks use them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor

import sparse3dunet
from sparse3dunet.errors import DataError
from tests.conftest import UNLABELED, bundle_environment, make_volume, write_nifti


@pytest.fixture(scope="module")
def fitted():
    image, dense, sparse = make_volume(0)
    return image, dense, sparse, sparse3dunet.Densifier(ignore_index=UNLABELED).fit(image, sparse, spacing=(2, 2, 2))


def test_preview_of_arrays(fitted):
    _, dense, sparse, densifier = fitted
    found, prob = densifier.segmentation(), densifier.predict_proba()
    assert densifier.classes_.tolist() == [0, 1, 2]
    assert prob.shape == (3, *dense.shape)
    assert np.allclose(prob.sum(0), 1, atol=1e-3)
    assert (found == dense).mean() > 0.9
    known = sparse != UNLABELED
    assert np.array_equal(found[known], dense[known])


def test_paths_channels_and_other_values_give_the_same(fitted, tmp_path):
    image, _, sparse, densifier = fitted
    values = np.array([7, 10, 20, 255], np.uint8)[sparse]
    paths = write_nifti(tmp_path / "a.nii.gz", image), write_nifti(tmp_path / "b.nii.gz", values)
    expected = np.array([7, 10, 20])[densifier.segmentation()]
    assert np.array_equal(sparse3dunet.Densifier().fit_predict(*paths), expected)
    two = sparse3dunet.Densifier().fit(np.stack([image, image]), values, affine=np.diag([2, 2, 2, 1]))
    assert (two.segmentation() == expected).mean() > 0.97


def test_a_label_stored_flipped_is_not_taken_by_its_indices(fitted, tmp_path):
    image, _, sparse, _ = fitted
    flipped = np.diag([-2.0, 2, 2, 1])
    flipped[0, 3] = 2 * (len(image) - 1)
    paths = (
        write_nifti(tmp_path / "a.nii.gz", image, np.diag([2.0, 2, 2, 1])),
        write_nifti(tmp_path / "b.nii.gz", sparse[::-1], flipped),
    )
    with pytest.raises(DataError, match=r"b\.nii\.gz: .*its axes run along LAS, the image's along RAS"):
        sparse3dunet.Densifier(ignore_index=UNLABELED).fit(*paths)


def test_a_number_of_numpy_as_ignore_index(fitted):
    image, _, sparse, _ = fitted
    number = np.int64(UNLABELED)
    with pytest.raises(DataError, match=rf"besides \[{UNLABELED}\] for unlabeled"):
        sparse3dunet.Densifier(ignore_index=number).fit(image, np.where(sparse == UNLABELED, sparse, 0))
    assert isinstance(sparse3dunet.show(image, sparse, ignore_index=number), Figure)


def test_classes_of_large_values_stay_apart(fitted):
    """As those of atlases, beyond the whole numbers of 32-bit floats."""
    image, _, sparse, _ = fitted
    label = np.array([0, 312782546, 312782550, 255])[sparse]
    found = sparse3dunet.Densifier().fit(image, label)
    assert found.classes_.tolist() == [0, 312782546, 312782550]
    assert np.array_equal(found.segmentation()[label != 255], label[label != 255])


def test_the_affine_of_a_metatensor_is_used(fitted):
    image, _, sparse, densifier = fitted
    affine, flipped = np.diag([1.0, 1, 8, 1]), np.diag([-1.0, 1, 8, 1])
    scan = MetaTensor(torch.as_tensor(image)[None], affine=torch.as_tensor(affine))
    given = sparse3dunet.Densifier(ignore_index=UNLABELED).fit(image, sparse, affine=affine)
    for label in (MetaTensor(sparse), MetaTensor(sparse, affine=torch.as_tensor(affine))):
        found = sparse3dunet.Densifier(ignore_index=UNLABELED).fit(scan, label)
        assert np.array_equal(found.predict_proba(), given.predict_proba())
    with pytest.raises(DataError, match="label: its position in space differs"):
        densifier.fit(scan, MetaTensor(sparse, affine=torch.as_tensor(flipped)))
    for wrong, text in ((np.eye(3), r"expected \(4, 4\)"), (np.zeros((4, 4)), "degenerate")):
        with pytest.raises(DataError, match=text):
            densifier.fit(image, sparse, affine=wrong)


def test_bad_arguments(fitted):
    image, _, sparse, _ = fitted
    densifier = sparse3dunet.Densifier(ignore_index=UNLABELED)
    for arguments, text in (
        ((image, sparse[1:]), "expected the same"),
        ((image[0], sparse), r"expected \(X, Y, Z\) or \(C, X, Y, Z\)"),
        ((image, sparse * 0), "at least two"),
        ((image, sparse, (1, 1)), "three sizes"),
    ):
        with pytest.raises(DataError, match=text):
            densifier.fit(*arguments)
    with pytest.raises(DataError, match="ignore_index must be a whole number"):
        sparse3dunet.Densifier(ignore_index=255.7).fit(image, sparse)
    for minutes in (-1, np.nan, "2"):
        with pytest.raises(DataError, match="minutes must be a number at least 0"):
            sparse3dunet.Densifier(minutes).fit(image, sparse)
    for value, text in ((np.nan, r"value nan; .*replace it by a value"), (0.7, r"value 0\.7; .*nearest neighbours")):
        with pytest.raises(DataError, match=f"label has the {text}"):
            densifier.fit(image, np.where(sparse == 1, value, sparse))
    with pytest.raises(DataError, match="every voxel counts as annotated"):
        sparse3dunet.Densifier(1).fit(image, sparse)  # in which 255 is nowhere
    with pytest.raises(DataError, match="not fitted"):
        densifier.segmentation()


def test_importing_the_package_imports_nothing_large():
    program = (
        "import sys, sparse3dunet; print([n for n in ('torch', 'monai', 'numpy', 'matplotlib') if n in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=bundle_environment(), capture_output=True, text=True, timeout=500)
    assert result.stdout == "[]\n", result.stderr


def test_show_draws_what_is_given(fitted, tmp_path):
    image, dense, sparse, densifier = fitted
    figure = sparse3dunet.show(
        image, sparse, densifier.segmentation(), ignore_index=UNLABELED, class_names=["a", "b", "c"]
    )
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image", "annotation", "prediction", "error"]
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    wrong = sparse3dunet.show(image, pred=1 - (dense > 0), reference=dense, slices=(3, 4, 5))
    names = [text.get_text() for ax in wrong.axes for text in ax.texts]
    assert names == ["axial 5", "coronal 4", "sagittal 3"]
    for arguments in ((image,), (image, sparse[1:])):
        with pytest.raises(DataError):
            sparse3dunet.show(*arguments)


@pytest.mark.slow
def test_minutes_run_the_whole_of_densify(fitted, tmp_path):
    image, dense, sparse, _ = fitted
    densifier = sparse3dunet.Densifier(0.2, UNLABELED, folder=tmp_path / "out").fit(image, sparse, spacing=(2, 2, 2))
    assert (densifier.segmentation() == dense).mean() > 0.9
    assert densifier.predict_proba().shape == (3, *dense.shape)
    assert (densifier.predict_proba().argmax(0) == densifier.segmentation()).mean() > 0.95
    assert (tmp_path / "out/report.html").is_file()
