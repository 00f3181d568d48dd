"""The model that a training finds in its folder is never lost, nor replaced by a worse one."""

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from sparse3dunet.models.checkpoints import BestModelSaver, is_better
from sparse3dunet.models.description import ModelDescription
from sparse3dunet.training.former import FormerModel
from tests.given_scores import GivenScores


class Training:
    """One of a single weight, whose validations give its scores in turn: first the former model's."""

    def __init__(self, folder, scores, start=1.0, description=None):
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, start)
        self.path = folder / "model.pt"
        self.evaluator = SupervisedEvaluator(
            "cpu",
            [0],
            self.network,
            iteration_update=lambda engine, batch: 0,
            key_val_metric={"dice": GivenScores(scores)},
            metric_cmp_fn=is_better,
        )
        saver = BestModelSaver(self.network, self.path, description)
        saver.attach(self.evaluator)
        self.trainer = Engine(lambda engine, batch: nn.init.constant_(self.network.weight, 10.0 + engine.state.epoch))
        FormerModel(self.evaluator, saver).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self.evaluator.run(e.state.epoch))

    def run(self):
        self.trainer.run([0], max_epochs=2)
        return float(torch.load(self.path, weights_only=True)["weight"])


def former(folder, value=1.0):
    torch.save({"weight": torch.full((1, 1), value)}, folder / "model.pt")


def kept(folder, name="former"):
    return float(torch.load(folder / name / "model.pt", weights_only=True)["weight"])


def described(training, validation, **changes):
    names = ("a", "b", "c") if "regions" in changes else ("a", "b")
    fields = {"class_names": names, "class_values": tuple(range(len(names)))}
    fields |= {"patch_size": (16, 16, 16), "in_channels": 1}
    return ModelDescription(**fields | changes, network=None, training=training, validation=validation)


def test_a_worse_training_leaves_the_model(tmp_path, capsys):
    former(tmp_path)
    assert Training(tmp_path, [0.8, 0.5, 0.7]).run() == 1.0
    assert kept(tmp_path) == 1.0
    assert "stays as it was" in capsys.readouterr().out


def test_a_better_one_replaces_it_and_keeps_it_beside(tmp_path):
    former(tmp_path)
    assert Training(tmp_path, [0.6, 0.5, 0.7]).run() == 12.0
    assert kept(tmp_path) == 1.0


def test_a_training_from_the_beginning_is_not_compared(tmp_path):
    former(tmp_path, 5.0)
    assert Training(tmp_path, [0.5, 0.4]).run() == 11.0
    assert kept(tmp_path) == 5.0


def test_without_a_score_the_last_model_is_saved(tmp_path, capsys):
    assert Training(tmp_path, [float("nan")] * 2).run() == 12.0
    assert "No validation could be scored" in capsys.readouterr().out
    assert not (tmp_path / "former").exists()


@pytest.mark.parametrize(
    ("description", "compared"),
    [
        (described(("one", "two", "four"), ("three",)), True),
        (described(("two", "three"), ("one", "four")), False),  # the former model learned from one of them
        (described(("one", "two"), ("three",), spacing=(1.0, 1.0, 2.0)), False),
        (described(("one", "two"), ("three",), class_values=(0, 2)), False),
        (described(("one", "two"), ("three",), intensity={"center": 40.0, "width": 400.0}), False),
        (described(("one", "two"), ("three",), regions={"all": [1, 2], "b": [2]}), True),
        (described(("one", "two"), ("three",), regions={"b": [2], "all": [1, 2]}), False),  # other outputs
    ],
)
def test_only_like_models_are_compared_on_cases_that_neither_learned_from(tmp_path, description, compared):
    former(tmp_path)
    before = {"regions": {"all": [1, 2], "b": [2]}} if description.regions else {}
    (tmp_path / "model.json").write_text(described(("one", "two"), ("three",), **before).to_json())
    assert Training(tmp_path, [0.8, 0.5, 0.7], description=description).run() == (1.0 if compared else 11.0)


def test_the_model_before_a_training_that_was_ended_is_not_lost(tmp_path):
    """A long training's, if one begins by mistake, is ended after a validation, and another one begins."""
    former(tmp_path)
    for _ in range(2):  # the second finds the first one's model
        mistake = Training(tmp_path, [0.5], start=5.0)
        mistake.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.terminate(skip_completed=True))
        mistake.run()
    assert Training(tmp_path, [0.5, 0.4], start=5.0).run() == 11.0
    assert (kept(tmp_path), kept(tmp_path, "former_2")) == (1.0, 11.0)
    assert not (tmp_path / "former_3").exists(), "it is the same model"
    Training(tmp_path, [0.5, 0.6], start=5.0).run()
    assert kept(tmp_path) == 11.0, "after a training that came to its end"
