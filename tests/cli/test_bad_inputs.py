"""Bad files: each ends in one message that names the file, what was found, what was expected, and the cure."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import make_dataset, run_sparse3dunet, write_nifti
from tests.data.test_checks import change, put, shift, zero_spacing

IMAGE, LABEL, REFERENCE, WEIGHT = (
    f"{folder}/case_1.nii.gz" for folder in ("imagesTr", "labelsTr", "labelsDense", "weights")
)
RGB = [(c, "u1") for c in "RGB"]


def changed(function):
    """A fault: the voxels as `function` makes them."""
    return lambda path: change(path, function)


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def cut_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000]))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def written(content):
    return lambda path: path.write_bytes(content)


def folder_instead(path):
    path.unlink()
    path.mkdir()


def dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere.nii.gz")


def nan_affine(path):
    image = nib.load(path)
    image.header.set_sform(np.diag([2, 2, np.nan, 1]), code=1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def flip(path):
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj), image.affine @ np.diag([-1, 1, 1, 1]))


def no_length(path):
    """A header whose second axis has length 0."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[44:46] = (0).to_bytes(2, "little")
    path.write_bytes(gzip.compress(bytes(content)))


def huge_value(path):
    image = nib.load(path)
    array = put(2**40)(np.asarray(image.dataobj).astype(np.int64))
    nib.save(nib.Nifti1Image(array, image.affine, dtype=np.int64), path)


def blurred(label):
    return label.astype(np.float32) * np.float32(0.99)


WHOLE_FILE = ("cannot be read", "expected a whole NIfTI file", "export it again")
ONE_VOLUME = ("expected a three-dimensional volume", "Export the whole stack")
COLOURS = ("colours", "expected one number per voxel", "Export it as numbers")
FINITE = ("1 of 8640 voxels are NaN or infinite", "expected numbers", "Replace them")
KNOWN = ("neither a class (0 ... 2) nor unlabeled", "ignore_index")
ROUND = ("neither a class (0 ... 2) nor unlabeled", "labels must be whole numbers", "Round")
ON_GRID = ("(24, 20, 18)", "same grid", "resample this one to the image")
IN_PLACE = ("position in space", "expected at most 0.1", "Copy the image's header")
AFFINE = ("affine is degenerate", "expected three independent axes", "Set the voxel size in the header")
NUMBERS = ("the weight image ", "expected numbers of at least 0, where 0 means unlabeled", "Correct")
NO_FILE = ("does not exist", "Put the file there")

