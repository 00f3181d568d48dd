"""A training that begins with a trained model's weights."""

import json

import pytest
import torch

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.errors import DataError
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import describe_model
from sparse3dunet.networks import UNet3D
from sparse3dunet.training.finetuning import load_pretrained
from tests.bundle.test_bundle import error_of
from tests.conftest import run_training

FORM = {"channels": (4, 8), "norm": "instance", "padding": "same"}


def described(network, names="abc", spacing=None):
    data_set = DataSet([], list(names), list(range(len(names))), (9,), network.in_channels)
    return describe_model(network, data_set, (16, 16, 16), spacing)


@pytest.fixture
def model(tmp_path):
    network = UNet3D(1, 3, **FORM)
    save_file(tmp_path / "models/model.pt", network.state_dict(), described(network))
    return tmp_path / "models", network.state_dict()


def equal_names(network, state):
    own = network.state_dict()
    return {name for name in own if own[name].shape == state[name].shape and torch.equal(own[name], state[name])}


def test_the_same_classes_take_everything(model, capsys):
    path, state = model
    network = UNet3D(1, 3, **FORM, dropout=0.3)
    load_pretrained(network, path, described(network))
    assert equal_names(network, state) == set(state)
    assert capsys.readouterr().out == f"Training further from {path}: 15 of 15 tensors loaded.\n".replace(
        "15 of 15", f"{len(state)} of {len(state)}"
    )


def test_other_classes_and_channels(model, capsys):
    path, state = model
    network = UNet3D(2, 4, **FORM)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_pretrained(network, path, described(network, "abcd", [1.0, 1.0, 1.0]))
    new = {"head.weight", "head.bias", "down.0.0.weight"}
    assert equal_names(network, state) == set(state) - new
    assert all(torch.equal(network.state_dict()[name], fresh[name]) for name in new)
    text = capsys.readouterr().out
    assert f"{len(state) - 3} of {len(state)} tensors" in text
    assert "The head is new: 4 classes (a, b, c, d) instead of 3." in text
    assert "The first convolution is new: 2 channel(s) instead of 1." in text
    assert "another voxel size: None, now [1.0, 1.0, 1.0]" in text


def test_other_names_are_told(model, capsys):
    path, state = model
    network = UNet3D(1, 3, **FORM)
    load_pretrained(network, path, described(network, "axc"))
    assert equal_names(network, state) == set(state)
    assert "Classes by number: a -> a, b -> x, c -> c." in capsys.readouterr().out


def test_faults_are_named(model, tmp_path):
    path, _ = model
    network = UNet3D(1, 3, channels=(4, 16), norm="instance", padding="same")
    with pytest.raises(
        DataError, match=r'differs in channels \[4, 8\] \(here \[4, 16\]\).*--network_def#channels "\[4, 8\]"'
    ):
        load_pretrained(network, path, described(network))
    whole = UNet3D(1, 3, **FORM, halved=False)
    with pytest.raises(DataError, match=r'differs in halved True \(here False\).*--network_def#halved "True"'):
        load_pretrained(whole, path, described(whole))
    save_file(tmp_path / "whole/model.pt", whole.state_dict(), described(whole))
    with pytest.raises(DataError, match=r'differs in halved False \(here True\).*--network_def#halved "False"'):
        load_pretrained(UNet3D(1, 3, **FORM), tmp_path / "whole", described(whole))
    with pytest.raises(DataError, match="no trained model"):
        load_pretrained(network, tmp_path / "nothing", described(network))
    with pytest.raises(DataError, match="UNet3D can be trained further"):
        load_pretrained(torch.nn.Linear(1, 1), path, described(network))
    load_pretrained(network, None, described(network))


def test_the_bundle_learns_further(trained, tmp_path):
    """With learning rate 0, the model that comes out is the one that went in; one of another form is refused."""
    options = ("--pretrained", trained / "models", "--learning_rate", 0, "--max_epochs", 1)
    result = run_training(trained / "dataset", tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "Training further from" in result.stdout
    states = [torch.load(out / "models/model.pt", weights_only=True) for out in (trained, tmp_path)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert json.loads((tmp_path / "models/model.json").read_text())["class_names"]
    message = error_of(run_training(trained / "dataset", tmp_path, *options, "--network_def#channels", "[4,8]"))
    assert "differs in channels" in message
