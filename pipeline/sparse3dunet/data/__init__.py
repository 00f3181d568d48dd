"""Data sets: how they lie on disk, what marks unlabeled voxels, and whether anything is wrong."""
