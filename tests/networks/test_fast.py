"""The network rewritten for CPUs computes the same."""

import copy

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.fast import FastUNet3D, fast_on_cpu

CASES = [
    ({"channels": (8, 16, 32)}, (16, 20, 24)),
    ({"channels": (8, 16, 32), "strides": ((2, 2, 1), (2, 1, 2))}, (16, 20, 24)),
    ({"channels": (4, 8), "strides": 3}, (15, 9, 12)),
    ({"channels": (4, 8, 8), "strides": ((4, 2, 1), 2)}, (16, 12, 8)),
]


@pytest.mark.parametrize(
    "norm", ["instance", ("instance", {"affine": True}), "batch", ("group", {"num_groups": 2}), None]
)
@pytest.mark.parametrize(("options", "shape"), CASES)
def test_equals_the_network(options, shape, norm):
    network = UNet3D(2, 3, padding="same", norm=norm, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    network.train()
    before = copy.deepcopy(network.state_dict())
    fast = fast_on_cpu(network)
    assert isinstance(fast, FastUNet3D)
    assert network.training
    assert not fast.training
    network.eval()
    x = torch.randn(1, 2, *shape)
    with torch.no_grad():
        expected = network(x)
        assert (fast(x) - expected).abs().max() < 1e-5 * max(expected.abs().max(), 1)
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_other_networks():
    """Valid convolutions, and networks of MONAI's: the memory layout and the normalisation alone."""
    for network in (
        UNet3D(1, 2, channels=(4, 8), norm="instance").eval(),
        BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="instance").eval(),
    ):
        x = torch.randn(1, 1, 32, 36, 48)[..., :32, :32, :32]
        with torch.no_grad():
            torch.testing.assert_close(fast_on_cpu(network)(x), network(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_stays():
    scripted = torch.jit.trace(nn.Conv3d(1, 1, 3), torch.rand(1, 1, 4, 4, 4))
    assert fast_on_cpu(scripted) is scripted


def test_the_original_keeps_its_layers():
    """The copy has others, and memory of its own."""
    network = UNet3D(1, 2, channels=(4, 8), padding="same", norm=("instance", {"affine": True}))
    classes = [type(layer) for layer in network.modules()]
    fast = fast_on_cpu(network)
    assert [type(layer) for layer in network.modules()] == classes
    assert {value.data_ptr() for value in network.parameters()}.isdisjoint(v.data_ptr() for v in fast.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},  # of ResNets
        {"kernel_size": 2, "ceil_mode": True},
        {"kernel_size": 2, "stride": 1, "dilation": 2},
        {"kernel_size": (1, 2, 3), "stride": (1, 2, 1)},
    ],
    ids=["padding", "ceil_mode", "dilation", "anisotropic"],
)
def test_pooling_of_other_networks(options):
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.MaxPool3d(**options)).eval()
    x = torch.randn(1, 1, 9, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fast_on_cpu(network)(x), network(x), rtol=0, atol=1e-5)
