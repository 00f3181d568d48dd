"""Model files: whole at any moment, the best one kept, and enough beside them to rebuild the network."""

import math
import pickle
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from monai.engines import SupervisedEvaluator

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import replacing
from sparse3dunet.models.checkpoints import BestModelSaver, existing_model, is_better, save_file
from sparse3dunet.models.description import describe_model, description_for_bundle, read_description
from sparse3dunet.networks import UNet3D
from tests.conftest import ROOT, bundle_environment
from tests.given_scores import GivenScores

TRAIN_CONFIG = ROOT / "bundle/configs/train.yaml"
DATA_SET = DataSet([], list("abcde"), [0, 7, 8, 100, -1], (9,), 1)


WRITER = """
import sys, torch
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.description import ModelDescription
classes = {"class_names": ("a", "b"), "class_values": (0, 1)}
described = ModelDescription(**classes, patch_size=(8, 8, 8), network=None, in_channels=1)
number = 0
while True:
    number += 1
    save_file(sys.argv[1], {"number": torch.full((300, 300, 10), float(number))}, described)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_killed_while_writing_the_file_is_whole(tmp_path):
    """A process that does nothing but replace the file is killed at any moment, three times."""
    path = tmp_path / "models" / "model.pt"
    command = [sys.executable, "-c", WRITER, str(path)]
    for round_ in range(3):
        process = subprocess.Popen(command, env=bundle_environment(), stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"1\n"
        began = time.monotonic()
        assert process.stdout.readline() == b"2\n"
        time.sleep((time.monotonic() - began) * (round_ + 1) / 4)  # so far into the next replacement
        process.kill()
        process.wait()
        number = torch.load(path, weights_only=True)["number"]
        assert (number == number[0, 0, 0]).all()
        assert read_description(path).class_names == ("a", "b")
    assert len(list(path.parent.iterdir())) <= 4  # model.pt, model.json and at most a draft of each


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.1, 0.5, 0.3], 1), ([0.5, 0.5], 0), ([math.nan, 0.2, math.nan], 1), ([math.nan], 0), ([-0.5, -0.6], 0)],
)
def test_best_model_is_kept(tmp_path, scores, best):
    network = torch.nn.Linear(1, 1, bias=False)
    data = [{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}]
    metric = {"score": GivenScores(scores)}
    evaluator = SupervisedEvaluator("cpu", data, network, key_val_metric=metric, metric_cmp_fn=is_better)
    BestModelSaver(network, tmp_path / "model.pt").attach(evaluator)
    for number in range(len(scores)):
        with torch.no_grad():
            network.weight.fill_(number)
        evaluator.run(number + 1)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(state) == ["weight"]
    assert state["weight"].item() == best


def test_last_model_is_kept(tmp_path):
    network = torch.nn.Linear(1, 1, bias=False)
    metric = {"score": GivenScores([0.1, 0.5, 0.3])}
    data = [{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}]
    evaluator = SupervisedEvaluator("cpu", data, network, key_val_metric=metric, metric_cmp_fn=is_better)
    BestModelSaver(network, tmp_path / "model.pt", keep="last").attach(evaluator)
    for number in range(3):
        with torch.no_grad():
            network.weight.fill_(number)
        evaluator.run(number + 1)
        assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == number
    with pytest.raises(DataError, match=r"keep must be best or last, .*; got 'first'"):
        BestModelSaver(network, tmp_path / "model.pt", keep="first")


def test_description_rebuilds_the_network(tmp_path):
    network = UNet3D(2, 5, channels=(4, 8), norm=("group", {"num_groups": 2}), padding="same", dropout=0.1)
    description = describe_model(network, DATA_SET, (16, 16, 8), [1.0, 1.0, 2.5])
    save_file(tmp_path / "model.pt", network.state_dict(), description)
    assert read_description(tmp_path / "model.pt") == description
    again = description_for_bundle(tmp_path / "model.pt", TRAIN_CONFIG)
    assert again == description
    UNet3D(**again.network).load_state_dict(torch.load(existing_model(tmp_path / "model.pt"), weights_only=True))


def test_another_description_never_lies_beside_a_former_model(tmp_path, monkeypatch):
    """Killed between the two files, there is no model rather than one with the wrong description."""
    path = tmp_path / "model.pt"
    former, other = (describe_model(torch.nn.Linear(1, 1), DATA_SET, (size, 8, 8)) for size in (8, 16))
    save_file(path, {"a": torch.ones(1)}, former)
    save_file(path, {"a": torch.zeros(1)}, former)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_file(path, {"a": torch.ones(1)}, former)
    assert torch.load(path, weights_only=True)["a"] == 0, "the same description leaves the former model in place"
    with pytest.raises(KeyboardInterrupt):
        save_file(path, {"a": torch.ones(1)}, other)
    assert not path.exists()


@pytest.mark.parametrize("damaged", [b"\xff\xfe{}", b"{", b""])
def test_a_damaged_description_is_replaced(tmp_path, damaged):
    """Not only at the end of a training does it show."""
    description = describe_model(torch.nn.Linear(1, 1), DATA_SET, (8, 8, 8))
    save_file(tmp_path / "model.pt", {"a": torch.ones(1)}, description)
    (tmp_path / "model.json").write_bytes(damaged)
    save_file(tmp_path / "model.pt", {"a": torch.zeros(1)}, description)
    assert read_description(tmp_path / "model.pt") == description


def test_before_training_the_configs_network(tmp_path):
    description = description_for_bundle(tmp_path / "model.pt", TRAIN_CONFIG, in_channels=2, num_classes=4)
    network = UNet3D(**description.network)
    assert (network.in_channels, network.head.out_channels) == (2, 4)


def test_faults_are_named(tmp_path):
    with pytest.raises(DataError, match="no trained model"):
        existing_model(tmp_path / "model.pt")
    with pytest.raises(DataError, match="no trained model"):
        description_for_bundle(tmp_path / "model.pt", tmp_path / "train.yaml")
    (tmp_path / "model.pt").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="Copy it from"):
        description_for_bundle(tmp_path / "model.pt", TRAIN_CONFIG)
    with pytest.raises(DataError, match="not a model file"):
        existing_model(tmp_path / "model.pt")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(DataError, match=r"model\.json: not a model description: it is not valid JSON"):
        description_for_bundle(tmp_path / "model.pt", TRAIN_CONFIG)
    (tmp_path / "model.json").write_text(describe_model(torch.nn.Linear(1, 1), DATA_SET, (8, 8, 8)).to_json())
    with pytest.raises(DataError, match="is not a UNet3D, according"):
        description_for_bundle(tmp_path / "model.pt", TRAIN_CONFIG)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_checking_a_model_file_runs_nothing_of_it(tmp_path):
    path, harm = tmp_path / "model.pt", tmp_path / "harm"
    for content in ({"weight": Harmful(harm)}, Harmful(harm)):
        torch.save(content, path)
        with pytest.raises(DataError, match="not a model file"):
            existing_model(path)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match="not a model file"):
            existing_model(path)
    assert not harm.exists()
    pickle.loads(path.read_bytes()).close()
    assert harm.exists(), "it would have"


def test_a_draft_that_cannot_be_written_is_no_rubbish(tmp_path):
    def full(draft):
        draft.write_text("half")
        raise OSError("No space left on device")

    (tmp_path / "a").write_text("before")
    with pytest.raises(OSError, match="No space"), replacing(tmp_path / "a") as draft:
        full(draft)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_channels_of_another_network_are_told():
    """Nothing else says how many images a network takes that is no UNet3D."""
    description = describe_model(torch.nn.Conv3d(2, 5, 1), replace(DATA_SET, num_channels=2), (8, 8, 8))
    assert description.network is None
    assert description.in_channels == 2
