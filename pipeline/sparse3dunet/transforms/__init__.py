"""Transforms for sparsely annotated volumes, each an array class and its dictionary twin."""

from sparse3dunet.transforms.annotation import SparseLabel, SparseLabeld
from sparse3dunet.transforms.patches import PatchCenters, PatchCentersd, UntilAnnotated

__all__ = ["PatchCenters", "PatchCentersd", "SparseLabel", "SparseLabeld", "UntilAnnotated"]
