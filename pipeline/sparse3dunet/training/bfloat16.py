"""Convolutions whose bfloat16 gradient is wrong on a CPU: they are found before training, and run in float32.

With PyTorch 2.13 the weight gradient of a 3x3x3 convolution on a CPU is garbage (1e19, NaN) if the first axis of its
input has two voxels: in the coarsest layers of a network, for scans of 16 or fewer sagittal slices.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse3dunet.networks.layers import Conv3d, Float32Conv3d, Float32ConvTranspose3d

LARGEST_ERROR = 0.05
"""Largest relative error of bfloat16 against float32; rounding alone makes about 0.004."""
_IN_FLOAT32: dict[type, type] = {
    nn.Conv3d: Float32Conv3d,
    Conv3d: Float32Conv3d,
    nn.ConvTranspose3d: Float32ConvTranspose3d,
}
_checked: dict[str, bool] = {}  # in this process
_reported: set[int] = set()  # numbers of convolutions


def protect(network: nn.Module, shape: Sequence[int]) -> int:
    """Set those convolutions of a network to float32 whose bfloat16 gradient is wrong on this CPU.

    The network's parameters and their names stay the same. No random number of the global generators is drawn.

    Args:
        network: on a CPU; changed in place.
        shape: (C, X, Y, Z) of the images that it will be trained with.

    Returns:
        The number of convolutions that were newly found to be wrong.
    """
    known = _read_cache()
    wrong, before = [], len(known)
    for module, inputs in _inputs(network, shape):
        if not is_safe(module, inputs, known):
            wrong.append(module)
    if len(known) > before:
        _write_cache(known)
    for module in dict.fromkeys(wrong):
        module.__class__ = _IN_FLOAT32[type(module)]
    return len(set(wrong))


def report(number: int) -> None:
    """Print how many convolutions run in float32, if any; once per process."""
    if number and number not in _reported:
        _reported.add(number)
        what = "1 convolution runs" if number == 1 else f"{number} convolutions run"
        print(f"{what} in float32: torch's bfloat16 gradient is wrong there on this CPU.", flush=True)


def is_safe(module: nn.Module, inputs: torch.Tensor, known: dict[str, bool]) -> bool:
    """Return whether a convolution may run in bfloat16, for inputs like these.

    Args:
        module: a Conv3d or a ConvTranspose3d.
        inputs: example of the input; only its shape and memory layout count.
        known: earlier results, by convolution and input; a new one is added.
    """
    if _is_known_wrong(module, inputs.shape):
        return False  # without running it: it would write out of bounds
    layout = "channels last" if _is_channels_last(inputs) else "contiguous"
    key = f"{module} of {tuple(inputs.shape[2:])}, {layout}"
    if key not in known:
        known[key] = agrees(module, inputs)
    return known[key]


def _is_known_wrong(module: Any, shape: Sequence[int]) -> bool:
    """Return whether the kernel is longer than the first input axis, as in every case that is known to be wrong."""
    return shape[2] < module.dilation[0] * (module.kernel_size[0] - 1) + 1


def agrees(module: nn.Module, inputs: torch.Tensor) -> bool:
    """Return whether output and gradients of a convolution agree between bfloat16 and float32, but for rounding.

    Args:
        module: the convolution, which is not changed.
        inputs: (1, C, X, Y, Z) example of the input; only its shape and memory layout count.
    """
    generator = torch.Generator().manual_seed(0)
    layer = copy.deepcopy(module)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    image = _drawn_like(torch.empty_like(inputs, device="cpu", dtype=torch.float32), generator)
    results = [_output_and_gradients(layer, image, enabled) for enabled in (False, True)]
    # False for NaN
    return all(float((a - b).norm()) <= LARGEST_ERROR * float(a.norm()) for a, b in zip(*results))


def _output_and_gradients(layer: nn.Module, image: torch.Tensor, enabled: bool) -> list[torch.Tensor]:
    layer.zero_grad(set_to_none=True)
    image = image.clone().requires_grad_()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        output = layer(image)
    output.backward(_drawn_like(output, torch.Generator().manual_seed(1)))
    gradients = [tensor.grad for tensor in (image, *layer.parameters()) if tensor.grad is not None]
    return [tensor.detach().float() for tensor in (output, *gradients)]


def _drawn_like(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw random values in the layout of a tensor; the values do not depend on the layout."""
    return torch.empty_like(x).copy_(torch.randn(x.shape, generator=generator))


def _inputs(network: nn.Module, shape: Sequence[int]) -> list[tuple[nn.Module, torch.Tensor]]:
    """List the convolutions of a network that may run in bfloat16, each with an input that it gets."""
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


# ---------------------------------------------------------------- results kept from one process to the next


def cache_file() -> Path:
    """Return the file that keeps the results for each convolution on this computer.

    Raises:
        RuntimeError: if the user has no home directory.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    return Path(folder or Path.home() / ".cache") / "sparse3dunet" / "bfloat16.json"


def _machine() -> str:
    """Describe PyTorch and the CPU, as far as they may change the results."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except (OSError, ValueError):
        pass  # not Linux
    # Virtual machines hide the model, but not its features.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    able = "".join(str(int(check is not None and check())) for check in checks)
    return f"torch {torch.__version__}, {model}, {torch.backends.cpu.get_cpu_capability()}, bfloat16 {able}"


def _read_cache() -> dict[str, bool]:
    """Return the results for this machine, by convolution; empty if the file is absent or damaged."""
    known = _all_machines().get(_machine())
    known = known if isinstance(known, dict) else {}
    return {key: value for key, value in known.items() if isinstance(value, bool)} | _checked


def _write_cache(known: dict[str, bool]) -> None:
    """Keep the results for this machine, in this process and, if it can be written, in the file."""
    _checked.update(known)
    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # its name differs in each process
            draft = Path(folder) / path.name
            draft.write_text(json.dumps(_all_machines() | {_machine(): known}, indent=1), encoding="utf-8")
            os.replace(draft, path)
    except (OSError, RuntimeError):
        pass  # the next process checks again


def _all_machines() -> dict[str, Any]:
    try:
        content = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
