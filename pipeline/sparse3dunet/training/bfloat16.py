"""Convolutions whose bfloat16 gradient is wrong on a CPU: they are found before a training, and run in float32.

With PyTorch 2.13 the weight gradient of a 3x3x3 convolution on a CPU is garbage (1e19, NaN) where the first axis of its
input has two voxels: at the coarsest steps of a network, that is, for scans of 16 or fewer sagittal slices.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparse3dunet.networks.layers import Float32Conv3d, Float32ConvTranspose3d

LARGEST_ERROR = 0.05
"""Of bfloat16 against float32, relative; rounding alone makes about 0.004."""
_IN_FLOAT32: dict[type, type] = {nn.Conv3d: Float32Conv3d, nn.ConvTranspose3d: Float32ConvTranspose3d}
_checked: dict[str, bool] = {}
"""In this process, by convolution and input: whether it may run in bfloat16."""
_told: set[int] = set()  # numbers of convolutions


def protect(network: nn.Module, shape: Sequence[int]) -> int:
    """Have those convolutions of a network run in float32 whose bfloat16 gradient is wrong on this CPU.

    It takes about as long as a step of the training. The network's parameters, and their names, stay as they are. It
    draws no random number of the global generators.

    Args:
        network: on a CPU; changed in place.
        shape: of the images (C, X, Y, Z) that it will be trained with.

    Returns:
        How many convolutions were found to be wrong this time.
    """
    wrong = {module for module, inputs in _inputs(network, shape) if not is_safe(module, inputs)}
    for module in wrong:
        module.__class__ = _IN_FLOAT32[type(module)]
    return len(wrong)


def tell(number: int) -> None:
    """Print how many convolutions run in float32, if any; once in a process."""
    if number and number not in _told:
        _told.add(number)
        what = "1 convolution runs" if number == 1 else f"{number} convolutions run"
        print(f"{what} in float32: torch's bfloat16 gradient is wrong there on this CPU.", flush=True)


def is_safe(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether a convolution may run in bfloat16, for inputs like these; each such pair is tried once in a process.

    Args:
        module: a Conv3d or a ConvTranspose3d.
        inputs: of which shape and memory layout count.
    """
    if _is_known_wrong(module, inputs.shape):
        return False  # it is not run: it writes where it must not
    layout = "channels last" if _is_channels_last(inputs) else "contiguous"
    key = f"{module} of {tuple(inputs.shape[2:])}, {layout}"
    if key not in _checked:
        _checked[key] = agrees(module, inputs)
    return _checked[key]


def _is_known_wrong(module: Any, shape: Sequence[int]) -> bool:
    """Whether the kernel is longer than the input along the first axis, as for each shape that is known to be wrong."""
    return shape[2] < module.dilation[0] * (module.kernel_size[0] - 1) + 1


def agrees(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether output and gradients of a convolution in bfloat16 are those in float32, but for rounding.

    Args:
        module: stays as it is.
        inputs: of one image; shape and memory layout count, values do not.
    """
    generator = torch.Generator().manual_seed(0)
    layer = copy.deepcopy(module)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    image = _drawn_like(torch.empty_like(inputs, device="cpu", dtype=torch.float32), generator)
    found = [_output_and_gradients(layer, image, enabled) for enabled in (False, True)]
    # NaN is not below anything
    return all(float((a - b).norm()) <= LARGEST_ERROR * float(a.norm()) for a, b in zip(*found))


def _output_and_gradients(layer: nn.Module, image: torch.Tensor, enabled: bool) -> list[torch.Tensor]:
    layer.zero_grad(set_to_none=True)
    image = image.clone().requires_grad_()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        output = layer(image)
    output.backward(_drawn_like(output, torch.Generator().manual_seed(1)))
    gradients = [tensor.grad for tensor in (image, *layer.parameters()) if tensor.grad is not None]
    return [tensor.detach().float() for tensor in (output, *gradients)]


def _drawn_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random values in the layout of a tensor; they are the same in any layout."""
    return torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))


def _inputs(network: nn.Module, shape: Sequence[int]) -> list[tuple[nn.Module, torch.Tensor]]:
    """The convolutions of a network that may run in bfloat16, each with an input that it gets."""
    found: list[tuple[nn.Module, torch.Tensor]] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append((module, torch.empty_like(inputs[0], device="meta")))

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if type(m) in _IN_FLOAT32]
    if not hooks:
        return []
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return found


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
