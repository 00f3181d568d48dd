"""What is unlabeled is told from the label maps alone, or refused; never told wrongly of the usual traps."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sparse3dunet.data.conventions import Convention, UndecidedError, infer
from sparse3dunet.errors import DataError
from sparse3dunet.transforms import KeepScribbles
from tests.conftest import make_volume

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


def refused(label, match="cannot infer", **known):
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
    assert told(marked(DENSE > 0, scribbles(), 7)) == ((7,), None)


def test_what_the_number_of_voxels_alone_says_is_a_guess():
    assert infer(marked(DENSE, scribbles(), 3), "a.nii.gz").is_guess
    for mark in (marked(DENSE, scribbles(), 255), marked(DENSE, planes(*THREE), 3)):
        found = infer(mark, "a.nii.gz")
        assert found.is_mark
        assert not found.is_guess


@pytest.mark.parametrize("share", [0.6, 0.85])
def test_a_tissue_that_most_voxels_have_is_no_mark_of_unlabeled_ones(share):
    """Of a dense label map of three values, that fills the scan."""
    random = np.random.default_rng(0)
    smooth = gaussian_filter(random.random((30, 28, 26)), 3)
    refused(np.digitize(smooth, np.quantile(smooth, [(1 - share) / 2, 1 - share])))


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


@pytest.mark.parametrize(("share", "is_dense"), [(0.4, True), (0.6, False)])
def test_a_run_of_slices_that_tapers_off(share, is_dense):
    """To less than half of its largest section, it may be a structure; on a third of the slices or less."""
    label = np.zeros((20, 20, 12), np.uint8)
    for z, rows in zip(range(4, 8), (20 * share, 20, 20, 20 * share)):
        label[: int(rows), 2:18, z] = 1
    if is_dense:
        refused(label)
    else:
        assert told(label) == ((), "all")


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
    with pytest.raises(DataError, match=r"a.nii.gz: 1 of 8640 voxels are not whole numbers \(nan\).*Round"):
        infer(label, "a.nii.gz")
    with pytest.raises(DataError, match=r"\(0.5\)"):
        infer(DENSE / 2, "a.nii.gz")
    with pytest.raises(DataError, match="different values, like in a scan"):
        infer(IMAGE, "a.nii.gz")
    with pytest.raises(DataError, match="different values, like in a scan"):
        infer(np.arange(8640, dtype=np.int32).reshape(SHAPE), "a.nii.gz")
    with pytest.raises(DataError, match="three dimensions"):
        infer(np.stack([DENSE, DENSE], -1), "a.nii.gz")


# Data sets
