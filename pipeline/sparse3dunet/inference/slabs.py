"""Sliding windows over volumes of any size, accumulated in slabs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import nn

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inferers import bfloat16_is_fast
from sparse3dunet.inference.windows import BORDERS, Axis, Windows, cut
from sparse3dunet.networks.layers import fast_on_cpu

PIECE = 2**25
"""Largest number of logits that are yielded at once."""
NUMBER = (int, float, np.number)
MOST_CONSTANTS = 4
"""Number of constant windows whose logits are kept; there is seldom more than the background's."""

Network = Callable[..., torch.Tensor]
Place = tuple[int, int, int]


class SlabInferer(Inferer):
    """Sliding windows over volumes of any size, in slabs: needs memory for one row of windows, not for the volume.

    Windows are placed and blended by a Gaussian as in MONAI's ``SlidingWindowInferer``. With `bfloat16` False and the
    border replicated, the result is that of its ``mode="gaussian"`` and ``padding_mode="replicate"``; the latter
    matters for volumes smaller than a window. A network with valid convolutions (known by its ``output_size``, see
    :class:`~sparse3dunet.networks.UNet3D`) gets seamless tiles instead, side by side over the volume mirrored at its
    border, as in the papers on the U-Net: if it normalises by fixed statistics, the result does not depend on the
    tiles' size.

    Windows in which each channel is constant pass the network only once for each value. On a CPU, windows are processed
    one by one, in the memory layout in which oneDNN convolves fastest.

    Args:
        roi_size: size of a window, (X, Y, Z) voxels of the network's input, or one number for all axes.
        overlap: overlap of windows, 0 <= overlap < 1; not used for seamless tiles.
        sw_batch_size: number of windows per batch on a GPU.
        border: how to extend the volume: "replicate" the outermost voxels, or "mirror" the volume in them; None to
            replicate with same padding, as the bundle trains, and to mirror with valid convolutions.
        mirror_axes: axes among 0, 1, 2 for test-time augmentation: a window's logits are averaged over all its
            reflections along them. Takes 2, 4 or 8 times as long.
        bfloat16: whether the network runs in bfloat16; None if the device computes it in hardware.
        on_window: function called after each batch with the number of windows done and of all.

    Shapes: (B, C, X, Y, Z) -> (B, K, X, Y, Z) float32 logits; :meth:`slabs` yields them piece by piece. Further
    arguments of the call are passed to the network with each window, as MONAI does.

    Raises:
        ValueError: when an argument is out of range.
        DataError: when the network cannot process windows of `roi_size`.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        border: str | None = None,
        mirror_axes: Sequence[int] = (),
        bfloat16: bool | None = None,
        on_window: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(overlap, NUMBER) or not 0 <= float(overlap) < 1:
            raise ValueError(f"overlap must be one number, at least 0 and below 1, got {overlap!r}.")
        if border not in (None, *BORDERS):
            raise ValueError(f"border must be one of {BORDERS} or None, got {border!r}.")
        if not isinstance(mirror_axes, (list, tuple)) or not all(axis in (0, 1, 2) for axis in mirror_axes):
            raise ValueError(f"mirror_axes must be a list of axes among 0, 1 and 2, got {mirror_axes!r}.")
        self.roi_size = _window(roi_size)
        self.overlap = overlap
        self.sw_batch_size = sw_batch_size
        self.border = border
        self.mirror_axes = tuple(sorted(set(mirror_axes)))
        self.bfloat16 = bfloat16
        self.on_window = on_window

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        if inputs.ndim != 5 or not inputs.numel():
            raise DataError(f"expected a batch of volumes (B, C, X, Y, Z), got shape {tuple(inputs.shape)}.")
        volumes = convert_to_tensor(inputs, track_meta=False).float().cpu().numpy()
        row_axis = self.windows(inputs.shape[2:], network).row_axis
        results = []
        for volume in volumes:
            pieces = self.slabs(list(volume), network, inputs.device, args=args, kwargs=kwargs)
            slabs = [logits for _, logits in pieces]
            results.append(torch.cat(slabs, dim=row_axis + 1).to(inputs.device))
        result = torch.stack(results)
        return convert_to_dst_type(result, inputs, dtype=result.dtype)[0] if isinstance(inputs, MetaTensor) else result

    def uses_bfloat16(self, device: torch.device | str) -> bool:
        """Return whether the network runs in bfloat16 on a device."""
        return bfloat16_is_fast(device) if self.bfloat16 is None else self.bfloat16

    def windows(self, shape: Sequence[int], network: Network) -> Windows:
        """Return the positions of the windows in a volume of spatial shape (X, Y, Z)."""
        size = _output_size(network, self.roi_size)
        if size == self.roi_size:
            axes = [Axis.overlapping(n, roi, self.overlap) for n, roi in zip(shape, self.roi_size)]
        else:
            multiples = getattr(network, "size_multiple", (1, 1, 1))
            try:
                axes = [
                    Axis.seamless(n, out, (roi - out) // 2, multiple)
                    for n, out, roi, multiple in zip(shape, size, self.roi_size, multiples)
                ]
            except ValueError as error:
                raise DataError(f"windows of {self.roi_size} voxels: {error} (roi_size).") from error
        return Windows((axes[0], axes[1], axes[2]))

    def slabs(
        self,
        channels: Sequence[np.ndarray],
        network: Network,
        device: torch.device | str = "cpu",
        prepare: Callable[[np.ndarray], np.ndarray] | None = None,
        box: Sequence[slice] | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the logits, slab by slab along the windows' row axis.

        Args:
            channels: one (X, Y, Z) array for each channel, in memory or on disk.
            network: network that takes windows, (B, C, `roi_size`).
            device: device of the network.
            prepare: normalisation of each window, (C, `roi_size`) float32.
            box: voxels of the volume whose logits are yielded, which are the same as without it; None for all.
            args: further arguments of the network, the same for all windows.
            kwargs: further arguments of the network by name.

        Yields:
            Consecutive slices along the row axis and their logits (K, X, Y, Z) float32, of the volume's size along the
            other axes; both are those of the box, if one is given.
        """
        windows = self.windows(channels[0].shape, network)
        windows = windows if box is None else windows.within(box)
        axis = windows.axes[windows.row_axis]
        border = self.border or ("mirror" if axis.margin else "replicate")

        def window(place: Place) -> torch.Tensor:
            values = cut(channels, windows.inputs(place), border)
            return torch.from_numpy(values if prepare is None else prepare(values))

        given = tuple(args), dict(kwargs or {})
        bfloat16 = self.uses_bfloat16(device)
        run = _Runner(network, torch.device(device), self.mirror_axes, bfloat16, windows.output_size, *given)
        batch_size = 1 if run.device.type == "cpu" else self.sw_batch_size
        blend = _Blend(windows, run.device)
        done = 0
        for (row, places), following in zip(windows.rows(), [*axis.starts[1:], axis.length]):
            for batch in _batches(places, batch_size):
                for place, logits in zip(batch, run([window(place) for place in batch])):
                    blend.add(place, logits)
                done += len(batch)
                if self.on_window is not None:
                    self.on_window(done, windows.count)
            yield from blend.take(row, following)


