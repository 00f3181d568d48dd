"""What the networks of a densification make of its volumes: the numbers that an estimate of the quality is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from sparse3dunet.calibration import TEMPERATURES, expected_counts, likelihoods
from sparse3dunet.datalist import Case, case_name
from sparse3dunet.densify_plan import hold_out, slices_showing
from sparse3dunet.estimates import FinalCounts, FoldCounts
from sparse3dunet.keys import IMAGE, LABEL, REFERENCE, WEIGHT
from sparse3dunet.metrics import overlap_counts
from sparse3dunet.slices import Slices
from sparse3dunet.target import pack_target
from sparse3dunet.transforms.holdout import TRAINING, VALIDATION

Item = dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """Looks at networks' segmentations of some volumes.

    Args:
        cases: the volumes.
        num_classes: K.
        device: of the networks.
        load: reads a case as the network sees it.
        inferer: predicts a volume.
    """

    cases: Sequence[Case]
    num_classes: int
    device: Any
    load: Callable[[Any], Any]
    inferer: Inferer

    def fold(self, network: torch.nn.Module, held_out: Mapping[str, Slices]) -> FoldCounts:
        """On held-out slices, by case for each axis their indices, and on all others."""
        counts, learned, promised, items = {}, {}, {}, {}
        sums = [0.0] * len(TEMPERATURES)
        keep, leave = (Compose(hold_out(held_out, part)) for part in (VALIDATION, TRAINING))
        for name, item, logits in self._predicted(network, held_out):
            kept = keep(item)
            items[name] = {key: kept[key] for key in (LABEL, WEIGHT)}
            there = _tensor(kept[WEIGHT])[0] > 0
            counts[name], learned[name] = self._counts(logits, kept), self._counts(logits, leave(item))
            promised[name] = torch.stack([expected_counts(logits[:, there], t) for t in TEMPERATURES])
            sums = [a + b for a, b in zip(sums, likelihoods(logits[:, there], _tensor(kept[LABEL])[0][there]))]
        return FoldCounts(counts, learned, promised, sums, slices_showing(items, held_out, self.num_classes))

    def final(self, network: torch.nn.Module, temperature: float) -> FinalCounts:
        """On all annotated voxels, and what the network promises on all others at a temperature."""
        learned, promised = {}, {}
        for name, item, logits in self._predicted(network):
            learned[name] = self._counts(logits, item)
            elsewhere = _tensor(item[WEIGHT])[0] == 0
            if elsewhere.any():
                promised[name] = expected_counts(logits[:, elsewhere], temperature)
        return FinalCounts(learned, promised)

    def _predicted(
        self, network: torch.nn.Module, names: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, Item, torch.Tensor]]:
        """Name, item and logits (K, X, Y, Z) of each case, or of those named."""
        network.eval()
        for case in self.cases:
            name = case_name(case[IMAGE])
            if names is not None and name not in names:
                continue
            item = self.load({key: case[key] for key in case if key != REFERENCE})
            logits = self.inferer(item[IMAGE][None].to(self.device), network)
            yield name, item, _tensor(logits)[0].float().cpu()

    def _counts(self, logits: torch.Tensor, item: Item) -> torch.Tensor:
        target = pack_target(item[LABEL][None], item[WEIGHT][None])
        return overlap_counts(logits.argmax(0)[None, None], target, self.num_classes)[0]


def _tensor(array: Any) -> torch.Tensor:
    found = convert_to_tensor(array, track_meta=False)
    assert isinstance(found, torch.Tensor)
    return found
