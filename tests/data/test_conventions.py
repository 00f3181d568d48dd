"""One annotation, written in each of the conventions that people use, is the same label and weight, bit for bit."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from sparse3dunet.data.checks import check_data, complete, inspect
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.transforms import KeepScribbles
from tests.conftest import ROOT, make_volume, write_nifti

HIPPOCAMPUS = ROOT.parent / "shared" / "hippocampus"
AFFINES = {
    "RAS": np.diag([2.0, 2.0, 2.0, 1.0]),
    "sagittal stack": np.array([[0, 0, 3.0, 5], [-1, 0, 0, 7], [0, 2, 0, -9], [0, 0, 0, 1]]),
    "oblique": np.array([[1.0, 0.3, 0, 0], [-0.3, 1.0, 0.1, 0], [0, -0.1, -1.2, 0], [0, 0, 0, 1]]),
}
PLANES_BY_AXIS = {
    "RAS": ("sagittal", "coronal", "axial"),
    "sagittal stack": ("coronal", "axial", "sagittal"),
    "oblique": ("sagittal", "coronal", "axial"),
}


class Annotation:
    """A dense label, where it is annotated, and on which slices."""

    def __init__(self, image, dense, annotated, slices, affine, planes):
        self.image, self.dense, self.annotated = image, dense, annotated
        self.slices, self.affine, self.planes = slices, affine, planes

    def as_ras(self, array: np.ndarray) -> np.ndarray:
        image = nib.Nifti1Image(array.astype(np.float32), self.affine)
        return np.asarray(nib.as_closest_canonical(image).dataobj).astype(array.dtype)

    def write(self, folder: Path, label, case=None, weight=None, **declared) -> Path:
        """A Decathlon folder of one case; `case` and `declared` go to the case and to the top of dataset.json."""
        write_nifti(folder / "imagesTr/a.nii.gz", self.image, self.affine)
        write_nifti(folder / "labelsTr/a.nii.gz", label, self.affine)
        entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", **(case or {})}
        if weight is not None:
            write_nifti(folder / "weights/a.nii.gz", weight, self.affine)
            entry["weight"] = "weights/a.nii.gz"
        labels = {"0": "background", "1": "shell", "2": "core"}
        description = {"modality": {"0": "MRI"}, "labels": labels, "training": [entry], **declared}
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder


@pytest.fixture(params=AFFINES)
def annotation(request):
    image, dense, sparse = make_volume(3)
    slices = [[n // 2] for n in dense.shape]
    return Annotation(image, dense, sparse != 3, slices, AFFINES[request.param], PLANES_BY_AXIS[request.param])


def read(source: Path, **options):
    """Label and weight as training and validation read them."""
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle/configs/train.yaml"))
    parser.update({"dataset_dir": str(source), **options})
    parser["steps"] = {"_target_": "Compose", "transforms": "$@read"}
    (case,) = parser.get_parsed_content("data_set").cases
    data = parser.get_parsed_content("steps")(case)
    assert set(data) <= {"image", "label", "weight", "reference"}
    return data["label"], data["weight"]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.as_tensor(), other.as_tensor())
        assert torch.equal(one.affine, other.affine)


def in_255_and_4(a):
    label = np.where(a.annotated, a.dense, 255).astype(np.uint8)
    label[:, ::2][label[:, ::2] == 255] = 4
    return label


def of_values(a, values):
    return np.choose(a.dense, values)


JUNK = np.uint8(77)
CONVENTIONS = {
    "another value": lambda a, d: a.write(d, np.where(a.annotated, a.dense, 255).astype(np.uint8), ignore_index=255),
    "negative": lambda a, d: a.write(d, np.where(a.annotated, a.dense.astype(np.int16), -1), ignore_index=-1),
    "several values": lambda a, d: a.write(d, in_255_and_4(a), ignore_index=[4, 255]),
    "nnU-Net's ignore label": lambda a, d: a.write(
        d,
        np.where(a.annotated, a.dense, 3).astype(np.uint8),
        labels={"background": 0, "shell": 1, "core": 2, "ignore": 3},
    ),
    "float labels": lambda a, d: a.write(d, np.where(a.annotated, a.dense, 3).astype(np.float64)),
    "classes 0, 100, 200": lambda a, d: a.write(
        d,
        np.where(a.annotated, of_values(a, [0, 100, 200]), 255).astype(np.uint8),
        labels={"0": "background", "100": "shell", "200": "core"},
        ignore_index=255,
    ),
    "the paper's order, background 2": lambda a, d: a.write(
        d,
        np.where(a.annotated, of_values(a, [2, 0, 1]), 3).astype(np.uint8),
        labels={"0": "shell", "1": "core", "2": "background"},
    ),
    "slices by plane": lambda a, d: a.write(
        d, a.dense * a.annotated, {"annotated_slices": dict(zip(a.planes, a.slices))}
    ),
    "slices by axis": lambda a, d: a.write(
        d, a.dense * a.annotated, {"annotated_slices": {str(axis): s for axis, s in enumerate(a.slices)}}
    ),
    "slices as lists": lambda a, d: a.write(d, a.dense * a.annotated, {"annotated_slices": a.slices}),
    "slices of all cases": lambda a, d: a.write(d, a.dense * a.annotated, annotated_slices=a.slices),
    "slices of a dense label": lambda a, d: a.write(d, a.dense, {"annotated_slices": a.slices}),
    "slices found": lambda a, d: a.write(d, a.dense * a.annotated, annotated_slices="all"),
    "mask image": lambda a, d: a.write(d, a.dense, weight=a.annotated.astype(np.uint8)),
    "mask image, junk elsewhere": lambda a, d: a.write(
        d, np.where(a.annotated, a.dense, JUNK).astype(np.uint8), weight=a.annotated.astype(np.float32)
    ),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_convention_is_the_same(annotation, tmp_path, convention):
    expected = read(
        annotation.write(tmp_path / "a", np.where(annotation.annotated, annotation.dense, 3).astype(np.uint8))
    )
    assert np.array_equal(expected[1][0].numpy() > 0, annotation.as_ras(annotation.annotated))
    assert np.array_equal(expected[0][0].numpy(), annotation.as_ras(annotation.dense * annotation.annotated))
    found = CONVENTIONS[convention](annotation, tmp_path / "b")
    assert_same(read(found), expected)
    check_data(complete(read_data_set(found)))


def test_options_do_as_declarations(annotation, tmp_path):
    """The same through the command line's options, and a folder of weight images."""
    a = annotation
    expected = read(a.write(tmp_path / "a", np.where(a.annotated, a.dense, 3).astype(np.uint8)))
    assert_same(read(a.write(tmp_path / "b", in_255_and_4(a)), ignore_index=[4, 255]), expected)
    assert_same(read(a.write(tmp_path / "c", a.dense * a.annotated), annotated_slices="all"), expected)
    folder = a.write(tmp_path / "d", a.dense)
    write_nifti(folder / "masks/a.nii.gz", a.annotated.astype(np.uint8), a.affine)
    assert_same(read(folder, weight_dir="masks"), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_one_axis(annotation, tmp_path, axis):
    """Named by plane or axis, with or without vouching for it; "all" finds the same."""
    a = annotation
    a.annotated = np.zeros(a.dense.shape, bool)
    a.annotated[(slice(None),) * axis + ([8, 11],)] = True
    expected = read(a.write(tmp_path / "a", np.where(a.annotated, a.dense, 3).astype(np.uint8)))
    empty_elsewhere = a.write(tmp_path / "b", a.dense * a.annotated)
    for word in (a.planes[axis], a.planes[axis].upper(), axis, str(axis), "all", {a.planes[axis]: "nonempty"}):
        assert_same(read(empty_elsewhere, annotated_slices=word), expected)


def test_scribbles_by_value_or_mask(annotation, tmp_path):
    """Scribbles and boxes, background among them: by a value, or by a mask."""
    a = annotation
    scribble = KeepScribbles(9, 20, 2)
    scribble.set_random_state(0)
    a.annotated = scribble(a.dense[None].astype(np.int16))[0].numpy() > 0
    a.annotated[2:5, 3:9, 4] = True
    expected = read(a.write(tmp_path / "a", np.where(a.annotated, a.dense, 3).astype(np.uint8)))
    assert np.array_equal(expected[1][0].numpy() > 0, a.as_ras(a.annotated))
    assert_same(read(a.write(tmp_path / "b", a.dense, weight=a.annotated.astype(np.int16))), expected)
    folder = a.write(tmp_path / "c", a.dense * a.annotated)
    for word in ("all", *a.planes):
        with pytest.raises(DataError, match=r"scribbles.*(ignore_index|weight image)"):
            check_data(read_data_set(folder, annotated_slices=word))


def test_scribbles_with_a_class_for_background(annotation, tmp_path):
    """As in Slicer and ITK-SNAP: background is label 1, and what nobody touched is 0."""
    a = annotation
    expected = read(a.write(tmp_path / "a", np.where(a.annotated, a.dense, 3).astype(np.uint8)))
    labels = {"1": "background", "2": "shell", "3": "core"}
    found = a.write(tmp_path / "b", ((a.dense + 1) * a.annotated).astype(np.uint8), labels=labels, ignore_index=0)
    assert_same(read(found), expected)


@pytest.mark.parametrize("word", ["listed", "all"])
def test_an_unfinished_slice(annotation, tmp_path, word):
    """What is left out on an annotated slice has a value of its own."""
    a = annotation
    label = a.dense * a.annotated
    label[a.slices[0][0], :, 12:] = 7
    a.annotated[a.slices[0][0], :, 12:] = False
    a.annotated[:, a.slices[1][0], :][a.slices[0][0], 12:] = False
    expected = read(a.write(tmp_path / "a", np.where(a.annotated, a.dense, 3).astype(np.uint8)))
    slices = a.slices if word == "listed" else word
    assert_same(read(a.write(tmp_path / "b", label), annotated_slices=slices, ignore_index=7), expected)


def test_dense(annotation, tmp_path):
    """Every voxel counts; a case of a data set whose other cases are sparse needs no other setting."""
    label, weight = read(annotation.write(tmp_path, annotation.dense))
    assert bool((weight == 1).all())
    assert label.sum() == annotation.dense.sum()


def test_weights_keep_their_values(annotation, tmp_path):
    """Any values of at least 0, and unlabeled values within count for nothing."""
    weights = np.random.default_rng(0).uniform(0, 3, annotation.dense.shape).astype(np.float32)
    weights[weights < 1] = 0
    label = annotation.dense.copy()
    label[0] = 3
    found_label, found = read(annotation.write(tmp_path, label, weight=weights))
    weights[0] = 0
    assert np.array_equal(found[0].numpy(), annotation.as_ras(weights))
    assert np.array_equal(found_label[0].numpy(), annotation.as_ras(np.where(weights > 0, annotation.dense, 0)))


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="../shared/hippocampus is not on this machine")
def test_hippocampus_slices_listed_and_found(tmp_path):
    """Real cases: listed slices are the sparse label, bit for bit; found ones too, or else it is refused."""
    refused = 0
    for number in ("001", "003", "004", "006", "007", "008", "205"):
        name = f"hippocampus_{number}.nii.gz"
        image, label, sparse = (
            nib.load(HIPPOCAMPUS / folder / name) for folder in ("imagesTr", "labelsTr", "labelsTr_sparse")
        )
        annotated = np.asarray(sparse.dataobj) != 3
        others = ((1, 2), (0, 2), (0, 1))
        slices = [np.flatnonzero(annotated.all(axis=o)).tolist() for o in others]
        a = Annotation(np.asarray(image.dataobj), np.asarray(label.dataobj), annotated, slices, image.affine, ())
        expected = read(a.write(tmp_path / number / "a", np.asarray(sparse.dataobj)))
        folder = a.write(tmp_path / number / "b", a.dense * annotated)
        assert_same(read(folder, annotated_slices=slices), expected)
        if inspect(read_data_set(folder, annotated_slices="all")).all_errors:
            refused += 1
        else:
            assert_same(read(folder, annotated_slices="all"), expected)
    assert refused <= 2
