"""Processes as torchrun starts them, and as job schedulers name them."""

import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Outcome
from sparse3dunet.inference.processes import Processes
from sparse3dunet.inference.run import report


@pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}])
def test_one_alone_does_everything(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = Processes()
    assert processes.is_first
    assert processes.share(["a", "b", "c"]) == ["a", "b", "c"]
    assert processes.gather("x") == ["x"]
    assert processes.agree(3) == 3
    processes.close()


def test_a_rank_alone_tells_of_failures(monkeypatch, capsys):
    """As in one of a scheduler's array of jobs."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(DataError, match="1 of 1 volume"):
        report(Outcome(0, 0, ["a: broken"]), "out")
    assert "Segmented 0 volume(s)" in capsys.readouterr().out
