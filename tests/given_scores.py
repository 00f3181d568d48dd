"""Metric that tests determine."""

from ignite.metrics import Metric


class GivenScores(Metric):
    """The next of some numbers, one a validation, whatever was predicted."""

    def __init__(self, scores):
        self.scores = iter(scores)
        super().__init__()

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        return next(self.scores)
