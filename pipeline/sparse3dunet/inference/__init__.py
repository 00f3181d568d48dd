"""Segmenting new volumes: windows, one image, many."""

from sparse3dunet.inference.inferers import AutocastInferer
from sparse3dunet.inference.slabs import SlabInferer

__all__ = ["AutocastInferer", "SlabInferer"]
