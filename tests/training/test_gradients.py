"""Convolutions whose bfloat16 gradient is wrong run in float32; no step is taken by a gradient that cannot be right."""

import copy
import json
import math

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import IterationEvents, SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import nn

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inferers import AutocastInferer
from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.layers import Float32Conv3d, Float32ConvTranspose3d
from sparse3dunet.training import bfloat16
from sparse3dunet.training.gradients import GradientGuard
from tests.conftest import run_training

FLAT, WIDE = (1, 4, 8, 8), (1, 8, 8, 8)
"""Images with and without a first axis of 2 at the coarsest of two steps."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bfloat16, "_checked", {})
    monkeypatch.setattr(bfloat16, "_reported", set())
    return tmp_path / "cache/sparse3dunet/bfloat16.json"


def make_network():
    torch.manual_seed(0)
    return UNet3D(1, 2, channels=(4, 8), norm=("instance", {"affine": True}), padding="same")


def in_float32(network):
    return [name for name, m in network.named_modules() if isinstance(m, (Float32Conv3d, Float32ConvTranspose3d))]


def make_trainer(network, guard=True, images=WIDE, count=12, inferer=None, rate=0.01):
    """A training that counts its steps in ``trainer.state.iteration``."""
    shape = (1, *images[1:])
    items = [{"image": torch.randn(images), "label": torch.randn(shape)} for _ in range(count)]
    return SupervisedTrainer(
        "cpu", 1, DataLoader(items, batch_size=1), network, torch.optim.AdamW(network.parameters(), rate),
        lambda pred, label: (pred - label).square().mean(), inferer=inferer,
        train_handlers=[GradientGuard(network)] if guard else [],
    )  # fmt: skip


# ---------------------------------------------------------------- what runs in float32


def test_first_axes_shorter_than_the_kernel_are_wrong_without_being_run(monkeypatch):
    monkeypatch.setattr(bfloat16, "agrees", lambda module, inputs: pytest.fail("it was run"))
    conv, transposed = nn.Conv3d(2, 2, 3, padding=1), nn.ConvTranspose3d(2, 2, 4, 2, padding=1)
    for module, shape in (
        (conv, (2, 8, 8)),
        (conv, (1, 8, 8)),
        (nn.Conv3d(2, 2, 5), (4, 8, 8)),
        (transposed, (2, 4, 4)),
    ):
        assert not bfloat16.is_safe(module, torch.empty(1, 2, *shape), {})
    monkeypatch.setattr(bfloat16, "agrees", lambda module, inputs: True)
    for module, shape in ((conv, (8, 2, 2)), (conv, (3, 8, 8)), (nn.Conv3d(2, 2, 1), (1, 8, 8))):
        assert bfloat16.is_safe(module, torch.empty(1, 2, *shape), {})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_rounding_is_no_error_but_garbage_is(layout):
    torch.manual_seed(0)
    x = torch.empty(1, 4, 6, 6, 6).to(memory_format=layout)
    conv = nn.Conv3d(4, 8, 3, padding=1).to(memory_format=layout)
    before = copy.deepcopy(conv.state_dict())
    assert bfloat16.agrees(conv, x)
    assert bfloat16.agrees(nn.ConvTranspose3d(4, 8, 4, 2, padding=1, bias=False).to(memory_format=layout), x)
    for value in (1e19, math.inf, math.nan):
        assert not bfloat16.agrees(Garbage(4, 8, 3, padding=1, value=value), x)
    assert all(torch.equal(conv.state_dict()[name], before[name]) for name in before)
    assert conv.weight.grad is None


class Garbage(nn.Conv3d):
    """A convolution with one wrong value in its weight gradient, in bfloat16 alone."""

    def __init__(self, *args, value, **kwargs):
        super().__init__(*args, **kwargs)
        self.value = value

    def forward(self, x):
        weight = self.weight * 1
        if torch.is_autocast_enabled("cpu"):
            weight.register_hook(self.spoil)
        return self._conv_forward(x, weight, self.bias)

    def spoil(self, gradient):
        gradient = gradient.clone()
        gradient[0, 0, 0, 0, 0] = self.value
        return gradient


def test_the_coarsest_step_of_a_flat_image_runs_in_float32():
    network = make_network()
    names = list(network.state_dict())
    state = torch.get_rng_state()
    number = bfloat16.protect(network, FLAT)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert in_float32(network) == ["down.1.1.0", "down.1.1.3", "upsample.0"]
    assert number == 3
    assert list(network.state_dict()) == names
    assert bfloat16.protect(network, FLAT) == 0  # it was done
    assert in_float32(copy.deepcopy(network)) == in_float32(network)
    untouched = make_network()
    assert bfloat16.protect(untouched, WIDE) == 0
    assert not in_float32(untouched)


def test_a_checker_decides_module_by_module(monkeypatch):
    monkeypatch.setattr(bfloat16, "agrees", lambda module, inputs: module.out_channels != 2)
    network = make_network()
    assert bfloat16.protect(network, WIDE) == 2
    assert in_float32(network) == ["down.0.0", "head"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("kind", "ours", "batch", "tolerance"),
    [
        (nn.Conv3d, Float32Conv3d, 2, 0),
        (nn.Conv3d, Float32Conv3d, 1, 1e-5),  # one volume is split: other rounding
        (nn.ConvTranspose3d, Float32ConvTranspose3d, 2, 0),
    ],
)
def test_in_float32_under_autocast(kind, ours, batch, tolerance, layout):
    torch.manual_seed(0)
    theirs = kind(4, 8, 3, padding=1).to(memory_format=layout)
    layer = copy.deepcopy(theirs)
    layer.__class__ = ours
    x = torch.randn(batch, 4, 2, 6, 6).bfloat16().to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    expected = theirs(x.float())
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, theirs.weight.grad, rtol=tolerance, atol=10 * tolerance)


# ---------------------------------------------------------------- what is kept of it


def test_what_was_found_is_kept_from_one_process_to_the_next(cache, monkeypatch):
    bfloat16.protect(make_network(), WIDE)
    (known,) = json.loads(cache.read_text()).values()
    assert known
    assert all(value is True for value in known.values())
    assert [file.name for file in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(bfloat16, "agrees", lambda module, inputs: pytest.fail("it was run"))
    assert bfloat16.protect(make_network(), WIDE) == 0  # in this process
    monkeypatch.setattr(bfloat16, "_checked", {})
    assert bfloat16.protect(make_network(), WIDE) == 0  # in another
    cache.write_text(cache.read_text().replace("true", "false"))
    monkeypatch.setattr(bfloat16, "_checked", {})
    assert bfloat16.protect(make_network(), WIDE) == 8
    monkeypatch.setattr(bfloat16, "agrees", lambda module, inputs: True)
    monkeypatch.setattr(bfloat16, "_machine", lambda: "another")
    monkeypatch.setattr(bfloat16, "_checked", {})
    assert bfloat16.protect(make_network(), WIDE) == 0
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"%s": [1]}', b'{"%s": {"a": 1}}'])
def test_a_damaged_cache_is_no_error(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content.replace(b"%s", bfloat16._machine().encode()))
    assert bfloat16.protect(make_network(), WIDE) == 0
    assert bfloat16._machine() in json.loads(cache.read_text())


def test_an_unwritable_cache_is_no_error(cache, monkeypatch, tmp_path):
    cache.parent.parent.write_text("")  # a file where the folder would be
    assert bfloat16.protect(make_network(), FLAT) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(bfloat16, "_checked", {})
    monkeypatch.setattr(bfloat16.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert bfloat16.protect(make_network(), FLAT) == 3


# ---------------------------------------------------------------- a training


@pytest.mark.parametrize(("images", "enabled", "number"), [(FLAT, True, 3), (FLAT, False, 0), (WIDE, True, 0)])
def test_a_training_in_bfloat16_protects_its_network(capsys, images, enabled, number):
    network = make_network()
    trainer = make_trainer(network, images=images, count=2, inferer=AutocastInferer(SimpleInferer(), enabled))
    trainer.run()
    told = "3 convolutions run in float32: torch's bfloat16 gradient is wrong there on this CPU.\n"
    assert capsys.readouterr().out == (told if number else "")
    assert len(in_float32(network)) == number
    assert trainer.state.steps_skipped == [0, 0]


def test_a_normal_training_is_as_without_a_guard():
    weights = []
    for guard in (False, True):
        network = make_network()
        trainer = make_trainer(network, guard, count=6)
        trainer.run()
        weights.append(network.state_dict())
    assert trainer.state.steps_skipped_in_all == 0
    assert len(trainer.state.gradient_norms) == 6
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Spoiler:
    """Makes the gradients of some iterations wrong."""

    def __init__(self, trainer, iterations, value):
        self.iterations, self.value = set(iterations), value
        self.changed = {}  # by iteration, whether the weights did
        # First of the handlers of this event, as the backward pass itself would be.
        trainer._event_handlers[IterationEvents.BACKWARD_COMPLETED].insert(0, (self.spoil, (trainer,), {}))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def spoil(self, engine):
        self.before = copy.deepcopy(engine.network.state_dict())
        if engine.state.iteration in self.iterations:
            next(engine.network.parameters()).grad.view(-1)[0] = self.value

    def note(self, engine):
        after = engine.network.state_dict()
        self.changed[engine.state.iteration] = any(not torch.equal(after[name], self.before[name]) for name in after)


@pytest.mark.parametrize(("first", "value"), [(3, math.nan), (3, -math.inf), (3, 1e19), (3, 1e13), (25, 1e9)])
def test_a_wrong_step_leaves_the_weights_as_they_are(capsys, first, value):
    trainer = make_trainer(make_network(), count=first + 3, images=(1, 4, 4, 4))
    spoiler = Spoiler(trainer, {first, first + 1}, value)
    trainer.run()
    assert [number for number, changed in spoiler.changed.items() if not changed] == [first, first + 1]
    assert trainer.state.steps_skipped[-5:] == [0, 1, 1, 0, 0]
    assert trainer.state.steps_skipped_in_all == 2
    assert f"2 of {first + 3} steps were skipped" in capsys.readouterr().out
    assert trainer.state.gradient_norms
    assert all(math.isfinite(norm) for norm in trainer.state.gradient_norms)


@pytest.mark.parametrize(
    ("spoiled", "last", "words"),
    [(range(5, 99), 14, "10 of the last 14 steps"), (range(1, 200, 2), 41, "21 of the last 41 steps")],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_persistent_ones_stop_the_training(spoiled, last, words, enabled):
    network = make_network()
    inferer = AutocastInferer(SimpleInferer(), enabled)
    trainer = make_trainer(network, images=(1, 4, 4, 4), count=60, inferer=inferer)
    Spoiler(trainer, spoiled, math.nan)
    with pytest.raises(DataError) as error:
        trainer.run()
    message = str(error.value)
    assert message.startswith(f"the gradients are wrong at iteration {last}: their norm is nan (usually ")
    assert words in message
    assert ("--train#inferer#enabled False" in message) == ("bfloat16" in message) == enabled
    assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_what_is_usual_comes_from_the_steps_taken():
    guard = GradientGuard(nn.Linear(1, 1))
    assert guard.limit([1.0] * 19) == 1e12
    assert guard.limit([*[3.0] * 19, 1e9]) == 3e6
    assert guard.limit([0.0] * 20) == 1


def test_counts_go_into_the_state_of_a_resumable_training():
    trainer = make_trainer(make_network())
    assert {"gradient_norms", "steps_skipped", "steps_skipped_in_all"} <= set(trainer.state_dict_user_keys)


def test_the_bundles_training_is_guarded(dataset, tmp_path):
    options = (
        "--patch_size",
        "[8,16,16]",
        "--network_def#strides",
        2,
        "--max_epochs",
        1,
        "--train#inferer#enabled",
        True,
    )
    result = run_training(dataset, tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "convolutions run in float32" in result.stdout
    state = torch.load(tmp_path / "models/state/last.pt", weights_only=True)["trainer"]
    assert state["steps_skipped"] == [0, 0]
    assert len(state["gradient_norms"]) == 2
