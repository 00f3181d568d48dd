"""Replacements for layers of PyTorch that are slow on a CPU, with the same results and parameters."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

SMALL = 20_480
"""Channels times voxels of the first two axes up to which PyTorch convolves a single volume in float32 itself, not by
oneDNN (``use_mkldnn`` in its ATen/native/Convolution.cpp)."""


def fast_on_cpu(network: nn.Module) -> nn.Module:
    """Return a copy of a network, in eval mode, that computes the same, but faster on a CPU.

    In the memory layout ``channels_last_3d`` oneDNN need not reorder its inputs. :class:`InstanceNorm3d` and
    :class:`Conv3d` replace PyTorch's. TorchScript is returned as it is.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return network
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv3d:
                layer.__class__ = Conv3d
            elif (same := keeping_layout(layer)) is not layer:
                setattr(parent, name, same)
    return network.eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def keeping_layout(layer: nn.Module) -> nn.Module:
    """Return :class:`InstanceNorm3d` for PyTorch's without running statistics, and any other layer itself."""
    if type(layer) is not nn.InstanceNorm3d or layer.track_running_stats:
        return layer
    same = InstanceNorm3d(layer.num_features, layer.eps, affine=layer.affine)
    same.load_state_dict(layer.state_dict())
    return same


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` that oneDNN computes for a single small volume in float32 too, up to eight times as fast.

    PyTorch has a batch computed by oneDNN, but not such a volume. With stride 1, no dilation and zero padding in
    numbers it is therefore split along its first axis, into two halves that overlap by the kernel's reach.

    Shapes: as of ``torch.nn.Conv3d``.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        return self._forward(input)

    @torch.jit.unused
    def _forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self._is_slow(input):
            return self._conv_forward(input, self.weight, self.bias)
        reach, pad = self.kernel_size[0] - 1, [int(n) for n in self.padding]
        padded = F.pad(input, (0, 0, 0, 0, pad[0], pad[0])) if pad[0] else input
        length = padded.shape[2] - reach
        half = (length + 1) // 2
        halves = torch.cat([padded[:, :, start : start + half + reach] for start in (0, length - half)])
        first, second = F.conv3d(halves, self.weight, self.bias, padding=(0, pad[1], pad[2])).split(1)
        return torch.cat([first, second[:, :, 2 * half - length :]], 2)

    def _is_slow(self, input: torch.Tensor) -> bool:
        """Return whether PyTorch would not use oneDNN, though it could, nor record or compile the computation."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or type(input) is not torch.Tensor:
            return False
        return (
            input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and input.shape[:2] == (1, self.in_channels)
            and input.ndim == 5
            and input.shape[1:4].numel() <= SMALL
            and {*self.stride, *self.dilation, self.groups} == {1}
            and max(self.kernel_size[1:]) > 1
            and min(self.kernel_size[1:]) <= 3
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and input.shape[2] + 2 * int(self.padding[0]) > self.kernel_size[0]  # two results along this axis, or more
            and torch.backends.mkldnn.is_available()
            and not torch.is_autocast_enabled("cpu")
        )


class InstanceNorm3d(nn.InstanceNorm3d):
    """``torch.nn.InstanceNorm3d`` that keeps the memory layout ``channels_last_3d``, without running statistics.

    PyTorch's own copies its input to another layout and back, which takes longer than the normalisation. Batch
    normalisation of one volume by its own statistics is the same, and keeps the layout.

    Shapes: (B, C, X, Y, Z) -> (B, C, X, Y, Z).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return self._forward(x)

    @torch.jit.unused
    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _is_channels_last(x) or torch.compiler.is_exporting():
            return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        volumes = [self._of_one(volume) for volume in x.split(1)]
        return volumes[0] if len(volumes) == 1 else torch.cat(volumes)

    def _of_one(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class MaxPool3d(nn.MaxPool3d):
    """``torch.nn.MaxPool3d`` in the type of its input: autocast would use float32 without benefit."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.max_pool3d(input, self.kernel_size, self.stride, self.padding)
        return self._forward(input)

    @torch.jit.unused
    def _forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.max_pool3d(input, self.kernel_size, self.stride, self.padding)


def _is_channels_last(x: torch.Tensor) -> bool:
    on_cpu = x.device.type == "cpu"
    return on_cpu and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


class Float32Conv3d(Conv3d):
    """``torch.nn.Conv3d`` that computes in float32 even under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class Float32ConvTranspose3d(nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` that computes in float32 even under autocast."""

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float(), output_size)
