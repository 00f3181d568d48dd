"""Segmentation of new volumes: windows, single images, and batches."""

from sparse3dunet.inference.inferers import AutocastInferer
from sparse3dunet.inference.slabs import SlabInferer

__all__ = ["AutocastInferer", "SlabInferer"]
