"""Transforms for sparsely annotated volumes, each as an array class and a dictionary version."""

from sparse3dunet.data.label_and_weight import SparseLabel
from sparse3dunet.transforms.annotation import SparseLabeld
from sparse3dunet.transforms.components import CleanComponents, CleanComponentsd
from sparse3dunet.transforms.holdout import HoldOutSlices, HoldOutSlicesd
from sparse3dunet.transforms.image_grid import ImageGridd
from sparse3dunet.transforms.intensity import (
    ChannelWise,
    ChannelWised,
    RandBlur,
    RandGrayValueCurve,
    RandNoise,
    RandShading,
)
from sparse3dunet.transforms.normalize import NormalizeImage, NormalizeImaged
from sparse3dunet.transforms.patches import RandPatchCenter, RandPatchCenterd, UntilAnnotated
from sparse3dunet.transforms.regions import RegionsToClasses, RegionsToClassesd
from sparse3dunet.transforms.simulate import (
    KeepFraction,
    KeepFractiond,
    KeepScribbles,
    KeepScribblesd,
    KeepSlices,
    KeepSlicesd,
)
from sparse3dunet.transforms.spatial.bspline_field import Deformation
from sparse3dunet.transforms.spatial.elastic import RandBSplineElastic, RandBSplineElasticd
from sparse3dunet.transforms.spatial.resample import (
    AnnotationToMatchd,
    ExtentSpacing,
    ExtentSpacingd,
    ResampleAnnotation,
)
from sparse3dunet.transforms.walker import RandomWalkerLabel, RandomWalkerLabeld
from sparse3dunet.transforms.weighting import ClassWeight, ClassWeightd

__all__ = [
    "AnnotationToMatchd",
    "ChannelWise",
    "ChannelWised",
    "ClassWeight",
    "ClassWeightd",
    "CleanComponents",
    "CleanComponentsd",
    "Deformation",
    "ExtentSpacing",
    "ExtentSpacingd",
    "HoldOutSlices",
    "HoldOutSlicesd",
    "ImageGridd",
    "KeepFraction",
    "KeepFractiond",
    "KeepScribbles",
    "KeepScribblesd",
    "KeepSlices",
    "KeepSlicesd",
    "NormalizeImage",
    "NormalizeImaged",
    "RandBSplineElastic",
    "RandBSplineElasticd",
    "RandBlur",
    "RandGrayValueCurve",
    "RandNoise",
    "RandPatchCenter",
    "RandPatchCenterd",
    "RandShading",
    "RandomWalkerLabel",
    "RandomWalkerLabeld",
    "RegionsToClasses",
    "RegionsToClassesd",
    "ResampleAnnotation",
    "SparseLabel",
    "SparseLabeld",
    "UntilAnnotated",
]
