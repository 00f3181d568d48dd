"""The network: the paper's figures, sizes, and that configurations build what they say."""

import pytest
import torch

from sparse3dunet.networks import UNet3D

PAPER_PARAMETERS = 19_069_955


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_paper_parameter_count():
    assert parameters(UNet3D(3, 3, norm=("batch", {"affine": False}))) == PAPER_PARAMETERS
    assert parameters(UNet3D(3, 3)) == PAPER_PARAMETERS + 4_672
    assert parameters(UNet3D(3, 3, norm=None)) == PAPER_PARAMETERS


def test_paper_tile_size():
    assert UNet3D(3, 3).output_size((132, 132, 116)) == (44, 44, 28)


def test_paper_tile_runs():
    """The real layers, thinner, on the paper's tile."""
    network = UNet3D(3, 3, channels=(2, 4, 8, 16)).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 132, 132, 116)).shape == (1, 3, 44, 44, 28)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("channels", "strides", "kernels"),
    [
        ((4, 8), 2, 3),
        ((4, 6, 8), 2, 3),
        ((4, 8, 8), ((2, 2, 1), 2), 3),
        ((4, 6, 8), (3, 2), 3),
        ((4, 8, 8), ((1, 2, 2), 2), ((1, 3, 3), 3, 3)),
    ],
)
def test_output_size_is_what_comes_out(padding, channels, strides, kernels):
    network = UNet3D(1, 2, channels, strides, norm=None, padding=padding, kernel_sizes=kernels).eval()
    others = [next(n for n in range(30, 90) if network._output_length(n, axis)) for axis in (1, 2)]
    tried = 0
    for n in range(1, 60):
        size = (n, *others)
        try:
            expected = network.output_size(size)
        except ValueError:
            with pytest.raises(ValueError, match="UNet3D"):
                network(torch.zeros(1, 1, *size))
            continue
        assert network(torch.zeros(1, 1, *size)).shape[2:] == expected
        tried += 1
    assert tried


@pytest.mark.parametrize(
    ("network", "size", "named"),
    [
        (UNet3D(1, 2), (130, 132, 116), ["axis 0", "124 and 132", "steps of 8"]),
        (UNet3D(1, 2), (132, 132, 90), ["axis 2", "are 92,", "steps of 8"]),
        (UNet3D(1, 2, channels=(4, 8, 16), padding="same"), (16, 15, 16), ["axis 1", "12 and 16", "steps of 4"]),
        (UNet3D(1, 2, (4, 8, 16), ((2, 2, 1), 2), padding="same"), (16, 16, 7), ["axis 2", "6 and 8", "steps of 2"]),
    ],
)
def test_unfit_size_names_fitting_ones(network, size, named):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        network(torch.zeros(1, 1, *size))
    assert all(words in str(error.value) for words in named), error.value
    with pytest.raises(ValueError, match="expects"):
        network(torch.zeros(1, 3, 16, 16, 16))


def test_named_sizes_fit():
    network = UNet3D(1, 2)
    for n in (92, 100, 124, 132):
        network.output_size((n, n, n))


