"""A scan and its annotation, in any format, become a datalist that reads as they were; a mix-up is refused."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.data.checks import as_tensor, check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.names import case_name
from sparse3dunet.data.set_conventions import complete
from sparse3dunet.densify.inputs import annotation_of, prepare, prepare_pair
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image, write_segmentation
from sparse3dunet.io.volumes import Volume, read_volume
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL
from sparse3dunet.transforms import SparseLabel
from tests.conftest import make_volume
from tests.io.dicom_files import write_seg, write_series
from tests.io.test_formats import GRIDS, write_input
from tests.io.test_formats_dicom import ct, series, series_affine  # noqa: F401

IMAGE_DATA, DENSE, SPARSE = make_volume(3)
ANNOTATED = SPARSE != 3
ON_SLICES = (DENSE * ANNOTATED).astype(np.uint8)
NAMES = {0: "background", 1: "shell", 2: "core"}
OBLIQUE = GRIDS["oblique"]


def write_segments(path, labels, names=NAMES, affine=OBLIQUE):
    """As 3D Slicer does: segments by name."""
    write_segmentation(path, labels, Volume("made", labels, affine), names)
    return path


def crop(path, to, start, size):
    """A part of an annotation, as 3D Slicer saves it: the metadata are kept, the origin moves."""
    image = sitk.ReadImage(str(path))
    part = sitk.RegionOfInterest(image, [int(n) for n in size], [int(n) for n in start])
    for key in image.GetMetaDataKeys():
        if key.startswith("Segment"):
            part.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(part, str(to), useCompression=True)
    return to


def write_layers(path, layers, names, values=(), affine=OBLIQUE):
    """A segmentation of overlapping segments: one axis more, of no direction in space; one segment in each layer.

    Args:
        path: file to write.
        layers: (L, X, Y, Z) masks.
        names: of the segments.
        values: of the segments; all 1 if empty.
        affine: RAS.
    """
    values = values or (1,) * len(layers)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    vector = lambda column: f"({','.join(f'{number:.17g}' for number in column)})"  # noqa: E731
    lines = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {len(layers)} {' '.join(map(str, layers[0].shape))}",
        f"space directions: none {' '.join(vector(lps[:3, axis]) for axis in range(3))}",
        "kinds: list domain domain domain",
        "encoding: raw",
        f"space origin: {vector(lps[:3, 3])}",
    ]
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        lines += [
            f"Segment{number}_Name:={name}",
            f"Segment{number}_LabelValue:={value}",
            f"Segment{number}_Layer:={number}",
        ]
    stored = np.stack([mask.astype(np.uint8) * value for mask, value in zip(layers, values)])
    path.write_bytes("\n".join([*lines, "", ""]).encode() + stored.tobytes(order="F"))
    return path


def read(datalist, **options):
    """The data set, the scan, the label map, and where it is annotated."""
    data_set = complete(read_data_set(datalist, **options))
    check_data(data_set)
    (case,) = data_set.cases
    image, label = read_volume(case[IMAGE]), read_volume(case[LABEL])
    split = SparseLabel(data_set.class_values, data_set.ignore_index)
    numbers, weight = split(as_tensor(label), None, case.get(ANNOTATED_SLICES))
    return data_set, image, numbers[0].numpy(), weight[0].numpy() > 0


def assert_as_annotated(datalist, affine=OBLIQUE, image=IMAGE_DATA, name="scan", **options):
    data_set, found, numbers, annotated = read(datalist, **options)
    np.testing.assert_array_equal(found.data, image)
    np.testing.assert_allclose(found.affine, affine, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(annotated, ANNOTATED)
    np.testing.assert_array_equal(numbers, DENSE * ANNOTATED)
    assert case_name(data_set.cases[0]) == name
    return data_set


# Formats


@pytest.mark.parametrize("annotation", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".seg.nrrd"])
@pytest.mark.parametrize("scan", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_any_formats(tmp_path, scan, annotation):
    scan = write_input(tmp_path / f"scan{scan}", IMAGE_DATA, OBLIQUE)
    if annotation == ".seg.nrrd":
        label = write_segments(tmp_path / "label.seg.nrrd", ON_SLICES)
    else:
        label = write_input(tmp_path / f"label{annotation}", SPARSE, OBLIQUE)
    datalist = prepare_pair(scan, label, tmp_path / "out/inputs")
    assert datalist == tmp_path / "out/inputs/datalist.json"
    data_set = assert_as_annotated(datalist)
    assert data_set.class_names[1:] == (["shell", "core"] if annotation == ".seg.nrrd" else ["class 1", "class 2"])
    (case,) = data_set.cases
    assert (case[IMAGE] == str(scan)) == scan.name.endswith((".nii", ".nii.gz"))
    assert (case[LABEL] == str(label)) == label.name.endswith((".nii", ".nii.gz"))
    made = {file.name for file in datalist.parent.iterdir()}
    assert made <= {"datalist.json", "scan.nii", "scan_annotation.nii.gz"}
    assert len(list(tmp_path.iterdir())) <= 5  # nothing beside the inputs


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_several_channels(tmp_path, suffix):
    channels = np.stack([IMAGE_DATA, -IMAGE_DATA, IMAGE_DATA + 1], -1)
    scan = write_input(tmp_path / f"scan{suffix}", channels, OBLIQUE)
    label = write_input(tmp_path / "label.nii.gz", SPARSE, OBLIQUE)
    data_set = assert_as_annotated(prepare_pair(scan, label, tmp_path / "out"), image=channels)
    assert data_set.num_channels == 3


@pytest.mark.parametrize("is_turned", [False, True])
def test_dicom(tmp_path, series, is_turned):  # noqa: F811
    """Other programs may count the slices of a series from its other end."""
    label = np.full((7, 6, 5), 9, np.uint8)
    label[:, :, 2] = np.arange(42).reshape(7, 6) % 3
    affine = series_affine()
    path = tmp_path / "label.nrrd"
    write_input(path, label, affine)
    if is_turned:
        image = nib.as_closest_canonical(nib.Nifti1Image(label, affine))
        turn = nib.orientations.axcodes2ornt("SLA")
        turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn))
        write_input(path, np.asarray(turned.dataobj), turned.affine)
        assert read_image(path).data.shape == (5, 7, 6)
    datalist = prepare_pair(series, path, tmp_path / "out")
    data_set, image, numbers, annotated = read(datalist)
    np.testing.assert_array_equal(image.data, ct())
    np.testing.assert_allclose(image.affine, affine, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(annotated, label != 9)
    np.testing.assert_array_equal(numbers, np.where(label == 9, 0, label))
    assert case_name(data_set.cases[0]) == "series"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.b c.nrrd", "a.b c"),
        ("a_0000.mha", "a"),
        ("A.NRRD", "A"),
        ("Ü.nii.gz", "Ü"),
        ("B.NII", "B"),
        ("x.1.nii", "x.1"),
    ],
)
def test_the_cases_name_is_the_scans(tmp_path, file, name):
    suffix = "." + file.rpartition(".")[2].lower()
    suffix = ".nii.gz" if file.endswith(".nii.gz") else suffix
    write_input(tmp_path / f"x{suffix}", IMAGE_DATA, OBLIQUE).rename(tmp_path / file)
    label = write_input(tmp_path / "label.nrrd", SPARSE, OBLIQUE)
    assert_as_annotated(prepare_pair(tmp_path / file, label, tmp_path / "out"), name=name)


def test_relative_paths_and_links(tmp_path, monkeypatch):
    write_input(tmp_path / "x.nii.gz", IMAGE_DATA, OBLIQUE)
    write_input(tmp_path / "label.nii.gz", SPARSE, OBLIQUE)
    (tmp_path / "scan.nii.gz").symlink_to("x.nii.gz")
    monkeypatch.chdir(tmp_path)
    datalist = prepare(["scan.nii.gz", "./label.nii.gz"], "out")
    assert datalist == str(tmp_path / "out/datalist.json")
    (case,) = assert_as_annotated(datalist).cases
    assert case[IMAGE] == str(tmp_path / "scan.nii.gz")


def test_what_was_made_is_kept(tmp_path):
    """For as long as the files that it was made from do not change; another scan's are not mixed with it."""
    scan = write_input(tmp_path / "scan.nrrd", IMAGE_DATA, OBLIQUE)
    label = write_input(tmp_path / "label.nrrd", SPARSE, OBLIQUE)
    out = tmp_path / "out"
    files = [out / "scan.nii", out / "scan_annotation.nii.gz"]

    def prepared(scan, label):
        prepare_pair(scan, label, out)
        return [file.stat().st_mtime_ns for file in files]

    first = prepared(scan, label)
    assert prepared(scan, label) == first
    changed = np.where(SPARSE == 2, 1, SPARSE)
    changed[12, 3, 3] = 2
    write_input(label, changed.astype(np.uint8), OBLIQUE)
    second = prepared(scan, label)
    assert second[0] == first[0]
    assert second[1] != first[1]
    np.testing.assert_array_equal(read_volume(files[1]).data, changed)
    (tmp_path / "b").mkdir()
    other = write_input(tmp_path / "b/scan.nrrd", IMAGE_DATA + 1, OBLIQUE)
    os.utime(other, ns=(1, 1))
    with pytest.raises(DataError, match=r"Pass another folder \(-o\)"):
        prepared(other, label)  # whose results would replace the first scan's
    np.testing.assert_array_equal(read_volume(files[0]).data, IMAGE_DATA)
    (out / "datalist.json").write_text('{"made_from": [1]}')
    prepared(other, label)
    np.testing.assert_array_equal(read_volume(files[0]).data, IMAGE_DATA + 1)
    files[0].unlink()
    (out / "datalist.json").write_text('{"made_from": [1]}')
    prepared(scan, label)
    np.testing.assert_array_equal(read_volume(files[0]).data, IMAGE_DATA)
    assert not list(out.glob("*.part*"))


