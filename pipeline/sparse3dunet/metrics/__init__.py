"""Scores over annotated voxels."""

from sparse3dunet.metrics.masked import OverlapMetric, class_scores, mean_score, overlap_counts, overlap_scores

__all__ = ["OverlapMetric", "class_scores", "mean_score", "overlap_counts", "overlap_scores"]
