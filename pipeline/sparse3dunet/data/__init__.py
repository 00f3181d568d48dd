"""Data sets: layouts on disk, conventions for unlabeled voxels, checks, splits and sampling."""
