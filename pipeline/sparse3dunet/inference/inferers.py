"""Inferers, which run the network for an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer

from sparse3dunet.errors import DataError

WITHOUT_BFLOAT16 = "--train#inferer#enabled False"
"""Option that makes a training use float32 only."""


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Return whether the device computes bfloat16 in hardware (CPU: AVX512_BF16 or AMX; CUDA: Ampere or newer)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        # Private in PyTorch, so they may be missing; False merely costs time.
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(check is not None and check() for check in checks)
    return False


class AutocastInferer(Inferer):
    """Run another inferer with the network in bfloat16, on the CPU or CUDA; return float32.

    MONAI's engines offer ``amp`` for CUDA only. Bfloat16 has float32's range, so no gradient scaler is needed.

    Args:
        inferer: inferer that runs the network, for example ``SimpleInferer`` or ``SlidingWindowInferer``.
        enabled: whether to use bfloat16; None to use it if the device computes it in hardware.

    Raises:
        DataError: when sliding windows give a result of another size than the volume, as with valid convolutions.
    """

    def __init__(self, inferer: Inferer, enabled: bool | None = None) -> None:
        self.inferer = inferer
        self.enabled = enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        enabled = self.uses_bfloat16(inputs.device)

        def run(*a: Any, **k: Any) -> torch.Tensor:
            with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled):
                return network(*a, **k).float()

        result = self.inferer(inputs, run, *args, **kwargs)
        if isinstance(self.inferer, SlidingWindowInferer) and result.shape[2:] != inputs.shape[2:]:
            # MONAI would treat the smaller windows as downsampled ones, and place them wrongly.
            raise DataError(
                f"sliding windows made {tuple(result.shape[2:])} voxels of a volume of {tuple(inputs.shape[2:])}: they "
                "need a network whose output is as large as its input; use SlabInferer for others."
            )
        return result

    def uses_bfloat16(self, device: torch.device | str) -> bool:
        """Return whether the network runs in bfloat16 on a device."""
        return bfloat16_is_fast(device) if self.enabled is None else self.enabled


def trains_in_bfloat16_on_a_cpu(trainer: Any) -> bool:
    """Return whether one of MONAI's trainers uses bfloat16 on a CPU, by an :class:`AutocastInferer`."""
    inferer = getattr(trainer, "inferer", None)
    if not isinstance(inferer, AutocastInferer):
        return False
    device = torch.device(trainer.state.device)
    return device.type == "cpu" and inferer.uses_bfloat16(device)
