"""Holding out of annotated slices for scoring: cross-validation within volumes."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type

from sparse3dunet.data.label_and_weight import as_tensor
from sparse3dunet.data.names import case_name
from sparse3dunet.data.slices import Slices, checked_slices, find_slices, runs, slices_mask
from sparse3dunet.errors import DataError
from sparse3dunet.keys import WEIGHT

TRAINING, VALIDATION = PARTS = ("training", "validation")


class HoldOutSlices(Transform):
    """Split a volume's annotated slices into folds and keep one part of the annotation.

    As in Çiçek et al. 2016, table 1, a third of the annotated slices is left out each time and used for scoring. The
    slices of all directions are assigned to the folds in turn, beginning with a fold that depends on `name` and `seed`.
    A fold's slices are complete: where training slices cross them, the crossing line is held out as well, so that no
    voxel is both trained on and scored.

    Args:
        fold: the fold to hold out, 0 ... folds-1.
        folds: number of folds.
        part: "training" for the weight without the held-out slices; "validation" for the weight on them only.
        seed: seed of the assignment.
        adjacent_together: whether adjacent slices go to one fold. This is needed if volumes were resampled to smaller
            voxels before, since one annotated slice has then become several.
        listed: slices to hold out instead, by the case's name, as indices for each axis. A case that is not in it keeps
            all slices for training.

    Shapes: weight (1, X, Y, Z) -> weight (1, X, Y, Z); the two parts have no voxel in common and add up to the whole.

    Raises:
        DataError: when the annotation does not consist of slices, or of one slice only; when listed
            slices are none of the case's.

    Example:
        >>> weight = torch.zeros(1, 4, 4, 9)
        >>> weight[..., [1, 4, 7]] = 1  # three annotated axial slices
        >>> training = HoldOutSlices(fold=0, folds=3, part="training")(weight)
        >>> validation = HoldOutSlices(fold=0, folds=3, part="validation")(weight)
        >>> [int(part[0, 0, 0].sum()) for part in (training, validation)]
        [2, 1]
    """

    def __init__(
        self,
        fold: int = 0,
        folds: int = 3,
        part: str = TRAINING,
        seed: int = 0,
        adjacent_together: bool = False,
        listed: Mapping[str, Slices] | None = None,
    ) -> None:
        if part not in PARTS:
            raise ValueError(f"part must be one of {PARTS}, got {part!r}.")
        if not isinstance(folds, int) or folds < 2 or not isinstance(fold, int) or not 0 <= fold < folds:
            raise DataError(f"fold must be 0 ... folds-1 and folds at least 2, got fold {fold!r} of {folds!r}.")
        self.fold, self.folds, self.part, self.seed = fold, folds, part, seed
        self.adjacent_together = adjacent_together
        self.listed = listed

    def __call__(self, weight: Any, name: str = "") -> torch.Tensor:
        tensor = as_tensor(weight, "weight")
        plain = tensor.as_tensor()
        held_out = torch.from_numpy(slices_mask(plain.shape[1:], self.held_out((plain > 0)[0], name)))[None]
        keep = held_out if self.part == VALIDATION else ~held_out
        kept = torch.where(keep.to(plain.device), plain, 0)
        return convert_to_dst_type(kept, tensor, dtype=kept.dtype)[0]

    def held_out(self, annotated: torch.Tensor, name: str = "") -> Slices:
        """Return the slices of this fold by axis, given the (X, Y, Z) annotated voxels and the case's name."""
        if self.listed is not None:
            return checked_slices(self.listed.get(name, [[], [], []]), annotated.shape, name or "a case")
        dense = bool(annotated.all())
        slices = None if dense else find_slices(annotated.cpu().numpy())
        if slices is None:
            what = "every voxel is annotated" if dense else "the annotation is not made of slices"
            raise DataError(
                f"{name or 'a case'}: {what}, so no annotated slices can be held out. Hold out cases instead "
                "(val_fraction), or keep some slices of a dense label (sparse3dunet simulate)."
            )
        by_axis = [runs(indices) if self.adjacent_together else [[index] for index in indices] for indices in slices]
        if sum(map(len, by_axis)) < 2:
            raise DataError(
                f"{name or 'a case'}: only one slice (or run of adjacent ones) is annotated, so none can be held out. "
                "Annotate another one, or remove the case from the list."
            )
        turn = zlib.crc32(f"{name}/{self.seed}".encode(errors="surrogateescape"))
        chosen: Slices = []
        for units in by_axis:
            chosen.append(
                [i for number, unit in enumerate(units, turn) if number % self.folds == self.fold for i in unit]
            )
            # Advanced by one if an axis ends with the fold it began with: the outermost slices of all directions in one
            # fold would make it harder than the others.
            turn += len(units) + (bool(units) and len(units) % self.folds == 0)
        return chosen


class HoldOutSlicesd(MapTransform):
    """Dictionary version of :class:`HoldOutSlices`; the case's name is that of the weight's file.

    Args:
        keys: key of the weight.
        fold: see :class:`HoldOutSlices`.
        folds: see :class:`HoldOutSlices`.
        part: see :class:`HoldOutSlices`.
        seed: see :class:`HoldOutSlices`.
        adjacent_together: see :class:`HoldOutSlices`.
        listed: see :class:`HoldOutSlices`; by the name of the case's image.
        allow_missing_keys: whether to return a dictionary without the weight unchanged.
    """

    def __init__(
        self,
        keys: KeysCollection = WEIGHT,
        *,
        fold: int = 0,
        folds: int = 3,
        part: str = TRAINING,
        seed: int = 0,
        adjacent_together: bool = False,
        listed: Mapping[str, Slices] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.hold_out = HoldOutSlices(fold, folds, part, seed, adjacent_together, listed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if self.hold_out.listed is not None:
                d[key] = self.hold_out(d[key], case_name(d))
                continue
            file = d[key].meta.get("filename_or_obj", "") if isinstance(d[key], MetaTensor) else ""
            # The file's name without its folder, so that a data set that is moved keeps its folds.
            d[key] = self.hold_out(d[key], str(file).replace("\\", "/").rsplit("/", 1)[-1])
        return d
