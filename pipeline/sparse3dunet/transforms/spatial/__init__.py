"""Spatial transforms of image, label and weight."""
