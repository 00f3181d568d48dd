"""What is inferred of a whole data set is used as if it had been declared."""

import json

import nibabel as nib
import numpy as np
import pytest

from sparse3dunet.data import checks
from sparse3dunet.data.checks import as_tensor, check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.set_conventions import complete
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import read_volume
from sparse3dunet.keys import ANNOTATED_SLICES, LABEL
from sparse3dunet.transforms import SparseLabel
from tests.conftest import make_volume, write_nifti
from tests.data.test_inferred_conventions import DENSE, SHAPE, THREE, marked, planes, scribbles


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
    assert first.cases
    for one, other in zip(read(first), read(second), strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


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
    with pytest.raises(DataError, match=r"different ways.*0.nii.gz: 0 means unlabeled.*1.nii.gz does not show"):
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
    with pytest.raises(DataError, match=r"1.nii.gz: cannot determine which slices are annotated"):
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
    with pytest.raises(DataError, match=r"1.nii.gz: .* not whole numbers"):
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
    with pytest.raises(DataError, match=r"--class-names gives 2 name.* \(shell, core\) for 3 classes, values 0, 1, 2"):
        complete(read_data_set(folder), ["shell", "core"])
    with pytest.raises(DataError, match="a different name"):
        complete(read_data_set(folder), ["background", "core", "core"])


def test_the_lowest_value_as_background_is_told(tmp_path, capsys):
    """Foreground alone was painted: the first structure would become the background without a word."""
    painted = np.where(planes(*THREE), 1 + (DENSE > 1), 255).astype(np.uint8)
    folder = write(tmp_path, [painted])
    data_set = complete(read_data_set(folder))
    told = capsys.readouterr().err
    assert (data_set.class_values, data_set.class_names) == ([1, 2], ["background", "class 2"])
    assert "the lowest value, 1, is taken for the background" in told
    assert "--background VALUE" in told
    assert complete(read_data_set(folder), background=1).class_values == [1, 2]
    assert complete(read_data_set(folder), background=2).class_values == [2, 1]
    assert complete(read_data_set(folder), background=2).class_names == ["background", "class 1"]
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match=r"no voxel of any case is labelled background \(value 0\)"):
        check_data(complete(read_data_set(folder), background=0))
    with pytest.raises(DataError, match=r"the background is to be 255, which is no class.*It means unlabeled"):
        complete(read_data_set(folder, ignore_index=255), background=255)


def test_real_slices_of_any_orientation(tmp_path):
    """The found slices are those of the file's own axes."""
    label = DENSE * planes(*THREE)
    affine = np.array([[0, 0, 3.0, 5], [-1, 0, 0, 7], [0, 2, 0, -9], [0, 0, 0, 1]])
    folder = write(tmp_path, [label])
    write_nifti(folder / "labels/0.nii.gz", label, affine)
    assert_same(complete(read_data_set(folder)), complete(read_data_set(folder, annotated_slices="all")))
    assert nib.load(folder / "labels/0.nii.gz").shape == SHAPE
