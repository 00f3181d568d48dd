"""Transforms for sparsely annotated volumes, each an array class and its dictionary twin."""

from sparse3dunet.transforms.annotation import SparseLabel, SparseLabeld
from sparse3dunet.transforms.holdout import HoldOutSlices, HoldOutSlicesd
from sparse3dunet.transforms.patches import PatchCenters, PatchCentersd, UntilAnnotated
from sparse3dunet.transforms.resample import AnnotationToMatchd, ExtentSpacing, ExtentSpacingd, ResampleAnnotation
from sparse3dunet.transforms.simulate import (
    KeepFraction,
    KeepFractiond,
    KeepScribbles,
    KeepScribblesd,
    KeepSlices,
    KeepSlicesd,
)
from sparse3dunet.transforms.weighting import ClassWeight, ClassWeightd

__all__ = [
    "AnnotationToMatchd",
    "ClassWeight",
    "ClassWeightd",
    "ExtentSpacing",
    "ExtentSpacingd",
    "HoldOutSlices",
    "HoldOutSlicesd",
    "KeepFraction",
    "KeepFractiond",
    "KeepScribbles",
    "KeepScribblesd",
    "KeepSlices",
    "KeepSlicesd",
    "PatchCenters",
    "PatchCentersd",
    "ResampleAnnotation",
    "SparseLabel",
    "SparseLabeld",
    "UntilAnnotated",
]
