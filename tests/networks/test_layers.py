"""Layers that keep the memory layout compute what PyTorch's do."""

import pytest
import torch
from torch import nn

from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.fast import JoinedConv
from sparse3dunet.networks.layers import InstanceNorm3d, MaxPool3d

LAYOUTS = {"channels last": torch.channels_last_3d, "contiguous": torch.contiguous_format}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_instance_norm_is_pytorchs(batch, affine, layout):
    ours, theirs = InstanceNorm3d(4, affine=affine), nn.InstanceNorm3d(4, affine=affine)
    for layer in (ours, theirs):
        for number, parameter in enumerate(layer.parameters(), 1):
            nn.init.constant_(parameter, 1 / number)
    ours.load_state_dict(theirs.state_dict())
    found = []
    x = torch.randn(batch, 4, 5, 6, 7) * 3 + 1
    factor = torch.randn(x.shape)
    for layer in (ours, theirs):
        inputs = x.clone().to(memory_format=layout).requires_grad_()
        result = layer(inputs)
        (result * factor).sum().backward()
        found.append([result, inputs.grad, *[p.grad for p in layer.parameters()]])
    assert found[0][0].is_contiguous(memory_format=layout)
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_stay_in_it():
    x = torch.randn(2, 4, 6, 6, 6).to(memory_format=torch.channels_last_3d).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert MaxPool3d(2)(x).dtype == torch.bfloat16
        assert torch.equal(MaxPool3d(2)(x).float(), nn.MaxPool3d(2)(x.float()))
        normed = InstanceNorm3d(4)(x)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.float(), nn.InstanceNorm3d(4)(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("strides", [2, ((2, 2, 1), 2), ((3, 1, 2), (1, 2, 2))])
def test_joined_upsampling_can_be_what_concatenated_is(strides):
    """Given the kernels that the two convolutions make together, the same output."""
    options = {"channels": (4, 8, 8), "strides": strides, "norm": "instance", "padding": "same"}
    network, joined = UNet3D(2, 3, **options), UNet3D(2, 3, **options, upsampling="joined")
    state = network.state_dict()
    own = {name: state[name] for name in joined.state_dict() if name.startswith(("down", "head"))}
    for number, (upsample, up) in enumerate(zip(network.upsample, network.up)):
        made = JoinedConv(upsample, up[0])
        own |= {f"upsample.{number}.weight": made.coarse, f"skip.{number}.weight": made.skip}
        own |= {
            f"skip.{number}.bias": made.bias,
            f"up.{number}.2.weight": up[3].weight,
            f"up.{number}.2.bias": up[3].bias,
        }
    joined.load_state_dict(own)
    x = torch.randn(2, 2, 12, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(joined(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsampling", ["concatenated", "joined"])
def test_signals_keep_their_size_without_normalisation(upsampling):
    torch.manual_seed(0)
    network = UNet3D(1, 2, channels=(16, 32, 64), norm=None, padding="same", upsampling=upsampling)
    sizes = []
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda *args: sizes.append(float(args[2].detach().square().mean().sqrt())))
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert len(sizes) == 10
    assert all(0.3 < size < 3 for size in sizes), sizes
