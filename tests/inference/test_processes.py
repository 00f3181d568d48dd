"""Processes as torchrun starts them, and as job schedulers name them."""

import pytest

from sparse3dunet.inference.processes import Processes


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
