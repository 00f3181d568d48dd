"""Convolutions whose bfloat16 gradient is wrong on a CPU: they are found before a training, and run in float32.

With PyTorch 2.13 the weight gradient of a 3x3x3 convolution on a CPU is garbage (1e19, NaN) where the first axis of its
input has two voxels: at the coarsest steps of a network, that is, for scans of 16 or fewer sagittal slices.
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

from sparse3dunet.networks.layers import Float32Conv3d, Float32ConvTranspose3d

LARGEST_ERROR = 0.05
"""Of bfloat16 against float32, relative; rounding alone makes about 0.004."""
_IN_FLOAT32: dict[type, type] = {nn.Conv3d: Float32Conv3d, nn.ConvTranspose3d: Float32ConvTranspose3d}
_checked: dict[str, bool] = {}  # in this process
_told: set[int] = set()  # numbers of convolutions


def protect(network: nn.Module, shape: Sequence[int]) -> int:
    """Have those convolutions of a network run in float32 whose bfloat16 gradient is wrong on this CPU.

    The network's parameters, and their names, stay as they are. It draws no random number of the global generators.

    Args:
        network: on a CPU; changed in place.
        shape: of the images (C, X, Y, Z) that it will be trained with.

    Returns:
        How many convolutions were found to be wrong this time.
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


def tell(number: int) -> None:
    """Print how many convolutions run in float32, if any; once in a process."""
    if number and number not in _told:
        _told.add(number)
        what = "1 convolution runs" if number == 1 else f"{number} convolutions run"
        print(f"{what} in float32: torch's bfloat16 gradient is wrong there on this CPU.", flush=True)


def is_safe(module: nn.Module, inputs: torch.Tensor, known: dict[str, bool]) -> bool:
    """Whether a convolution may run in bfloat16, for inputs like these.

    Args:
        module: a Conv3d or a ConvTranspose3d.
        inputs: of which shape and memory layout count.
        known: what was found before, by convolution and input; what is found by running it is added.
    """
    if _is_known_wrong(module, inputs.shape):
        return False  # it is not run: it writes where it must not
    layout = "channels last" if _is_channels_last(inputs) else "contiguous"
    key = f"{module} of {tuple(inputs.shape[2:])}, {layout}"
    if key not in known:
        known[key] = agrees(module, inputs)
    return known[key]


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


# ---------------------------------------------------------------- what was found, from one process to the next


def cache_file() -> Path:
    """Where it is kept what was found, on this computer, of each convolution.

    Raises:
        RuntimeError: where the user has no home.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    return Path(folder or Path.home() / ".cache") / "sparse3dunet" / "bfloat16.json"


def _machine() -> str:
    """PyTorch and the CPU, in all that may change what is found."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except (OSError, ValueError):
        pass  # no Linux
    # Virtual machines hide the model, but not what it can do.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    able = "".join(str(int(check is not None and check())) for check in checks)
    return f"torch {torch.__version__}, {model}, {torch.backends.cpu.get_cpu_capability()}, bfloat16 {able}"


def _read_cache() -> dict[str, bool]:
    """What is known of this machine, by convolution; empty where the file is absent or damaged."""
    known = _all_machines().get(_machine())
    known = known if isinstance(known, dict) else {}
    return {key: value for key, value in known.items() if isinstance(value, bool)} | _checked


def _write_cache(known: dict[str, bool]) -> None:
    """Keep what is known of this machine, in this process and, where it can be written, in the file."""
    _checked.update(known)
    try:
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # of another name in each process
            draft = Path(folder) / path.name
            draft.write_text(json.dumps(_all_machines() | {_machine(): known}, indent=1), encoding="utf-8")
            os.replace(draft, path)
    except (OSError, RuntimeError):
        pass  # it is found anew next time


def _all_machines() -> dict[str, Any]:
    try:
        content = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
