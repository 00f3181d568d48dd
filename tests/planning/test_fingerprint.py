"""What is measured in the files of a data set."""

import dataclasses
import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data.checks import check_data, complete
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.planning import fingerprint, make_plan
from sparse3dunet.planning.fingerprint import lateral_classes

UNLABELED = 255


def write(folder, images, maps, affine=None, **declared):
    """Write a data set of volumes and label maps, and return its report."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for number, (image, label) in enumerate(zip(images, maps)):
        names = f"image_{number}.nii.gz", f"label_{number}.nii.gz"
        for name, volume in zip(names, (image, label)):
            nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), folder / name)
        cases.append(dict(zip(("image", "label"), names)))
    content = {"training": cases, "ignore_index": UNLABELED, **declared}
    (folder / "dataset.json").write_text(json.dumps(content))
    return check_data(complete(read_data_set(folder)))


def two_blobs(shape=(30, 20, 16), first=(5, 10, 8), second=(24, 10, 8), sparse=True):
    """Classes 1 and 2 at two places, annotated on every third axial slice."""
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    label = np.zeros(shape, np.uint8)
    for value, place in ((1, first), (2, second)):
        label[np.linalg.norm(grid - place, axis=-1) < 4] = value
    if sparse:
        label[:, :, np.arange(shape[2]) % 3 != 2] = UNLABELED
    return label


def an_image(shape=(30, 20, 16), seed=0):
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


@pytest.mark.parametrize("flip", [1, -1])
def test_classes_left_and_right_of_each_other(tmp_path, flip):
    affine = np.diag([-2.0 * flip, 1, 1, 1])
    report = write(tmp_path, [an_image()] * 2, [two_blobs(), two_blobs((30, 20, 16), (6, 9, 8), (22, 11, 7))], affine)
    assert fingerprint(report).lateral == ("class 1", "class 2")


@pytest.mark.parametrize(
    ("first", "second"),
    [((15, 5, 8), (15, 14, 8)), ((12, 10, 8), (18, 14, 8)), ((15, 10, 4), (15, 10, 12))],
    ids=["front and back", "oblique", "above"],
)
def test_classes_that_are_no_mirror_images(tmp_path, first, second):
    report = write(tmp_path, [an_image()], [two_blobs(first=first, second=second)])
    assert fingerprint(report).lateral == ()


def test_the_background_is_on_no_side():
    """Though its annotation may be: only classes of the foreground are pairs."""
    spreads = np.full((3, 3), 2.0)
    for centers, expected in (
        ([[-20, 0, 0], [20, 0, 0], [20, 30, 0]], ()),
        ([[20, 0, 0], [-20, 30, 0], [20, 30, 0]], ("a", "b")),
    ):
        measured = [SimpleNamespace(centers=np.array(centers, float), spreads=spreads)] * 2
        assert lateral_classes(["background", "a", "b"], measured) == expected


def test_classes_that_change_sides(tmp_path):
    mirrored = two_blobs(first=(24, 10, 8), second=(5, 10, 8))
    assert fingerprint(write(tmp_path, [an_image()] * 2, [two_blobs(), mirrored])).lateral == ()


@pytest.mark.parametrize(
    ("name", "has_side"),
    [("left kidney", True), ("Kidney_R", True), ("lh-cortex", True), ("liver", False), ("bright spot", False)],
)
def test_names_of_one_side(tmp_path, name, has_side):
    label = two_blobs(first=(15, 5, 8), second=(15, 14, 8))
    report = write(tmp_path, [an_image()], [label], labels={"0": "background", "1": name, "2": "x"})
    assert fingerprint(report).lateral == ((name,) if has_side else ())


def a_ct(seed=0):
    values = an_image(seed=seed) - 1100
    values[5:20, 5:15] += 1050
    return values.astype(np.int16)


def test_ct_is_known_by_air_or_by_declaration(tmp_path):
    labels = [two_blobs()]
    assert fingerprint(write(tmp_path / "a", [a_ct()], labels)).modality == "CT"
    assert fingerprint(write(tmp_path / "b", [an_image()], labels)).modality == "other"
    below, dark = a_ct() - 2200, a_ct() - 700  # what no scanner writes, and what some do outside of their circle
    below[0], dark[0] = -4000, -3024
    assert fingerprint(write(tmp_path / "e", [below], labels)).modality == "other"
    assert fingerprint(write(tmp_path / "f", [dark], labels)).modality == "CT"
    declared = {"modality": {"0": "CT"}}
    assert fingerprint(write(tmp_path / "c", [an_image()], labels, **declared)).modality == "CT"
    declared = {"modality": {"0": "MRI"}}
    assert fingerprint(write(tmp_path / "d", [a_ct()], labels, **declared)).modality == "other"


def test_intensities_of_annotated_foreground_alone(tmp_path):
    """Neither background nor unlabeled voxels count, on any grid."""
    label = two_blobs()
    foreground = (label == 1) | (label == 2)
    image = np.where(foreground, 40 + 10 * (np.indices(label.shape).sum(0) % 2), 1000).astype(np.int16)
    found = fingerprint(write(tmp_path, [image], [label], np.diag([-1.0, 2, 3, 1])))
    values = image[foreground]
    assert found.intensity["mean"] == pytest.approx(values.mean(), abs=0.01)
    assert found.intensity["std"] == pytest.approx(values.std(), abs=0.01)
    assert (found.intensity["lower"], found.intensity["upper"]) == (40, 50)
    assert found.class_voxels == tuple(np.bincount(label[label != UNLABELED], minlength=3))
    assert found.slices == {"axial": 5}
    assert found.spacing == (1, 2, 3)


def test_no_foreground_at_all(tmp_path):
    label = np.where(np.indices((8, 8, 8))[2] % 2, 0, UNLABELED).astype(np.uint8)
    report = write(tmp_path, [an_image((8, 8, 8))], [label], labels={"0": "background", "1": "x"})
    assert fingerprint(report).intensity is None


@pytest.mark.parametrize("unit", [1e-3, 1e-6], ids=["um", "nm"])
def test_voxels_of_any_unit_are_planned_alike(tmp_path, unit):
    size = np.array([0.065, 0.065, 0.3])
    plans = []
    for name, scale in (("mm", 1), ("small", unit)):
        affine = np.diag([*(size * scale), 1])
        report = write(tmp_path / name, [an_image()], [two_blobs()], affine)
        plans.append(make_plan(report, None))
    assert plans[0].fingerprint["spacing"] == pytest.approx(size)
    assert dataclasses.replace(plans[1], spacing=plans[0].spacing) == plans[0]
    assert plans[1].slice_axis == 2


def test_foreground_of_one_intensity_gives_no_scale(tmp_path):
    image = a_ct()
    label = two_blobs()
    image[(label == 1) | (label == 2)] = 3071
    found = fingerprint(write(tmp_path, [image], [label]))
    assert found.modality == "CT"
    assert found.intensity is None


def test_voxel_sizes_from_the_least_to_the_largest(tmp_path):
    write(tmp_path, [an_image()] * 2, [two_blobs()] * 2)
    for name in ("image_1.nii.gz", "label_1.nii.gz"):
        image = nib.load(tmp_path / name)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([1.0, 2, 3, 1])), tmp_path / name)
    found = fingerprint(check_data(complete(read_data_set(tmp_path))))
    assert found.spacing_range == ((1, 1, 1), (1, 2, 3))
