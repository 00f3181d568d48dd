"""Data sets in which only some of the classes were looked for in some cases, from the datalist to the real commands."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from sparse3dunet.data.checks import check_data
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.splits import split_cases
from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_CLASSES
from sparse3dunet.training.finetuning import description_of
from sparse3dunet.training.settings import check_looked_for
from sparse3dunet.transforms import SparseLabeld
from tests.conftest import ROOT, TINY, make_dataset, run_bundle, run_sparse3dunet, run_training

EVALUATING = f"['{ROOT}/bundle/configs/train.yaml','{ROOT}/bundle/configs/evaluate.yaml']"


def declare(folder, default=None, **by_case):
    """Declare what was looked for in cases, ``case_0=["shell"]``, and in all others."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["training"]):
        entry.pop(ANNOTATED_CLASSES, None)
        if f"case_{number}" in by_case:
            entry[ANNOTATED_CLASSES] = by_case[f"case_{number}"]
    content.pop(ANNOTATED_CLASSES, None)
    path.write_text(json.dumps({**content, **({} if default is None else {ANNOTATED_CLASSES: default})}))


def only_shell(folder, name, folders=("labelsTr",)):
    """Make the core of a case background, as if nobody had looked for it."""
    for labels in folders:
        image = nib.load(folder / labels / f"{name}.nii.gz")
        values = np.asarray(image.dataobj).copy()
        values[values == 2] = 0
        nib.save(nib.Nifti1Image(values, image.affine), folder / labels / f"{name}.nii.gz")


def found(folder, **options):
    return [case.get(ANNOTATED_CLASSES) for case in read_data_set(folder, **options).cases]


def test_names_or_values_of_a_case_go_before_those_of_all(dataset):
    every = [0, 1, 2]
    declare(dataset, case_1=["shell"])
    assert found(dataset) == [every, [0, 1], every]
    declare(dataset, ["background", 2], case_1=[1], case_2=["core", "shell"])
    assert found(dataset) == [[0, 2], [0, 1], every]
    assert found(dataset, label_dir="labelsDense") == [[0, 2], [0, 1], every]
    declare(dataset, "core")
    assert found(dataset) == [[0, 2]] * 3


def test_all_classes_in_all_cases_is_the_same_as_not_saying_so(dataset):
    before = read_data_set(dataset)
    declare(dataset, ["core"], **{f"case_{i}": ["shell", "core"] for i in range(3)})
    assert read_data_set(dataset) == before


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (["livr"], ["'livr'", "no class", "shell (1), core (2)"]),
        ([7], ["7", "no class"]),
        ([True], ["True", "no class"]),
        ([1.0], ["1.0", "no class"]),
        ([["shell"]], ["['shell']", "no class"]),
        ([], ["at least one class besides the background"]),
        (["background"], ["at least one class besides the background"]),
        ({"shell": 1}, ["no class"]),
    ],
)
def test_wrong_declarations_are_refused(dataset, declared, words):
    for options in ({"case_1": declared}, {"default": declared}):
        declare(dataset, **options)
        with pytest.raises(DataError) as error:
            read_data_set(dataset)
        text = str(error.value)
        assert all(word in text for word in ["dataset.json", "annotated_classes", *words]), text
        assert ("training case 1" in text) == ("case_1" in options)


def test_undeclared_classes_are_refused(dataset):
    declare(dataset, case_0=["shell"])
    content = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({"training": content["training"]}))
    with pytest.raises(DataError, match="the classes are not declared"):
        read_data_set(dataset)


def test_a_class_that_was_not_looked_for_must_not_be_shown(dataset):
    declare(dataset, case_1=["shell"])
    data_set = read_data_set(dataset)
    with pytest.raises(DataError, match=r"case_1\.nii\.gz: \d+ voxel\(s\) have the value 2 of core that was not"):
        check_data(data_set)
    label = torch.tensor([[[[0, 1, 2, 3]]]])
    split = SparseLabeld("label", classes=3, ignore_index=3)
    with pytest.raises(DataError, match=r"1 voxel\(s\) have the value 2 of a class"):
        split({"label": label, ANNOTATED_CLASSES: [0, 1]})
    with pytest.raises(DataError, match="contains 9, which is no class"):
        split({"label": label, ANNOTATED_CLASSES: [9]})
    assert split({"label": label, ANNOTATED_CLASSES: [2, 1]})[ANNOTATED_CLASSES].tolist() == [True] * 3
    hidden = {"label": label, "weight": (label != 2).float(), ANNOTATED_CLASSES: [1]}
    assert split(hidden)[ANNOTATED_CLASSES].tolist() == [True, True, False], "unlabeled voxels show nothing"


