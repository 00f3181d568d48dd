"""sparse3dunet: dense 3D segmentation learned from volumes of which only some slices are annotated."""

__version__ = "0.12.0"
