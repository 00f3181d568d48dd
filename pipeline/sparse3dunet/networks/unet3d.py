"""The 3D U-Net of Çiçek et al., MICCAI 2016 (arXiv 1606.06650), figure 2, configurable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import ensure_tuple_rep
from torch import nn

from sparse3dunet.networks.concatenated import additive_weights
from sparse3dunet.networks.layers import MaxPool3d, keeping_layout
from sparse3dunet.networks.shapes import center_crop

PADDINGS = ("valid", "same")


class UNet3D(nn.Module):
    """3D U-Net that returns logits. The defaults are the paper's network.

    Each resolution step has two 3x3x3 convolutions, each followed by normalisation and activation. On the way down the
    first of the two has half the channels of the second, so that channels double before each pooling and there is no
    bottleneck. On the way up, with valid padding, the centre-cropped skip connection is concatenated to the
    up-convolution's output, as in the paper.

    With same padding, upsampling is additive. The up-convolution and the following convolution are linear, and together
    they are one transposed convolution of the coarse features with a kernel longer by two (4x4x4 for a stride of 2).
    This one is learned; the skip connection has a convolution of its own, whose result is added. That expresses the
    same as concatenation in less time, since nothing is computed with the coarse channels at the fine resolution.

    The paper's figures hold for ``UNet3D(in_channels=3, out_channels=3)``: 132x132x116 voxels in, 44x44x28 out, and
    19,069,955 parameters besides the 4,672 affine ones of batch normalisation (page 3 of the paper; there are none with
    ``norm=("batch", {"affine": False})``). Its batch normalisation uses the current batch's statistics also at test
    time: ``norm=("batch", {"track_running_stats": False})``.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: channels at the end of each resolution step, from the finest; its length is the number of steps.
        strides: downsampling between two steps, one entry fewer than `channels`; each an integer or three, for
            anisotropic voxels: ``strides=((2, 2, 1), 2, 2)``.
        norm: MONAI's name of a normalisation, or name and arguments: ``"batch"``, ``"instance"``,
            ``("group", {"num_groups": 8})``; None for none (the paper's variant "without BN").
        act: MONAI's name of an activation, or name and arguments.
        padding: ``"valid"`` as in the paper (every convolution removes two voxels along each axis) or ``"same"``
            (output as large as the input); it also determines the upsampling.
        dropout: probability with which a channel of the coarsest step is dropped in training.
        halved: whether, on the way down, the first convolution of each step has half the channels, as in the paper.
            If a step has few channels, using all of them takes hardly more time.

    Shapes: (B, in_channels, X, Y, Z) -> (B, out_channels, X', Y', Z') with X', Y', Z' from :meth:`output_size`.

    Raises:
        ValueError: when an argument is out of range, or the network cannot process the size of an input; the message
            names sizes that it can.

    Example:
        >>> UNet3D(in_channels=3, out_channels=3).output_size((132, 132, 116))
        (44, 44, 28)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int | Sequence[int]] | int = 2,
        norm: str | tuple[str, dict] | Sequence | None = "batch",
        act: str | tuple[str, dict] | Sequence = ("relu", {"inplace": True}),
        padding: str = "valid",
        dropout: float = 0.0,
        halved: bool = True,
    ) -> None:
        super().__init__()
        divisor = 2 if halved else 1
        per_axis = _checked(channels, strides, padding, halved)
        self.in_channels = in_channels
        self.padding = padding
        self.strides = per_axis
        self._margin = 4 if padding == "valid" else 0  # voxels that the two convolutions of a step remove per axis
        self.size_multiple = [math.prod(stride[axis] for stride in per_axis) for axis in range(3)]
        """Factor of which each input length must be a multiple, with same padding."""
        self.config = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "strides": [list(s) for s in self.strides],
            "norm": norm,
            "act": act,
            "padding": padding,
            "dropout": dropout,
        } | ({} if halved else {"halved": False})  # absent if True, as in older models
        """Arguments that build this network again, as plain values."""

        layers = _Layers(norm, act, padding)
        first = [c // divisor for c in channels]
        self.down = nn.ModuleList([layers.double_conv(in_channels, first[0], channels[0])])
        for stride, fine, middle, coarse in zip(self.strides, channels, first[1:], channels[1:]):
            pool = MaxPool3d(stride, stride)
            self.down.append(nn.Sequential(pool, layers.double_conv(fine, middle, coarse)))
        self.drop = nn.Dropout3d(dropout)
        self.additive = padding == "same"
        self.upsample = nn.ModuleList()
        self.skip = nn.ModuleList()  # only for additive upsampling
        self.up = nn.ModuleList()
        for stride, coarse, fine in reversed(list(zip(self.strides, channels[1:], channels))):
            if self.additive:
                kernel = (stride[0] + 2, stride[1] + 2, stride[2] + 2)
                self.upsample.append(nn.ConvTranspose3d(coarse, fine, kernel, stride, padding=1, bias=False))
                self.skip.append(nn.Conv3d(fine, fine, kernel_size=3, padding=1))
                self.up.append(nn.Sequential(*layers.after_conv(fine), *layers.conv(fine, fine)))
            else:
                self.upsample.append(nn.ConvTranspose3d(coarse, coarse, stride, stride, bias=False))
                self.up.append(layers.double_conv(coarse + fine, fine, fine))
        self.head = nn.Conv3d(channels[0], out_channels, kernel_size=1)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise weights by He et al. 2015 (arXiv 1502.01852, equation 10), so that ReLU keeps signals' size."""
        linear = [*self.upsample, *self.skip]  # no ReLU follows, or not before two are added
        for layer in self.modules():
            if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)) and layer is not self.head:
                # Number of inputs of an output; in an up-convolution the kernel's size divided by the stride.
                reaching = math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose3d) else 1
                inputs = layer.in_channels * math.prod(layer.kernel_size) / reaching
                gain = 1 if layer in linear else 2
                nn.init.normal_(layer.weight, std=math.sqrt(gain / inputs))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (torch.jit.is_scripting() or torch.jit.is_tracing()):
            self.check_input(x.shape)
        features: list[torch.Tensor] = []
        for down in self.down:
            x = down(x)
            features.append(x)
        x = self.drop(features.pop())
        if self.additive:
            for upsample, skip, up in zip(self.upsample, self.skip, self.up):
                x = up(skip(features.pop()) + upsample(x))
        else:
            for upsample, up in zip(self.upsample, self.up):
                x = upsample(x)
                x = up(torch.cat([center_crop(features.pop(), list(x.shape[2:])), x], dim=1))
        return self.head(x)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as in ``torch.nn.Module``; also converts those of concatenated upsampling with same padding."""
        state = additive_weights(state_dict) if self.additive else state_dict
        return super().load_state_dict(state, strict, assign)

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ValueError, naming sizes that fit, unless a batch of `shape` (B, C, X, Y, Z) can be processed."""
        if len(shape) != 5 or shape[1] != self.in_channels:
            raise ValueError(f"UNet3D expects (batch, {self.in_channels}, X, Y, Z), got {tuple(shape)}.")
        self.output_size(shape[2:])

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Return the size of the output for an input of size (X, Y, Z).

        Raises:
            ValueError: when the network cannot process that size; names the nearest that it can.
        """
        outputs = tuple(self._output_length(n, axis) for axis, n in enumerate(input_size))
        for axis, (n, out) in enumerate(zip(input_size, outputs)):
            if out is None:
                fitting = self._fitting_lengths(n, axis)
                raise ValueError(
                    f"UNet3D (padding={self.padding!r}) cannot process {n} voxels along axis {axis} of an input of "
                    f"{tuple(input_size)}: the nearest sizes that fit are {' and '.join(map(str, fitting))}, in steps "
                    f"of {self.size_multiple[axis]}."
                )
        coarsest = [self._coarsest_length(n, axis) for axis, n in enumerate(input_size)]
        if "instance" in str(self.config["norm"]).lower() and coarsest == [1, 1, 1]:
            raise ValueError(
                f"UNet3D with instance normalisation cannot process an input of {tuple(input_size)}: only one voxel is "
                f"left in the coarsest step. Make at least one axis longer, by a multiple of {self.size_multiple}."
            )
        return tuple(out for out in outputs if out is not None)

    def _coarsest_length(self, n: int, axis: int) -> int | None:
        """Return the voxels left in the coarsest step for `n` along one axis, or None if `n` does not fit."""
        for stride in self.strides:
            n -= self._margin
            if n <= 0 or n % stride[axis]:
                return None
            n //= stride[axis]
        return n - self._margin

    def _output_length(self, n: int, axis: int) -> int | None:
        """Return the output voxels for `n` input voxels along one axis, or None if `n` does not fit."""
        length = self._coarsest_length(n, axis)
        if length is None:
            return None
        for stride in reversed(self.strides):
            length = length * stride[axis] - self._margin
            if length <= 0:
                return None
        return length

    def _fitting_lengths(self, n: int, axis: int) -> list[int]:
        """Return the nearest lengths below (if there is one) and above `n` that fit."""
        below = next((k for k in range(n, 0, -1) if self._output_length(k, axis)), None)
        above = n + 1
        while not self._output_length(above, axis):
            above += 1
        return [above] if below is None else [below, above]


def _checked(channels: Sequence[int], strides: Any, padding: str, halved: bool) -> list[tuple[int, int, int]]:
    """Return the strides by step and axis; raise ValueError where an argument is out of range."""
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}.")
    if not isinstance(halved, bool):
        raise ValueError(f"halved must be True or False, got {halved!r}.")
    if len(channels) < 2 or any(c < 1 or (halved and c % 2) for c in channels):
        even = " even," if halved else ""
        raise ValueError(f"channels needs at least two{even} positive numbers, got {tuple(channels)}.")
    steps = len(channels) - 1
    per_step = (strides,) * steps if isinstance(strides, int) else tuple(strides)
    if len(per_step) != steps:
        raise ValueError(f"strides needs {steps} entries for {steps + 1} channels, got {per_step}.")
    return [ensure_tuple_rep(stride, 3) for stride in per_step]


class _Layers:
    """Build the U-Net's steps, all with the same normalisation, activation and padding."""

    def __init__(self, norm, act, padding: str) -> None:
        self.norm, self.act, self.pad = norm, act, 1 if padding == "same" else 0

    def conv(self, inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv3d(inputs, outputs, kernel_size=3, padding=self.pad), *self.after_conv(outputs)]

    def after_conv(self, channels: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        if self.norm is not None:
            layers.append(keeping_layout(get_norm_layer(self.norm, spatial_dims=3, channels=channels)))
        return [*layers, get_act_layer(self.act)]

    def double_conv(self, inputs: int, middle: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(*self.conv(inputs, middle), *self.conv(middle, outputs))