def test_check_says_what_was_looked_for(dataset):
    only_shell(dataset, "case_1")
    declare(dataset, case_1=["shell"])
    assert [case.looked_for for case in check_data(read_data_set(dataset)).cases] == [[], ["shell"], []]
    result = run_sparse3dunet("check", dataset)
    assert result.returncode == 0, result.stdout
    assert "1 of 3 cases: only shell was looked for." in result.stdout
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert [rows[name][-2:] for name in ("background", "shell", "core")] == [["3", "3"], ["3", "3"], ["2", "2"]]
    cases = json.loads(run_sparse3dunet("check", dataset, "--json").stdout)["cases"]
    assert [case["looked_for"] for case in cases] == [[], ["shell"], []]


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """A folder with a data set in which the core was looked for in one case of three, and a training on it."""
    root = tmp_path_factory.mktemp("partial")
    dataset = make_dataset(root / "dataset")
    for name in ("case_0", "case_1"):
        only_shell(dataset, name)
    declare(dataset, ["shell"], case_2=[1, 2])
    result = run_training(dataset, root, "--val_fraction", 0)
    assert result.returncode == 0, result.stderr
    return root, result.stdout


def test_training_and_evaluating_leave_out_what_was_not_looked_for(partial):
    root, text = partial
    assert "2 of 3 cases: only shell was looked for." in text
    result = run_bundle(
        *("run", "evaluating", "--config_file", EVALUATING, "--dataset_dir", root / "dataset"),
        *("--ckpt_dir", root / "models", "--output_dir", root / "scores"),
    )
    assert result.returncode == 0, result.stderr
    with (root / "scores/scores.csv").open() as file:
        rows = {(row["case"], row["region"], row["class"]): row for row in csv.DictReader(file)}
    for case in ("case_0", "case_1", "case_2"):
        assert bool(rows[case, "annotated", "core"]["dice"]) == (case == "case_2")
        assert rows[case, "annotated", "shell"]["dice"]
        assert rows[case, "all", "core"]["dice"], "the dense label shows all classes"


def test_it_learns_otherwise_than_from_background(partial, tmp_path):
    """Without the declaration, the same labels give other weights."""
    root, _ = partial
    (tmp_path / "dataset").symlink_to(root / "dataset")
    content = json.loads((root / "dataset/dataset.json").read_text())
    training = [
        {k: str(root / "dataset" / v) for k, v in e.items() if k != ANNOTATED_CLASSES} for e in content["training"]
    ]
    (tmp_path / "list.json").write_text(json.dumps({"labels": content["labels"], "training": training}))
    result = run_training(tmp_path / "list.json", tmp_path, "--val_fraction", 0)
    assert result.returncode == 0, result.stderr
    first, second = (
        torch.load(path / "models/state/last.pt", weights_only=True)["network"] for path in (root, tmp_path)
    )
    assert any(not torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("seed", range(6))
def test_the_random_split_trains_on_each_class_that_was_looked_for(seed):
    def cases(*looked_for):
        names = [{"image": f"{i}.nii.gz", "label": f"{i}.nii.gz"} for i in range(len(looked_for))]
        return [{**name, ANNOTATED_CLASSES: values} for name, values in zip(names, looked_for)]

    rare = cases([0, 1], [0, 1], [0, 1], [0, 1, 2], [0, 1])
    train, val = split_cases(rare, 0.4, seed)
    assert {value for case in train for value in case[ANNOTATED_CLASSES]} == {0, 1, 2}
    assert len(val) == 2
    assert len(train + val) == 5
    train, val = split_cases(cases([0, 1], [0, 2]), seed=seed)
    assert len(train) == len(val) == 1, "none can be spared"


def test_a_class_that_no_training_case_shows_apart_from_the_background_is_refused(dataset, tmp_path):
    """All background might be that class: the network would be free to segment it so."""
    for name in ("case_0", "case_1"):
        only_shell(dataset, name)
    declare(dataset, ["shell"], case_2=["shell", "core"])
    (tmp_path / "split.json").write_text(json.dumps({"train": ["case_0", "case_1"], "val": ["case_2"]}))
    result = run_training(dataset, tmp_path, "--split_file", tmp_path / "split.json")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert "dataset.json: core (value 2) is in annotated_classes of validation cases only: case_2" in error
    assert "--split_file" in error
    assert run_sparse3dunet("check", dataset).returncode == 0, "it is in one case"
    only_shell(dataset, "case_2")
    declare(dataset, ["shell"])
    result = run_sparse3dunet("check", dataset)
    assert result.returncode == 1
    assert "error: " in result.stdout
    configs = f"['{ROOT}/bundle/configs/train.yaml','{ROOT}/bundle/configs/crossval.yaml']"
    folds = ("run", "cross_validating", "--config_file", configs, "--dataset_dir", dataset, *TINY)
    places = ("--output_dir", tmp_path / "scores", "--ckpt_dir", tmp_path / "models")
    for text in (result.stdout, run_bundle(*folds, *places).stderr, run_training(dataset, tmp_path).stderr):
        assert "core (value 2) is in annotated_classes of no case" in text


def test_a_model_that_knows_all_classes_is_trained_further_on_some(dataset, trained):
    for number in range(3):
        only_shell(dataset, f"case_{number}")
    declare(dataset, ["shell"])
    data_set = read_data_set(dataset)
    check_looked_for(data_set, data_set.cases, description_of(trained / "models"))
    with pytest.raises(DataError, match="of no case"):
        check_looked_for(data_set, data_set.cases)


def test_densify_refuses_partial_labels(partial, tmp_path):
    result = run_sparse3dunet("densify", partial[0] / "dataset", "-o", tmp_path / "out", "--minutes", 0.1)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "only shell was looked for in case_0" in result.stderr
