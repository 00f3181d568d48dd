"""The model that a training finds in its folder is never lost, nor replaced by a worse one."""

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from sparse3dunet.models.checkpoints import BestModelSaver, is_better
from sparse3dunet.training.former import FormerModel


class Training:
    """One of a single weight, whose validations give its scores in turn: first the former model's."""

    def __init__(self, folder, scores, start=1.0):
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, start)
        self.path, scores = folder / "model.pt", iter(scores)
        self.evaluator = SupervisedEvaluator("cpu", [torch.zeros(1)], self.network, metric_cmp_fn=is_better)
        self.evaluator._iteration = lambda engine, batch: {}
        self.evaluator.state.key_metric_name = "dice"
        score = lambda engine: engine.state.metrics.update(dice=next(scores))  # noqa: E731
        self.evaluator._event_handlers[Events.EPOCH_COMPLETED].insert(0, (score, (self.evaluator,), {}))
        saver = BestModelSaver(self.network, self.path)
        saver.attach(self.evaluator)
        self.trainer = Engine(lambda engine, batch: nn.init.constant_(self.network.weight, 10.0 + engine.state.epoch))
        FormerModel(self.evaluator, saver).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self.evaluator.run(e.state.epoch))

    def run(self):
        self.trainer.run([0], max_epochs=2)
        return float(torch.load(self.path, weights_only=True)["weight"])


def former(folder, value=1.0):
    torch.save({"weight": torch.full((1, 1), value)}, folder / "model.pt")


def kept(folder):
    return float(torch.load(folder / "former/model.pt", weights_only=True)["weight"])


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
