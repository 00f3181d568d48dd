"""What is unlabeled is told from the label maps alone, or refused; never told wrongly of the usual traps."""

import json

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet import checks
from sparse3dunet.checks import as_tensor, check_data
from sparse3dunet.conventions import Convention, UndecidedError, complete, infer
from sparse3dunet.datalist import read_data_set
from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_SLICES, LABEL
from sparse3dunet.transforms import KeepScribbles, SparseLabel
from sparse3dunet.volumes import read_volume
from tests.conftest import make_volume, write_nifti

SHAPE = (24, 20, 18)


def planes(*slices, shape=SHAPE):
    """Boolean, true on slices given as (axis, index)."""
    mask = np.zeros(shape, bool)
    for axis, index in slices:
        mask[(slice(None),) * axis + (index,)] = True
    return mask


THREE = ((0, 12), (1, 10), (2, 9))
IMAGE, DENSE, SPARSE = make_volume(3)


def marked(dense, annotated, value):
    return np.where(annotated, dense.astype(np.int16), np.int16(value))


def scribbles(dense=DENSE):
    keep = KeepScribbles(9, 20, 2)
    keep.set_random_state(0)
    return keep(dense[None].astype(np.int16))[0].numpy() > 0


def cylinder(shape=(30, 30, 10), low=1, high=9):
    """Of one width, on some thick slices: each shows a square wider than their number."""
    x, y = np.ogrid[: shape[0], : shape[1]]
    label = np.zeros(shape, np.uint8)
    label[((x - 15) ** 2 + (y - 15) ** 2 < 100), low:high] = 1
    return label


def told(label, **known):
    convention = infer(label, "a.nii.gz", **known)
    assert isinstance(convention, Convention)
    assert convention.reason
    return convention.ignore_index, convention.annotated_slices


def refused(label, match="cannot be told", **known):
    with pytest.raises(UndecidedError, match=match) as error:
        infer(label, "a.nii.gz", **known)
    assert "a.nii.gz" in str(error.value)
    return str(error.value)


# One label map


@pytest.mark.parametrize("value", [255, 3, -1, 77])
@pytest.mark.parametrize(
    "slices",
    [THREE, THREE[:1], THREE[2:], ((2, 8), (2, 9), (2, 10)), ((2, 0), (2, 17)), (*THREE, (0, 13), (1, 11)), ((0, 0),)],
)
def test_a_value_around_whole_slices(slices, value):
    dense = np.roll(DENSE, -12, axis=0) if slices == ((0, 0),) else DENSE
    dense = np.roll(dense, 9, axis=2) if (2, 0) in slices else dense
    assert told(marked(dense, planes(*slices), value)) == ((value,), None)


def test_zero_around_whole_slices():
    """As in the paper's data, where the background is a class of its own."""
    label = ((DENSE + 1) * planes(*THREE)).astype(np.uint8)
    assert told(label) == ((0,), None)
    assert told(label.astype(np.float64)) == ((0,), None)
    assert told(((DENSE + 1) * planes((2, 9))).astype(np.uint8)) == ((0,), None)
    assert told(label, classes=[0, 1, 2, 3]) == ((), "all")


def test_several_values_around_whole_slices():
    """The annotated slices of one direction lie around the others; a class may fill one, or most of them."""
    label = marked(DENSE, planes((2, 9)), 255)
    label[:, :, 9][DENSE[:, :, 9] == 0] = 1
    assert told(label) == ((255,), None)
    label = marked(DENSE, planes(*[(2, i) for i in range(14)]), 255)
    label[:, :, :6] = 3  # of more voxels than 255, and whole slices as well
    assert told(label) == ((255,), None)
    label = marked(DENSE, planes((2, 4), (2, 9)), 7)
    label[:, :, 4] = 2
    label[label == 2] = 5
    label[:, :, 9] = DENSE[:, :, 9] % 2
    assert told(label) == ((7,), None)


def test_a_class_that_fills_slices_of_scribbles():
    label = marked(DENSE, scribbles(), 255)
    for index in (3, 9):
        label[:, :, index] = 2
    assert told(label) == ((255,), None)