FILES = {  # the file that is spoiled and that the message names, the fault, and words for found, expected and cure
    "truncated image": (IMAGE, cut(5000), "EOFError", *WHOLE_FILE),
    "truncated label": (LABEL, cut(200), "EOFError", *WHOLE_FILE),
    "truncated reference": (REFERENCE, cut(200), "EOFError", *WHOLE_FILE),
    "truncated weight image": (WEIGHT, cut(60), *WHOLE_FILE),
    "truncated before it was compressed": (IMAGE, cut_inside, "OSError: Expected 34560 bytes, got 4648", *WHOLE_FILE),
    "one bit wrong": (IMAGE, flip_a_bit, "CRC check failed", *WHOLE_FILE),
    "empty image": (IMAGE, written(b""), "the file is empty", *WHOLE_FILE),
    "empty label": (LABEL, written(b""), "the file is empty", *WHOLE_FILE),
    "garbage, compressed": (IMAGE, written(gzip.compress(b"not a volume" * 99)), "sizeof_hdr is", "export it again"),
    "garbage": (LABEL, written(b"not a volume" * 99), "Not a gzipped file", *WHOLE_FILE),
    "a folder named like an image": (IMAGE, folder_instead, "is a folder", "expected an image file", "Put the file"),
    "a folder named like a label": (LABEL, folder_instead, "is a folder", "expected an image file", "Put the file"),
    "dangling link": (IMAGE, dangling_link, "is a link to nowhere.nii.gz", *NO_FILE),
    "missing image": (IMAGE, lambda p: p.unlink(), "image of training case 1", *NO_FILE),
    "missing label": (LABEL, lambda p: p.unlink(), "label of training case 1", *NO_FILE),
    "missing reference": (REFERENCE, lambda p: p.unlink(), "reference of training case 1", *NO_FILE),
    "missing weight image": (WEIGHT, lambda p: p.unlink(), "weight of training case 1", *NO_FILE),
    "series over time": (
        IMAGE,
        changed(lambda a: np.stack([a] * 5, -1)),
        *("found shape (24, 20, 18, 5)", "expected a 3D image with 1 channel", "split into volumes"),
    ),
    "5D image": (IMAGE, changed(lambda a: np.stack([a] * 2, -1)[..., None, :]), "(24, 20, 18, 1, 2)", *ONE_VOLUME),
    "2D image": (IMAGE, changed(lambda a: a[0]), "found shape (20, 18)", *ONE_VOLUME),
    "2D label": (LABEL, changed(lambda a: a[0]), "found shape (20, 18)", *ONE_VOLUME),
    "an axis of length 0": (IMAGE, no_length, "found shape (0,)", *ONE_VOLUME),
    "RGB image": (IMAGE, changed(lambda a: np.zeros(a.shape, RGB)), *COLOURS),
    "RGB label": (LABEL, changed(lambda a: np.zeros(a.shape, RGB)), *COLOURS),
    "complex image": (IMAGE, changed(lambda a: a * 1j), "complex", "expected one real number", "Export the magnitude"),
    "complex label": (LABEL, changed(lambda a: a * 1j), "complex", "expected one real number", "Export the magnitude"),
    "zero spacing of an image": (IMAGE, zero_spacing, "[0.0, 0.0, 0.0, 0.0]", *AFFINE),
    "zero spacing of a label": (LABEL, zero_spacing, "[0.0, 0.0, 0.0, 0.0]", *AFFINE),
    "NaN in an image's affine": (IMAGE, nan_affine, "nan", *AFFINE),
    "NaN in a label's affine": (LABEL, nan_affine, "nan", *AFFINE),
    "NaN in an image": (IMAGE, changed(put(np.nan)), *FINITE),
    "infinity in an image": (IMAGE, changed(put(np.inf)), *FINITE),
    "too large for 32 bits": (IMAGE, changed(lambda a: put(1e300)(a.astype(np.float64))), "32-bit floats", "1e+300"),
    "label of another shape": (LABEL, changed(lambda a: a[1:]), "(23, 20, 18)", *ON_GRID),
    "label with axes in another order": (LABEL, changed(lambda a: a.transpose(2, 1, 0)), "(18, 20, 24)", *ON_GRID),
    "label with channels": (LABEL, changed(lambda a: np.stack([a, a], -1)), "(24, 20, 18, 2)", *ON_GRID),
    "weight image of another shape": (WEIGHT, changed(lambda a: a[:, 1:]), "(24, 19, 18)", *ON_GRID),
    "reference of another shape": (REFERENCE, changed(lambda a: a[:, 1:]), "(24, 19, 18)", *ON_GRID),
    "shifted label": (LABEL, lambda p: shift(p, 1), "up to 1.0 voxels", *IN_PLACE),
    "shifted weight image": (WEIGHT, lambda p: shift(p, 0.2), "up to 0.2 voxels", *IN_PLACE),
    "shifted reference": (REFERENCE, lambda p: shift(p, -3), "up to 3.0 voxels", *IN_PLACE),
    "flipped label": (LABEL, flip, "up to 46.0 voxels", *IN_PLACE),
    "float labels": (LABEL, changed(lambda a: a * np.float32(0.9)), "label value 0.9, 1.8", *ROUND),
    "float labels, not whole": (LABEL, changed(blurred), "label value 0.99", "1.98", *ROUND),
    "NaN in a label": (
        LABEL,
        changed(lambda a: put(np.nan)(a.astype(np.float32))),
        *("1 voxel(s) are NaN", "labels must be whole numbers", "--ignore-index"),
    ),
    "infinity in a label": (LABEL, changed(lambda a: put(np.inf)(a.astype(np.float32))), "label value inf", *ROUND),
    "unknown label value": (LABEL, changed(put(7)), "label value 7 ", *KNOWN),
    "negative label value": (LABEL, changed(lambda a: put(-1)(a.astype(np.int16))), "label value -1 ", *KNOWN),
    "huge label value": (LABEL, huge_value, "label value 1099511627776 ", *KNOWN),
    "the image as label": (
        LABEL,
        lambda p: shutil.copy(p.parents[1] / IMAGE, p),
        *("label value -", "labels must be whole numbers", "an image"),
    ),
    "all unlabeled": (
        LABEL,
        changed(lambda a: a * 0 + 3),
        *("no voxel is annotated", "ignore_index: 3", "Annotate at least one slice"),
    ),
    "unlabeled voxels in a reference": (
        REFERENCE,
        changed(put(3)),
        *("label value 3 in 1 of 8640 voxels is not a class", "expected a dense label", "leave it out"),
    ),
    "negative weight": (WEIGHT, changed(put(-1)), "negative", *NUMBERS),
    "NaN in a weight image": (WEIGHT, changed(put(np.nan)), "NaN", *NUMBERS),
    "weight image of 0": (WEIGHT, changed(lambda a: a * 0), "0 everywhere", *NUMBERS),
    "weights on unlabeled voxels alone": (
        WEIGHT,
        lambda p: change(p, lambda a: np.asarray(nib.load(p.parents[1] / LABEL).dataobj) // 3),
        *("labelsTr/case_1.nii.gz: no voxel is annotated", "or have weight 0 in", "Annotate at least one slice"),
    ),
}


@pytest.fixture
def data(tmp_path):
    """Two cases with everything that a case may have."""
    root = make_dataset(tmp_path / "data", 2)
    for path in sorted((root / "labelsTr").iterdir()):
        write_nifti(root / "weights" / path.name, np.ones((24, 20, 18), np.float32))
    return root


@pytest.mark.parametrize("fault", FILES)
def test_bad_file(data, error_of, fault):
    file, spoil, *words = FILES[fault]
    spoil(data / file)
    message = error_of("check", data, "--weight-dir", "weights")
    assert str(data / file) in message, message
    assert all(word in message for word in words), message


OTHERS = {
    "JSON cut short": lambda root: (root / "dataset.json").write_text('{"training": ['),
    "image cut short": lambda root: cut(5000)(root / IMAGE),
    "label with another value": lambda root: change(root / LABEL, put(7)),
    "as JSON": lambda root: change(root / LABEL, put(7)),
}


SLOW = ("image cut short", "label with another value")


@pytest.mark.parametrize("fault", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in OTHERS])
def test_exit_status(data, fault):
    """In a process of its own: status 1, one error, no traceback and nothing else on standard error."""
    OTHERS[fault](data)
    options = ["--json"] if fault == "as JSON" else []
    result = run_sparse3dunet("check", data, *options, real=fault in list(OTHERS)[:2])
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    if options:
        (message,) = json.loads(result.stdout)["errors"]
        assert str(data / LABEL) in message
    else:
        (message,) = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("error: ")]
        assert str(data) in message
    assert result.stderr in ("", message + "\n")
