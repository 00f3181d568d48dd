"""The 3D U-Net of Çiçek et al., MICCAI 2016 (arXiv 1606.06650), figure 2, configurable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn

from sparse3dunet.networks.concatenated import additive_weights
from sparse3dunet.networks.layers import Conv3d, MaxPool3d, keeping_layout
from sparse3dunet.networks.shapes import center_crop

PADDINGS = ("valid", "same")


class UNet3D(nn.Module):
    """3D U-Net that returns logits. The defaults are the paper's network.

    Each resolution step has two convolutions, each followed by normalisation and activation. On the way down the
    first of the two has half the channels of the second, so that channels double before each pooling and there is no
    bottleneck. On the way up, with valid padding, the centre-cropped skip connection is concatenated to the
    up-convolution's output, as in the paper.

    With same padding, upsampling is additive. The up-convolution and the following convolution are linear, and together
    they are one transposed convolution of the coarse features with a longer kernel (4x4x4 for a stride of 2).
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
        kernel_sizes: size of the convolutions' kernels, 1 or 3, for all steps or each; each an integer or three. For
            slices much thicker than the voxels in them: ``kernel_sizes=((3, 3, 1), 3, 3, 3)``, as in nnU-Net (Isensee
            et al. 2021, doi 10.1038/s41592-020-01008-z, supplementary note 2).
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
        kernel_sizes: Sequence[int | Sequence[int]] | int = 3,
    ) -> None:
        super().__init__()
        divisor = 2 if halved else 1
        _check_layers({"in_channels": in_channels, "out_channels": out_channels}, channels, padding, halved)
        per_axis = _per_step("strides", strides, len(channels) - 1, channels)
        self.in_channels = in_channels
        self.padding = padding
        self.strides = per_axis
        self.kernel_sizes = _per_step("kernel_sizes", kernel_sizes, len(channels), channels)
        if any(k not in (1, 3) for kernel in self.kernel_sizes for k in kernel):
            raise ValueError(f"kernel_sizes must be 1 or 3 along each axis, got {kernel_sizes}.")
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
        }  # further ones are absent at their defaults, as in older models
        """Arguments that build this network again, as plain values."""
        self.config |= {} if halved else {"halved": False}
        if {k for kernel in self.kernel_sizes for k in kernel} != {3}:
            self.config["kernel_sizes"] = [list(k) for k in self.kernel_sizes]

        steps = [_Layers(norm, act, padding, kernel) for kernel in self.kernel_sizes]
        first = [c // divisor for c in channels]
        self.down = nn.ModuleList([steps[0].double_conv(in_channels, first[0], channels[0])])
        for layers, stride, fine, middle, coarse in zip(steps[1:], self.strides, channels, first[1:], channels[1:]):
            self.down.append(nn.Sequential(MaxPool3d(stride, stride), layers.double_conv(fine, middle, coarse)))
        self.drop = nn.Dropout3d(dropout)
        self.additive = padding == "same"
        self.upsample = nn.ModuleList()
        self.skip = nn.ModuleList()  # only for additive upsampling
        self.up = nn.ModuleList()
        for layers, stride, coarse, fine in reversed(list(zip(steps, self.strides, channels[1:], channels))):
            if self.additive:
                self.upsample.append(layers.upsample(coarse, fine, stride))
                self.skip.append(layers.plain_conv(fine, fine))
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

    def _margin(self, step: int, axis: int) -> int:
        """Return how many voxels the two convolutions of a step remove along one axis."""
        return 0 if self.padding == "same" else 2 * (self.kernel_sizes[step][axis] - 1)

    def _coarsest_length(self, n: int, axis: int) -> int | None:
        """Return the voxels left in the coarsest step for `n` along one axis, or None if `n` does not fit."""
        for step, stride in enumerate(self.strides):
            n -= self._margin(step, axis)
            if n <= 0 or n % stride[axis]:
                return None
            n //= stride[axis]
        return n - self._margin(len(self.strides), axis)

    def _output_length(self, n: int, axis: int) -> int | None:
        """Return the output voxels for `n` input voxels along one axis, or None if `n` does not fit."""
        length = self._coarsest_length(n, axis)
        if length is None:
            return None
        for step, stride in reversed(list(enumerate(self.strides))):
            length = length * stride[axis] - self._margin(step, axis)
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


def _check_layers(ends: Mapping[str, int], channels: Sequence[int], padding: str, halved: bool) -> None:
    """Raise ValueError where an argument is out of range; `ends`: channels of the image and of the output, by name."""
    for name, count in ends.items():
        if not _is_count(count):
            raise ValueError(f"{name} must be a whole number above 0, got {count!r}.")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}.")
    if not isinstance(halved, bool):
        raise ValueError(f"halved must be True or False, got {halved!r}.")
    listed = channels if isinstance(channels, (list, tuple)) else ()
    if len(listed) < 2 or any(not _is_count(c) or (halved and c % 2) for c in listed):
        even = " even" if halved else ""
        raise ValueError(f"channels needs at least two{even} whole numbers above 0, got {channels!r}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def _per_step(name: str, values: Any, count: int, channels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return an argument's values by step and axis; raise ValueError unless there are `count` or one for all."""
    per_step = (values,) * count if isinstance(values, Integral) else values
    if not isinstance(per_step, (list, tuple)):
        raise ValueError(f"{name} must be a whole number, or a list with one or three for each step, got {values!r}.")
    if len(per_step) != count:
        raise ValueError(f"{name} needs {count} entries for {len(channels)} channels, got {per_step}.")
    per_axis = [tuple(entry) if isinstance(entry, (list, tuple)) else (entry,) * 3 for entry in per_step]
    if any(len(entry) != 3 or not all(map(_is_count, entry)) for entry in per_axis):
        raise ValueError(f"{name} must be whole numbers above 0, one or three for each step, got {values!r}.")
    return per_axis  # type: ignore[return-value]


class _Layers:
    """Build the layers of one step, all with the same normalisation, activation, padding and kernel."""

    def __init__(self, norm, act, padding: str, kernel: tuple[int, int, int]) -> None:
        self.norm, self.act, self.kernel = norm, act, kernel
        self.reach = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.pad = self.reach if padding == "same" else 0

    def plain_conv(self, inputs: int, outputs: int) -> nn.Conv3d:
        return Conv3d(inputs, outputs, self.kernel, padding=self.pad)

    def upsample(self, inputs: int, outputs: int, stride: tuple[int, int, int]) -> nn.ConvTranspose3d:
        """Return what an up-convolution by `stride` and a following convolution are together."""
        kernel = (stride[0] + 2 * self.reach[0], stride[1] + 2 * self.reach[1], stride[2] + 2 * self.reach[2])
        return nn.ConvTranspose3d(inputs, outputs, kernel, stride, padding=self.reach, bias=False)

    def conv(self, inputs: int, outputs: int) -> list[nn.Module]:
        return [self.plain_conv(inputs, outputs), *self.after_conv(outputs)]

    def after_conv(self, channels: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        if self.norm is not None:
            layers.append(keeping_layout(get_norm_layer(self.norm, spatial_dims=3, channels=channels)))
        return [*layers, get_act_layer(self.act)]

    def double_conv(self, inputs: int, middle: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(*self.conv(inputs, middle), *self.conv(middle, outputs))
