"""Class probabilities of all voxels from the annotated ones, without a network, in seconds."""

from sparse3dunet.propagation.ensemble import Ensemble
from sparse3dunet.propagation.forest import AutoContext, Forest
from sparse3dunet.propagation.random_walker import PriorWalker, RandomWalker
from sparse3dunet.propagation.shape import ShapeInterpolation

__all__ = ["AutoContext", "Ensemble", "Forest", "PriorWalker", "RandomWalker", "ShapeInterpolation"]
