"""Losses over annotated voxels."""

from sparse3dunet.losses.masked import MaskedCrossEntropyLoss, MaskedDiceCELoss

__all__ = ["MaskedCrossEntropyLoss", "MaskedDiceCELoss"]
