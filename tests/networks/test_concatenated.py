"""Networks trained with concatenated upsampling and same padding, as there were up to 0.10.0, load as additive ones."""

from itertools import pairwise

import pytest
import torch
from monai.networks.layers.utils import get_norm_layer
from torch import nn

from sparse3dunet.networks import UNet3D


class Concatenated(nn.Module):
    """The network of that time, as the paper has it but for the padding, under the same names."""

    def __init__(self, inputs, classes, channels, strides, norm):
        super().__init__()

        def conv(before, after):
            layers = [nn.Conv3d(before, after, 3, padding=1)]
            return [*layers, *([get_norm_layer(norm, 3, after)] if norm else []), nn.ReLU()]

        def double(before, middle, after):
            return nn.Sequential(*conv(before, middle), *conv(middle, after))

        self.down = nn.ModuleList([double(inputs, channels[0] // 2, channels[0])])
        self.upsample, self.up = nn.ModuleList(), nn.ModuleList()
        for stride, (fine, coarse) in zip(strides, pairwise(channels)):
            self.down.append(nn.Sequential(nn.MaxPool3d(stride), double(fine, coarse // 2, coarse)))
            self.upsample.insert(0, nn.ConvTranspose3d(coarse, coarse, stride, stride, bias=False))
            self.up.insert(0, double(coarse + fine, fine, fine))
        self.head = nn.Conv3d(channels[0], classes, 1)

    def forward(self, x):
        features = []
        for down in self.down:
            x = down(x)
            features.append(x)
        features.pop()
        for upsample, up in zip(self.upsample, self.up):
            x = up(torch.cat([features.pop(), upsample(x)], dim=1))
        return self.head(x)


CASES = [
    ((8, 16, 32), (2, 2), (16, 20, 24)),
    ((8, 16, 32), ((2, 2, 1), (2, 1, 2)), (16, 20, 24)),
    ((4, 8), (3,), (15, 9, 12)),
    ((4, 8, 8), ((4, 2, 1), 2), (16, 12, 8)),
]


@pytest.mark.parametrize(
    "norm", ["instance", ("instance", {"affine": True}), "batch", ("group", {"num_groups": 2}), None]
)
@pytest.mark.parametrize(("channels", "strides", "shape"), CASES)
def test_the_logits_stay(channels, strides, shape, norm):
    old = Concatenated(2, 3, channels, strides, norm)
    for parameter in old.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    old(torch.randn(2, 2, *shape))  # running statistics, of batch normalisation
    new = UNet3D(2, 3, channels=channels, strides=strides, norm=norm, padding="same")
    new.load_state_dict(old.state_dict())
    x = torch.randn(2, 2, *shape)
    with torch.no_grad():
        expected = old.eval()(x)
        assert (new.eval()(x) - expected).abs().max() < 1e-5 * max(expected.abs().max(), 1)


def test_additive_weights_stay():
    old, new = (UNet3D(1, 2, channels=(4, 8), padding="same") for _ in range(2))
    new.load_state_dict(old.state_dict())
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_weights_of_another_network_are_refused():
    network = UNet3D(1, 2, channels=(4, 8), padding="same")
    wide = Concatenated(1, 2, (8, 8), (2,), "batch").state_dict()
    for state in (wide, {**wide, "up.0.0.weight": wide["up.0.0.weight"][:, :8]}, {"upsample.0.weight": torch.ones(1)}):
        with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
            network.load_state_dict(state)
