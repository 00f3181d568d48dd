"""Transforms that move voxels, with label and weight."""