def test_voxels_beside_the_header(tmp_path):
    """They may change alone."""
    scan = write_input(tmp_path / "scan.mhd", IMAGE_DATA, OBLIQUE)
    label = write_input(tmp_path / "label.nii.gz", SPARSE, OBLIQUE)
    prepare_pair(scan, label, tmp_path / "out")
    made = (tmp_path / "out/scan.nii").stat()
    prepare_pair(scan, label, tmp_path / "out")
    assert (tmp_path / "out/scan.nii").stat().st_mtime_ns == made.st_mtime_ns  # on which a run that goes on depends
    before = scan.read_bytes(), scan.stat()
    write_input(scan, IMAGE_DATA + 1, OBLIQUE)
    scan.write_bytes(before[0])
    os.utime(scan, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    assert_as_annotated(prepare_pair(scan, label, tmp_path / "out"), image=IMAGE_DATA + 1)


# Parts of the grid


@pytest.mark.parametrize("scan", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nrrd", ".mha", ".nii.gz"])
def test_a_cropped_annotation(tmp_path, scan, suffix):
    scan = write_input(tmp_path / f"scan{scan}", IMAGE_DATA, OBLIQUE)
    path = tmp_path / f"whole{suffix}"
    whole = write_segments(path, ON_SLICES) if suffix == ".seg.nrrd" else write_input(path, ON_SLICES, OBLIQUE)
    ends = [np.flatnonzero(ON_SLICES.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    start, size = [low for low, _ in ends], [high - low + 1 for low, high in ends]
    part = crop(whole, tmp_path / f"part{suffix}", start, size)
    assert read_image(part).data.shape != IMAGE_DATA.shape
    data_set = assert_as_annotated(prepare_pair(scan, part, tmp_path / "out"))
    if suffix == ".seg.nrrd":
        assert data_set.class_names == ["background", "shell", "core"]


def test_an_annotation_beyond_the_scan(tmp_path, capsys):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    larger = np.pad(ON_SLICES, ((2, 0), (0, 3), (1, 1)), constant_values=1)[:, 2:]
    affine = OBLIQUE @ nib.affines.from_matvec(np.eye(3), (-2, 2, -1))
    label = write_input(tmp_path / "label.nrrd", larger, affine)
    content = json.loads(prepare_pair(scan, label, tmp_path / "out").read_text())
    expected = ON_SLICES.copy()
    expected[:, :2] = 0
    np.testing.assert_array_equal(read_volume(content["training"][0][LABEL]).data, expected)
    lost = np.count_nonzero(larger) - np.count_nonzero(expected)
    assert f"label.nrrd: {lost} annotated voxels are outside of the scan" in capsys.readouterr().out


@pytest.mark.parametrize("given", [None, [255, 254]])
def test_unlabeled_voxels_beyond_the_scan_are_not_told(tmp_path, capsys, given):
    """They counted as annotated if their value was a guess, or one of several."""
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label = np.full((8, 10, 10), 254 if given else 7, np.uint8)  # most voxels have the largest value: a guess
    label[3, 3:6, 3:6], label[5, 3, 3:6], label[0, 2, 2] = 1, 0, 2
    write_input(tmp_path / "label.nrrd", label, OBLIQUE @ nib.affines.from_matvec(np.eye(3), (-2, 0, 0)))
    prepare_pair(scan, tmp_path / "label.nrrd", tmp_path / "out", ignore_index=given)
    assert "label.nrrd: 1 annotated voxels are outside of the scan" in capsys.readouterr().out


def test_within_a_tenth_of_a_voxel(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    for off, number in ((0.08, 0), (0.3, 1)):
        affine = OBLIQUE @ nib.affines.from_matvec(np.eye(3), (2 + off, 0, 0))
        label = write_input(tmp_path / f"label{number}.nrrd", ON_SLICES[2:], affine)
        if number:
            with pytest.raises(DataError, match=r"not a part of the scan's.*0\.3 voxels off.*reference volume"):
                prepare_pair(scan, label, tmp_path / "out")
        else:
            assert_as_annotated(prepare_pair(scan, label, tmp_path / "out"))


def test_the_class_of_most_voxels_of_a_cropped_slice_is_a_class(tmp_path):
    """A slice cropped to the structure, most of which is the highest class: around it is 0 all the same."""
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label = np.full((12, 10, 1), 2, np.uint8)
    label[:2], label[2:4] = 0, 1
    affine = OBLIQUE @ nib.affines.from_matvec(np.eye(3), (5, 5, 9))
    part = write_input(tmp_path / "a.nrrd", label, affine)
    data_set, _, numbers, annotated = read(prepare_pair(scan, part, tmp_path / "out"))
    assert data_set.class_values == [0, 1, 2]
    assert annotated[:, :, 9].all()
    assert annotated.sum() == annotated[:, :, 9].size
    assert (numbers[5:17, 5:15, 9] == label[..., 0]).all()


def test_an_option_names_a_value_that_the_labels_type_cannot_hold(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    affine = OBLIQUE @ nib.affines.from_matvec(np.eye(3), (8, 0, 0))
    part = write_input(tmp_path / "a.nrrd", DENSE[8:].astype(np.uint8), affine)
    _, _, _, annotated = read(prepare_pair(scan, part, tmp_path / "out", ignore_index=-1), ignore_index=-1)
    assert not annotated[:8].any()
    assert annotated[8:].all()


def test_where_a_datalist_is_from(tmp_path):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label = write_input(tmp_path / "a.nrrd", SPARSE, OBLIQUE)
    assert annotation_of(prepare_pair(scan, label, tmp_path / "out")) == str(label)
    for text in ("[]", "{", '{"annotation": 3}'):
        (tmp_path / "datalist.json").write_text(text)
        assert annotation_of(tmp_path / "datalist.json") is None
    assert annotation_of(tmp_path) is None


@pytest.mark.parametrize(("value", "given"), [(255, 255), (255, None), (3, 3), (3, None), (-1, None)])
def test_outside_of_a_part_is_unlabeled(tmp_path, value, given):
    """By the value that means so within, said or told from it."""
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label = np.where(ANNOTATED, DENSE, value).astype(np.int16)[8:]
    affine = OBLIQUE @ nib.affines.from_matvec(np.eye(3), (8, 0, 0))
    part = write_input(tmp_path / "a.nrrd", label, affine)
    prepare_pair(scan, part, tmp_path / "out", annotated_slices="all")  # otherwise before: what it made must not stay
    data_set, _, _, annotated = read(prepare_pair(scan, part, tmp_path / "out", ignore_index=given), ignore_index=given)
    assert data_set.class_values == [0, 1, 2]
    assert not annotated[:8].any()
    np.testing.assert_array_equal(annotated[8:], ANNOTATED[8:])


@pytest.mark.parametrize("change", ["spacing", "directions", "offset", "elsewhere", "shifted", "shape"])
def test_other_grids(tmp_path, change):
    scan = write_input(tmp_path / "scan.nii.gz", IMAGE_DATA, OBLIQUE)
    label, affine, match = (
        ON_SLICES[2:],
        OBLIQUE @ nib.affines.from_matvec(np.eye(3), (2, 0, 0)),
        "not a part of the scan",
    )
    if change == "spacing":
        affine = affine @ np.diag([1.1, 1, 1, 1])
    elif change == "directions":
        affine = GRIDS["aligned"]
    elif change == "offset":
        affine = affine @ nib.affines.from_matvec(np.eye(3), (0, 0.5, 0))
    elif change == "elsewhere":
        affine, match = affine @ nib.affines.from_matvec(np.eye(3), (100, 0, 0)), "lies outside of the scan"
    elif change == "shifted":
        label, match = ON_SLICES, r"position in space differs.*2\.0 voxels"
    elif change == "shape":
        label = ON_SLICES[::2]
        affine = OBLIQUE @ np.diag([2, 1, 1, 1])
    label = write_input(tmp_path / "label.nrrd", np.ascontiguousarray(label), affine)
    with pytest.raises(DataError, match=match) as error:
        prepare_pair(scan, label, tmp_path / "out")
    assert str(label) in str(error.value)
    assert str(scan) in str(error.value)
    assert not (tmp_path / "out").exists()


# 3D Slicer's segmentations


def test_a_changed_annotation_among_the_slices_is_read_again(tmp_path):
    """Both inputs are the same kind of folder: the annotation is the only segmentation in its own."""
    images = write_series(tmp_path / "ct", DENSE)
    write_series(tmp_path / "annotated", DENSE)
    for name, value in (("shell", 1), ("core", 2)):
        write_seg(tmp_path / "annotated/seg.dcm", images, {name: value == DENSE})
        read = read_data_set(prepare_pair(images, tmp_path / "annotated", tmp_path / "work"))
        assert read.class_names == ["background", name]
        label = read_image(read.cases[0][LABEL]).data
        np.testing.assert_array_equal(label == 1, value == DENSE)


@pytest.mark.parametrize("scan", [5, ["a"], True, "\0", "a" * 5000])
def test_a_damaged_datalist_of_a_former_run_is_made_again(tmp_path, scan):
    for name, array in (("scan", IMAGE_DATA), ("annotation", SPARSE)):
        nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / f"{name}.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/datalist.json").write_text(json.dumps({"made_from": {}, "scan": scan, "training": []}))
    path = prepare_pair(tmp_path / "scan.nii.gz", tmp_path / "annotation.nii.gz", tmp_path / "in")
    assert json.loads(path.read_text())["scan"] == str(tmp_path / "scan.nii.gz")
