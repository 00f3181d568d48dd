"""What a densification can be asked for, and what is refused."""

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
        (["--minutes", "-1"], "minutes must be a number above 0"),
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