@pytest.mark.parametrize("value", [255, -1, -7])
def test_usual_values_of_scribbles(value):
    assert told(marked(DENSE, scribbles(), value)) == ((value,), None)
    few = DENSE.astype(np.int16)
    few[3:9, 3:9, 3:9] = value
    assert told(few) == ((value,), None)


def test_annotated_slices_without_foreground():
    """A few of many, among which most voxels are 0: none of them is lost."""
    annotated = np.zeros(SHAPE, bool)
    annotated[:, :, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16]] = True
    for value in (255, 3):
        label = marked(DENSE, annotated, value)
        assert (label == 0).sum() > (label == value).sum()
        assert told(label) == ((value,), None)


def test_two_usual_values():
    label = marked(DENSE, planes(*THREE), 255)
    label[12, :5] = -1
    assert told(label) == ((-1, 255), None)
    label = marked(DENSE, scribbles(), 255)
    label[3] = -2
    assert told(label) == ((-2, 255), None)


@pytest.mark.parametrize("slices", [THREE, THREE[1:2], ((2, 8), (2, 9), (2, 10)), (*THREE, (0, 8), (0, 16), (2, 13))])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_slices_among_zeros(slices, dtype):
    assert told((DENSE * planes(*slices)).astype(dtype)) == ((), "all")


def test_foreground_of_255():
    """Binary masks of many programs: not all that is left may be unlabeled."""
    assert told(((DENSE > 0) * 255 * planes(*THREE)).astype(np.uint8)) == ((), "all")
    refused(((DENSE > 0) * 255).astype(np.uint8))


def test_a_class_that_fills_an_annotated_slice():
    label = DENSE * planes((2, 6), (2, 11))
    label[:, :, 6] = 1
    assert told(label) == ((), "all")
    label[label > 0] = 1
    assert told(label) == ((), "all")


def test_an_unfinished_slice():
    """What is left out has 255, and 0 is unlabeled elsewhere all the same."""
    label = (DENSE * planes(*THREE)).astype(np.int16)
    label[12, :, 12:] = 255
    assert told(label) == ((255,), "all")
    label[label == 255] = 9
    assert told(label, classes=[0, 1, 2], unlabeled=[9]) == ((9,), "all")


def test_most_voxels_have_the_largest_value():
    assert told(marked(DENSE, scribbles(), 3)) == ((3,), None)
    refused(marked(DENSE, scribbles(), 3), classes=[0, 1, 2, 3])
    refused(marked(DENSE > 0, DENSE > 0, 0))  # two values alone


@pytest.mark.parametrize("shape", [(24, 20, 18), (30, 30, 10), (20, 40, 6)])
def test_dense_labels(shape):
    dense = make_volume(1, shape)[1]
    message = refused(dense)
    assert "nothing to densify" in message
    assert "--ignore-index 255" in message
    assert "--annotated-slices all" in message
    assert not dense[:, :, 0].any()  # the outermost slices are empty
    refused(((dense > 0) * 255).astype(np.uint8))
    refused((dense + 1).astype(np.int16))


def test_dense_labels_whose_outermost_slices_are_empty():
    refused(cylinder())  # on more than half of the slices
    tapering = cylinder((30, 30, 40), 10, 16)
    tapering[:11, :, (10, 15)] = tapering[19:, :, (10, 15)] = 0
    refused(tapering)
    assert told(cylinder((30, 30, 40), 10, 16)) == ((), "all")  # as whole adjacent slices do
    assert told(cylinder((30, 30, 10), 4, 5)) == ((), "all")
    padded = np.pad(DENSE[4:20, 4:16, 4:14] + 1, ((0, 0), (0, 0), (0, 3)))
    refused(padded, classes=[0, 1, 2, 3])


def test_a_block_is_a_class():
    """All that is outside of a block is whole slices, too."""
    dense = DENSE.copy()
    dense[dense == 2] = 0
    dense[2:9, 2:9, 2:9] = 2
    refused(dense)
    layers = np.zeros(SHAPE, np.uint8)
    layers[:, :, 5:11], layers[:, 3:, 11:] = 1, 2
    refused(layers)


