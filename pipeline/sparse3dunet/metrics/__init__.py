"""Scores over annotated voxels: overlap, distances of surfaces, volume."""

from sparse3dunet.metrics.masked import OverlapMetric, class_scores, mean_score, overlap_counts, overlap_scores
from sparse3dunet.metrics.measures import Measures, Summary, measure, summarize
from sparse3dunet.metrics.surfaces import SurfaceDistances, slice_distances, surface_distances
from sparse3dunet.metrics.tolerance import surface_tolerances

__all__ = [
    "Measures",
    "OverlapMetric",
    "Summary",
    "SurfaceDistances",
    "class_scores",
    "mean_score",
    "measure",
    "overlap_counts",
    "overlap_scores",
    "slice_distances",
    "summarize",
    "surface_distances",
    "surface_tolerances",
]