@pytest.mark.parametrize("norm", ["batch", "instance", ("group", {"num_groups": 2}), None])
def test_norms_train(norm):
    network = UNet3D(2, 3, channels=(4, 8), norm=norm, padding="same")
    network(torch.rand(2, 2, 8, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_valid_convolutions_see_no_border():
    """Seamless tiling rests on this: a tile's output is the same cut of the whole volume's output."""
    torch.manual_seed(0)
    network = UNet3D(1, 2, channels=(4, 8, 8), norm=None).eval()
    volume = torch.rand(1, 1, 60, 60, 60)
    with torch.no_grad():
        whole, tile = network(volume), network(volume[:, :, 8:52, 8:52, 8:52])
    assert tile.shape[2:] == (4, 4, 4)
    torch.testing.assert_close(tile, whole[:, :, 8:12, 8:12, 8:12])


def test_all_channels_can_be_what_half_of_them_are():
    """Each step's first convolution has as many channels as its second, of which half may be idle."""
    torch.manual_seed(0)
    options = {"channels": (4, 6, 8), "norm": None, "padding": "same"}
    network, whole = UNet3D(2, 3, **options), UNet3D(2, 3, **options, halved=False)
    assert [conv.out_channels for conv in first_convs(network)] == [2, 3, 4]
    assert [conv.out_channels for conv in first_convs(whole)] == [4, 6, 8]
    theirs = network.state_dict()
    with torch.no_grad():
        for name, parameter in whole.named_parameters():
            parameter.zero_()
            parameter[tuple(slice(n) for n in theirs[name].shape)] = theirs[name]
    x = torch.rand(1, 2, 8, 12, 8)
    torch.testing.assert_close(whole(x), network(x))


def test_configs_are_as_before_there_was_a_choice():
    """Models and trainings of that time go on: what they say of their network is compared with this."""
    assert "halved" not in UNet3D(1, 2, (4, 8)).config
    assert UNet3D(1, 2, (4, 8), halved=False).config["halved"] is False


def first_convs(network):
    convs = ([layer for layer in step.modules() if isinstance(layer, torch.nn.Conv3d)] for step in network.down)
    return [first for first, second in convs]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "valid"},
        {"padding": "same"},
        {"halved": False, "channels": (3, 5)},
    ],
)
def test_torchscript_and_config_round_trip(options):
    network = UNet3D(1, 2, **{"channels": (4, 8), "norm": "instance", **options}).eval()
    again = UNet3D(**network.config).eval()
    again.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, 20, 20, 20)
    torch.testing.assert_close(again(x), network(x))
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 0},
        {"out_channels": 0},
        {"out_channels": 2.0},
        {"padding": "reflect"},
        {"channels": (4,)},
        {"channels": (3, 6)},
        {"channels": (0, 6), "halved": False},
        *({"channels": channels} for channels in (8, None, ("16", "32"), (16.0, 32.0), (True, 2), "ab")),
        {"strides": (2, 2)},
        *({"strides": strides} for strides in (0, -1, 2.0, "x", None, True, (True,), (2.0,), ((0, 2, 2),), ((2, 2),))),
        {"kernel_sizes": None},
        {"kernel_sizes": (None, 3)},
        {"halved": "false"},
        {"kernel_sizes": (3,)},
        {"kernel_sizes": 5},
        {"kernel_sizes": ((3, 3, 2), 3)},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))} "):
        UNet3D(**{"in_channels": 1, "out_channels": 2, "channels": (4, 8), **arguments})


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_flat_kernels_keep_slices_apart(padding):
    """Without kernels or strides across the slices, each slice is segmented as if it were alone."""
    network = UNet3D(1, 2, (4, 8), ((2, 2, 1),), norm=None, padding=padding, kernel_sizes=((3, 3, 1), (3, 3, 1)))
    stack = torch.rand(1, 1, 20, 20, 5)
    together = network(stack)
    assert together.shape[-1] == 5
    for index in range(5):
        torch.testing.assert_close(network(stack[..., index : index + 1])[..., 0], together[..., index])


def test_slices_meet_where_the_voxels_are_as_wide_as_thick():
    network = UNet3D(1, 2, (4, 8), ((2, 2, 1),), norm=None, padding="same", kernel_sizes=((3, 3, 1), 3)).eval()
    stack = torch.rand(1, 1, 8, 8, 9)
    changed = stack.clone()
    changed[..., 4] += 1
    reached = (network(changed) != network(stack)).any(dim=(0, 1, 2, 3)).nonzero().flatten()
    assert [int(reached.min()), int(reached.max())] == [2, 6]  # the two 3x3x3 convolutions of the coarse step


def test_kernels_of_three_are_not_recorded():
    """Models of all versions have one form: what older versions could build, they can still read."""
    assert "kernel_sizes" not in UNet3D(1, 2, (4, 8), kernel_sizes=(3, (3, 3, 3))).config
    flat = UNet3D(1, 2, (4, 8), kernel_sizes=((3, 3, 1), 3))
    assert UNet3D(**flat.config).config == flat.config
    torch.testing.assert_close(
        torch.jit.script(flat.eval())(torch.ones(1, 1, 20, 20, 20)).shape, flat(torch.ones(1, 1, 20, 20, 20)).shape
    )


def test_loading_weights_keeps_the_parameters():
    """Their optimizer goes on with them."""
    network, other = UNet3D(1, 2, channels=(4, 8)), UNet3D(1, 2, channels=(4, 8))
    before = list(network.parameters())
    network.load_state_dict(other.state_dict())
    assert len(before) == len(list(other.parameters()))
    for parameter, same, expected in zip(before, network.parameters(), other.parameters(), strict=True):
        assert parameter is same
        assert torch.equal(parameter, expected)


def test_as_few_channels_as_there_can_be():
    network = UNet3D(1, 2, channels=(1, 2), padding="same", halved=False).eval()
    assert network(torch.rand(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
    for channels in ((4,), (0, 2), (-1, 2)):
        with pytest.raises(ValueError, match=r"channels needs at least two.* whole numbers above 0"):
            UNet3D(1, 2, channels=channels)