def test_one_slice_thick():
    """Lines are no slices."""
    flat = DENSE[:, :, 9:10]
    refused(flat)
    rows = marked(flat, planes((0, 5), (0, 12), shape=flat.shape), 77)[:, :, 0]
    assert told(rows[:, :, None]) == ((77,), None)  # by most voxels having it
    refused(((flat + 1) * planes((0, 5), (0, 12), shape=flat.shape)).astype(np.uint8))
    assert told(marked(flat, planes((0, 5), shape=flat.shape), 255)) == ((255,), None)
    two = np.concatenate([flat, flat * 0], axis=2)
    assert told(two) == ((), "all")


@pytest.mark.parametrize("value", [0, 7])
def test_nothing_annotated(value):
    refused(np.full(SHAPE, value, np.uint8), "nothing is annotated.*Annotate some slices")


def test_nan_is_left_to_the_checks():
    """Where the convention can be told all the same."""
    label = marked(DENSE, planes(*THREE), 3).astype(np.float32)
    label[12, 3, 3] = label[1, 2, 3] = np.nan
    label[5, 10, 4] = 0.5
    assert told(label) == ((3,), None)
    label = (DENSE * planes(*THREE)).astype(np.float32)
    label[1, 2, 3] = np.nan
    assert told(label) == ((), "all")


def test_no_label_map():
    label = DENSE.astype(np.float32)
    label[3, 3, 3] = np.nan
    with pytest.raises(DataError, match=r"a.nii.gz: 1 of 8640 voxels are no whole numbers \(nan\).*Round"):
        infer(label, "a.nii.gz")
    with pytest.raises(DataError, match=r"\(0.5\)"):
        infer(DENSE / 2, "a.nii.gz")
    with pytest.raises(DataError, match="different values, like a scan"):
        infer(IMAGE, "a.nii.gz")
    with pytest.raises(DataError, match="different values, like a scan"):
        infer(np.arange(8640, dtype=np.int32).reshape(SHAPE), "a.nii.gz")
    with pytest.raises(DataError, match="three dimensions"):
        infer(np.stack([DENSE, DENSE], -1), "a.nii.gz")


# Data sets


def write(folder, maps, **declared):
    """A folder of pairs, or of the Decathlon's form where something is declared."""
    entries = []
    for number, label in enumerate(maps):
        image = np.random.default_rng(number).normal(0, 1, label.shape[:3]).astype(np.float32)
        write_nifti(folder / f"images/{number}.nii.gz", image)
        write_nifti(folder / f"labels/{number}.nii.gz", label)
        entries.append({"image": f"images/{number}.nii.gz", "label": f"labels/{number}.nii.gz"})
    if declared:
        (folder / "dataset.json").write_text(json.dumps({"training": entries, **declared}))
    return folder


def read(data_set):
    """The label and weight of each case."""
    split = SparseLabel(data_set.class_values, data_set.ignore_index)
    return [split(as_tensor(read_volume(c[LABEL])), None, c.get(ANNOTATED_SLICES)) for c in data_set.cases]


def assert_same(first, second):
    for one, other in zip(read(first), read(second), strict=True):
        assert all((a == b).all() for a, b in zip(one, other))


