"""What a densification can be asked for, and what is refused."""

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.densify.options import Options
from sparse3dunet.errors import DataError
from tests.densify.test_run import SMALL, densify, write_scan


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "some"], "--folds is 'some'"),
        (["--spacing", "2"], "--spacing is '2'"),
        (["--learning_rat", "1"], "there is no such setting"),
        (["--walker", "$1"], "expected a plain value"),
    ],
)
def test_options_that_are_none(tmp_path, error_of, options, words):
    scan, annotation, _ = write_scan(tmp_path)
    assert words in error_of("densify", scan, annotation, "-o", tmp_path / "out", *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "-1"], "minutes must be a number of at least 0.001"),
        (["--minutes", "1e-9"], "minutes must be a number of at least 0.001"),
        (["--ignore-index", "7"], "annotation.nii.gz: every voxel counts as annotated (the classes are 0, 1, 2, 255)"),
        (["--background", "9"], "annotation.nii.gz: no voxel of any case is labelled background (value 9)"),
        (["--class-names", "a,b"], "class"),
        (["--segments", "liver"], "--segments names liver, but the file names no segments"),
        (["--class-names", "background,,core"], "none of them blank"),
    ],
)
def test_bad_options(tmp_path, options, words):
    """Told in one line, before anything is trained or written."""
    scan, annotation, _ = write_scan(tmp_path)
    result = densify(scan, annotation, "-o", tmp_path / "out", *SMALL, *options)
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").glob("*_seg*"))


@pytest.mark.parametrize(
    "options",
    [
        {"minutes": 0},
        {"minutes": 5, "format": "png"},
        {"minutes": 5, "suggestions": -1},
        {"minutes": 5, "seed": -1},
        {"minutes": 5, "seed": 2**32},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(DataError, match=r"expected one of|must be a (whole )?number"):
        Options("out", **options)


def test_an_error_names_the_annotation_as_it_was_given(tmp_path, error_of):
    """Not the file that is made of it on the scan's grid, which is gone afterwards."""
    scan, annotation, _ = write_scan(tmp_path)
    image = nib.load(annotation)
    values = np.asarray(image.dataobj).astype(np.int32)
    values = np.select([values == 255, values == 0], [0, 40000], values).astype(np.int32)
    turned = nib.Nifti1Image(values, image.affine).as_reoriented(np.array([[1, 1], [0, -1], [2, 1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    options = ("-o", tmp_path / "out", "--ignore-index", 0, "--background", 40000)
    message = error_of("densify", scan, tmp_path / "turned.nii.gz", *options)
    assert f"{tmp_path / 'turned.nii.gz'}: the class value 40000 is out of range" in message
    assert "inputs" not in message