class _Runner:
    """Run the network on batches of windows."""

    def __init__(
        self,
        network: Network,
        device: torch.device,
        mirror_axes: Sequence[int],
        bfloat16: bool,
        output_size: tuple[int, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        if device.type == "cpu" and isinstance(network, nn.Module):
            network = fast_on_cpu(network)
        self.network = network
        self.device = device
        flips = (itertools.combinations(mirror_axes, n) for n in range(len(mirror_axes) + 1))
        self.flips = [[axis + 2 for axis in axes] for axes in itertools.chain(*flips)]
        self.bfloat16 = bfloat16
        self.output_size = output_size
        self.args, self.kwargs = args, kwargs
        self.of_constants: dict[tuple[float, ...], torch.Tensor] = {}

    def __call__(self, windows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the logits (K, X', Y', Z') of windows (C, X, Y, Z)."""
        values = [_constants(window) for window in windows]
        results = [self.of_constants.get(value) if value else None for value in values]
        asked = [i for i, result in enumerate(results) if result is None]
        if asked:
            for i, logits in zip(asked, self._logits(torch.stack([windows[i] for i in asked]))):
                results[i] = logits
                if values[i]:
                    if len(self.of_constants) == MOST_CONSTANTS:
                        self.of_constants.clear()
                    self.of_constants[values[i]] = logits
        return [result for result in results if result is not None]

    def _logits(self, batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(self.device)
        total: Any = 0
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            for axes in self.flips:
                flipped = batch.flip(axes) if axes else batch
                if self.device.type == "cpu":
                    flipped = flipped.contiguous(memory_format=torch.channels_last_3d)
                found = self.network(flipped, *self.args, **self.kwargs)
                if not isinstance(found, torch.Tensor):
                    raise DataError(
                        f"the network returns a {type(found).__name__}, expected one tensor of logits; wrap a network "
                        "with several outputs so that it returns the main one."
                    )
                logits = found.float()
                if tuple(logits.shape[2:]) != self.output_size:
                    raise DataError(
                        f"the network returns {tuple(logits.shape[2:])} voxels for a window of "
                        f"{tuple(batch.shape[2:])}, expected {self.output_size}: sliding windows cannot place them. It "
                        "needs same padding, or an output_size method as UNet3D has."
                    )
                total = total + (logits.flip(axes) if axes else logits)
        return total / len(self.flips)


class _Blend:
    """Weighted sum of the windows' logits in one row, (K, row, other, other), and sum of the weights."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self.axes, self.row_axis = windows.axes, windows.row_axis
        size = windows.output_size
        seamless = any(axis.margin for axis in self.axes)
        importance = compute_importance_map(size, mode="constant" if seamless else "gaussian", device=device)
        self.importance = convert_to_tensor(importance).movedim(self.row_axis, 0)
        self.shape = [size[self.row_axis], *(axis.length for i, axis in enumerate(self.axes) if i != self.row_axis)]
        self.weight = torch.zeros(self.shape, device=device)
        self.total: torch.Tensor | None = None

    def add(self, place: Place, logits: torch.Tensor) -> None:
        """Add the logits (K, X', Y', Z') of the window whose output starts at `place`."""
        if self.total is None:
            self.total = torch.zeros([len(logits), *self.shape], device=self.weight.device)
        row = self.axes[self.row_axis].of_output(place[self.row_axis])
        others = [(axis, start) for i, (axis, start) in enumerate(zip(self.axes, place)) if i != self.row_axis]
        source = (row, *(axis.of_output(start) for axis, start in others))
        target = (row, *(axis.inside(start) for axis, start in others))
        weight = self.importance[source]
        self.weight[target] += weight
        self.total[(slice(None), *target)] += logits.movedim(self.row_axis + 1, 1)[(slice(None), *source)] * weight

    def take(self, row: int, following: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the finished voxels of the row that starts at `row`: those before the next row at `following`."""
        assert self.total is not None
        first = max(row, 0)
        step = max(PIECE // self.total[:, 0].numel(), 1)
        for start in range(first, following, step):
            done = slice(start, min(start + step, following))
            local = slice(done.start - row, done.stop - row)
            yield done, (self.total[:, local] / self.weight[local]).movedim(1, self.row_axis + 1)
        shift = following - row
        for sums in (self.weight, self.total.movedim(1, 0)):
            for i in range(len(sums)):  # one by one: source and target overlap
                sums[i] = sums[i + shift] if i + shift < len(sums) else 0


def _window(roi_size: Any) -> tuple[int, ...]:
    """Return the size of a window along each axis; raise ValueError unless it is one or three whole numbers above 0."""
    sizes = [roi_size] * 3 if isinstance(roi_size, NUMBER) else list(roi_size) if isinstance(roi_size, Iterable) else []
    if len(sizes) != 3 or not all(isinstance(n, NUMBER) and n > 0 and float(n).is_integer() for n in sizes):
        raise ValueError(f"roi_size must be one or three whole numbers of voxels above 0, got {roi_size!r}.")
    return tuple(int(n) for n in sizes)


def _output_size(network: Network, roi_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the output size of a window by the network's ``output_size``; without it, the window's size."""
    output_size = getattr(network, "output_size", None)
    if output_size is None:
        return roi_size
    try:
        return tuple(output_size(roi_size))
    except ValueError as error:
        raise DataError(f"windows of {roi_size} voxels do not suit the network: {error} (roi_size).") from error


def _constants(window: torch.Tensor) -> tuple[float, ...]:
    """Return the value of each channel if all of them are constant, else an empty tuple."""
    low, high = window.flatten(1).aminmax(dim=1)
    return tuple(low.tolist()) if torch.equal(low, high) else ()


def _batches(places: Sequence[Place], size: int) -> Iterable[Sequence[Place]]:
    return (places[i : i + size] for i in range(0, len(places), size))