CASES = {
    "255": (lambda dense, mask: marked(dense, mask, 255), {"ignore_index": 255}),
    "negative": (lambda dense, mask: marked(dense, mask, -1), {"ignore_index": -1}),
    "largest": (lambda dense, mask: marked(dense, mask, 3), {"ignore_index": 3}),
    "floats": (lambda dense, mask: marked(dense, mask, 3).astype(np.float32), {"ignore_index": 3}),
    "zero": (lambda dense, mask: ((dense + 1) * mask).astype(np.uint8), {"ignore_index": 0}),
    "slices": (lambda dense, mask: dense * mask, {"annotated_slices": "all"}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_if_declared(tmp_path, capsys, name):
    make, options = CASES[name]
    folder = write(tmp_path, [make(make_volume(seed)[1], planes(*THREE[:number])) for seed, number in ((1, 3), (2, 2))])
    declared = complete(read_data_set(folder, **options))
    assert capsys.readouterr().out == ""
    inferred = complete(read_data_set(folder))
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "0.nii.gz" in line
    assert "--ignore-index" in line
    assert "--annotated-slices" in line
    assert inferred == declared
    assert inferred.num_channels == 1
    assert_same(inferred, declared)
    weights = [weight[0].numpy() > 0 for _, weight in read(inferred)]
    assert np.array_equal(weights[0], planes(*THREE))
    assert np.array_equal(weights[1], planes(*THREE[:2]))
    check_data(inferred)


def test_an_unfinished_slice_as_if_declared(tmp_path):
    label = (DENSE * planes(*THREE)).astype(np.int16)
    label[12, :, 12:] = 255
    folder = write(tmp_path, [label])
    assert_same(
        complete(read_data_set(folder)), complete(read_data_set(folder, ignore_index=255, annotated_slices="all"))
    )


def test_what_is_declared_counts(tmp_path, capsys):
    label = DENSE * planes(*THREE)
    listed = {"labels": {"0": "background", "1": "shell", "2": "core"}}
    for number, (maps, declared, options) in enumerate(
        [
            ([label], listed, {"annotated_slices": {"axial": [9]}}),
            ([label], {**listed, "annotated_slices": {"2": [9]}}, {}),
            ([marked(DENSE, planes(*THREE), 3)], listed, {}),
            ([marked(DENSE, planes(*THREE), 3), DENSE], listed, {}),
            ([marked(DENSE, planes(*THREE), 3)], {**listed, "ignore_index": 3}, {}),
            ([label], {}, {"ignore_index": 2}),
        ]
    ):
        folder = write(tmp_path / str(number), maps, **declared)
        read_in = read_data_set(folder, **options)
        assert complete(read_in) == checks.complete(read_in)
    write_nifti(tmp_path / "0/masks/0.nii.gz", planes(*THREE).astype(np.uint8))
    read_in = read_data_set(tmp_path / "0", weight_dir="masks")
    assert complete(read_in) == checks.complete(read_in)
    assert capsys.readouterr().out == ""


def test_classes_declared_but_no_unlabeled_voxel(tmp_path, capsys):
    """As in a Decathlon folder whose labels are drawn on slices."""
    classes = {"labels": {"0": "background", "1": "shell", "2": "core"}}
    found = complete(read_data_set(write(tmp_path / "a", [DENSE * planes(*THREE)], **classes)))
    assert [case[ANNOTATED_SLICES] for case in found.cases] == ["all"]
    assert found.class_names == ["background", "shell", "core"]
    assert "--annotated-slices" in capsys.readouterr().out
    found = complete(read_data_set(write(tmp_path / "b", [marked(DENSE, scribbles(), 255)], **classes)))
    assert found.ignore_index == (255, 3)
    capsys.readouterr()
    dense = read_data_set(write(tmp_path / "c", [DENSE, DENSE], **classes))
    assert complete(dense) == checks.complete(dense)
    out = capsys.readouterr().out
    assert "every voxel counts as annotated" in out
    assert out.count("\n") == 1


def test_classes_of_a_trained_model(tmp_path):
    """What it knows as a class is not unlabeled."""
    known = {"class_names": ["background", "a", "b", "c"], "class_values": [0, 1, 2, 3]}
    folder = write(tmp_path / "a", [((DENSE + 1) * planes(*THREE)).astype(np.uint8)])
    assert complete(read_data_set(folder)).class_values == [1, 2, 3]
    found = complete(read_data_set(folder), known=known)
    assert (found.class_values, found.ignore_index) == ([0, 1, 2, 3], ())
    assert found.cases[0][ANNOTATED_SLICES] == "all"
    folder = write(tmp_path / "b", [np.where(planes((2, 9)), 0, 255).astype(np.uint8)])  # one class on view
    found = complete(read_data_set(folder), known=known)
    assert (found.class_names, found.ignore_index) == (known["class_names"], (255,))


def test_cases_that_differ(tmp_path):
    first, second = marked(DENSE, planes(*THREE), 255), DENSE * planes(*THREE)
    with pytest.raises(DataError, match=r"different ways.*0.nii.gz: 255.*1.nii.gz: 0 means.*--ignore-index"):
        complete(read_data_set(write(tmp_path / "a", [first, second])))
    with pytest.raises(DataError, match=r"different ways.*0.nii.gz: 255.*1.nii.gz: 3 means"):
        complete(read_data_set(write(tmp_path / "b", [first, marked(DENSE, planes(*THREE), 3)])))
    with pytest.raises(DataError, match=r"different ways.*0.nii.gz: 0 means unlabeled.*1.nii.gz does not tell"):
        complete(read_data_set(write(tmp_path / "c", [(DENSE + 1) * planes(*THREE).astype(np.uint8), DENSE])))


def test_cases_that_go_by_the_others(tmp_path, capsys):
    """One without foreground, one that is dense; and one that has only some of the values that mean unlabeled."""
    empty, mask = DENSE * 0, planes((2, 9))
    cases = [marked(empty, mask, 255), marked(DENSE, planes(*THREE), 255), DENSE]
    found = complete(read_data_set(write(tmp_path / "a", cases)))
    assert found.ignore_index == (255,)
    weights = [weight[0].numpy() > 0 for _, weight in read(found)]
    assert np.array_equal(weights[0], mask)
    assert weights[2].all()
    assert "1.nii.gz" in capsys.readouterr().out
    cases = [(empty + 1) * mask, (DENSE + 1) * planes(*THREE)]
    found = complete(read_data_set(write(tmp_path / "b", [case.astype(np.uint8) for case in cases])))
    assert (found.ignore_index, found.class_values) == ((0,), [1, 2, 3])
    both = marked(DENSE, planes(*THREE), 255)
    both[12, :5] = -1
    found = complete(read_data_set(write(tmp_path / "c", [marked(DENSE, planes(*THREE), 255), both])))
    assert found.ignore_index == (255, -1)


def test_scribbles_among_slices_have_the_checks_message(tmp_path):
    found = complete(read_data_set(write(tmp_path, [DENSE * planes(*THREE), DENSE * scribbles()])))
    with pytest.raises(DataError, match=r"1.nii.gz: which slices are annotated cannot be told"):
        check_data(found)


def test_bad_files_have_their_own_message(tmp_path, capsys):
    folder = write(tmp_path / "a", [marked(DENSE, planes(*THREE), 255), DENSE])
    (folder / "labels/1.nii.gz").write_bytes(b"nothing")
    found = complete(read_data_set(folder))
    with pytest.raises(DataError, match=r"1.nii.gz: cannot be read"):
        check_data(found)
    (folder / "labels/0.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"0.nii.gz: cannot be read"):
        complete(read_data_set(folder))
    folder = write(tmp_path / "b", [DENSE, DENSE / 2])
    with pytest.raises(DataError, match=r"1.nii.gz: .* no whole numbers"):
        complete(read_data_set(folder))
    folder = write(tmp_path / "c", [np.stack([DENSE, DENSE], -1)])
    with pytest.raises(DataError, match=r"0.nii.gz: a label map must have three dimensions"):
        complete(read_data_set(folder))
    capsys.readouterr()
    folder = write(tmp_path / "d", [DENSE], labels={"0": "background", "1": "shell", "2": "core"})
    (folder / "labels/0.nii.gz").write_bytes(b"nothing")
    declared = complete(read_data_set(folder))
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match=r"0.nii.gz: cannot be read"):
        check_data(declared)


def test_dense_data_sets_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"0.nii.gz: .*nothing to densify"):
        complete(read_data_set(write(tmp_path, [DENSE, DENSE])))


def test_class_names(tmp_path):
    folder = write(tmp_path, [marked(DENSE, planes(*THREE), 255)])
    found = complete(read_data_set(folder), ["nothing", "shell", "core"])
    assert found.class_names == ["nothing", "shell", "core"]
    assert found.class_values == [0, 1, 2]
    with pytest.raises(DataError, match=r"2 class names .*\(shell, core\) for 3 classes, of the values 0, 1, 2"):
        complete(read_data_set(folder), ["shell", "core"])
    with pytest.raises(DataError, match="a name of its own"):
        complete(read_data_set(folder), ["background", "core", "core"])


def test_real_slices_of_any_orientation(tmp_path):
    """The found slices are those of the file's own axes."""
    label = DENSE * planes(*THREE)
    affine = np.array([[0, 0, 3.0, 5], [-1, 0, 0, 7], [0, 2, 0, -9], [0, 0, 0, 1]])
    folder = write(tmp_path, [label])
    write_nifti(folder / "labels/0.nii.gz", label, affine)
    assert_same(complete(read_data_set(folder)), complete(read_data_set(folder, annotated_slices="all")))
    assert nib.load(folder / "labels/0.nii.gz").shape == SHAPE
