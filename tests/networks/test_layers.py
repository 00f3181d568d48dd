"""Layers that keep the memory layout compute what PyTorch's do."""

import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet
from torch import nn
from torch.export import Dim
from torch.profiler import ProfilerActivity, profile

from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.layers import Conv3d, InstanceNorm3d, MaxPool3d, fast_on_cpu

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
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


CONVOLUTIONS = {
    "same": {"kernel_size": 3, "padding": 1},
    "valid": {"kernel_size": 3},
    "thick slices": {"kernel_size": (3, 3, 1), "padding": (1, 1, 0)},
    "sagittal slices": {"kernel_size": (1, 3, 3), "padding": (0, 1, 1), "bias": False},
    "head": {"kernel_size": 1},
    "long": {"kernel_size": 5, "padding": (2, 0, 1)},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "groups": {"kernel_size": 3, "groups": 2},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "by name": {"kernel_size": 3, "padding": "same"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 4, 8, 6, 7), (1, 4, 9, 6, 7), (1, 4, 5, 5, 5), (2, 4, 6, 6, 6)], ids=str)
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolution_is_pytorchs(options, shape, layout):
    theirs = nn.Conv3d(4, 6, **options).to(memory_format=layout)
    ours = copy.deepcopy(theirs)
    ours.__class__ = Conv3d
    x = torch.randn(shape)
    found = []
    for layer in (ours, theirs):
        inputs = x.clone().to(memory_format=layout).requires_grad_()
        result = layer(inputs)
        result.square().sum().backward()
        found.append([result, inputs.grad, *[p.grad for p in layer.parameters()]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_convolution_keeps_the_layout(layout):
    layer = Conv3d(4, 6, 3, padding=1).to(memory_format=layout)
    assert layer(torch.randn(1, 4, 5, 6, 7).to(memory_format=layout)).is_contiguous(memory_format=layout)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("shape", [(8, 32, 48, 32), (64, 4, 6, 4), (2, 3, 3, 3)], ids=str)
def test_one_volume_is_convolved_by_onednn(shape):
    """In training as in prediction; PyTorch's own convolution takes several times as long."""
    layer, x = Conv3d(shape[0], 4, 3, padding=1), torch.randn(1, *shape)
    with profile(activities=[ProfilerActivity.CPU]) as run:
        layer(x).sum().backward()
        with torch.inference_mode():
            layer(x)
    names = {event.key for event in run.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert not any("slow_conv3d" in name for name in names)


def test_what_pytorch_gives_to_onednn_is_not_split():
    for options in ({"kernel_size": 5, "padding": 2}, {"kernel_size": (3, 5, 5)}, {"kernel_size": 1}):
        layer = Conv3d(4, 4, **options)
        with profile(activities=[ProfilerActivity.CPU]) as run:
            layer(torch.randn(1, 4, 8, 8, 8))
        assert "aten::cat" not in {event.key for event in run.key_averages()}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_convolution_of_few_slices(length):
    ours = Conv3d(2, 3, 3, padding=1)
    theirs = nn.Conv3d(2, 3, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, length, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_recorded_convolution_is_not_split():
    """A recorded network takes other sizes and batches than it was recorded with."""
    layer = Conv3d(1, 2, 3, padding=1)
    x = torch.randn(3, 1, 7, 8, 9)
    shape = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC, 4: Dim.DYNAMIC}
    exported = torch.export.export(layer, (torch.randn(2, 1, 6, 6, 6),), dynamic_shapes=(shape,)).module()
    for recorded in (torch.jit.trace(layer, torch.randn(1, 1, 6, 6, 6)), torch.jit.script(layer), exported):
        torch.testing.assert_close(recorded(x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_wrong_number_of_channels_is_told_of_the_volume_that_was_given():
    with pytest.raises(RuntimeError, match=r"\[1, 3, 5, 6, 6\]"):
        Conv3d(2, 2, 3)(torch.randn(1, 3, 5, 6, 6))


def test_networks_have_such_convolutions():
    ours = UNet3D(1, 3, channels=(8, 16, 32), padding="same")
    others = fast_on_cpu(BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4)))
    for network in (ours, others):
        convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
        assert len(convolutions) > 8
        assert all(type(layer) is Conv3d for layer in convolutions if layer.kernel_size != (1, 1, 1))


def test_convolution_takes_metatensors_and_doubles():
    layer = Conv3d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 6, 6, 6)
    found = layer(MetaTensor(x))
    assert isinstance(found, MetaTensor)
    torch.testing.assert_close(found.as_tensor(), layer(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.double()(x.double()).float(), layer.float()(x), rtol=1e-5, atol=1e-5)


def test_in_bfloat16_stay_in_it():
    x = torch.randn(2, 4, 6, 6, 6).to(memory_format=torch.channels_last_3d).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert MaxPool3d(2)(x).dtype == torch.bfloat16
        assert torch.equal(MaxPool3d(2)(x).float(), nn.MaxPool3d(2)(x.float()))
        normed = InstanceNorm3d(4)(x)
        assert Conv3d(4, 2, 3)(x[:1].float()).dtype == torch.bfloat16
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.float(), nn.InstanceNorm3d(4)(x.float()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "norm", ["instance", ("instance", {"affine": True}), "batch", ("group", {"num_groups": 2}), None]
)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_fast_on_cpu_equals_the_network(padding, norm):
    network = UNet3D(2, 3, channels=(4, 8, 8), strides=((2, 2, 1), 2), padding=padding, norm=norm)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    network.train()
    before = copy.deepcopy(network.state_dict())
    fast = fast_on_cpu(network)
    assert network.training
    assert not fast.training
    network.eval()
    x = torch.randn(1, 2, 44, 48, 36)
    with torch.no_grad():
        expected = network(x)
        assert (fast(x) - expected).abs().max() < 1e-4 * max(expected.abs().max(), 1)  # by oneDNN's rounding
        exact = fast_on_cpu(network.double())(x.double()) - network(x.double())
        assert exact.abs().max() < 1e-5 * max(expected.abs().max(), 1)
    network.float()
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_fast_on_cpu_takes_networks_of_monais():
    network = BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="instance").eval()
    x = torch.randn(1, 1, 32, 36, 48)[..., :32, :32, :32]
    with torch.no_grad():
        torch.testing.assert_close(fast_on_cpu(network)(x), network(x), rtol=0, atol=1e-4)  # by oneDNN's rounding
        network, x = network.double(), x.double()
        torch.testing.assert_close(fast_on_cpu(network)(x), network(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_stays():
    scripted = torch.jit.trace(nn.Conv3d(1, 1, 3), torch.rand(1, 1, 4, 4, 4))
    assert fast_on_cpu(scripted) is scripted


def test_the_original_keeps_its_layers():
    """The copy has others, with what was learned and set, and memory of its own."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, eps=0.1, affine=True)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    fast = fast_on_cpu(network)
    x = torch.randn(2, 1, 6, 7, 8)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    assert [type(layer) for layer in network] == [nn.Conv3d, nn.InstanceNorm3d]
    assert [type(layer) for layer in fast] == [Conv3d, InstanceNorm3d]
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


@pytest.mark.parametrize(("padding", "length"), [("same", 32), ("valid", 44)])
def test_signals_keep_their_size_without_normalisation(padding, length):
    torch.manual_seed(0)
    network = UNet3D(1, 2, channels=(16, 32, 64), norm=None, padding=padding)
    sizes = []
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda *args: sizes.append(float(args[2].detach().square().mean().sqrt())))
    with torch.no_grad():
        network(torch.randn(1, 1, length, length, length))
    assert len(sizes) == 10
    assert all(0.3 < size < 3 for size in sizes), sizes


def test_an_exported_norm_takes_any_number_of_volumes():
    """Whatever the layout that it was exported with."""
    norm, batch = InstanceNorm3d(3, affine=True), torch.export.Dim("batch", min=1, max=8)
    for layout in LAYOUTS.values():
        x = torch.randn(4, 3, 5, 6, 7).to(memory_format=layout)
        exported = torch.export.export(norm, (x[:2],), dynamic_shapes=({0: batch},)).module()
        torch.testing.assert_close(exported(x), norm(x), rtol=1e-4, atol=1e-5)
