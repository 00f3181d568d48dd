"""What a config leaves to the data and the machine: each a function with the answer."""

import pytest
from ignite.engine import Engine

from sparse3dunet.data.checks import check_cases
from sparse3dunet.data.datalist import without_references
from sparse3dunet.data.names import case_name
from sparse3dunet.errors import DataError
from sparse3dunet.models.description import describe_model
from sparse3dunet.networks import UNet3D
from sparse3dunet.training.budget import Budget, default_patience
from sparse3dunet.training.crossval import same_cases
from sparse3dunet.training.data import read
from sparse3dunet.training.distributed import share, show_data, show_results, wrap
from sparse3dunet.training.engines import NamedHandler
from sparse3dunet.training.resume import fixed_settings
from sparse3dunet.training.settings import check_rates, default_workers

DECLARED = {"class_names": ["a", "b"], "class_values": [0, 4], "ignore_index": [9], "num_channels": 1}


def test_a_data_set_is_read_or_declared(dataset):
    data_set = read(str(dataset), label_dir="labelsDense", annotated_slices="axial")
    assert [case_name(case) for case in data_set.cases] == ["case_0", "case_1", "case_2"]
    assert all("labelsDense" in case["label"] and case["annotated_slices"] == "axial" for case in data_set.cases)
    assert read(None, declared=DECLARED).class_values == [0, 4]
    with pytest.raises(DataError, match="pass --dataset_dir FOLDER"):
        read(None)


def test_other_names_for_the_classes(dataset):
    data_set = read(str(dataset), class_names=["nothing", "hull", "seed"], infer_unlabeled=True)
    assert data_set.class_names == ["nothing", "hull", "seed"]


def test_cases_that_are_listed_elsewhere(dataset):
    """As MONAI Label does: only the classes are known before."""
    cases = [{key: case[key] for key in ("image", "label")} for case in read(str(dataset)).cases]
    known = {"class_names": ["x", "y", "z"], "class_values": [0, 1, 2], "ignore_index": [3], "num_channels": 1}
    report = check_cases(read(None, declared=known), cases[:2], cases[2:])
    assert [case.name for case in report.cases] == ["case_0", "case_1", "case_2"]
    with pytest.raises(DataError, match="there is no case to train on"):
        check_cases(read(None, declared=known), [])


def test_nothing_learns_from_references(dataset):
    cases = read(str(dataset)).cases
    assert all("reference" in case for case in cases)
    training, validation = same_cases(read(str(dataset)))
    assert training == validation == without_references(cases)
    assert not any("reference" in case for case in training)
    assert all("reference" in case for case in cases)


@pytest.mark.parametrize(
    ("device", "workers"), [("cpu", 0), ("cuda", 4), ("cuda:1", 4)]
)  # a name alone, as from the command line
def test_workers(device, workers):
    assert default_workers(device) == workers


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", [[1], None, True, -1, float("nan"), float("inf")]),
        ("num_workers", [1.5, "x", -1, None, True]),
        ("cache_rate", [float("nan"), -1, 2, None, "x"]),
    ],
)
def test_settings_that_are_no_numbers_in_their_range(name, values):
    good = {"learning_rate": 0.001, "num_workers": 0, "cache_rate": 1.0}
    check_rates(**good)
    for value in values:
        with pytest.raises(DataError, match=f"^{name} must be a .*number.*; got "):
            check_rates(**{**good, name: value})


def test_patience_is_of_epochs():
    assert default_patience(None) == 10
    assert default_patience(3) > 10**6


def test_a_named_handler_is_attached_unless_disabled():
    engine = Engine(lambda *_: None)
    NamedHandler(None).attach(engine)
    NamedHandler(Budget()).attach(engine)
    assert "seconds" in engine.state_dict_user_keys


def test_one_process_does_all(capsys, dataset):
    cases = read(str(dataset)).cases
    assert share(cases) == cases
    network = UNet3D(1, 2, channels=(4, 8))
    assert wrap(network) is network
    description = describe_model(network, read(str(dataset)), [16, 16, 16])
    fixed = fixed_settings(description, seed=2, batch_size=3, epoch_length=4)
    assert (fixed["seed"], fixed["batch_size"], fixed["epoch_length"]) == (2, 3, 4)
    assert fixed["patch_size"] == [16, 16, 16]
    assert "sparse3dunet_version" not in fixed
    show_data(check_cases(read(str(dataset)), []), [1.0, 2.5, 1.0])
    show_results("out")
    text = capsys.readouterr().out
    assert "2.5" in text
    assert "out/scores.csv" in text
